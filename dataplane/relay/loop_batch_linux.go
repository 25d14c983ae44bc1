package relay

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/relay/internal/uring"
)

// batch is the closes that a loop has put off to the end of its turn, where one
// call makes them all. Until then the descriptors are open: no other socket has
// their numbers, and their events find no handler. After it nothing is under
// way: uring has only such calls.
//
// Only the loop's thread touches it, but for the counts. While the loop is held
// others do its work, and a ring is one thread's: then nothing is put off, and
// nothing is left from before.
type batch struct {
	ring closer // nil: nothing is put off
	fds  []int
	held bool

	on      atomic.Bool
	refused atomic.Pointer[error]
	calls   atomic.Uint64
	made    atomic.Uint64
	failed  atomic.Uint64
}

// closer is a ring.
type closer interface {
	Close(fd int) bool
	Make() ([]syscall.Errno, error)
	Free()
}

const (
	// batchMost is put off at most. To close some tens of connections takes as
	// long as a loop works on one of them at a time.
	batchMost = 64

	// batchLeast: fewer are made by themselves, which costs less.
	batchLeast = 2
)

// newRing is what batch.open is given but in tests.
func newRing() (closer, error) {
	r, err := uring.New(batchMost)
	if err != nil {
		return nil, err // not a closer that is not nil and holds nil
	}
	return r, nil
}

// open begins to put off, on the loop's thread.
func (b *batch) open(ring func() (closer, error)) {
	r, err := ring()
	if err != nil {
		b.refused.Store(&err)
		return
	}
	b.ring, b.fds = r, make([]int, 0, batchMost)
	b.on.Store(true)
}

// close ends it. It may not have been opened.
func (b *batch) close() {
	if b.ring != nil {
		b.flush()
	}
	if b.ring != nil { // the flush may have given it up
		b.ring.Free()
	}
	b.ring = nil
	b.on.Store(false)
}

// put puts the close of fd off. It is false when it is the caller's.
func (b *batch) put(fd int) bool {
	if b.ring == nil || b.held {
		return false
	}
	if b.fds = append(b.fds, fd); len(b.fds) == batchMost {
		b.flush()
	}
	return true
}

// flush closes what was put off.
func (b *batch) flush() bool {
	fds := b.fds
	if len(fds) == 0 {
		return false
	}
	b.fds = fds[:0]
	if len(fds) < batchLeast {
		for _, fd := range fds {
			closeFD(fd)
		}
		return true
	}
	n := 0
	for n < len(fds) && b.ring.Close(fds[n]) {
		n++
	}
	results, err := b.ring.Make()
	for i, fd := range fds {
		if i >= len(results) || untried(results[i]) {
			closeFD(fd)
		}
	}
	b.count(len(fds), results)
	if err != nil {
		b.giveUp(err)
	}
	return true
}

// untried says that the kernel has refused to try: the descriptor is as it was.
// With any other error close(2) has let go of it.
func untried(errno syscall.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.EOPNOTSUPP, unix.EACCES, unix.ENOMEM, unix.EAGAIN, unix.ECANCELED:
		return true
	}
	return false
}

func (b *batch) count(asked int, results []syscall.Errno) {
	b.calls.Add(uint64(asked))
	b.made.Add(1)
	failed := asked - len(results)
	for _, errno := range results {
		if errno != 0 {
			failed++
		}
	}
	b.failed.Add(uint64(failed))
}

// giveUp goes on without: a ring that the kernel refuses once it may refuse
// always.
func (b *batch) giveUp(err error) {
	b.ring.Free()
	b.ring = nil
	b.refused.Store(&err)
	b.on.Store(false)
}

func (l *epollLoop) flush() bool { return l.batch.flush() }

func (l *epollLoop) batching() Batching {
	b := &l.batch
	out := Batching{On: b.on.Load(), Calls: b.calls.Load(), Made: b.made.Load(), Failed: b.failed.Load()}
	if err := b.refused.Load(); err != nil {
		out.Refused = *err
	}
	return out
}

// rest meets rester: the thread is about to stand still.
func (l *epollLoop) rest() {
	l.batch.flush()
	l.batch.held = true
}
