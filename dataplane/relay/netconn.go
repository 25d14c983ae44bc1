//go:build unix

package relay

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// NetConn turns a connected socket into a net.Conn: for what leaves the loops.
// The loop has unwatched fd. NetConn takes fd over, also when it fails: the
// connection is a duplicate, and fd is closed. prefix is read first; NetConn
// keeps it. The result has CloseWrite and deadlines.
func NetConn(fd int, prefix []byte) (net.Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	// The duplicate shares the file's mode. A file made from a non-blocking
	// descriptor is left non-blocking by FileConn.
	file := os.NewFile(uintptr(fd), "socket")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return nil, fmt.Errorf("descriptor: %w", err)
	}
	half, ok := conn.(halfConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("descriptor: %v: %w", conn.LocalAddr().Network(), errors.ErrUnsupported)
	}
	if len(prefix) == 0 {
		return conn, nil
	}
	return &prefixedConn{halfConn: half, prefix: prefix}, nil
}

// halfConn is a net.Conn whose two halves are closed separately.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// prefixedConn reads prefix before the rest. As with any stream, one goroutine
// reads.
type prefixedConn struct {
	halfConn
	prefix []byte
}

func (c *prefixedConn) Read(b []byte) (int, error) {
	if len(c.prefix) == 0 {
		return c.halfConn.Read(b)
	}
	n := copy(b, c.prefix)
	c.prefix = c.prefix[n:]
	if len(c.prefix) == 0 {
		c.prefix = nil
	}
	return n, nil
}
