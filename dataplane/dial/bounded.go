package dial

import (
	"net"
	"sync"
)

// bounded is a listener with so many connections at a time; what more comes waits in
// the kernel's queue. Its connections can be half closed, as those of a WebSocket are.
type bounded struct {
	net.Listener
	slots   chan struct{}
	closing sync.Once
	closed  chan struct{}
}

// bound takes l over.
func bound(l net.Listener, most int) *bounded {
	if most <= 0 {
		most = DefaultMaxConnections
	}
	return &bounded{Listener: l, slots: make(chan struct{}, most), closed: make(chan struct{})}
}

// Accept waits for room first.
func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &placed{Conn: conn, leave: sync.OnceFunc(func() { <-b.slots })}, nil
}

// Close also ends who waits for room.
func (b *bounded) Close() error {
	b.closing.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

// placed is a connection that has a place until it is closed.
type placed struct {
	net.Conn
	leave func()
}

// CloseWrite passes a half-close on.
func (p *placed) CloseWrite() error { return closeWrite(p.Conn) }

// Close gives the place back.
func (p *placed) Close() error {
	defer p.leave()
	return p.Conn.Close()
}
