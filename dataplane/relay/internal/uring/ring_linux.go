package uring

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ring is a queue of calls. All of it belongs to the thread that has made it: a
// goroutine that is locked to one.
type Ring struct {
	fd      int
	rings   []byte // memory that is shared with the kernel
	entries []byte

	calls       []submission
	completions []completion
	head, tail  *uint32 // of the submissions; the kernel takes at the head
	done, made  *uint32 // head and tail of the completions; the kernel adds at the tail

	added   uint32 // calls since the last Make
	results []syscall.Errno
}

// New asks the kernel for a ring of so many calls, a power of two. It fails
// where there is none to be had: an old kernel (ENOSYS), one that is told to give
// none (EPERM: kernel.io_uring_disabled, or a filter of system calls), or one
// without the calls that are needed.
func New(calls int) (*Ring, error) {
	var p params
	fd, errno := first(uint32(calls), &p)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &Ring{fd: fd}
	if err := r.open(&p); err != nil {
		r.Free()
		return nil, err
	}
	return r, nil
}

// first tries what costs least before what older kernels know: 6.1, 5.19, 5.18.
func first(calls uint32, p *params) (fd int, errno syscall.Errno) {
	for _, flags := range []uint32{
		setupSingleIssuer | setupDeferTaskrun | setupSubmitAll,
		setupCoopTaskrun | setupSubmitAll,
		setupSubmitAll,
	} {
		*p = params{flags: flags | setupClamp}
		if fd, errno = setup(calls, p); errno != unix.EINVAL {
			break
		}
	}
	return fd, errno
}

func (r *Ring) open(p *params) (err error) {
	if p.features&featureSingleMmap == 0 {
		return fmt.Errorf("io_uring: features %#x are too few: %w", p.features, unix.EOPNOTSUPP)
	}
	if errno := supports(r.fd, opClose); errno != 0 {
		return os.NewSyscallError("io_uring_register", errno)
	}
	size := max(int(p.sq.array)+int(p.sqEntries)*4, int(p.cq.completions())+int(p.cqEntries)*int(unsafe.Sizeof(completion{})))
	if r.rings, err = r.share(offsetRings, size); err != nil {
		return err
	}
	if r.entries, err = r.share(offsetEntries, int(p.sqEntries)*int(unsafe.Sizeof(submission{}))); err != nil {
		return err
	}
	r.head, r.tail = r.word(p.sq.head), r.word(p.sq.tail)
	r.done, r.made = r.word(p.cq.head), r.word(p.cq.tail)
	r.calls = unsafe.Slice((*submission)(unsafe.Pointer(&r.entries[0])), p.sqEntries)
	r.completions = unsafe.Slice((*completion)(unsafe.Pointer(&r.rings[p.cq.completions()])), p.cqEntries)
	r.results = make([]syscall.Errno, p.sqEntries)
	order := unsafe.Slice(r.word(p.sq.array), p.sqEntries) // which entry comes when: each in its place
	for i := range order {
		order[i] = uint32(i)
	}
	return nil
}

func (r *Ring) share(offset int64, size int) ([]byte, error) {
	b, err := unix.Mmap(r.fd, offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	return b, os.NewSyscallError("mmap", err)
}

func (r *Ring) word(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[at])) }

// Free gives everything back. Calls that were added and not made are not made.
func (r *Ring) Free() {
	if r.rings != nil {
		_ = unix.Munmap(r.rings) // what was mapped can be unmapped
	}
	if r.entries != nil {
		_ = unix.Munmap(r.entries)
	}
	_ = unix.Close(r.fd)
	r.rings, r.entries, r.fd = nil, nil, -1
}

// Close adds a call of close(2). It is false when there is no room.
func (r *Ring) Close(fd int) bool {
	s := r.add()
	if s == nil {
		return false
	}
	s.op, s.fd = opClose, int32(fd)
	return true
}

func (r *Ring) add() *submission {
	if int(r.added) == len(r.calls) {
		return nil
	}
	s := &r.calls[(*r.tail+r.added)&uint32(len(r.calls)-1)]
	*s = submission{userData: uint64(r.added)}
	r.added++
	return s
}

// Make makes the calls that were added, in their order, and returns what each
// came to, 0 for good, until the next Make. When the kernel takes not all of
// them there are results of the first ones, and an error says why: the others
// have not been made, and are the caller's.
func (r *Ring) Make() ([]syscall.Errno, error) {
	want := r.added
	r.added = 0
	if want == 0 {
		return nil, nil
	}
	atomic.StoreUint32(r.tail, *r.tail+want)
	var taken, finished uint32
	for finished < want {
		n, errno := enter(r.fd, want-taken, want-finished, enterGetEvents)
		switch {
		case errno == 0 && n == 0 && taken < want:
			errno = unix.EAGAIN
		case errno == 0:
			taken += uint32(n)
		}
		finished += r.reap(want)
		if errno != 0 && errno != unix.EINTR && finished == taken {
			// Without a thread of its own (SQPOLL) the kernel looks at the
			// tail only when it is asked to.
			atomic.StoreUint32(r.tail, atomic.LoadUint32(r.head))
			return r.results[:taken], os.NewSyscallError("io_uring_enter", errno)
		}
	}
	return r.results[:want], nil
}

// reap takes the completions that are there.
func (r *Ring) reap(want uint32) (n uint32) {
	from, to := *r.done, atomic.LoadUint32(r.made)
	for ; from != to; from++ {
		c := &r.completions[from&uint32(len(r.completions)-1)]
		if c.userData < uint64(want) {
			r.results[c.userData] = syscall.Errno(max(-c.result, 0))
			n++
		}
	}
	atomic.StoreUint32(r.done, to)
	return n
}
