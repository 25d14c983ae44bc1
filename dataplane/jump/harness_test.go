package jump

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

const (
	cluster  = "gw.example.com"
	deadline = 2 * time.Minute // for whatever a test waits for
)

// gate is a jump server on a loopback port, with a node that echoes.
type gate struct {
	t      testing.TB
	server *Server
	userCA ssh.Signer
	hostCA ssh.Signer
	addr   string
	stop   context.CancelFunc
	errs   chan error
	proven atomic.Int64

	mu      sync.Mutex
	refusal *sallyport.Problem // of Admit
	changed chan struct{}
	events  []sallyport.Event
	reached []string // "node from address"
	streams []net.Conn
}

// newGate starts a server; change may adjust it first.
func newGate(t testing.TB, change func(*gate)) *gate {
	t.Helper()
	g := &gate{t: t, userCA: newKey(t), hostCA: newKey(t), errs: make(chan error, 1024), changed: make(chan struct{})}
	host := g.hostSigner()
	g.server = &Server{
		Cluster: cluster, GatewayID: "0d1e5f57-4c58-4a33-9d6d-1f5b7f5b0001", Events: g,
		HostSigner: func() (ssh.Signer, error) { return host, nil },
		UserCAs:    func() ([][]byte, error) { return [][]byte{g.userCA.PublicKey().Marshal()}, nil },
		Admit:      g.admit, Changed: g.change, Reach: g.reach, HandshakeTimeout: deadline,
	}
	if change != nil {
		change(g)
	}
	g.listen()
	return g
}

// Emit meets session.Sink.
func (g *gate) Emit(_ context.Context, e sallyport.Event, _ bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, e)
	return nil
}

func (g *gate) named(name, code string) (out []sallyport.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.events {
		if e.Name == name && e.Code == code {
			out = append(out, e)
		}
	}
	return out
}

// admit is the door's judgement: the test's, and expiry.
func (g *gate) admit(id sallyport.Identity, _ netip.AddrPort) *sallyport.Problem {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusal == nil && !time.Now().Before(id.NotAfter) {
		return sallyport.Denied("your certificate expired", "")
	}
	return g.refusal
}

func (g *gate) change() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// refuse makes the door say no from now on.
func (g *gate) refuse(p *sallyport.Problem) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refusal = p
	close(g.changed)
	g.changed = make(chan struct{})
}

// reach leads to a node that echoes.
func (g *gate) reach(_ context.Context, node string, client netip.AddrPort) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reached = append(g.reached, fmt.Sprintf("%s from %s", node, client.Addr()))
	if node != "web1" {
		return nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "node " + node + ": unknown, or no agent that serves it is connected"}
	}
	near, far := tcpPair(g.t)
	g.streams = append(g.streams, near)
	go func() {
		_, _ = io.Copy(far, far)
		far.Close()
	}()
	return near, nil
}

func tcpPair(t testing.TB) (a, b net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err == nil {
		b, err = l.Accept()
	}
	if err != nil {
		t.Error(err)
	}
	return a, b
}

// provenConn counts who has proved who he is.
type provenConn struct {
	net.Conn
	proven *atomic.Int64
}

func (c provenConn) Proven() { c.proven.Add(1) }

func (g *gate) listen() {
	g.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		g.t.Fatal(err)
	}
	g.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				err := g.server.Serve(ctx, provenConn{conn, &g.proven})
				select {
				case g.errs <- err:
				default:
				}
			})
		}
	})
	g.t.Cleanup(func() {
		l.Close()
		cancel()
		waitFor(g.t, "the server to end", served.Wait)
		if n := g.server.Open(); n != 0 {
			g.t.Errorf("%d connections are open at the end", n)
		}
		if g.server.all != 0 {
			g.t.Errorf("places left: %d", g.server.all)
		}
		for name, u := range g.server.users {
			if u.connections != 0 || u.channels != 0 {
				g.t.Errorf("%s: %d connections and %d channels are left", name, u.connections, u.channels)
			}
		}
	})
}

