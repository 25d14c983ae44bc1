package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/test/leak"
)

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) { leak.Main(m) }

const (
	testCluster = "gw.test"
	gatewayID   = "6a3d4bd6-0000-4000-8000-0000000000a1"
	agentID     = "6a3d4bd6-0000-4000-8000-0000000000b1"
	agent2ID    = "6a3d4bd6-0000-4000-8000-0000000000b2"

	patience = 30 * time.Second // the most that anything may take, on a busy machine too
)

// authority is a throw-away host CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check0(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host CA"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(100 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check0(t, err)
	cert, err := x509.ParseCertificate(der)
	check0(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) issue(t testing.TB, kind sallyport.IdentityKind, id string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check0(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: id},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(100 * 365 * 24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: testCluster, Path: "/" + string(kind) + "/" + id}},
		DNSNames:    []string{testCluster},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	check0(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server(c tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS13, NextProtos: []string{alpn.Tunnel1},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool,
	}
}

func (a *authority) client(c tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c}, RootCAs: a.pool, ServerName: testCluster, NextProtos: []string{alpn.Tunnel1}, MinVersion: tls.VersionTLS13}
}

// assigned is the test's form of an assignment: "revision name name …".
func assigned(revision uint64, names ...string) []byte {
	return fmt.Appendf(nil, "%d %s", revision, strings.Join(names, " "))
}

func verifyAssigned(raw []byte, agent string) (Assignment, error) {
	var a Assignment
	f := strings.Fields(string(raw))
	if len(f) == 0 {
		return a, errors.New("not signed")
	}
	if _, err := fmt.Sscan(f[0], &a.Revision); err != nil {
		return a, errors.New("not signed")
	}
	for _, n := range f[1:] {
		if s, ok := strings.CutPrefix(n, "tag="); ok {
			_, _ = fmt.Sscan(s, &a.PgCancelTag)
			continue
		}
		if s, ok := strings.CutPrefix(n, "until="); ok {
			var unix int64
			_, _ = fmt.Sscan(s, &unix)
			a.NotAfter = time.Unix(unix, 0)
			continue
		}
		kind, name, _ := strings.Cut(n, "/")
		a.Resources = append(a.Resources, sallyport.Resource{Kind: sallyport.Kind(kind), Name: name, AgentID: agent})
	}
	return a, nil
}

// kinds are the loops that every test of sockets runs on.
type loopKind struct {
	name string
	make func() (relay.Loop, error)
}

func loopKinds() []loopKind {
	return []loopKind{{"default", relay.NewDefault}, {"portable", relay.NewPortable}}
}

func onLoops(t *testing.T, n int, f func(t *testing.T, loops []relay.Loop)) {
	for _, k := range loopKinds() {
		t.Run(k.name, func(t *testing.T) {
			loops := make([]relay.Loop, n)
			for i := range loops {
				l, err := k.make()
				check0(t, err)
				loops[i] = l
				t.Cleanup(func() { l.Close() })
			}
			f(t, loops)
		})
	}
}

// gateway is a real one in miniature: a port for control connections, one for
// data connections, loops, a hub.
type gateway struct {
	t        testing.TB
	hub      *Hub
	loops    []relay.Loop
	ca       *authority
	control  net.Listener
	data     net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	presence chan Presence
	ended    chan error // of control connections
	next     atomic.Int64
	parkErr  chan error
}

func startGateway(t testing.TB, ca *authority, loops []relay.Loop, change func(*HubConfig)) *gateway {
	t.Helper()
	control, err := net.Listen("tcp", "127.0.0.1:0")
	check0(t, err)
	g := serveGateway(t, ca, loops, control, change)
	t.Cleanup(g.stop)
	return g
}

func serveGateway(t testing.TB, ca *authority, loops []relay.Loop, control net.Listener, change func(*HubConfig)) *gateway {
	t.Helper()
	data, err := net.Listen("tcp", "127.0.0.1:0")
	check0(t, err)
	g := &gateway{
		t: t, loops: loops, ca: ca, control: control, data: data,
		presence: make(chan Presence, 1000), ended: make(chan error, 1000), parkErr: make(chan error, 100000),
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	cfg := HubConfig{
		GatewayID: gatewayID, Cluster: testCluster, DataAddress: data.Addr().String(),
		Verify: verifyAssigned, Presence: func(p Presence) { g.presence <- p }, Log: testLog(t),
	}
	if change != nil {
		change(&cfg)
	}
	g.hub = NewHub(cfg)
	tc := ca.server(ca.issue(t, sallyport.KindGateway, cfg.GatewayID))
	g.tasks.Go(func() { g.acceptControl(tc) })
	g.tasks.Go(g.acceptData)
	return g
}

func (g *gateway) acceptControl(tc *tls.Config) {
	for {
		c, err := g.control.Accept()
		if err != nil {
			return
		}
		g.tasks.Go(func() { g.ended <- g.hub.Serve(g.ctx, tls.Server(c, tc)) })
	}
}

func (g *gateway) acceptData() {
	for {
		c, err := g.data.Accept()
		if err != nil {
			return
		}
		hello := make([]byte, HelloSize)
		if _, err := io.ReadFull(c, hello); err != nil {
			c.Close()
			continue
		}
		fd, from := takeFD(g.t, c), c.RemoteAddr().(*net.TCPAddr).AddrPort()
		l := g.loops[int(g.next.Add(1))%len(g.loops)]
		if !l.Post(func() { g.parkErr <- g.hub.Park(l, fd, hello, from) }) {
			unix.Close(fd)
		}
	}
}

// takeFD takes the descriptor of a connection out of the runtime's poller.
func takeFD(t testing.TB, c net.Conn) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	check0(t, err)
	fd := -1
	check0(t, raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }))
	check0(t, err)
	c.Close()
	return fd
}

