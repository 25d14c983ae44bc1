package soak

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// backend is a server behind the gateway that reads a TLS hello, which is all
// the gateway wants to see, and then does one thing to the bytes behind it.
type backend struct {
	address string
	do      func(*net.TCPConn)

	mu     sync.Mutex
	ln     net.Listener
	open   map[*net.TCPConn]struct{}
	closed bool
	tasks  sync.WaitGroup
	served atomic.Int64
}

func startBackend(t testing.TB, do func(*net.TCPConn)) *backend {
	t.Helper()
	b := &backend{address: "127.0.0.1:0", do: do, open: map[*net.TCPConn]struct{}{}}
	if err := b.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	return b
}

func (b *backend) listen() error {
	ln, err := net.Listen("tcp", b.address)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.ln, b.address = ln, ln.Addr().String()
	b.mu.Unlock()
	b.tasks.Go(func() { b.accept(ln) })
	return nil
}

// silence closes the listening socket alone: connections live on, new ones are
// refused.
func (b *backend) silence() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ln.Close()
}

func (b *backend) close() {
	b.mu.Lock()
	b.closed = true
	b.ln.Close()
	for c := range b.open {
		c.Close()
	}
	b.mu.Unlock()
	b.tasks.Wait()
}

func (b *backend) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		b.tasks.Go(func() { b.serve(c.(*net.TCPConn)) })
	}
}

func (b *backend) serve(c *net.TCPConn) {
	defer c.Close()
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	b.open[c] = struct{}{}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.open, c)
		b.mu.Unlock()
	}()
	if skipHello(c) == nil {
		b.served.Add(1)
		b.do(c)
	}
}

// skipHello reads one TLS record.
func skipHello(c net.Conn) error {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(head[3:])))
	return err
}

// What backends do.

func echo(c *net.TCPConn) {
	if _, err := io.Copy(c, onlyReader{c}); err == nil {
		_ = c.CloseWrite() // the peer may be gone, and knows
		_, _ = io.Copy(io.Discard, c)
	}
}

// greet answers the hello, as a TLS server does, before it echoes.
func greet(c *net.TCPConn) {
	if _, err := c.Write([]byte{greeting}); err == nil {
		echo(c)
	}
}

const greeting = 0x16

// onlyReader keeps io.Copy from splicing within the test's own process, which
// would take the pipes that the gateway is measured with.
type onlyReader struct{ io.Reader }

// resetSoon sends some bytes and takes some, and then resets.
func resetSoon(c *net.TCPConn) {
	_, _ = c.Write(make([]byte, 1+rand.IntN(64<<10)))
	_, _ = io.CopyN(io.Discard, c, rand.Int64N(64<<10))
	_ = c.SetLinger(0)
}

// stall takes nothing until the client has lost patience.
func stall(c *net.TCPConn) {
	time.Sleep(stallPatience + 100*time.Millisecond)
	_ = c.SetLinger(0)
}

// slow takes a little at a time, and returns each byte.
func slow(c *net.TCPConn) {
	b := make([]byte, 1024)
	for {
		n, err := c.Read(b)
		if _, werr := c.Write(b[:n]); werr != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			_ = c.CloseWrite()
			return
		}
		if err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
