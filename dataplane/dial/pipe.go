package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// bufferSize is that of one direction.
const bufferSize = 32 << 10

// Pipe carries bytes between a program's standard streams and conn, until the
// other side has ended: what ssh's ProxyCommand does. The end of in is passed
// on, and the answer to it still arrives. It closes conn. A read from in that
// is under way cannot be called back: it ends with the program.
func Pipe(in io.Reader, out io.Writer, conn net.Conn) error {
	defer conn.Close()
	go send(conn, in)
	return move(out, conn)
}

// send carries in to conn and ends that half. What fails here ends the
// connection, and so the direction that Pipe waits for.
func send(conn net.Conn, in io.Reader) {
	err := move(conn, in)
	if err == nil {
		err = closeWrite(conn)
	}
	if err != nil {
		conn.Close()
	}
}

// Join is join, for programs that forward connections themselves.
func Join(ctx context.Context, a, b net.Conn) error { return join(ctx, a, b) }

// join carries bytes both ways until both directions have ended, one has
// failed, or ctx is done. It closes both: in order, or when bytes were lost so
// that both sides can tell.
func join(ctx context.Context, a, b net.Conn) error {
	stop := context.AfterFunc(ctx, func() { abort(a); abort(b) })
	defer stop()
	errs := make(chan error, 2)
	go func() { errs <- carry(a, b) }()
	go func() { errs <- carry(b, a) }()
	err := <-errs
	if err != nil {
		abort(a)
		abort(b)
	}
	if second := <-errs; err == nil && second != nil {
		err = second
		abort(a)
		abort(b)
	}
	a.Close()
	b.Close()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func carry(dst, src net.Conn) error {
	if err := move(dst, src); err != nil {
		return err
	}
	return closeWrite(dst)
}

// move copies until the end of src.
func move(dst io.Writer, src io.Reader) error {
	buf := make([]byte, bufferSize)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// closeWrite ends one direction. A TLS stream ends with close_notify, and the
// TCP under it stays open for the other direction.
func closeWrite(c net.Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T cannot be half closed", c)
	}
	return half.CloseWrite()
}

// abort closes such that the other side sees a broken stream: TCP resets, TLS
// leaves out its close_notify.
func abort(c net.Conn) {
	if s, ok := c.(*stream); ok {
		c = s.under.Conn
	}
	if tc, ok := c.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	c.SetDeadline(time.Unix(1, 0))
	c.Close()
}
