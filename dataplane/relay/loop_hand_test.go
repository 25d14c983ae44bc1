//go:build unix

package relay

import (
	"testing"

	"golang.org/x/sys/unix"
)

// bareLoop hides what a loop can do beyond Loop.
type bareLoop struct{ Loop }

// eachHand runs f with both loops, and with one that cannot hand on.
func eachHand(t *testing.T, f func(t *testing.T, l Loop)) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		t.Run("own", func(t *testing.T) { f(t, loops[0]) })
		t.Run("bare", func(t *testing.T) { f(t, bareLoop{loops[0]}) })
	})
}

func TestHand(t *testing.T) {
	eachHand(t, func(t *testing.T, l Loop) {
		k := tcp(t)
		first, second := make(chan Readiness, 64), make(chan Readiness, 64)
		on(t, l, func() {
			if past, err := Hand(l, k.fd, ready(func(r Readiness) { first <- r })); err != nil || past != 0 {
				t.Errorf("handed a descriptor that nobody watched: %v, %v", past, err)
			}
		})
		say(t, k.peer, "x")
		k.peer.CloseWrite()
		for got := Readiness(0); got&(Readable|Ending) != Readable|Ending; {
			got |= wait(t, first, "the first handler's event")
		}
		var past Readiness
		on(t, l, func() {
			for len(first) > 0 {
				<-first
			}
			var err error
			if past, err = Hand(l, k.fd, ready(func(r Readiness) { second <- r })); err != nil {
				t.Error(err)
			}
		})
		for past&Ending == 0 { // else it is reported again
			past |= wait(t, second, "the second handler's event")
		}
		resetPeer(t, k.peer)
		for got := Readiness(0); got&HungUp == 0; {
			got |= wait(t, second, "the second handler's event")
		}
		on(t, l, func() { Discard(l, k.fd) })
		if len(first) != 0 {
			t.Error("the first handler heard of it after it was replaced")
		}
	})
}

// The end of a stream that was reported before a relay began is not reported
// again: the relay knows all the same.
func TestHandedOverEnd(t *testing.T) {
	eachHand(t, func(t *testing.T, l Loop) {
		a, b := tcp(t), tcp(t)
		seen := make(chan Readiness, 64)
		on(t, l, func() { l.Watch(a.fd, ready(func(r Readiness) { seen <- r })) })
		say(t, a.peer, "all of it")
		a.peer.CloseWrite()
		for got := Readiness(0); got&Ending == 0; {
			got |= wait(t, seen, "an event")
		}
		r := startLinks(t, l, a, b, State{A: End{Drained: true}}) // it was, before the end came
		want(t, b.peer, "all of it")
		wantEOF(t, b.peer)
		b.peer.CloseWrite()
		r.wantEnd(t, EndedClosed)
	})
}

// A relay that begins with a drained descriptor hears of what comes later.
func TestStartsDrained(t *testing.T) {
	eachHand(t, func(t *testing.T, l Loop) {
		a, b := tcp(t), tcp(t)
		seen := make(chan Readiness, 64)
		on(t, l, func() { l.Watch(a.fd, ready(func(r Readiness) { seen <- r })) })
		wait(t, seen, "an event")
		r := startLinks(t, l, a, b, State{A: End{Drained: true}})
		for range 3 {
			say(t, a.peer, "later")
			want(t, b.peer, "later")
			say(t, b.peer, "answer")
			want(t, a.peer, "answer")
		}
		a.peer.CloseWrite()
		wantEOF(t, b.peer)
		b.peer.CloseWrite()
		r.wantEnd(t, EndedClosed)
	})
}

// A discarded descriptor is closed, and its number's next owner hears nothing
// that was meant for it.
func TestDiscard(t *testing.T) {
	eachHand(t, func(t *testing.T, l Loop) {
		k, next := tcp(t), tcp(t)
		say(t, k.peer, "x")
		awaitReadable(t, k.fd)
		var old, stale int
		on(t, l, func() {
			l.Watch(k.fd, ready(func(Readiness) { old++ }))
			Discard(l, k.fd)
			if err := unix.Dup2(next.fd, k.fd); err != nil {
				t.Error(err)
			}
			l.Watch(k.fd, ready(func(r Readiness) {
				if r&Readable != 0 {
					stale++
				}
			}))
		})
		wantEOFOrReset(t, k)
		for range 10 {
			on(t, l, func() {})
		}
		on(t, l, func() {
			if old != 0 || stale != 0 {
				t.Errorf("%d events after Discard, %d to the number's next owner", old, stale)
			}
			Discard(l, k.fd)
			Discard(l, next.fd) // that nobody watches
		})
	})
}

// wantEOFOrReset: a close with unread input resets (RFC 1122 section 4.2.2.13).
func wantEOFOrReset(t *testing.T, k link) {
	t.Helper()
	if n, err := k.peer.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of a connection that is closed", n)
	}
}
