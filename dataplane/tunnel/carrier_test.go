package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// onePort is a gateway's public port as agents see it: data hellos, control
// connections and the web origin. It returns its address.
func onePort(t testing.TB, g *gateway) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check0(t, err)
	cert := g.ca.issue(t, sallyport.KindGateway, gatewayID)
	control := g.ca.server(cert)
	web := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	conns := make(chan net.Conn)
	mux := http.NewServeMux()
	mux.Handle(UpgradePath, g.hub.Upgrade(control))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: patience, ConnContext: ConnContext,
		BaseContext: func(net.Listener) context.Context { return g.ctx },
	}
	listener := &chanListener{Listener: l, conns: conns, done: make(chan struct{})}
	g.tasks.Go(func() { _ = server.Serve(listener) })
	p := &port{gateway: g, control: control, web: web, conns: conns}
	g.tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.tasks.Go(func() { p.serve(c) })
		}
	})
	stop := context.AfterFunc(g.ctx, func() { l.Close(); server.Close() })
	t.Cleanup(func() { stop(); l.Close(); server.Close() })
	return l.Addr().String()
}

type port struct {
	*gateway
	control, web *tls.Config
	conns        chan net.Conn
}

func (p *port) serve(c net.Conn) {
	var first [1]byte
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, first[:]); err != nil {
		c.Close()
		return
	}
	if first[0] == Magic[0] {
		hello := append(first[:], make([]byte, HelloSize-1)...)
		if _, err := io.ReadFull(c, hello[1:]); err != nil {
			c.Close()
			return
		}
		fd, from := takeFD(p.t, c), c.RemoteAddr().(*net.TCPAddr).AddrPort()
		l := p.loops[int(p.next.Add(1))%len(p.loops)]
		if !l.Post(func() { _ = p.hub.Park(l, fd, hello, from) }) {
			unix.Close(fd)
		}
		return
	}
	both := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if strings.Join(h.SupportedProtos, " ") == alpn.Tunnel1 {
			return p.control, nil
		}
		return p.web, nil
	}}
	tc := tls.Server(&firstConn{Conn: c, first: first[:]}, both)
	if tc.HandshakeContext(p.ctx) != nil {
		c.Close()
		return
	}
	if tc.ConnectionState().NegotiatedProtocol == alpn.Tunnel1 {
		_ = p.hub.Serve(p.ctx, tc)
		return
	}
	select {
	case p.conns <- tc:
	case <-p.ctx.Done():
		c.Close()
	}
}

// firstConn reads first before the rest.
type firstConn struct {
	net.Conn
	first []byte
}

func (c *firstConn) Read(b []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

type chanListener struct {
	net.Listener
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *chanListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

func (l *chanListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// middlebox is what stands between agents and the gateway, and lets only some
// things through. It can also be slow, lose what it is given, and cut.
type middlebox struct {
	t     testing.TB
	to    string
	lets  string // "all", "tls", "http"
	mute  bool   // what may not pass is swallowed, not reset
	cert  tls.Certificate
	delay atomic.Int64                                    // nanoseconds, for each piece
	ask   func(c net.Conn, first []byte) (net.Conn, bool) // for "proxy"
	lost  atomic.Bool                                     // nothing passes any more, and nobody is told

	// meet looks at a connection before that. It returns what it has read, the first bytes
	// included, and whether the connection may be looked at further. nil: all may.
	meet func(kind string, c net.Conn, first []byte) (read []byte, ok bool)

	tasks sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	over  bool
	seen  map[string]int // what it let through, by kind
}

func startMiddlebox(t testing.TB, to, lets string, change func(*middlebox)) (*middlebox, string) {
	t.Helper()
	m := &middlebox{t: t, to: to, lets: lets, conns: map[net.Conn]bool{}, seen: map[string]int{}}
	m.cert = newAuthority(t).issue(t, sallyport.KindGateway, gatewayID) // of a CA that nobody here knows
	if change != nil {
		change(m)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check0(t, err)
	m.tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			m.tasks.Go(func() { m.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		m.cut()
		m.tasks.Wait()
	})
	return m, l.Addr().String()
}

// keep remembers a connection until it is forgotten; false: everything is over.
func (m *middlebox) keep(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		c.Close()
		return false
	}
	m.conns[c] = true
	return true
}

func (m *middlebox) forget(c net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.conns, c)
	c.Close()
}

// cut ends all connections, now and from now on.
func (m *middlebox) cut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	for c := range m.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		c.Close()
	}
}

