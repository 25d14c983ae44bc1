//go:build unix

package relay

import (
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// handler is a Handler that is a function.
type handler func(Readiness)

func (h *handler) Ready(r Readiness) { (*h)(r) }

func ready(f func(Readiness)) *handler { return (*handler)(&f) }

// timer is a Timer that is a function.
type timer func(time.Time)

func (t *timer) Due(now time.Time) { (*t)(now) }

func due(f func(time.Time)) *timer { return (*timer)(&f) }

func TestLoopPost(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		const posters, each = 4, 1000
		got := make([][]int, posters) // the loop's
		var wg sync.WaitGroup
		for p := range posters {
			wg.Go(func() {
				for i := range each {
					l.Post(func() { got[p] = append(got[p], i) })
				}
			})
		}
		wg.Wait()
		on(t, l, func() {
			for p := range posters {
				if len(got[p]) != each || !slices.IsSorted(got[p]) {
					t.Errorf("poster %d: %d functions run, in order %v", p, len(got[p]), slices.IsSorted(got[p]))
				}
			}
		})
	})
}

func TestLoopPostFromItself(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		done := make(chan int)
		var step func(n int)
		step = func(n int) {
			if n == 100 {
				close(done)
				return
			}
			loops[0].Post(func() { step(n + 1) })
		}
		loops[0].Post(func() { step(0) })
		wait(t, done, "the last of 100 steps")
	})
}

func TestLoopClose(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		k := tcp(t)
		defer unix.Close(k.fd)

		var accepted, ran int
		var mu sync.Mutex
		started := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; ; i++ {
				if !l.Post(func() { mu.Lock(); ran++; mu.Unlock() }) {
					return
				}
				accepted++
				if i == 0 {
					close(started)
				}
			}
		})
		on(t, l, func() { l.Watch(k.fd, ready(func(Readiness) {})) })
		wait(t, started, "the first post")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if accepted != ran {
			t.Errorf("%d functions were accepted and %d run", accepted, ran)
		}
		if l.Post(func() { t.Error("run after Close") }) {
			t.Error("Post accepted after Close")
		}
		if err := l.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if _, err := Write(k.fd, []byte("x")); err != nil {
			t.Errorf("the watched descriptor after Close: %v", err)
		}
	})
}

func TestLoopTimers(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		type call struct {
			name int
			late time.Duration
		}
		calls := make(chan call, 16)
		arms := func() (took time.Duration, all []*timer) {
			arm := func(name int, after time.Duration) *timer {
				begin := time.Now()
				d := due(func(time.Time) { calls <- call{name, time.Since(begin) - after} })
				l.Arm(d, after)
				all = append(all, d)
				return d
			}
			begin := time.Now()
			arm(5, 50*time.Millisecond)
			arm(1, 11*time.Millisecond)
			never := arm(99, 15*time.Millisecond)
			arm(3, 13*time.Millisecond) // the same step as 1 and 2
			arm(2, 12*time.Millisecond)
			moves := time.Now()
			moved := due(func(time.Time) { calls <- call{4, time.Since(moves) - 30*time.Millisecond} })
			all = append(all, moved)
			l.Arm(moved, 5*time.Millisecond)
			l.Arm(moved, time.Hour)
			l.Arm(moved, 30*time.Millisecond)
			arm(0, -time.Second)
			l.Disarm(never)
			l.Disarm(never)
			return time.Since(begin), all
		}
		on(t, l, func() {
			// Each is due so long after it was armed: a pause between two of them
			// would change their order.
			for took, all := arms(); took >= time.Millisecond; took, all = arms() {
				for _, d := range all {
					l.Disarm(d)
				}
			}
		})
		for want := range 6 {
			c := wait(t, calls, "a timer")
			if c.name != want {
				t.Errorf("timer %d was called in place %d", c.name, want)
			}
			if c.late < 0 {
				t.Errorf("timer %d was %v early", c.name, -c.late)
			}
		}
		on(t, l, func() {})
		if len(calls) != 0 {
			t.Errorf("timer %d was called too", (<-calls).name)
		}
	})
}

// A timer that arms itself without a delay must not keep the loop from events.
func TestLoopTimerArmsItself(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		var again *timer
		again = due(func(time.Time) { l.Arm(again, 0) })
		on(t, l, func() { l.Arm(again, 0) })
		on(t, l, func() { l.Disarm(again) })
	})
}

func TestTimersAgainstModel(t *testing.T) {
	ts := newTimers()
	all := make([]*timer, 200)
	for i := range all {
		all[i] = due(func(time.Time) {})
	}
	state := uint32(1)
	next := func(n int) int {
		state = state*1664525 + 1013904223
		return int(state>>8) % n
	}
	for range 20000 {
		tm := all[next(len(all))]
		if next(3) == 0 {
			ts.disarm(tm)
		} else {
			ts.arm(tm, time.Duration(next(1000))*time.Hour)
		}
	}
	if len(ts.heap) != len(ts.by) {
		t.Fatalf("%d in the heap, %d in the index", len(ts.heap), len(ts.by))
	}
	last := time.Duration(0)
	for len(ts.heap) > 0 {
		e := ts.heap[0]
		if e.at < last || e.pos != 0 || ts.by[e.timer] != e {
			t.Fatalf("entry at %v after %v, position %d", e.at, last, e.pos)
		}
		last = e.at
		ts.disarm(e.timer)
	}
}

