package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// talk is a control connection after hello and welcome, the same for both
// halves: one goroutine reads, one writes. Each side pings; whoever hears
// nothing at all for a while believes the other dead.
type talk struct {
	conn  *tls.Conn
	ping  time.Duration
	dead  time.Duration
	out   chan *tunnelv1.Control
	wake  chan struct{} // capacity 1: something to say has been left elsewhere
	round atomic.Int64  // the last round trip, nanoseconds
	until time.Time     // the end of the peer's certificate
	now   func() time.Time

	// pull is called on the writer's goroutine after a poke, and returns what
	// is to be said. tick is called there once a second. Either may be nil.
	pull func() []*tunnelv1.Control
	tick func(now time.Time)
}

// outbox is how many messages may wait for a slow peer. More means that the
// peer does not read, and the connection ends.
const outbox = 256

// tickInterval is that of pool sizes.
const tickInterval = time.Second

// lastWords is how long a goodbye may take.
const lastWords = time.Second

// slowest is the rate that a large message is given: 32 KiB/s.
const slowest = 32 << 10

// Why a control connection ended.
var (
	ErrDead    = errors.New("nothing was heard for too long")
	ErrGoodbye = errors.New("the other side said goodbye")
	errSlow    = errors.New("the other side does not read")
	errExpired = errors.New("the other side's certificate has expired")
)

func newTalk(conn *tls.Conn, ping, dead time.Duration, now func() time.Time) *talk {
	return &talk{
		conn: conn, ping: ping, dead: dead, until: conn.ConnectionState().PeerCertificates[0].NotAfter, now: now,
		out: make(chan *tunnelv1.Control, outbox), wake: make(chan struct{}, 1),
	}
}

// send leaves a message for the writer. It never blocks; false means that the
// peer is too slow.
func (t *talk) send(m *tunnelv1.Control) bool {
	select {
	case t.out <- m:
		return true
	default:
		return false
	}
}

// poke makes the writer call pull.
func (t *talk) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run talks until the connection, the context or a message ends it, and returns
// why. handle is called for each message, one at a time; the connection has
// been closed when run returns. ended is called as soon as the end is known,
// before the goodbye.
func (t *talk) run(ctx context.Context, handle func(*tunnelv1.Control) error, ended func()) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, t.hurry)()
	ended = sync.OnceFunc(ended)
	g.Go(func() error { return t.write(ctx, end, ended) })
	g.Go(func() error { return t.read(handle, ended) })
	_ = g.Wait() // what came first counts, and that may be the parent's cause
	return context.Cause(ctx)
}

// hurry ends a write that is under way when the connection is over.
func (t *talk) hurry() { _ = t.conn.SetWriteDeadline(time.Now().Add(lastWords)) }

// read ends with an error always: the writer closes the connection.
func (t *talk) read(handle func(*tunnelv1.Control) error, ended func()) error {
	defer ended()
	c := controlReader{r: lively{t.conn, t.dead}}
	for {
		m, err := c.next()
		if err != nil {
			return readError(err)
		}
		if err := t.hear(m, handle); err != nil {
			return err
		}
	}
}

func (t *talk) hear(m *tunnelv1.Control, handle func(*tunnelv1.Control) error) error {
	switch k := m.Message.(type) {
	case nil:
		return nil // of a later version
	case *tunnelv1.Control_Ping:
		pong := &tunnelv1.Pong{Sequence: k.Ping.GetSequence()}
		if !t.send(&tunnelv1.Control{Message: &tunnelv1.Control_Pong{Pong: pong}}) {
			return errSlow
		}
		return nil
	case *tunnelv1.Control_Pong:
		if sent := int64(k.Pong.GetSequence()); sent > 0 {
			t.round.Store(max(time.Now().UnixNano()-sent, 0))
		}
		return nil
	case *tunnelv1.Control_Goodbye:
		return fmt.Errorf("%w: %s", ErrGoodbye, word(k.Goodbye.GetReason()))
	}
	return handle(m)
}

