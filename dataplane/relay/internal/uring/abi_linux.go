package uring

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel and a ring have between them: include/uapi/linux/io_uring.h.

const (
	opNop   = 0
	opClose = 19

	setupClamp        = 1 << 4  // fewer entries where that many are not allowed
	setupSubmitAll    = 1 << 7  // one bad entry does not keep the next ones
	setupCoopTaskrun  = 1 << 8  // no interrupt for what is done at the next call anyway
	setupSingleIssuer = 1 << 12 // one thread only
	setupDeferTaskrun = 1 << 13 // work is done when the thread asks for it

	featureSingleMmap = 1 << 0 // both rings are one piece of memory

	enterGetEvents = 1 << 0

	registerProbe = 8
	probeOps      = 256
	opSupported   = 1 << 0

	offsetRings   = 0
	offsetEntries = 0x10000000
)

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries      uint32
	flags                     uint32
	sqThreadCPU, sqThreadIdle uint32
	features                  uint32
	wqFD                      uint32
	_                         [3]uint32
	sq, cq                    offsets
}

// offsets is struct io_sqring_offsets. For the completions
// (io_cqring_offsets) dropped is overflow, and array is where the entries are.
type offsets struct {
	head, tail, mask, entries uint32
	flags, dropped, array     uint32
	_                         uint32
	_                         uint64
}

// completionOffsets is struct io_cqring_offsets in the same place.
func (o *offsets) completions() uint32 { return o.dropped }

// submission is struct io_uring_sqe, as far as it is used here.
type submission struct {
	op       uint8
	_        uint8
	_        uint16
	fd       int32
	off      uint64
	addr     uint64
	size     uint32
	flags    uint32
	userData uint64
	_        [3]uint64
}

// completion is struct io_uring_cqe.
type completion struct {
	userData uint64
	result   int32
	_        uint32
}

// probe is struct io_uring_probe with room for all operations.
type probe struct {
	last, size uint8
	_          uint16
	_          [3]uint32
	ops        [probeOps]struct {
		op    uint8
		_     uint8
		flags uint16
		_     uint32
	}
}

func setup(entries uint32, p *params) (int, syscall.Errno) {
	fd, _, errno := unix.RawSyscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	return int(fd), errno
}

func enter(fd int, submit, complete uint32, flags uint32) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), uintptr(complete), uintptr(flags), 0, 0)
	return int(n), errno
}

func supports(fd int, ops ...uint8) syscall.Errno {
	var p probe
	_, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), registerProbe, uintptr(unsafe.Pointer(&p)), probeOps, 0, 0)
	if errno != 0 {
		return errno
	}
	for _, op := range ops {
		if op > p.last || p.ops[op].flags&opSupported == 0 {
			return unix.EOPNOTSUPP
		}
	}
	return 0
}
