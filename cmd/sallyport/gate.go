package main

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gated is a listening socket that another process may take over. What it does
// not accept waits at the socket.
type gated struct {
	listener
	in   sync.Mutex // held by whoever accepts, and while the gate is shut
	turn sync.Mutex // from before the gate is shut until it is open again: who accepts anew waits for it
	left atomic.Bool
	once sync.Once
	done chan struct{} // closed by Close
}

// listener is a *net.TCPListener or a *net.UnixListener.
type listener interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
}

// gate takes over a listening socket. A Unix socket's name is its owner's to
// remove: the socket may be another process's by then.
func gate(l net.Listener) (*gated, error) {
	own, ok := l.(listener)
	if !ok {
		return nil, errors.Join(errors.ErrUnsupported, l.Close())
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return &gated{listener: own, done: make(chan struct{})}, nil
}

// Accept waits while the gate is shut, and after leave until Close.
func (g *gated) Accept() (net.Conn, error) {
	for {
		c, err := g.accept()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // only shut sets one
			g.await()
		case err != nil && g.left.Load():
			<-g.done
			return nil, net.ErrClosed
		default:
			return c, err
		}
	}
}

// Close closes the socket here. What another process has of it stays open.
func (g *gated) Close() error {
	g.once.Do(func() { close(g.done) })
	return g.listener.Close()
}

func (g *gated) accept() (net.Conn, error) {
	g.in.Lock()
	defer g.in.Unlock()
	return g.listener.Accept()
}

// await returns when the gate is not shut, and is not about to be. Without it who
// accepts would try again and again, and get the lock before shut does, which asks
// once: for a millisecond (sync.Mutex), with garbage each time.
func (g *gated) await() {
	g.turn.Lock()
	defer g.turn.Unlock()
}

// shut returns when nothing is accepted any more, until open or leave.
func (g *gated) shut() error {
	g.turn.Lock()
	if err := g.SetDeadline(time.Unix(1, 0)); err != nil {
		g.turn.Unlock()
		return err
	}
	g.in.Lock()
	return nil
}

// open goes on after shut.
func (g *gated) open() error {
	defer g.turn.Unlock()
	defer g.in.Unlock()
	return g.SetDeadline(time.Time{})
}

// leave closes the socket after shut: another process has it.
func (g *gated) leave() error {
	defer g.turn.Unlock()
	defer g.in.Unlock()
	g.left.Store(true)
	return g.listener.Close()
}

// dup is a descriptor of the socket, to be passed on. File and Fd would touch
// O_NONBLOCK, which belongs to the socket.
func dup(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	var inner error
	err = raw.Control(func(own uintptr) { fd, inner = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, os.NewSyscallError("fcntl", inner))
}