// write owns the closing of the connection. end says why before it closes: the
// reader's error comes after that, and says only that it was closed.
func (t *talk) write(ctx context.Context, end context.CancelCauseFunc, ended func()) error {
	pings, ticks := time.NewTicker(t.ping), time.NewTicker(tickInterval)
	defer pings.Stop()
	defer ticks.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			ended()
			t.bye(context.Cause(ctx))
			return ctx.Err()
		case m := <-t.out:
			err = t.putQueued(m)
		case <-t.wake:
			err = t.putAll()
		case now := <-pings.C:
			err = t.put(&tunnelv1.Control{Message: &tunnelv1.Control_Ping{Ping: &tunnelv1.Ping{Sequence: uint64(now.UnixNano())}}})
		case now := <-ticks.C:
			if t.tick != nil {
				t.tick(now)
			}
			if t.now().After(t.until) {
				end(errExpired)
			}
		}
		if err != nil {
			end(err)
			ended()
			t.conn.NetConn().Close()
			return err
		}
	}
}

func (t *talk) putAll() error {
	if t.pull == nil {
		return nil
	}
	for _, m := range t.pull() {
		if err := t.put(m); err != nil {
			return err
		}
	}
	return nil
}

// putQueued writes a message and those that wait behind it, in one record.
func (t *talk) putQueued(m *tunnelv1.Control) error {
	b, err := AppendControl(nil, m)
	for err == nil && len(b) < slowest {
		select {
		case m = <-t.out:
			b, err = AppendControl(b, m)
			continue
		default:
		}
		break
	}
	if err != nil {
		return err
	}
	return putRaw(t.conn, b, t.dead)
}

func (t *talk) put(m *tunnelv1.Control) error { return putControl(t.conn, m, t.dead) }

// bye says what is left and why, if it can, and closes.
func (t *talk) bye(cause error) {
	if !errors.Is(cause, ErrDead) && !errors.Is(cause, ErrGoodbye) {
		t.flush()
	}
	m := &tunnelv1.Control{Message: &tunnelv1.Control_Goodbye{Goodbye: &tunnelv1.Goodbye{Reason: byeReason(cause)}}}
	if errors.Is(cause, ErrGoodbye) || putControl(t.conn, m, lastWords) != nil {
		t.conn.NetConn().Close()
		return
	}
	t.conn.Close()
}

// flush writes what still waits. An error is met again by the goodbye.
func (t *talk) flush() {
	for {
		select {
		case m := <-t.out:
			if putControl(t.conn, m, lastWords) != nil {
				return
			}
		default:
			return
		}
	}
}

func byeReason(cause error) string {
	switch {
	case errors.Is(cause, errReplaced), errors.Is(cause, errFollowed):
		return "replaced"
	case errors.Is(cause, ErrDead):
		return "dead"
	case errors.Is(cause, errDrained):
		return "drain"
	case errors.Is(cause, errEvicted):
		return "evicted"
	case errors.Is(cause, errTooMany), errors.Is(cause, errGreetings):
		return "full"
	case errors.Is(cause, errExpired):
		return "certificate"
	case errors.Is(cause, errAssignment):
		return "assignment"
	case errors.Is(cause, context.Canceled):
		return "shutdown"
	}
	return "protocol"
}

// putControl writes one message with a deadline.
func putControl(c net.Conn, m *tunnelv1.Control, wait time.Duration) error {
	b, err := AppendControl(nil, m)
	if err != nil {
		return err
	}
	return putRaw(c, b, wait)
}

// putRaw writes encoded messages with a deadline.
func putRaw(c net.Conn, b []byte, wait time.Duration) error {
	if len(b) == 0 {
		return nil
	}
	wait += time.Duration(len(b)/slowest) * time.Second
	if err := c.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}

// lively is a reader whose deadline moves with the bytes that arrive.
type lively struct {
	conn net.Conn
	wait time.Duration
}

func (l lively) Read(b []byte) (int, error) {
	if err := l.conn.SetReadDeadline(time.Now().Add(l.wait)); err != nil {
		return 0, err
	}
	return l.conn.Read(b)
}

func readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrDead
	}
	return err
}

// maxWord bounds what a peer may make us write to a log or count.
const maxWord = 32

// word makes a reason of a peer fit for a log: a short word of plain letters.
func word(s string) string {
	if len(s) > maxWord {
		s = s[:maxWord]
	}
	b := []byte(s)
	for i, c := range b {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			b[i] = '_'
		}
	}
	return string(b)
}