// cutNow ends the connections that there are.
func (m *middlebox) cutNow() {
	m.cut()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = false
}

func (m *middlebox) serve(c net.Conn) {
	if !m.keep(c) {
		return
	}
	defer m.forget(c)
	first := make([]byte, 4)
	if _, err := io.ReadFull(c, first); err != nil {
		return
	}
	kind := map[bool]string{true: "tls", false: "other"}[first[0] == tlsHandshake]
	if string(first) == Magic {
		kind = "data"
	}
	if m.meet != nil {
		var ok bool
		if first, ok = m.meet(kind, c, first); !ok {
			return
		}
	}
	switch {
	case m.lets == "all", m.lets == "tls" && kind == "tls":
		m.let(kind)
		m.pass(readConn{c, io.MultiReader(bytes.NewReader(first), c)}, c, nil)
	case m.lets == "http" && kind == "tls":
		m.inspect(&firstConn{c, first}, c)
	case m.lets == "proxy":
		if inner, ok := m.ask(c, first); ok {
			m.pass(inner, c, nil)
		}
	case m.mute:
		_, _ = io.Copy(io.Discard, c)
	}
}

func (m *middlebox) let(kind string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen[kind]++
}

// inspect ends TLS with a certificate of its own, as offices do, and passes only
// what upgrades to a WebSocket.
func (m *middlebox) inspect(c, under net.Conn) {
	tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{m.cert}, NextProtos: []string{"http/1.1"}})
	if tc.Handshake() != nil {
		return
	}
	in := bufio.NewReader(tc)
	r, err := http.ReadRequest(in)
	if err != nil || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		_, _ = io.WriteString(tc, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
		return
	}
	m.let("websocket")
	m.pass(readConn{tc, in}, under, r)
}

// pass moves bytes both ways. With a request it ends TLS on the gateway's side
// too, and sends that first.
func (m *middlebox) pass(from net.Conn, under net.Conn, first *http.Request) {
	raw, err := net.Dial("tcp", m.to)
	if err != nil || !m.keep(raw) {
		return
	}
	defer m.forget(raw)
	to := net.Conn(raw)
	if first != nil {
		tc := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: testCluster, NextProtos: []string{"http/1.1"}})
		if first.Write(tc) != nil {
			return
		}
		to = tc
	}
	var back sync.WaitGroup
	back.Go(func() { m.copy(from, to, under, raw) })
	m.copy(to, from, raw, under)
	back.Wait()
}

func (m *middlebox) copy(dst, src, dstUnder, srcUnder net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := src.Read(b)
		if d := time.Duration(m.delay.Load()); d > 0 {
			time.Sleep(d) // the delay is what is tested
		}
		if n > 0 && !m.lost.Load() {
			if _, werr := dst.Write(b[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) && !m.lost.Load() {
				if w, ok := dst.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
					return
				}
			}
			break
		}
	}
	dstUnder.Close()
	srcUnder.Close()
}

// readConn reads from r, which is before the connection.
type readConn struct {
	net.Conn
	r io.Reader
}

func (c readConn) Read(b []byte) (int, error) { return c.r.Read(b) }
func (c readConn) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// carrierRows are the networks that an agent must find its way through.
var carrierRows = []struct {
	lets    string
	mute    bool
	want    Carrier
	control Carrier
}{
	{"all", false, CarrierTCP, CarrierTLS},
	{"tls", false, CarrierTLS, CarrierTLS},
	{"tls", true, CarrierTLS, CarrierTLS},
	{"http", false, CarrierWebSocket, CarrierWebSocket},
	{"http", true, CarrierWebSocket, CarrierWebSocket},
}