// The heap itself is exact; only waits are rounded, and upwards.
func TestTimersNotEarly(t *testing.T) {
	ts := newTimers()
	calls := 0
	tm := due(func(time.Time) { calls++ })
	before := time.Now()
	if d := ts.wait(before); d >= 0 {
		t.Errorf("a wait of %v without a timer", d)
	}
	ts.arm(tm, time.Hour)
	after := time.Now()
	if d := ts.wait(after); d < time.Hour-after.Sub(before) || d > time.Hour+timerStep {
		t.Errorf("a wait of %v for an hour", d)
	}
	ts.runDue(before.Add(time.Hour - 1))
	if calls != 0 {
		t.Error("called early")
	}
	due := after.Add(time.Hour)
	if d := ts.wait(due); d != 0 {
		t.Errorf("a wait of %v when it is time", d)
	}
	ts.runDue(due)
	ts.runDue(due)
	if calls != 1 {
		t.Errorf("called %d times", calls)
	}
}

// The same where the clock is coarse, or the round late.
func TestTimersOncePerRound(t *testing.T) {
	ts := newTimers()
	calls := 0
	var again *timer
	again = due(func(time.Time) {
		if calls++; calls < 100 {
			ts.arm(again, 0)
		}
	})
	ts.arm(again, 0)
	ts.runDue(time.Now().Add(time.Hour))
	if calls != 1 {
		t.Errorf("called %d times in one round", calls)
	}
}

func TestLoopWatch(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		k := tcp(t)
		seen := make(chan Readiness, 64)
		say(t, k.peer, "already there")
		awaitReadable(t, k.fd)
		h := ready(func(r Readiness) { seen <- r })
		on(t, l, func() {
			if err := l.Watch(k.fd, h); err != nil {
				t.Error(err)
			}
		})
		await := func(want Readiness) {
			t.Helper()
			for got := Readiness(0); got&want != want; {
				got |= wait(t, seen, "an event")
			}
		}
		await(Readable | Writable)

		on(t, l, func() { Read(k.fd, l.Scratch()) })
		say(t, k.peer, "more")
		await(Readable)

		k.peer.CloseWrite()
		await(Readable | Ending)

		resetPeer(t, k.peer)
		await(HungUp | Failed)

		on(t, l, func() { l.Unwatch(k.fd); l.Unwatch(k.fd); unix.Close(k.fd) })
	})
}

// A second Watch moves the descriptor to the new handler, which hears what is
// there already.
func TestLoopWatchMoves(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		k := tcp(t)
		say(t, k.peer, "x")
		first, second := make(chan Readiness, 64), make(chan Readiness, 64)
		on(t, l, func() { l.Watch(k.fd, ready(func(r Readiness) { first <- r })) })
		wait(t, first, "the first handler's event")
		on(t, l, func() {
			for len(first) > 0 {
				<-first
			}
			if err := l.Watch(k.fd, ready(func(r Readiness) { second <- r })); err != nil {
				t.Error(err)
			}
		})
		for got := Readiness(0); got&Readable == 0; {
			got |= wait(t, second, "the second handler's event")
		}
		on(t, l, func() { l.Unwatch(k.fd); unix.Close(k.fd) })
		if len(first) != 0 {
			t.Error("the first handler heard of it after it was replaced")
		}
	})
}

// Events that were fetched together with the one that makes them stale reach
// nobody, not even the next owner of the descriptor's number.
func TestLoopNoStaleEvents(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		const n = 8
		links := make([]link, n)
		for i := range links {
			links[i] = tcp(t)
			say(t, links[i].peer, "x")
			awaitReadable(t, links[i].fd)
		}
		fresh := tcp(t) // nothing to read here
		var first bool
		var late, stale int
		on(t, l, func() {
			for i := range links {
				fd := links[i].fd
				h := ready(func(r Readiness) {
					if r&Readable == 0 {
						return
					}
					if first {
						late++
						return
					}
					first = true
					for _, k := range links {
						l.Unwatch(k.fd)
					}
					// The number lives on as another socket.
					if err := unix.Dup2(fresh.fd, links[(i+1)%n].fd); err != nil {
						t.Error(err)
					}
					l.Watch(links[(i+1)%n].fd, ready(func(r Readiness) {
						if r&Readable != 0 {
							stale++
						}
					}))
				})
				if err := l.Watch(fd, h); err != nil {
					t.Error(err)
				}
			}
		})
		until(t, "the first event", func() bool {
			var ok bool
			on(t, l, func() { ok = first })
			return ok
		})
		for range 10 {
			on(t, l, func() {})
		}
		on(t, l, func() {
			if late != 0 || stale != 0 {
				t.Errorf("%d events after Unwatch, %d to the number's next owner", late, stale)
			}
			for _, k := range links {
				l.Unwatch(k.fd)
				unix.Close(k.fd)
			}
			unix.Close(fresh.fd)
		})
	})
}

func TestLoopWatchRefuses(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		k := tcp(t)
		unix.Close(k.fd)
		on(t, loops[0], func() {
			if err := loops[0].Watch(k.fd, ready(func(Readiness) {})); err == nil {
				t.Error("a closed descriptor was taken")
			}
			loops[0].Unwatch(k.fd)
		})
	})
}

// Now is steady within a round and moves between rounds.
func TestLoopNow(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		before := time.Now()
		on(t, l, func() {
			a := l.Now()
			for begin := time.Now(); time.Since(begin) < time.Millisecond; {
			}
			if b := l.Now(); !a.Equal(b) || a.Before(before.Add(-time.Minute)) {
				t.Errorf("now is %v and then %v", a, b)
			}
			if len(l.Scratch()) != ScratchSize {
				t.Errorf("scratch of %d bytes", len(l.Scratch()))
			}
		})
	})
}

func TestNew(t *testing.T) {
	noLeak(t)
	loops, err := New(4)
	if err != nil || len(loops) != 4 {
		t.Fatalf("%d loops, %v", len(loops), err)
	}
	for _, l := range loops {
		l.Close()
	}
}
