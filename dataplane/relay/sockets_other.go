//go:build unix && !linux

package relay

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// newSocket holds the fork lock: not every system sets the flags at once.
func newSocket(family int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := own(fd); err != nil {
		return -1, os.NewSyscallError("setnonblock", err)
	}
	return fd, nil
}

func accept(listener int) (int, unix.Sockaddr, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, sa, err := unix.Accept(listener)
	if err != nil {
		return -1, nil, err
	}
	if err := own(fd); err != nil {
		return -1, nil, err
	}
	return fd, sa, nil
}

func own(fd int) error {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	return nil
}

// keepAlive switches probes on; their timing is the system's.
func keepAlive(fd int, _ time.Duration) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
}

func userTimeout(int, time.Duration) error { return nil }
