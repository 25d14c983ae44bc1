package swift

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// Conn returns a connection that takes conn over: all but reading and writing is
// conn's own, deadlines included. One goroutine at a time reads, and one writes,
// as crypto/tls does. What is no TCP connection is returned as it is.
func Conn(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	c := &swift{TCPConn: tcp, raw: raw}
	c.reading.try, c.writing.try = c.reading.once, c.writing.all
	return c
}

type swift struct {
	*net.TCPConn
	raw     syscall.RawConn
	reading reading
	writing writing
}

// reading is one call of Read.
type reading struct {
	try   func(fd uintptr) (done bool)
	into  []byte
	n     int
	errno syscall.Errno
}

// once reads what is there; false is nothing.
func (r *reading) once(fd uintptr) bool {
	for {
		// The descriptor does not block: net has seen to it.
		n, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&r.into[0])), uintptr(len(r.into)))
		switch errno {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		case 0:
			r.n = int(n)
			hasRead(fd, r.into[:n])
		}
		r.errno = errno
		return true
	}
}

func (c *swift) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r := &c.reading
	r.into, r.n, r.errno = p, 0, 0
	err := c.raw.Read(r.try)
	r.into = nil
	switch {
	case err != nil:
		return 0, err
	case r.errno != 0:
		return 0, c.failed("read", r.errno)
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// writing is one call of Write.
type writing struct {
	try   func(fd uintptr) (done bool)
	left  []byte
	errno syscall.Errno
}

// all writes until nothing is left; false is no room.
func (w *writing) all(fd uintptr) bool {
	for len(w.left) > 0 {
		willWrite(fd, w.left)
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&w.left[0])), uintptr(len(w.left)))
		switch errno {
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		case 0:
			w.left = w.left[n:]
		default:
			w.errno = errno
			return true
		}
	}
	return true
}

func (c *swift) Write(p []byte) (int, error) {
	w := &c.writing
	w.left, w.errno = p, 0
	err := c.raw.Write(w.try)
	written := len(p) - len(w.left)
	w.left = nil
	if err == nil && w.errno != 0 {
		err = c.failed("write", w.errno)
	}
	return written, err
}

// failed is the error that net would return.
func (c *swift) failed(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}

// ReadFrom and WriteTo would go past Read and Write.
func (c *swift) ReadFrom(r io.Reader) (int64, error) { return io.Copy(writeOnly{c}, r) }

func (c *swift) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, readOnly{c}) }

type writeOnly struct{ io.Writer }

type readOnly struct{ io.Reader }
