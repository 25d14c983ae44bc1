package handover_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/test/leak"
)

// echo is a service whose connections can move: one loop that sends back what
// it reads. Bytes that were read and not yet written are its state.
type echo struct {
	wake [2]int // a pipe that ends the loop's wait

	mu       sync.Mutex // held by the loop except while it waits; guards all below
	listener int
	conns    map[uint64]*echoed
	last     uint64
	stop     bool
	running  chan struct{} // closed when the loop has stopped; nil: it does not run
}

type echoed struct {
	fd     int
	buf    []byte
	eof    bool
	copied bool
	told   bool // its words have come
}

func newEcho() *echo {
	e := &echo{listener: -1, conns: map[uint64]*echoed{}}
	if err := unix.Pipe2(e.wake[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		panic(err)
	}
	return e
}

func (e *echo) listen() (port int) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		panic(err)
	}
	e.listener = fd
	sa, _ := unix.Getsockname(fd)
	return sa.(*unix.SockaddrInet4).Port
}

func (e *echo) start() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stop, e.running = false, make(chan struct{})
	go e.loop(e.running)
}

// pause returns when the loop stands still.
func (e *echo) pause() {
	e.mu.Lock()
	running := e.running
	e.stop, e.running = true, nil
	e.mu.Unlock()
	if running != nil {
		_, _ = unix.Write(e.wake[1], []byte{0})
		<-running
	}
}

func (e *echo) close() {
	e.pause()
	e.Leave()
	_ = unix.Close(e.wake[0])
	_ = unix.Close(e.wake[1])
}

func (e *echo) loop(running chan struct{}) {
	defer close(running)
	e.mu.Lock()
	defer e.mu.Unlock()
	for !e.stop {
		fds := []unix.PollFd{{Fd: int32(e.wake[0]), Events: unix.POLLIN}, {Fd: int32(e.listener), Events: unix.POLLIN}}
		ids := []uint64{0, 0}
		for id, c := range e.conns {
			fds, ids = append(fds, unix.PollFd{Fd: int32(c.fd), Events: c.events()}), append(ids, id)
		}
		e.mu.Unlock()
		_, _ = unix.Poll(fds, -1)
		e.mu.Lock()
		if e.stop {
			break
		}
		if fds[1].Revents != 0 {
			e.accept()
		}
		for i, id := range ids[2:] {
			if c := e.conns[id]; c != nil && fds[i+2].Revents != 0 && !c.step() {
				_ = unix.Close(c.fd)
				delete(e.conns, id)
			}
		}
		e.mu.Unlock()
		runtime.Gosched() // others want the lock
		e.mu.Lock()
	}
	var b [16]byte
	_, _ = unix.Read(e.wake[0], b[:])
}

func (e *echo) accept() {
	for {
		fd, _, err := unix.Accept4(e.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		e.last++
		e.conns[e.last] = &echoed{fd: fd}
	}
}

func (c *echoed) events() (ev int16) {
	if len(c.buf) > 0 {
		return unix.POLLOUT
	}
	return unix.POLLIN
}

// step moves some bytes. False: the connection has ended.
func (c *echoed) step() bool {
	if len(c.buf) == 0 && !c.eof {
		b := make([]byte, 16<<10)
		n, err := unix.Read(c.fd, b)
		if err == unix.EAGAIN || err == unix.EINTR {
			return true
		}
		if err != nil {
			return false
		}
		c.buf, c.eof = b[:n], n == 0
	}
	// Half of it stays for a while: a hand-over has something to move.
	n, err := unix.Write(c.fd, c.buf[:(len(c.buf)+1)/2])
	if err != nil && err != unix.EAGAIN && err != unix.EINTR {
		return false
	}
	c.buf = c.buf[max(n, 0):]
	return len(c.buf) > 0 || !c.eof
}

// The toy's kinds of records.
const (
	kindConn   = 1 // id; the socket
	kindWords  = 2 // id, eof, what was read
	kindGone   = 3 // id
	kindListen = 4 // the last id; the socket
)

// Name implements handover.Giver and handover.Taker.
func (e *echo) Name() string { return "echo" }

func (e *echo) Copy(ctx context.Context, w handover.Writer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sendConns(ctx, w)
}

func (e *echo) sendConns(ctx context.Context, w handover.Writer) error {
	for id, c := range e.conns {
		if c.copied {
			continue
		}
		// As a loop does it, and when it cannot, as others do.
		r := handover.Record{Part: "echo", Kind: kindConn, Body: number(id), FDs: []int{c.fd}}
		if sent, err := w.TrySend(r); err != nil {
			return err
		} else if !sent {
			if err := w.Send(ctx, r); err != nil {
				return err
			}
		}
		c.copied = true
	}
	return nil
}

func (e *echo) Freeze(ctx context.Context, w handover.Writer) error {
	e.pause()
	if err := e.sendConns(ctx, w); err != nil {
		return err
	}
	for id, c := range e.conns {
		words := append(number(id), 0)
		if c.eof {
			words[8] = 1
		}
		if err := w.Send(ctx, handover.Record{Part: "echo", Kind: kindWords, Body: append(words, c.buf...)}); err != nil {
			return err
		}
	}
	return w.Send(ctx, handover.Record{Part: "echo", Kind: kindListen, Body: number(e.last), FDs: []int{e.listener}})
}

func (e *echo) Thaw() error {
	e.pause()
	for _, c := range e.conns {
		c.copied = false
	}
	e.start()
	return nil
}

func (e *echo) Leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.conns {
		_ = unix.Close(c.fd)
	}
	clear(e.conns)
	_ = unix.Close(e.listener)
	e.listener = -1
}

func (e *echo) Take(r handover.Record) error {
	if len(r.Body) < 8 {
		return errors.New("no number")
	}
	id := binary.BigEndian.Uint64(r.Body)
	c := e.conns[id]
	switch {
	case r.Kind == kindConn && len(r.FDs) == 1:
		e.conns[id] = &echoed{fd: r.FDs[0]}
	case r.Kind == kindWords && c != nil && len(r.Body) > 8:
		c.eof, c.buf, c.told = r.Body[8] == 1, r.Body[9:], true
	case r.Kind == kindListen && len(r.FDs) == 1:
		e.last, e.listener = id, r.FDs[0]
	default:
		for _, fd := range r.FDs {
			_ = unix.Close(fd)
		}
		return fmt.Errorf("kind %d", r.Kind)
	}
	return nil
}

// Complete drops what has no words: it has ended since it was copied.
func (e *echo) Complete(context.Context) error {
	for id, c := range e.conns {
		if !c.told {
			_ = unix.Close(c.fd)
			delete(e.conns, id)
		}
	}
	if e.listener < 0 {
		return errors.New("no listener")
	}
	return nil
}

func (e *echo) Start() { e.start() }

func number(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// openFDs counts this process's descriptors.
func openFDs() int {
	leak.Collect()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(d)
}
