package relay

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeRing does what it is told to, and closes what it is not told to fail.
type fakeRing struct {
	added []int
	made  [][]int
	freed bool

	results []syscall.Errno // of the next Make; nil for all good
	err     error
}

func (f *fakeRing) Close(fd int) bool { f.added = append(f.added, fd); return true }
func (f *fakeRing) Free()             { f.freed = true }

func (f *fakeRing) Make() ([]syscall.Errno, error) {
	fds := f.added
	f.added, f.made = nil, append(f.made, fds)
	results := f.results
	if results == nil {
		results = make([]syscall.Errno, len(fds))
	}
	for i, errno := range results {
		if errno == 0 {
			closeFD(fds[i])
		}
	}
	return results, f.err
}

func batchedWith(t *testing.T, ring *fakeRing) Loop {
	t.Helper()
	noLeak(t)
	l, err := newEpoll(func() (closer, error) { return ring, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		if !ring.freed {
			t.Error("the ring is left")
		}
	})
	return l
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// Within a turn what is discarded stays open, so that its number is nobody
// else's; at the end all is closed at once, in order. One alone needs no ring.
func TestBatch(t *testing.T) {
	ring := &fakeRing{}
	l := batchedWith(t, ring)
	fds := []int{tcp(t).fd, tcp(t).fd, tcp(t).fd}
	on(t, l, func() {
		for _, fd := range fds {
			if err := l.Watch(fd, ready(func(Readiness) { t.Error("told of what was discarded") })); err != nil {
				t.Error(err)
			}
			Discard(l, fd)
		}
		for _, fd := range fds {
			if !isOpen(fd) {
				t.Error("closed within the turn")
			}
		}
	})
	on(t, l, func() {
		if len(ring.made) != 1 || !slices.Equal(ring.made[0], fds) {
			t.Errorf("closed %v, want %v at once", ring.made, fds)
		}
		for _, fd := range fds {
			if isOpen(fd) {
				t.Error("open after the turn")
			}
		}
	})
	if got := BatchingOf(l); !got.On || got.Refused != nil || got.Made != 1 || got.Calls != 3 || got.Failed != 0 {
		t.Errorf("%+v", got)
	}
	one := tcp(t).fd
	on(t, l, func() { Discard(l, one) })
	on(t, l, func() {
		if isOpen(one) || len(ring.made) != 1 {
			t.Error("one alone is not closed, or by a ring")
		}
	})
}

// What is put off is bounded, and can be had at once.
func TestBatchBounds(t *testing.T) {
	ring := &fakeRing{}
	l := batchedWith(t, ring)
	on(t, l, func() {
		for range batchMost + 3 {
			Discard(l, eventFD(t))
		}
		if len(ring.made) != 1 || len(ring.made[0]) != batchMost {
			t.Errorf("%d batches while %d were put off", len(ring.made), batchMost+3)
		}
		if !Flush(l) || len(ring.made) != 2 || len(ring.made[1]) != 3 {
			t.Error("the rest is not to be had")
		}
		if Flush(l) {
			t.Error("flushed nothing")
		}
	})
}

func eventFD(t *testing.T) int {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Error(err)
	}
	return fd
}

// Every call has an end, whatever the kernel says of it: what it has not tried
// is made by itself, what it has tried is not made twice, for by then the number
// may be another's.
func TestBatchErrors(t *testing.T) {
	for _, c := range []struct {
		name    string
		results []syscall.Errno
		err     error
		left    []bool // open at the end: what the fake has said it tried
		failed  uint64
		on      bool
	}{
		{"not tried", []syscall.Errno{0, unix.EINVAL, 0}, nil, []bool{false, false, false}, 1, true},
		{"tried", []syscall.Errno{unix.EBADF, unix.EIO, unix.EINTR}, nil, []bool{true, true, true}, 3, true},
		{"not taken", []syscall.Errno{0}, unix.EAGAIN, []bool{false, false, false}, 2, false},
		{"none taken", []syscall.Errno{}, unix.EBADF, []bool{false, false, false}, 3, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ring := &fakeRing{results: c.results, err: c.err}
			l := batchedWith(t, ring)
			fds := []int{eventFD(t), eventFD(t), eventFD(t)}
			on(t, l, func() {
				for _, fd := range fds {
					Discard(l, fd)
				}
				Flush(l)
				for i, fd := range fds {
					if isOpen(fd) != c.left[i] {
						t.Errorf("descriptor %d is open: %v", i, isOpen(fd))
					}
					if c.left[i] {
						closeFD(fd)
					}
				}
				ring.results, ring.err = nil, nil
				next := []int{eventFD(t), eventFD(t)}
				Discard(l, next[0])
				Discard(l, next[1])
				Flush(l)
				if isOpen(next[0]) || isOpen(next[1]) {
					t.Error("nothing is closed any more")
				}
			})
			got := BatchingOf(l)
			if got.On != c.on || got.Failed != c.failed || !errors.Is(got.Refused, c.err) || ring.freed == c.on {
				t.Errorf("%+v, freed: %v", got, ring.freed)
			}
		})
	}
}

