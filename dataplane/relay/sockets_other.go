//go:build unix && !linux

package relay

import (
	"net/netip"
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

func accept(listener int) (int, netip.AddrPort, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, sa, err := unix.Accept(listener)
	if err != nil {
		return -1, netip.AddrPort{}, err
	}
	if err := own(fd); err != nil {
		return -1, netip.AddrPort{}, err
	}
	return fd, addrPort(sa), nil
}

func connectTo(fd int, to netip.AddrPort) error { return unix.Connect(fd, sockaddr(to)) }

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
