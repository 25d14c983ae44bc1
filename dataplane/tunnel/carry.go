package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/dataplane/carrier"
)

// The gateway's half of the carriers. A data connection that comes inside TLS or
// a WebSocket is pumped into one end of a socket pair; the other end is parked as
// any data connection is:
//
//	agent ══ TLS or WebSocket ══▶ pump (two goroutines) ══ pair ══▶ pool ─▶ relay
//
// Invariant: nothing is made for a stranger. The pair and the pump come after
// the hello's MAC, or the certificate inside a WebSocket, has been checked.

// UpgradePath is where the gateway's web origin takes WebSockets of agents.
const UpgradePath = "/sallyport/tunnel"

// magicSize is what tells a data hello from a control message, whose first byte
// is the zero of a length below 16 MiB, and from TLS.
const magicSize = len(Magic)

// tlsHandshake is the first byte of TLS, RFC 8446, section 5.1.
const tlsHandshake = 22

// serveData carries a data connection of which the first bytes have been read.
// Its caller has set a deadline; lift takes it away. It returns at the end of
// the connection, which it closes.
func (h *Hub) serveData(ctx context.Context, in inbound) error {
	t, d, err := h.greetData(in)
	if err != nil {
		carrier.Abort(in.Conn)
		h.counters.add("carried_refused")
		return fmt.Errorf("carried data connection: %w", err)
	}
	defer h.carried.Add(-1)
	in.lift() // its agent is known
	fd, local, err := carrier.Pair()
	if err != nil {
		carrier.Abort(in.Conn)
		return err
	}
	t.carrier.Store(in.kind)
	h.counters.add("carried_" + carrierName(in.kind))
	loop := h.cfg.Loops[int(h.turn.Add(1)&turnMask)%len(h.cfg.Loops)]
	e := &entry{tunnel: t, fd: fd, counter: d.Counter, carried: true}
	if !loop.Post(func() { _ = h.settleIn(loop, e, d.Answer) }) { // its error is counted, and closes the pair
		closeFD(fd)
	}
	carrier.Pump(ctx, in.Conn, local)
	return nil
}

// turnMask keeps a turn positive in an int of any size.
const turnMask = 1<<30 - 1

// inbound is a carrier at the gateway, before it is known whose it is.
type inbound struct {
	carrier.Conn
	kind int32
	head []byte // what has been read
	from netip.AddrPort
	lift func() // ends the deadline of strangers
}

// greetData reads the hello and takes one of the places for carried connections.
func (h *Hub) greetData(in inbound) (*tunnel, DataHello, error) {
	hello := make([]byte, HelloSize)
	n := copy(hello, in.head)
	if _, err := io.ReadFull(in.Conn, hello[n:]); err != nil {
		return nil, DataHello{}, err
	}
	if len(h.cfg.Loops) == 0 {
		return nil, DataHello{}, errNoCarriers
	}
	if h.carried.Add(1) > int64(h.bounds.Carried) {
		h.carried.Add(-1)
		h.counters.add("carried_full")
		return nil, DataHello{}, errTooManyCarried
	}
	t, d, err := h.admitData(hello, in.from)
	if err != nil {
		h.carried.Add(-1)
	}
	return t, d, err
}

// connKey is the context's key for the connection of a web request.
type connKey struct{}

// ConnContext is for http.Server.ConnContext of the server that Upgrade's handler
// is part of: the handler tells the connection when its agent is known.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// proven is what a gateway's connection may have beneath its TLS: who is at its
// other end is no stranger any more.
type proven interface{ Proven() }

func tellProven(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*tls.Conn); ok {
		if p, ok := c.NetConn().(proven); ok {
			p.Proven()
		}
	}
}

// Upgrade takes agents' WebSockets: data connections, and control connections,
// whose TLS, with cfg, is inside the WebSocket. So whoever ends the outer TLS on
// the way is no more than somebody on the path. The handler returns when the
// connection has ended, which it does when the request's base context is done.
func (h *Hub) Upgrade(cfg *tls.Config) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" { // a page of some browser
			http.Error(w, "this is for agents", http.StatusForbidden)
			return
		}
		s, err := carrier.Accept(w, r)
		if err != nil {
			h.counters.add("carried_refused") // and answered
			return
		}
		if err := h.serveSocket(r, s, cfg); err != nil {
			h.cfg.Log.Debug("WebSocket of an agent ended", "from", r.RemoteAddr, "err", err)
		}
	})
}

