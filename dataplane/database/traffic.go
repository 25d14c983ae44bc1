package database

import (
	"sync/atomic"
	"time"
)

// Traffic is what has moved in a session, and when the client last said something. Its methods may be called
// concurrently.
type Traffic struct {
	received, sent atomic.Int64
	active         atomic.Int64 // when the client last said something, since began
	began          time.Time
}

// Begin comes before all else.
func (t *Traffic) Begin() { t.began = time.Now() }

// Received notes n bytes of the client's.
func (t *Traffic) Received(n int) {
	t.received.Add(int64(n))
	t.active.Store(int64(time.Since(t.began)))
}

// Sent notes n bytes that the client was sent.
func (t *Traffic) Sent(n int) { t.sent.Add(int64(n)) }

// Totals are the bytes that were received and sent.
func (t *Traffic) Totals() (received, sent int64) { return t.received.Load(), t.sent.Load() }

// IdleFor is how long the client has said nothing. What it is sent does not keep a
// session alive, as with session.Idle: a client could ask once for an answer that
// never ends.
func (t *Traffic) IdleFor() time.Duration {
	return time.Since(t.began) - time.Duration(t.active.Load())
}
