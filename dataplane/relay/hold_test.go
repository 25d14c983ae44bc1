//go:build unix

package relay

import (
	"testing"
	"time"
)

// TestHold: a loop that is held delivers neither events, timers nor posts, runs
// what it is given, and has lost nothing afterwards.
func TestHold(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		h := Hold(l)
		seen := make(chan string, 8)
		rung := &bell{rings: func() { seen <- "timer" }}
		h.Do(func() { l.Arm(rung, time.Millisecond) })
		l.Post(func() { seen <- "post" })
		h.Do(func() { seen <- "work" })
		if got := <-seen; got != "work" {
			t.Errorf("%s came first", got)
		}
		time.Sleep(5 * time.Millisecond) // the timer is due: that it does not ring is what is tested
		select {
		case got := <-seen:
			t.Errorf("%s while the loop was held", got)
		default:
		}
		h.Release()
		h.Release()
		got := map[string]bool{<-seen: true, <-seen: true}
		if !got["timer"] || !got["post"] {
			t.Errorf("afterwards: %v", got)
		}
	})
	t.Run("closed", func(t *testing.T) {
		loops, err := New(1)
		if err != nil {
			t.Fatal(err)
		}
		loops[0].Close()
		if Hold(loops[0]) != nil {
			t.Error("a closed loop is held")
		}
	})
}

// TestHoldAll: loops stop together, a closed one is none of them, and each begins
// with what it is given.
func TestHoldAll(t *testing.T) {
	eachKind(t, 3, func(t *testing.T, loops []Loop) {
		loops[1].Close()
		var did [3]bool
		held := HoldAll(loops, func(place int) { did[place] = true })
		if did != [...]bool{true, false, true} {
			t.Errorf("stood still, and did what was to be done first: %v", did)
		}
		if held[0] == nil || held[1] != nil || held[2] == nil {
			t.Fatalf("held: %v", held)
		}
		order := make(chan string, 2)
		loops[0].Post(func() { order <- "post" })
		if !held[0].Begin(func() { order <- "first" }) || held[0].Begin(func() { t.Error("begun twice") }) {
			t.Error("it begins once")
		}
		if got := <-order + " " + <-order; got != "first post" {
			t.Errorf("%s", got)
		}
		held[2].Release()
	})
}

// TestSift: what is fetched while a loop is held is reported afterwards, and to
// nobody who has left meanwhile.
func TestSift(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		stays, leaves := tcp(t), tcp(t)
		say(t, stays.peer, "x")
		say(t, leaves.peer, "x")
		awaitReadable(t, stays.fd)
		awaitReadable(t, leaves.fd)
		heard := make(chan Readiness, 64)
		h := Hold(l)
		h.Do(func() {
			for _, err := range []error{l.Watch(stays.fd, hears(heard)), l.Watch(leaves.fd, hears(nil))} {
				if err != nil {
					t.Error(err)
				}
			}
			Sift(l)
			Sift(l)
			l.Unwatch(leaves.fd)
		})
		if len(heard) > 0 {
			t.Error("something was reported while the loop was held")
		}
		h.Release()
		for all := Readiness(0); all&(Readable|Writable) != Readable|Writable; {
			all |= wait(t, heard, "what was fetched")
		}
		on(t, l, func() { l.Unwatch(stays.fd) })
		Close(stays.fd)
		Close(leaves.fd)
	})
}

// hears is told of a descriptor; nil must not be.
type hears chan Readiness

func (h hears) Ready(r Readiness) {
	if h == nil {
		panic("reported after Unwatch")
	}
	h <- r
}

type bell struct{ rings func() }

func (b *bell) Due(time.Time) { b.rings() }