// waitFor fails when f does not return in time.
func waitFor(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(deadline):
		buf := make([]byte, 1<<20)
		t.Fatalf("waited too long for %s\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// eventually polls a condition that has no channel.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func newKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (g *gate) hostSigner() ssh.Signer {
	g.t.Helper()
	key := newKey(g.t)
	cert := &ssh.Certificate{Key: key.PublicKey(), CertType: ssh.HostCert, KeyId: "gateway",
		ValidPrincipals: []string{cluster, "127.0.0.1"}, ValidBefore: uint64(time.Now().Add(time.Hour).Unix())}
	return g.sealed(cert, key, g.hostCA)
}

func (g *gate) sealed(cert *ssh.Certificate, key, ca ssh.Signer) ssh.Signer {
	g.t.Helper()
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		g.t.Fatal(err)
	}
	s, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

// person makes a certificate of somebody's, good for an hour; change may spoil
// it before it is signed by ca.
func (g *gate) person(name string, ca ssh.Signer, change func(*ssh.Certificate)) ssh.Signer {
	g.t.Helper()
	key := newKey(g.t)
	cert := &ssh.Certificate{
		Key: key.PublicKey(), Serial: 7, CertType: ssh.UserCert, KeyId: name, ValidPrincipals: []string{"root"},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{identity.SSHExtensionName: identityOf(g.t, sallyport.Identity{Name: name, Cluster: cluster})}},
	}
	if change != nil {
		change(cert)
	}
	return g.sealed(cert, key, ca)
}

func identityOf(t testing.TB, id sallyport.Identity) string {
	t.Helper()
	id.Kind, id.Roles = sallyport.KindUser, []string{"dev"}
	value, err := identity.SSHValue(id)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// client is a client's view of one connection: banners, and the connection.
type client struct {
	*ssh.Client
	banner string
}

func (g *gate) dialAs(auth ...ssh.AuthMethod) (*client, error) {
	g.t.Helper()
	c := &client{}
	config := &ssh.ClientConfig{
		User: "whoever", Auth: auth, Timeout: deadline,
		HostKeyCallback: (&ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool {
			return bytes.Equal(k.Marshal(), g.hostCA.PublicKey().Marshal())
		}}).CheckHostKey,
		BannerCallback: func(m string) error { c.banner += m; return nil },
	}
	var err error
	if c.Client, err = ssh.Dial("tcp", g.addr, config); err == nil {
		g.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (g *gate) alice() ssh.AuthMethod { return ssh.PublicKeys(g.person("alice", g.userCA, nil)) }

// dial is alice's connection with a good certificate.
func (g *gate) dial() *client {
	g.t.Helper()
	c, err := g.dialAs(g.alice())
	if err != nil {
		g.t.Fatalf("%v (banner %q)", err, c.banner)
	}
	return c
}

// to opens direct-tcpip as ssh -J does.
func (c *client) to(host string, port uint32) (ssh.Channel, error) {
	ch, requests, err := c.OpenChannel("direct-tcpip", ssh.Marshal(directTCP{Host: host, Port: port, OriginHost: "127.0.0.1", OriginPort: 65535}))
	if err == nil {
		go ssh.DiscardRequests(requests)
	}
	return ch, err
}

// echoes checks that a channel leads to the node, both ways to the end.
func echoes(t testing.TB, ch io.ReadWriteCloser, half func() error) {
	t.Helper()
	said := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // several windows of a packet
	waitFor(t, "the echo", func() {
		var sending sync.WaitGroup
		sending.Go(func() {
			if _, err := ch.Write(said); err != nil {
				t.Error(err)
			}
			if err := half(); err != nil {
				t.Error(err)
			}
		})
		got, err := io.ReadAll(ch)
		sending.Wait()
		if err != nil || !bytes.Equal(got, said) {
			t.Errorf("%d of %d bytes came back, %v", len(got), len(said), err)
		}
	})
}

// said are the reasons of events, without repetitions.
func said(events []sallyport.Event) (out []string) {
	for _, e := range events {
		if s, _ := e.Fields["error"].(string); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func has(list []string, part string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, part) })
}
