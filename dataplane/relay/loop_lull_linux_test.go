package relay

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestCredit(t *testing.T) {
	const short, long = spinFor / 2, 2 * spinFor
	repeat := func(n int, d time.Duration) []time.Duration {
		out := make([]time.Duration, n)
		for i := range out {
			out[i] = d
		}
		return out
	}
	for _, c := range []struct {
		name  string
		from  credit
		waits []time.Duration
		spins bool
		block bool // the waits were blocked
	}{
		{"a new loop", 0, nil, false, false},
		{"one short wait is no conversation", 0, repeat(1, short), false, false},
		{"a conversation", 0, repeat(int(creditEnough), short), true, false},
		{"a long one goes on over a pause", 0, append(repeat(100, short), long), true, false},
		{"silence ends it soon", creditMost, repeat(3, long), false, false},
		{"silence costs no more than that", creditMost, repeat(1000, long), false, false},
		{"half of the answers are late", 0, append(repeat(50, long), repeat(3, short)...), false, false},
		{"the core is wanted", creditCrowded, repeat(-int(creditCrowded), short), false, false},
		{"silence does not make up for that", creditCrowded, repeat(1000, long), false, false},
		{"blocked, and woken late", 0, repeat(int(creditEnough), short+spinWake), true, true},
		{"blocked for long", creditMost, repeat(3, long+spinWake), false, true},
		{"no longer wanted", creditCrowded, repeat(int(creditEnough-creditCrowded), short), true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			have := c.from
			for _, d := range c.waits {
				have.note(d, c.block)
			}
			if spins := have >= creditEnough; spins != c.spins {
				t.Errorf("credit %d, spins: %v", have, spins)
			}
		})
	}
}

func TestTurn(t *testing.T) {
	for _, c := range []struct {
		name   string
		turns  []turn
		events int // of the last round
		talked bool
		bulk   int // bytes, at the end
	}{
		{"nothing", []turn{{}}, 0, false, 0},
		{"connections come and go", []turn{{}}, 5, false, 0},
		{"one message", []turn{{copied: 1}}, 1, true, 0},
		{"one message among connections", []turn{{copied: 1}}, 3, false, 0},
		{"messages", []turn{{copied: 8}}, 16, true, 0},
		{"bulk", []turn{{spliced: 100}, {spliced: 200}}, 2, false, 300},
		{"a message beside bulk", []turn{{spliced: 100}, {spliced: 10, copied: 1}}, 2, true, 0},
		{"bulk after a message", []turn{{spliced: 100, copied: 1}, {spliced: 7}}, 1, false, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l epollLoop
			var last turn
			for _, did := range c.turns {
				l.stores.turn = did
				last = l.take()
			}
			if l.stores.turn != (turn{}) {
				t.Errorf("the next round begins with %+v", l.stores.turn)
			}
			if got := last.talked(c.events); got != c.talked {
				t.Errorf("talked: %v", got)
			}
			if l.bulk != c.bulk {
				t.Errorf("%d bytes in bulk, want %d", l.bulk, c.bulk)
			}
		})
	}
}

// A loop that spins hears of what is posted from elsewhere, and of its end.
func TestSpinEnds(t *testing.T) {
	l := testEpoll(t)
	k := tcp(t)
	defer Close(k.fd)
	on(t, l, func() { l.credit = creditMost })
	for range 100 {
		on(t, l, func() { l.stores.turn.copied = 1 })
	}
	on(t, l, func() {
		if n := l.spin(nil); n != 0 {
			t.Errorf("%d events out of nothing", n)
		}
		if err := l.Watch(k.fd, ready(func(Readiness) {})); err != nil {
			t.Error(err)
		}
		if n := l.spin(nil); n != 1 {
			t.Errorf("%d events of a writable descriptor", n)
		}
		l.Unwatch(k.fd)
	})
	on(t, l, func() { l.credit, l.stores.turn.copied = creditMost, 1 }) // it spins when it is closed
}

