package handover

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// File gives the link's end away, for a process that is about to be started.
func (l *Link) File() *os.File {
	l.sending.Lock()
	defer l.sending.Unlock()
	f := os.NewFile(uintptr(l.fd), "link")
	l.closed, l.fd = true, -1
	return f
}

// OpenTalk takes over the end that this process was started with.
func OpenTalk(fd int) (*Talk, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	if kind != unix.SOCK_SEQPACKET {
		return nil, errors.New("not a socket of packets")
	}
	own, err := own(fd) // close-on-exec
	closeAll([]int{fd})
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(own, false); err != nil {
		closeAll([]int{own})
		return nil, err
	}
	return NewTalk(newLink(own)), nil
}

// finish ends one direction.
func (l *Link) finish() {
	l.sending.Lock()
	defer l.sending.Unlock()
	if !l.closed {
		_ = unix.Shutdown(l.fd, unix.SHUT_WR)
	}
}
