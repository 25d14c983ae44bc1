package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// recv and send never block (MSG_DONTWAIT, whatever the descriptor's mode) and
// last some microseconds: they do not tell the scheduler.

func recv(fd int, b []byte) (int, error) {
	return recvFlags(fd, b, unix.MSG_DONTWAIT)
}

func peek(fd int, b []byte) (int, error) {
	return recvFlags(fd, b, unix.MSG_DONTWAIT|unix.MSG_PEEK)
}

func recvFlags(fd int, b []byte, flags uintptr) (int, error) {
	if len(b) == 0 {
		return 0, unix.EINVAL
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), flags, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		return result(n, errno)
	}
}

func send(fd int, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		return result(n, errno)
	}
}

func result(n uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// unsent is the number of bytes that the peer has not acknowledged: what a
// reset would take away. On a Unix socket a reset takes nothing away.
func unsent(fd int) int {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain == unix.AF_UNIX {
		return 0
	}
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}
