package agent

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
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	"github.com/sallyport/sallyport/identity"
)

const (
	cluster   = "gw.test"
	agentID   = "a6e17000-0000-4000-8000-000000000001"
	gatewayID = "9a7e0000-0000-4000-8000-000000000001"
	patience  = 30 * time.Second
)

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func receive[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("nothing came in time")
	}
	return v
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))
	cert := must[*x509.Certificate](t)(x509.ParseCertificate(der))
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) issue(t testing.TB, id sallyport.Identity, names ...string) *tls.Certificate {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: must[*big.Int](t)(rand.Int(rand.Reader, big.NewInt(1<<62))),
		Subject: pkix.Name{CommonName: id.Name}, DNSNames: names,
		URIs:      []*url.URL{identity.URI(id.Kind, id.Cluster, id.Name)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{must[pkix.Extension](t)(identity.Extension(id))}}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key))
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// gateway is the least that a gateway is: the hub of package tunnel on a loop,
// and a port that joins clients to leased data connections.
type gateway struct {
	t                     testing.TB
	hub                   *tunnel.Hub
	loop                  relay.Loop
	control, data, public net.Listener
	presence              chan tunnel.Presence
	tasks                 sync.WaitGroup

	mu    sync.Mutex
	frame func(kind, name string) (string, string) // what the frame names for a hello; nil: the same
	id    tunnel.ID                                // of the next streams; zero: random
	seen  bytes.Buffer                             // what went to the agent
	conns []net.Conn
}

func startGateway(t testing.TB, hostCA *authority, assigned []sallyport.Resource) *gateway {
	t.Helper()
	listen := func() net.Listener { return must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0")) }
	g := &gateway{t: t, control: listen(), data: listen(), public: listen(), presence: make(chan tunnel.Presence, 16),
		loop: must[relay.Loop](t)(relay.NewDefault())}
	g.hub = tunnel.NewHub(tunnel.HubConfig{
		GatewayID: gatewayID, Cluster: cluster, DataAddress: g.data.Addr().String(),
		Verify: func([]byte, string) (tunnel.Assignment, error) {
			return tunnel.Assignment{Revision: 1, Resources: assigned}, nil
		},
		Presence: func(p tunnel.Presence) { g.presence <- p },
		Bounds:   tunnel.Bounds{LeaseWait: patience},
	})
	cert := hostCA.issue(t, sallyport.Identity{Kind: sallyport.KindGateway, Name: gatewayID, Cluster: cluster}, cluster)
	cfg := &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{alpn.Tunnel1},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: hostCA.pool}
	ctx, cancel := context.WithCancel(context.Background())
	g.accept(g.control, func(c net.Conn) { g.hub.Serve(ctx, tls.Server(c, cfg)) })
	g.accept(g.data, g.park)
	g.accept(g.public, g.join)
	t.Cleanup(func() {
		cancel()
		for _, l := range []net.Listener{g.control, g.data, g.public} {
			l.Close()
		}
		g.mu.Lock()
		for _, c := range g.conns {
			c.Close()
		}
		g.mu.Unlock()
		g.tasks.Wait()
		g.loop.Close()
	})
	return g
}

func (g *gateway) accept(l net.Listener, serve func(net.Conn)) {
	g.tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.tasks.Go(func() { serve(c) })
		}
	})
}

// park gives a data connection's descriptor to the hub.
func (g *gateway) park(c net.Conn) {
	hello := make([]byte, tunnel.HelloSize)
	if _, err := io.ReadFull(c, hello); err != nil {
		c.Close()
		return
	}
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		g.t.Error(err)
		return
	}
	fd := -1
	raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	c.Close()
	if err != nil || !g.loop.Post(func() { g.hub.Park(g.loop, fd, hello, from) }) {
		unix.Close(fd)
	}
}

type waiter chan *tunnel.Lease

func (w waiter) Leased(l *tunnel.Lease) { w <- l }
func (w waiter) LeaseFailed(string)     { w <- nil }

// join carries one client: reads its hello, leases, and passes all bytes on.
func (g *gateway) join(client net.Conn) {
	defer client.Close()
	g.keep(client)
	client.SetDeadline(time.Now().Add(2 * patience))
	flight := make([]byte, 16<<10)
	n, err := client.Read(flight)
	if err != nil {
		return
	}
	kind, name, ok := alpn.ParseName(serverName(flight[:n]), cluster)
	if !ok {
		return
	}
	g.mu.Lock()
	id := g.id
	if g.frame != nil {
		kind, name = g.frame(kind, name)
	}
	g.mu.Unlock()
	if id == (tunnel.ID{}) {
		rand.Read(id[:])
	}
	w := make(waiter, 1)
	req := tunnel.LeaseRequest{Kind: kind, Name: name, ConnectionID: id, Source: netip.MustParseAddrPort("192.0.2.7:50000")}
	if !g.loop.Post(func() { g.hub.Lease(g.loop, req, w) }) {
		return
	}
	l := <-w
	if l == nil {
		alert := alpn.UnrecognizedName.Record()
		client.Write(alert[:])
		return
	}
	defer l.Ended()
	file := os.NewFile(uintptr(l.FD), "data")
	agent, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return
	}
	defer agent.Close()
	g.keep(agent)
	agent.Write(l.Frame)
	g.record(flight[:n])
	agent.Write(flight[:n])
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, err := io.Copy(client, agent)
		pass(client, err)
	}()
	_, err = io.Copy(io.MultiWriter(agent, recorder{g}), client)
	pass(agent, err)
	<-back
}

// pass ends one direction as the other side did: a reset stays one.
func pass(c net.Conn, err error) {
	if err != nil {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		return
	}
	c.(*net.TCPConn).CloseWrite()
}

func (g *gateway) keep(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns = append(g.conns, c)
}

type recorder struct{ *gateway }

func (r recorder) Write(p []byte) (int, error) { r.record(p); return len(p), nil }

func (g *gateway) record(p []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen.Write(p)
}

// passed is what went to the agent behind the frames.
func (g *gateway) passed() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.seen.Bytes())
}

// serverName is the SNI of a hello, by crypto/tls itself.
func serverName(flight []byte) (name string) {
	stop := errors.New("enough")
	tls.Server(readOnly{bytes.NewReader(flight)}, &tls.Config{GetConfigForClient: func(chi *tls.ClientHelloInfo) (*tls.Config, error) {
		name = chi.ServerName
		return nil, stop
	}}).Handshake()
	return name
}

type readOnly struct{ r io.Reader }

func (c readOnly) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c readOnly) Write(p []byte) (int, error)      { return len(p), nil }
func (c readOnly) Close() error                     { return nil }
func (c readOnly) LocalAddr() net.Addr              { return nil }
func (c readOnly) RemoteAddr() net.Addr             { return nil }
func (c readOnly) SetDeadline(time.Time) error      { return nil }
func (c readOnly) SetReadDeadline(time.Time) error  { return nil }
func (c readOnly) SetWriteDeadline(time.Time) error { return nil }