func (h *Hub) serveSocket(r *http.Request, s *carrier.Socket, cfg *tls.Config) error {
	ctx := r.Context()
	deadline := time.AfterFunc(h.bounds.HelloWait, s.Abort)
	lift := sync.OnceFunc(func() {
		deadline.Stop()
		tellProven(ctx)
	})
	head := make([]byte, magicSize)
	if _, err := io.ReadFull(s, head); err != nil {
		s.Abort()
		h.counters.add("carried_refused")
		return err
	}
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	switch {
	case string(head) == Magic:
		return h.serveData(ctx, inbound{Conn: s, kind: carriedWebSocket, head: head, from: from, lift: lift})
	case head[0] == tlsHandshake:
		return h.serveInner(ctx, s, head, func(c net.Conn) error {
			return h.serve(ctx, tls.Server(c, cfg), lift)
		})
	}
	s.Abort()
	h.counters.add("carried_refused")
	return ErrMalformed
}

// serveInner gives what is inside a WebSocket to f as a connection. It returns
// when both have ended.
func (h *Hub) serveInner(ctx context.Context, s *carrier.Socket, head []byte, f func(net.Conn) error) error {
	c := &innerConn{socket: s, head: head, ctx: ctx}
	defer c.task.Wait()
	defer c.Close()
	return f(c)
}

// innerConn is what is inside a WebSocket, as a connection. For as long as nobody
// knows whose it is that is the WebSocket itself, which takes no descriptor more,
// and whose deadline its owner keeps; the connection's own are for later. From
// settle on it is one end of a pair. One goroutine has it until then.
type innerConn struct {
	socket *carrier.Socket
	head   []byte // read before the rest
	ctx    context.Context
	task   sync.WaitGroup // the pump

	mu     sync.Mutex
	far    *net.UnixConn // nil before settle
	until  time.Time
	closed bool
}

// settle makes the pair, and pumps. Nothing is read or written meanwhile.
func (c *innerConn) settle() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	far, local, err := carrier.ConnPair()
	if err != nil {
		return err
	}
	if err := far.SetDeadline(c.until); err != nil {
		far.Close()
		local.Close()
		return err
	}
	c.far = far
	c.task.Go(func() { carrier.Pump(c.ctx, c.socket, local) })
	return nil
}

// now is the pair's end, or the WebSocket.
func (c *innerConn) now() io.ReadWriter {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.far != nil {
		return c.far
	}
	return c.socket
}

// Read implements net.Conn.
func (c *innerConn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.now().Read(b)
}

// Write implements net.Conn.
func (c *innerConn) Write(b []byte) (int, error) { return c.now().Write(b) }

// Close implements net.Conn. It is idempotent.
func (c *innerConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.far != nil {
		return c.far.Close()
	}
	c.socket.Abort()
	return nil
}

// SetDeadline implements net.Conn.
func (c *innerConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.far != nil {
		return c.far.SetDeadline(t)
	}
	c.until = t
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *innerConn) SetReadDeadline(t time.Time) error {
	return c.later((*net.UnixConn).SetReadDeadline, t)
}

// SetWriteDeadline implements net.Conn.
func (c *innerConn) SetWriteDeadline(t time.Time) error {
	return c.later((*net.UnixConn).SetWriteDeadline, t)
}

// later sets a deadline that is of no use to a stranger.
func (c *innerConn) later(set func(*net.UnixConn, time.Time) error, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.far == nil {
		return nil
	}
	return set(c.far, t)
}

// LocalAddr implements net.Conn: that of no socket.
func (c *innerConn) LocalAddr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// RemoteAddr implements net.Conn: that of no socket.
func (c *innerConn) RemoteAddr() net.Addr { return &net.UnixAddr{Net: "unix"} }
