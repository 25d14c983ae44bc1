//go:build unix

package relay

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrAgain: the descriptor is not ready; an event of the loop will say when.
var ErrAgain = errors.New("not ready")

// backlog asks for the longest queue that the system gives (net.core.somaxconn).
const backlog = 65535

// Listen opens a listening socket at "host:port", non-blocking, with
// SO_REUSEPORT: each loop may have one of its own at the same address. Without
// a host it takes IPv4 and IPv6.
func Listen(address string) (fd int, err error) {
	fd, err = Bind(address)
	if err != nil {
		return -1, err
	}
	if err := BeginListen(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen %q: %w", address, err)
	}
	return fd, nil
}

// Bind is Listen up to the moment from which the socket gets connections:
// BeginListen. Until then other sockets at the address get all of them.
func Bind(address string) (fd int, err error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return -1, fmt.Errorf("listen %q: %w", address, err)
	}
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return -1, fmt.Errorf("listen %q: %w", address, err)
	}
	ip, _ := netip.AddrFromSlice(addr.IP)
	port := uint16(addr.Port)
	if ip.IsValid() && ip != netip.IPv6Unspecified() {
		return bound(netip.AddrPortFrom(ip.Unmap().WithZone(addr.Zone), port))
	}
	fd, err = bound(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return bound(netip.AddrPortFrom(netip.IPv4Unspecified(), port)) // no IPv6 here
	}
	return fd, err
}

// BeginListen makes a bound socket a listening one.
func BeginListen(fd int) error { return os.NewSyscallError("listen", unix.Listen(fd, backlog)) }

// EndListen ends a listening socket for all who have it, and resets what is
// queued at it.
func EndListen(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_RD)) }

// Listening says that fd is a listening stream socket.
func Listening(fd int) bool {
	on, err := option(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && on != 0
}

func bound(addr netip.AddrPort) (fd int, err error) {
	fd, err = newSocket(family(addr))
	if err != nil {
		return -1, err
	}
	if err := bind(fd, addr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen %v: %w", addr, err)
	}
	return fd, nil
}

func bind(fd int, addr netip.AddrPort) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := reusePort(fd); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if addr.Addr() == netip.IPv6Unspecified() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(addr)))
}

// Accept takes one connection from a listening socket. It is non-blocking and
// not inherited by children. Over a Unix socket peer is the zero value. When
// nothing is queued the error is ErrAgain. Any other (no descriptors left, for
// example) leaves the connection in the queue, and no event will come for it:
// try again after a pause.
func Accept(listener int) (fd int, peer netip.AddrPort, err error) {
	for {
		fd, peer, err := accept(listener)
		switch err {
		case nil:
			return fd, peer, nil
		case unix.EAGAIN:
			return -1, netip.AddrPort{}, ErrAgain
		case unix.EINTR, unix.ECONNABORTED:
			continue // one that is gone leaves the queue
		default:
			return -1, netip.AddrPort{}, os.NewSyscallError("accept", err)
		}
	}
}

const (
	// spareMost descriptors, or a part of those that the process may have, are not
	// for connections: whoever runs the process is still to be answered, and files
	// to be opened, when there are no others.
	spareMost = 32
	sparePart = 8
)

// Sparing is the descriptor from which on there are few left. The kernel gives
// the lowest that is free: all below it are taken. It is no descriptor when the
// limit cannot be told.
func Sparing() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur > math.MaxInt32 {
		return math.MaxInt
	}
	limit := int(lim.Cur)
	return limit - min(limit/sparePart, spareMost)
}

// Connect begins a connection and does not wait for it: watch fd, and ask
// Connected when it is writable.
func Connect(to netip.AddrPort) (fd int, err error) {
	return connect(family(to), func(fd int) error { return connectTo(fd, to) })
}

// ConnectUnix is Connect to a Unix stream socket.
func ConnectUnix(path string) (fd int, err error) {
	return connect(unix.AF_UNIX, func(fd int) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
}

func connect(family int, begin func(fd int) error) (fd int, err error) {
	fd, err = newSocket(family)
	if err != nil {
		return -1, err
	}
	switch err := begin(fd); err {
	case nil, unix.EINPROGRESS, unix.EINTR:
		return fd, nil
	default:
		closeFD(fd)
		return -1, os.NewSyscallError("connect", err)
	}
}

// PortsUsedUp says what EADDRNOTAVAIL by Connect means: this machine has an address
// from which to reach the other, and no port left there.
func PortsUsedUp(to netip.AddrPort) bool {
	fd, err := unix.Socket(family(to), unix.SOCK_DGRAM, 0) // the ports of UDP are others
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, sockaddr(to)) == nil
}