// TestCarriers: whatever a network lets through, the agent finds the first way
// that works, and a stream is the same on each.
func TestCarriers(t *testing.T) {
	for _, row := range carrierRows {
		t.Run(fmt.Sprintf("%s mute=%v", row.lets, row.mute), func(t *testing.T) {
			onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
				g, m := carriedWorld(t, loops, row.lets, row.mute, nil)
				s := g.hub.Status()
				if got := s.Tunnels[0].Carrier; got != string(row.want) {
					t.Errorf("carrier %q, want %q; passed: %v", got, row.want, m.seen)
				}
				if row.want != CarrierTCP && (s.Counters["carried_"+string(row.want)] == 0 || s.Carried == 0) {
					t.Errorf("carried %d, counters: %v", s.Carried, s.Counters)
				}
				conform(t, g)
				eventually(t, "nothing held", func() bool {
					s := g.hub.Status()
					return s.HalfOpen == 0 && s.Tunnels[0].Streams == 0 && s.Tunnels[0].HalfOpen == 0
				})
			})
		})
	}
}

// passes is the first carrier that a middlebox lets through.
var passes = map[string]Carrier{"all": CarrierTCP, "tls": CarrierTLS, "http": CarrierWebSocket}

// carriedWorld is a gateway and an agent with a middlebox between, and a warm pool.
func carriedWorld(t testing.TB, loops []relay.Loop, lets string, mute bool, change func(*HubConfig)) (*gateway, *middlebox) {
	t.Helper()
	ca := newAuthority(t)
	g := startGateway(t, ca, loops, func(c *HubConfig) {
		c.DataAddress, c.Loops = "", loops
		c.Bounds = Bounds{HalfOpenSource: 1000, SourceRate: 100000, LeaseWait: patience, PoolFloor: 4}
		if change != nil {
			change(c)
		}
	})
	m, addr := startMiddlebox(t, onePort(t, g), lets, func(m *middlebox) { m.mute = mute })
	startAgent(t, ca, []string{addr}, func(c *AgentConfig) {
		c.Serve = echoHalf
		c.answerWait = func(by Carrier) time.Duration {
			if by == passes[lets] {
				return patience // however busy the machine, it is this one
			}
			return answerLimit
		}
	})
	g.come(t)
	eventually(t, "parked", func() bool { s := g.hub.Status(); return len(s.Tunnels) == 1 && s.Tunnels[0].Parked >= 4 })
	return g, m
}

// echoHalf sends back what it gets, and ends its half when the client has ended
// the other.
func echoHalf(ctx context.Context, s *Stream) {
	defer context.AfterFunc(ctx, func() { s.Conn.Close() })()
	s.Up()
	_, _ = io.Copy(s.Conn, s.Conn)
}

// conform is what a stream must do on every carrier.
func conform(t *testing.T, g *gateway) {
	t.Helper()
	for i := range 8 {
		o := g.lease(t, request0("tcp", "echo"))
		if o.lease == nil {
			t.Fatalf("stream %d: no lease: %s", i, o.reason)
		}
		c := clientConn(t, o.lease)
		words := fmt.Sprintf("words of stream %d", i)
		if got := ask(t, c, words); got != words {
			t.Errorf("echo: %q", got)
		}
		if i%2 == 0 {
			transfer(t, c)
		}
		c.Close()
		o.lease.Ended()
	}
}

// transfer sends 1 MiB, ends its half, and wants it all back, and then the end.
func transfer(t *testing.T, c net.Conn) {
	t.Helper()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var up sync.WaitGroup
	up.Go(func() {
		if _, err := c.Write(sent); err != nil {
			t.Errorf("send: %v", err)
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Errorf("end of the half: %v", err)
		}
	})
	got, err := io.ReadAll(c)
	up.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d came back, %v", len(got), len(sent), err)
	}
}
