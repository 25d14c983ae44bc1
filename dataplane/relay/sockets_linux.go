package relay

import (
	"encoding/binary"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const socketFlags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC

func newSocket(family int) (int, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|socketFlags, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("socket", errno)
	}
	return int(fd), nil
}

// accept is unix.Accept4 without its question for the protocol and without an
// allocation: it runs once per connection.
func accept(listener int) (int, netip.AddrPort, error) {
	var sa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener),
		uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), socketFlags, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, failure(errno)
	}
	return int(fd), rawAddrPort(&sa), nil
}

// rawAddrPort shows an IPv4 peer of an IPv6 socket as IPv4.
func rawAddrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), swapped(in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(ip6(in.Addr, in.Scope_id), swapped(in.Port))
	}
	return netip.AddrPort{}
}

// swapped turns a port between the network's order of bytes and the host's.
func swapped(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// connectTo is unix.Connect without an allocation.
func connectTo(fd int, to netip.AddrPort) error {
	ip := to.Addr().Unmap()
	if ip.Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swapped(to.Port()), Addr: ip.As4()}
		_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
		return failure(errno)
	}
	sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swapped(to.Port()), Addr: ip.As16(), Scope_id: zoneID(ip.Zone())}
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet6)
	return failure(errno)
}

func keepAlive(fd int, after time.Duration) error {
	idle := max(1, int(after.Round(time.Second)/time.Second))
	for _, o := range []struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, max(1, idle/keepAliveProbes)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveProbes},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	} {
		if err := setOption(fd, o.level, o.name, o.value); err != nil {
			return err
		}
	}
	return nil
}

func userTimeout(fd int, after time.Duration) error {
	return setOption(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after/time.Millisecond))
}
