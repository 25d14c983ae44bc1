//go:build unix

package tunnel

import (
	"errors"

	"golang.org/x/sys/unix"
)

// peek looks at what has arrived on a parked connection, without taking it. It
// returns "" when there is nothing, which is how it must be; else the word under
// which the connection's end is counted.
func peek(fd int) (why string) {
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return ""
		case err != nil:
			return "parked_reset"
		case n == 0:
			return "parked_end"
		}
		return "parked_byte"
	}
}

// descriptorLimit is how many the process may have; 0 when that cannot be told.
func descriptorLimit() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur > 1<<30 {
		return 0
	}
	return int(lim.Cur)
}

// writeAll writes a few bytes to a connection to which nothing has been written:
// there is room for them.
func writeAll(fd int, b []byte) bool {
	n, err := unix.Write(fd, b)
	return err == nil && n == len(b)
}

// endSocket ends a connection for everybody who has it.
func endSocket(fd int) { _ = unix.Shutdown(fd, unix.SHUT_RDWR) }

// closeFD closes a descriptor that no loop watches. There is nobody to tell of
// an error, and nothing to lose: no byte of a client has been written to it.
func closeFD(fd int) { _ = unix.Close(fd) }

// keepAlive makes the kernel find out about a peer that has vanished, and keeps
// addresses translated on the way. Errors mean that the socket is not TCP.
//
// There is no TCP_USER_TIMEOUT here: since Linux 5.11 it also ends a
// connection whose peer advertises a zero window for that long, and a person
// who has paused his output is no dead peer.
func keepAlive(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, tcpKeepIdle, int(keepIdle.Seconds()))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepInterval.Seconds()))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}