// Connected says whether a connection that Connect began has been made. False
// without an error means not yet.
func Connected(fd int) (bool, error) {
	if err := socketError(fd); err != nil {
		return false, os.NewSyscallError("connect", err)
	}
	switch _, err := unix.Getpeername(fd); err {
	case nil:
		return true, nil
	case unix.ENOTCONN:
		return false, nil
	default:
		return false, os.NewSyscallError("getpeername", err)
	}
}

// Peek fills b from the front of what is queued, and leaves it queued. The
// errors are io.EOF when the peer has ended with nothing queued, ErrAgain when
// nothing has come yet, and the socket's own.
func Peek(fd int, b []byte) (int, error) {
	n, err := peek(fd, b)
	return received("peek", n, err)
}

// Queued is the number of bytes that have come and were not read; 0 when that
// cannot be told.
func Queued(fd int) int { return queued(fd) }

// Read takes what is queued. Errors are as with Peek.
func Read(fd int, b []byte) (int, error) {
	n, err := recv(fd, b)
	return received("read", n, err)
}

func received(call string, n int, err error) (int, error) {
	switch {
	case err == unix.EAGAIN:
		return 0, ErrAgain
	case err != nil:
		return 0, os.NewSyscallError(call, err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write writes what there is room for, perhaps less than b; ErrAgain when there
// is none.
func Write(fd int, b []byte) (int, error) {
	n, err := send(fd, b)
	switch {
	case err == unix.EAGAIN:
		return 0, ErrAgain
	case err != nil:
		return 0, os.NewSyscallError("write", err)
	}
	return n, nil
}

// SetRcvLowat makes fd readable only when n bytes are queued, or no more will
// come. A relay wants 1.
func SetRcvLowat(fd, n int) error {
	return os.NewSyscallError("setsockopt", setOption(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, n))
}

// ShutdownWrite sends the end of the stream.
func ShutdownWrite(fd int) error {
	return os.NewSyscallError("shutdown", shutdownWrite(fd))
}

// Close closes a descriptor in order. What is written is delivered, unless
// unread input is queued: then the kernel resets the connection (RFC 1122
// section 4.2.2.13). See LingerClose.
func Close(fd int) { closeFD(fd) }

// ResetClose closes fd with a reset: SO_LINGER on, with no time.
func ResetClose(fd int) {
	ResetOnClose(fd)
	closeFD(fd)
}

// ResetOnClose makes the close that follows a reset.
func ResetOnClose(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// PeerAddr is the other end's address; the zero value for a Unix socket or one
// that is not connected.
func PeerAddr(fd int) netip.AddrPort {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

// LocalAddr is this end's address.
func LocalAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

// Tuning is how a TCP connection treats small writes and silent peers. The
// zero value changes nothing.
type Tuning struct {
	NoDelay bool // small writes go out at once

	// KeepAlive is the silence after which the peer is probed. Three probes
	// without an answer, a third of it apart, end the connection.
	KeepAlive time.Duration

	// UserTimeout is how long written bytes may stay unacknowledged
	// (RFC 5482, TCP_USER_TIMEOUT). Only Linux has it.
	UserTimeout time.Duration
}

const keepAliveProbes = 3

// Tune applies t to a TCP socket.
func Tune(fd int, t Tuning) error {
	if t.NoDelay {
		if err := setOption(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if t.KeepAlive > 0 {
		if err := keepAlive(fd, t.KeepAlive); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if t.UserTimeout > 0 {
		return os.NewSyscallError("setsockopt", userTimeout(fd, t.UserTimeout))
	}
	return nil
}

// socketError takes the pending error of a socket.
func socketError(fd int) error {
	errno, err := option(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

func family(addr netip.AddrPort) int {
	if addr.Addr().Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	ip := addr.Addr().Unmap()
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: ip.As4()}
	}
	return &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16(), ZoneId: zoneID(ip.Zone())}
}

// zoneID takes a zone by number or by the interface's name.
func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if id, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(id)
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	return 0
}

// addrPort shows an IPv4 peer of an IPv6 socket as IPv4.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(ip6(sa.Addr, sa.ZoneId), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func ip6(addr [16]byte, zone uint32) netip.Addr {
	ip := netip.AddrFrom16(addr).Unmap()
	if ip.Is6() && zone != 0 {
		return ip.WithZone(strconv.FormatUint(uint64(zone), 10))
	}
	return ip
}

// Unacknowledged is how many of the bytes written to a TCP socket its peer's
// kernel has not acknowledged; 0 where that cannot be told.
func Unacknowledged(fd int) int { return unsent(fd) }
