package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file never block: recv and send by MSG_DONTWAIT, the others
// because sockets here are non-blocking and none lingers. They last some
// microseconds and do not tell the scheduler, which would give the loop's
// processor away and wake another thread for it.

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
		return 0, failure(errno)
	}
	return int(n), nil
}

// unsent is the number of bytes that the peer has not acknowledged: what a
// reset would take away. On a Unix socket a reset takes nothing away.
func unsent(fd int) int {
	domain, err := option(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain == unix.AF_UNIX {
		return 0
	}
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// queued is the number of bytes that have come and were not read.
func queued(fd int) int {
	var n int32
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return 0
	}
	return int(n)
}

func closeFD(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

func shutdownWrite(fd int) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return failure(errno)
}

func setOption(fd, level, name, value int) error {
	v := int32(value)
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	return failure(errno)
}

func option(fd, level, name int) (int, error) {
	var v int32
	size := uint32(unsafe.Sizeof(v))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	return int(v), failure(errno)
}

// failure keeps a nil error from becoming an Errno of 0.
func failure(errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// resetNow resets a connection, whoever else has the socket: to disconnect an
// open TCP socket is to abort it (connect(2), AF_UNSPEC). Other kinds of socket
// know no reset.
func resetNow(fd int) {
	var sa unix.RawSockaddr // AF_UNSPEC is 0
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	if errno != 0 {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	}
}