// kill ends the gateway as a crash does: no goodbye.
func (g *gateway) stop() {
	g.control.Close()
	g.data.Close()
	g.cancel()
	g.tasks.Wait()
}

// come waits for the next change of presence.
func (g *gateway) come(t testing.TB) Presence {
	t.Helper()
	return receive(t, g.presence)
}

// warm waits until every wanted connection of all tunnels is parked.
func (g *gateway) warm(t testing.TB) {
	t.Helper()
	eventually(t, "warm pool", func() bool {
		for _, s := range g.hub.Status().Tunnels {
			if s.Parked < s.Target {
				return false
			}
		}
		return true
	})
}

// outcome is what a lease came to.
type outcome struct {
	lease  *Lease
	reason string
}

type waiter chan outcome

func (w waiter) Leased(l *Lease)      { w <- outcome{lease: l} }
func (w waiter) LeaseFailed(r string) { w <- outcome{reason: r} }

func request0(kind, name string) LeaseRequest {
	return LeaseRequest{Kind: kind, Name: name, Source: netip.MustParseAddrPort("192.0.2.1:4711"), ConnectionID: newID()}
}

func (g *gateway) ask(l relay.Loop, r LeaseRequest) waiter {
	w := make(waiter, 1)
	if !l.Post(func() { g.hub.Lease(l, r, w) }) {
		g.t.Error("the loop is closed")
	}
	return w
}

func (g *gateway) lease(t testing.TB, r LeaseRequest) outcome {
	t.Helper()
	return receive(t, g.ask(g.loops[int(g.next.Add(1))%len(g.loops)], r))
}

// clientConn makes a leased descriptor a net.Conn, with the frame written.
func clientConn(t testing.TB, l *Lease) net.Conn {
	t.Helper()
	c := connOf(t, l.FD)
	_, err := c.Write(l.Frame)
	check0(t, err)
	return c
}

func connOf(t testing.TB, fd int) net.Conn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "data")
	c, err := net.FileConn(f)
	check0(t, err)
	f.Close()
	check0(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

func ask(t testing.TB, c net.Conn, text string) string {
	t.Helper()
	_, err := c.Write([]byte(text))
	check0(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(c, got)
	check0(t, err)
	return string(got)
}

// startAgent runs an agent until the test ends, or stop is called.
func startAgent(t testing.TB, ca *authority, gateways []string, change func(*AgentConfig)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cfg := AgentConfig{AgentID: agentID, Cluster: testCluster, Version: "test", Gateways: gateways, Serve: echo, Log: testLog(t)}
	if change != nil {
		change(&cfg)
	}
	if cfg.Own == nil {
		cfg.Own = func(chain []*x509.Certificate) bool { return identity.LeadsTo(ca.pool, chain, time.Time{}) }
	}
	if cfg.Assignments == nil {
		cfg.Assignments = once(assigned(1, "tcp/echo"))
	}
	if cfg.TLS == nil {
		cert := ca.issue(t, sallyport.KindAgent, cfg.AgentID)
		cfg.TLS = func(string) (*tls.Config, error) { return ca.client(cert), nil }
	}
	done := make(chan error, 1)
	go func() { done <- RunAgent(ctx, cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := receive(t, done); !errors.Is(err, context.Canceled) {
			t.Errorf("RunAgent: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func once(b []byte) <-chan []byte {
	c := make(chan []byte, 1)
	c <- b
	return c
}

// echo proves every client at once and sends back what it says.
func echo(ctx context.Context, s *Stream) {
	defer context.AfterFunc(ctx, func() { s.Conn.Close() })()
	s.Up()
	_, _ = io.Copy(s.Conn, s.Conn)
}

func receive[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came in time")
		return v
	}
}

// eventually waits for something that no channel tells.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not in time", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func check0(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testLog writes to the test's log as long as the test runs.
func testLog(t testing.TB) *slog.Logger {
	w := &logWriter{t: t}
	t.Cleanup(w.end)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type logWriter struct {
	mu   sync.Mutex
	t    testing.TB
	over bool
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.t.Log(string(bytes.TrimSpace(b)))
	}
	return len(b), nil
}

func (w *logWriter) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}