// A kernel that gives no ring gives a loop nonetheless.
func TestBatchRefused(t *testing.T) {
	l, err := newEpoll(func() (closer, error) { return nil, unix.EPERM })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := BatchingOf(l); got.On || got.Refused != unix.EPERM {
		t.Errorf("%+v", got)
	}
	fd := tcp(t).fd
	on(t, l, func() {
		Discard(l, fd)
		if isOpen(fd) || Flush(l) {
			t.Error("put off by nobody")
		}
	})
}

// A loop that stands still has nothing left to do, so that what is closed is
// closed for the process that takes the others over; what is done in its place is
// done at once, and by no ring, which is one thread's.
func TestBatchHold(t *testing.T) {
	ring := &fakeRing{}
	l := batchedWith(t, ring)
	before, meanwhile, after := eventFD(t), eventFD(t), eventFD(t)
	another := eventFD(t)
	l.Post(func() { Discard(l, before); Discard(l, another) })
	h := Hold(l)
	if h == nil {
		t.Fatal("closed")
	}
	if isOpen(before) || isOpen(another) {
		t.Error("put off beyond the hold")
	}
	h.Do(func() {
		made := len(ring.made)
		Discard(l, meanwhile)
		if isOpen(meanwhile) || len(ring.made) != made {
			t.Error("put off while the loop stands")
		}
	})
	h.Begin(func() {
		Discard(l, after)
		if !isOpen(after) {
			t.Error("not put off any more")
		}
	})
	on(t, l, func() {})
	on(t, l, func() {
		if isOpen(after) {
			t.Error("not closed")
		}
	})
}

// TestNewWith: the words do what they say. Whether the kernel gives a ring is the
// kernel's.
func TestNewWith(t *testing.T) {
	for _, b := range append(Batches(), "") {
		loops, err := NewWith(2, b)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range loops {
			got := BatchingOf(l)
			if wanted := got.On || got.Refused != nil; wanted != (b == BatchOn) {
				t.Errorf("%q: %+v", b, got)
			}
			l.Close()
			if BatchingOf(l).On {
				t.Error("on after the end")
			}
		}
	}
	if _, err := NewWith(1, "always"); err == nil {
		t.Error("any word will do")
	}
}

// TestBatchedRelays: many relays that end in one turn end by the ring, where
// there is one.
func TestBatchedRelays(t *testing.T) {
	noLeak(t)
	l, err := NewBatched()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if refused := BatchingOf(l).Refused; refused != nil {
		t.Skip("this kernel gives no ring:", refused)
	}
	const many = 100
	ended := make(owner, many)
	var peers []link
	for range many {
		a, b := tcp(t), tcp(t)
		peers = append(peers, a, b)
		on(t, l, func() { Start(l, State{A: End{FD: a.fd}, B: End{FD: b.fd}}, ended) })
	}
	h := Hold(l)
	for i := 0; i < len(peers); i += 2 {
		peers[i].peer.CloseWrite()
		peers[i+1].peer.CloseWrite()
	}
	for _, p := range peers {
		awaitReadable(t, p.fd) // the end is there
	}
	h.Release()
	for range many {
		if e := wait(t, ended, "the end of a relay"); e.why != EndedClosed {
			t.Errorf("ended for reason %d", e.why)
		}
	}
	for _, p := range peers {
		wantEOF(t, p.peer)
	}
	got := BatchingOf(l)
	if got.Calls < many || got.Made == 0 || got.Made*batchLeast > got.Calls || got.Failed != 0 {
		t.Errorf("%+v", got)
	}
}
