//go:build unix

package gateway

import (
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// handOff takes a connection out of the loop: TLS ends here. It keeps its place
// in the crowd until the handshake is done.
func (c *conn) handOff(class alpn.Class) {
	end, ok := c.cfg.Ends[class]
	if !ok {
		c.refuseRoute(unserved(class))
		return
	}
	bound, ok := c.crowd.enter(&c.slot, c.peer.Addr(), true, c.loop.Now())
	if !ok {
		c.abandon(bound)
		return
	}
	h := &handshake{Gateway: c.Gateway, end: end, peer: c.peer, slot: c.slot, within: c.bounds.Stage}
	var prefix []byte
	if c.buf != nil {
		prefix = append(prefix, c.buf...)
	}
	proxied := c.said&saidProxy != 0
	c.slot = slot{} // the handshake's now
	c.count(outcomeHandedOff)
	conn, err := relay.NetConn(c.release(), prefix)
	if err != nil {
		h.done(outcomeInternal, false)
		return
	}
	if proxied {
		conn = &proxiedConn{Conn: conn, peer: net.TCPAddrFromAddrPort(h.peer)}
	}
	h.conn = conn
	h.serving.Add(1)
	h.tasks.Go(h.serve)
}

// ssh takes a connection out of the loop that speaks SSH in clear (RFC 4253,
// section 4.2). It keeps its place in the crowd until the client has proved who
// it is, or the connection is closed.
func (c *conn) ssh() {
	switch {
	case c.cfg.SSH == nil:
		c.abandon(outcomeSSH)
		return
	case c.ended:
		c.abandon(outcomeEndedEarly)
		return
	case c.shed:
		c.abandon(outcomeShed)
		return
	}
	bound, ok := c.crowd.enter(&c.slot, c.peer.Addr(), true, c.loop.Now())
	if ok {
		bound, ok = c.crowd.speak(c.peer.Addr(), c.loop.Now())
	}
	if !ok {
		c.abandon(bound)
		return
	}
	s := &stranger{gateway: c.Gateway, peer: c.peer, slot: c.slot}
	var prefix []byte
	if c.buf != nil {
		prefix = append(prefix, c.buf...)
	}
	c.slot = slot{} // the stranger's now
	c.count(outcomeHandedOff)
	conn, err := relay.NetConn(c.release(), prefix)
	if err != nil {
		s.settle(outcomeInternal, false)
		return
	}
	s.Conn = conn
	s.gateway.serving.Add(1)
	s.gateway.tasks.Go(s.serve)
}

// stranger is a connection that left its loop before its client was anybody.
type stranger struct {
	net.Conn
	gateway *Gateway
	peer    netip.AddrPort
	once    sync.Once
	slot    slot
}

func (s *stranger) serve() {
	defer s.gateway.serving.Add(-1)
	defer s.Close()
	s.gateway.cfg.SSH(s.gateway.ctx, s)
}

// RemoteAddr is the client's, also behind a trusted proxy.
func (s *stranger) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.peer) }

// Proven implements Stranger.
func (s *stranger) Proven() {
	s.gateway.crowd.prove(s.peer.Addr(), time.Now())
	s.settle(outcomeHandshake, true)
}

// Close closes the connection; one that was a stranger's to the end is counted
// as such.
func (s *stranger) Close() error {
	err := s.Conn.Close()
	s.settle(outcomeHandshakeFailed, false)
	return err
}

func (s *stranger) settle(why outcome, good bool) {
	s.once.Do(func() {
		s.gateway.outside.add(why)
		s.gateway.crowd.hush()
		s.gateway.crowd.leave(&s.slot, good, time.Now())
	})
}

// unserved: the cluster's own name exists, and speaks other protocols; an app's
// may not.
func unserved(class alpn.Class) alpn.Alert {
	switch class {
	case alpn.Tunnel, alpn.Gateway, alpn.Store, alpn.Challenge:
		return alpn.NoApplicationProtocol
	}
	return alpn.UnrecognizedName
}

// handshake is a connection between the loop and its handler.
type handshake struct {
	*Gateway
	end  End
	conn net.Conn
	peer netip.AddrPort
	slot slot

	within time.Duration
}

// serve ends TLS and gives the connection to the handler of the protocol that
// was negotiated.
func (h *handshake) serve() {
	defer h.serving.Add(-1)
	under := &endedConn{Conn: h.conn}
	conn := tls.Server(under, h.end.TLS)
	// Lifted below, when the handshake is done; the handler sets its own.
	_ = conn.SetDeadline(time.Now().Add(h.within))
	if err := conn.HandshakeContext(h.ctx); err != nil {
		h.conn.Close()
		h.log.Debug("handshake failed", "peer", h.peer, "err", err)
		h.done(outcomeHandshakeFailed, false)
		return
	}
	state := conn.ConnectionState()
	handler := h.end.Handlers[state.NegotiatedProtocol]
	if handler == nil || conn.SetDeadline(time.Time{}) != nil {
		conn.Close()
		h.done(outcomeNoApplicationProtocol, false)
		return
	}
	if len(state.PeerCertificates) > 0 { // the End's configuration has checked it
		h.crowd.prove(h.peer.Addr(), time.Now())
	} else if bound, ok := h.crowd.hold(h.peer.Addr(), time.Now()); !ok {
		conn.Close()
		h.done(bound, false)
		return
	} else {
		under.closed = sync.OnceFunc(func() { h.crowd.release(h.peer.Addr()) })
		under.proven = func() { h.Proven(h.peer.Addr()) }
	}
	h.done(outcomeHandshake, true)
	handler(h.ctx, conn)
}

func (h *handshake) done(why outcome, good bool) {
	h.outside.add(why)
	h.crowd.leave(&h.slot, good, time.Now())
}

// endedConn tells when it is closed, whoever owns the connection by then.
type endedConn struct {
	net.Conn
	closed func() // set before the connection is given away, as proven is; nil for nobody to tell
	proven func()
}

// Close closes the connection and gives its place back, once.
func (c *endedConn) Close() error {
	err := c.Conn.Close()
	if c.closed != nil {
		c.closed()
	}
	return err
}

// Proven gives the place back before the end, and makes the source known: who is at
// the other end has proved who it is by what is inside the TLS, or inside a WebSocket
// in it.
func (c *endedConn) Proven() {
	if c.closed != nil {
		c.proven()
		c.closed()
	}
}

// proxiedConn shows the client's address that a trusted proxy told.
type proxiedConn struct {
	net.Conn
	peer net.Addr
}

// RemoteAddr is the client's.
func (c *proxiedConn) RemoteAddr() net.Addr { return c.peer }
