//go:build unix

package carrier

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// PairEnd is one end of a pair.
type PairEnd = net.UnixConn

// Pair makes a connection within this process: a descriptor for a loop, and the
// other end.
func Pair() (fd int, local *PairEnd, err error) {
	fds, err := ownPair()
	if err != nil {
		return -1, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		_ = unix.SetNonblock(fd, true) // a socket of this process's own
	}
	file := os.NewFile(uintptr(fds[1]), "carried")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		_ = unix.Close(fds[0])
		return -1, nil, err
	}
	return fds[0], conn.(*PairEnd), nil // a socket of AF_UNIX is one
}

// ownPair holds the fork lock: not every system sets the flag at once, and what is
// started in between would have both ends.
func ownPair() (fds [2]int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return fds, err
}

// ConnPair is Pair with both ends as connections.
func ConnPair() (far, local *PairEnd, err error) {
	fd, local, err := Pair()
	if err != nil {
		return nil, nil, err
	}
	file := os.NewFile(uintptr(fd), "carried")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		local.Close()
		return nil, nil, err
	}
	return conn.(*PairEnd), local, nil
}

// hungUp says whether the other end of a pair has been closed, not only for
// writing.
func hungUp(c *PairEnd) (gone bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		gone = err == nil && p[0].Revents&unix.POLLHUP != 0
	})
	return gone || err != nil
}