// What a loop finds where it expects an answer is passed on, once, and is a
// message of the next turn like one that an event has told of.
func TestSpinPolls(t *testing.T) {
	l := testEpoll(t)
	r := startRelay(t, l, 0)
	on(t, l, func() {
		if _, err := io.WriteString(r.left, "ping"); err != nil {
			t.Error(err)
		}
		awaitReadable(t, int(r.relay.a.fd))
		if !r.relay.a.poll() || l.stores.turn.answer != &r.relay.b {
			t.Errorf("after a message to b: %+v", l.stores.turn)
		}
		l.take()
		if _, err := io.WriteString(r.right, "pong"); err != nil {
			t.Error(err)
		}
		awaitReadable(t, int(r.relay.b.fd))
		n := l.spin(&r.relay.b)
		if did := l.stores.turn; !did.polled || did.copied != 1 || did.answer != &r.relay.a {
			t.Errorf("%d events and %+v of an answer", n, did)
		}
		for i := range n {
			l.dispatch(&l.events[i])
		}
		if did := l.stores.turn; did.copied != 1 {
			t.Errorf("its event makes %d messages of it", did.copied)
		}
	})
	want(t, r.right, "ping")
	want(t, r.left, "pong")
	say(t, r.left, "again")
	want(t, r.right, "again")
}

// An end that is found where an answer is expected is acted upon: the loop does
// not go to sleep on timers and closes that follow from it.
func TestSpinFindsEnd(t *testing.T) {
	l := testEpoll(t)
	for _, c := range []struct {
		name string
		end  func(c *net.TCPConn) error
	}{
		{"end of the stream", (*net.TCPConn).CloseWrite},
		{"reset", func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := startRelay(t, l, 0)
			on(t, l, func() {
				if err := c.end(r.right); err != nil {
					t.Error(err)
				}
				awaitReadable(t, int(r.relay.b.fd))
				n := l.spin(&r.relay.b)
				if !l.stores.turn.polled {
					t.Error("no round follows")
				}
				for i := range n {
					l.dispatch(&l.events[i])
				}
			})
			if n, err := r.left.Read(make([]byte, 1)); err == nil {
				t.Errorf("read %d bytes; want the end", n)
			}
		})
	}
}

// A side whose relay is over, or another process's too, is left alone.
func TestPollLeaves(t *testing.T) {
	l := testEpoll(t)
	for _, c := range []struct {
		name string
		end  func(r *Relay)
		gone bool
	}{
		{"shared", func(r *Relay) { r.Share() }, false},
		{"taken", func(r *Relay) { s := r.Take(); Close(s.A.FD); Close(s.B.FD) }, true},
		{"over", func(r *Relay) { r.Abort() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := startRelay(t, l, 0)
			on(t, l, func() {
				if _, err := io.WriteString(r.left, "x"); err != nil {
					t.Error(err)
				}
				awaitReadable(t, int(r.relay.a.fd))
				c.end(r.relay)
				if r.relay.a.poll() {
					t.Error("it was read from")
				}
			})
			if !c.gone {
				want(t, r.right, "x") // by its event
			}
		})
	}
}

// A loop that is busy cedes before the runtime makes it, and one that comes back
// from a long wait does not.
func TestCede(t *testing.T) {
	l := testEpoll(t)
	on(t, l, func() {
		l.ceded = l.now.Add(-cedeEvery + 1)
		before := l.ceded
		if l.cede(); l.ceded != before {
			t.Error("ceded too soon")
		}
		l.ceded = l.now.Add(-cedeEvery)
		if l.cede(); l.ceded != l.now {
			t.Error("not ceded in time")
		}
	})
	woken := make(chan struct{})
	on(t, l, func() {
		l.Arm((*timer)(new(func(time.Time) {
			defer close(woken)
			if l.ceded == l.now {
				t.Error("ceded though it has slept")
			}
			if l.now.Sub(l.ceded) >= cedeEvery {
				t.Error("the sleep is not noted")
			}
		})), 3*cedeEvery)
	})
	wait(t, woken, "the timer")
}

// A nap is one round's, and loses no event.
func TestGather(t *testing.T) {
	l := testEpoll(t)
	r := startRelay(t, l, 0)
	for range 100 {
		on(t, l, func() { l.bulk, l.stores.turn = gatherAfter, turn{spliced: gatherLeast} })
		say(t, r.left, "x")
		want(t, r.right, "x")
	}
}

func testEpoll(t *testing.T) *epollLoop {
	t.Helper()
	l, err := NewEpoll()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*epollLoop)
}
