package database

import (
	"sync/atomic"
	"time"
)

// Traffic is what has moved in a session, and when. Its methods may be called
// concurrently.
type Traffic struct {
	received, sent atomic.Int64
	active         atomic.Int64 // when bytes last moved, since began
	began          time.Time
}

// Begin comes before all else.
func (t *Traffic) Begin() { t.began = time.Now() }

// Received notes n bytes of the client's.
func (t *Traffic) Received(n int) { t.moved(&t.received, n) }

// Sent notes n bytes that the client was sent.
func (t *Traffic) Sent(n int) { t.moved(&t.sent, n) }

func (t *Traffic) moved(sum *atomic.Int64, n int) {
	sum.Add(int64(n))
	t.active.Store(int64(time.Since(t.began)))
}

// Totals are the bytes that were received and sent.
func (t *Traffic) Totals() (received, sent int64) { return t.received.Load(), t.sent.Load() }

// IdleFor is how long nothing has moved.
func (t *Traffic) IdleFor() time.Duration {
	return time.Since(t.began) - time.Duration(t.active.Load())
}
