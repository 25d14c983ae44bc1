package ssh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/identity"
	"golang.org/x/crypto/ssh"
)

const (
	cluster  = "gw.example.com"
	deadline = time.Minute // for whatever a test waits for

	// unhurried is how long a client may take to hear why it is sent away: on a busy
	// machine longer than one of the product's. What ends only because it is over has
	// taken too long.
	unhurried = deadline
)

// testGate is the door behind its interface: it allows what the test says and
// keeps the events.
type testGate struct {
	admit  func(sallyport.Identity, netip.AddrPort) *sallyport.Problem
	refuse func(session.Use) *sallyport.Problem
	allow  func(sallyport.Action) *sallyport.Problem
	ctx    context.Context
	opts   sallyport.Options

	mu     sync.Mutex
	opens  int
	ended  int
	fields map[string]any // of the end
	events []sallyport.Event
}

func (g *testGate) Admit(id sallyport.Identity, addr netip.AddrPort) *sallyport.Problem {
	if g.admit == nil {
		return nil
	}
	return g.admit(id, addr)
}

func (g *testGate) Open(_ context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	p := c.Refusal
	if p == nil && g.refuse != nil {
		p = g.refuse(use)
	}
	if p != nil {
		g.record(use.Denied)
		return nil, p
	}
	g.record(use.Start)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opens++
	var once sync.Once
	parent := g.ctx
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithCancelCause(parent)
	return &session.Session{
		ID: uuid.NewString(), Identity: c.Identity, Resource: c.Resource, Principal: use.Login, Options: g.opts,
		Client: c.ClientAddr, Started: time.Now(), Context: ctx, Allow: g.allow, Emit: g.record,
		Cancel: func(p *sallyport.Problem) { cancel(p) },
		End: func(fields map[string]any) {
			once.Do(func() {
				if why := context.Cause(ctx); why != nil {
					g.record(sallyport.Event{Name: "client.disconnect", Code: "T3006I", Fields: map[string]any{"reason": why.Error()}})
				}
				cancel(nil)
				g.record(use.End)
				g.mu.Lock()
				defer g.mu.Unlock()
				g.ended++
				g.fields = fields
			})
		},
	}, nil
}

// Emit makes the gate the sink of refused authentications too.
func (g *testGate) Emit(_ context.Context, e sallyport.Event, _ bool) error {
	g.record(e)
	return nil
}

func (g *testGate) record(e sallyport.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, e)
}

// named are the events of a name so far.
func (g *testGate) named(name string) []sallyport.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []sallyport.Event
	for _, e := range g.events {
		if e.Name == name {
			list = append(list, e)
		}
	}
	return list
}

// host is a server on a loopback port, without the TLS around it.
type host struct {
	t         testing.TB
	gate      *testGate
	server    *Server
	candidate session.Candidate // for each connection
	userCA    ssh.Signer
	hostCA    ssh.Signer
	login     string
	home      string
	addr      string
	cancel    context.CancelFunc
	errs      chan error
}

// newHost starts a server; change may adjust it first. The login is the test's
// own user, or as root one that nobody else is.
func newHost(t testing.TB, change func(*host)) *host {
	t.Helper()
	h := &host{t: t, gate: &testGate{}, userCA: newKey(t), hostCA: newKey(t), login: "tester", errs: make(chan error, 1024)}
	etc := h.accounts()
	hostKey := hostSigner(t, h.hostCA)
	h.server = &Server{
		HostSigner: func() (ssh.Signer, error) { return hostKey, nil },
		UserCAs:    func() ([][]byte, error) { return [][]byte{h.userCA.PublicKey().Marshal()}, nil },
		Cluster:    cluster, HostID: "0d1e5f57-4c58-4a33-9d6d-1f5b7f5b0001",
		Events: h.gate, KillGrace: 500 * time.Millisecond, etc: etc, tell: unhurried,
		HandshakeTimeout: deadline, KeepAlive: time.Hour, // raw clients expect no question, however long they take
	}
	if testing.Verbose() {
		h.server.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	h.candidate = session.Candidate{
		Identity:   sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: cluster},
		Resource:   sallyport.Resource{Kind: sallyport.KindNode, Name: "web1", Hostname: "Web 1"},
		ClientAddr: netip.MustParseAddrPort("127.0.0.1:45678"), ConnectionID: "c1", ALPN: "sallyport-ssh/1", Gate: h.gate,
	}
	if change != nil {
		change(h)
	}
	h.listen()
	return h
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// accounts writes an /etc of its own.
func (h *host) accounts() string {
	h.t.Helper()
	uid, gid := os.Getuid(), os.Getgid()
	dir := h.t.TempDir()
	h.home = filepath.Join(dir, "home")
	if err := os.Mkdir(h.home, 0o700); err != nil {
		h.t.Fatal(err)
	}
	if uid == 0 {
		uid, gid = 54321, 54322
		for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				h.t.Fatal(err)
			}
		}
		if err := os.Chown(h.home, uid, gid); err != nil {
			h.t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	write("passwd", fmt.Sprintf("root:x:0:0:root:/root:/bin/bash\ntester:x:%d:%d:Tester:%s:/bin/bash\n"+
		"other:x:%d:%d::/:/bin/sh\ndaemon:x:61:61::/:/usr/sbin/nologin\nbroken:x:62:62::/:/nonexistent/shell\nhomeless:x:%d:%d::/nonexistent:/bin/sh\n",
		uid, gid, h.home, uid+1, gid+1, uid, gid))
	write("group", fmt.Sprintf("root:x:0:\nown:x:%d:\nextra:x:54400:other,tester\nforeign:x:54401:other\n", gid))
	return dir
}

func (h *host) listen() {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				c := h.candidate
				err := h.server.Serve(ctx, &c, conn)
				select {
				case h.errs <- err:
				default:
				}
			})
		}
	})
	h.t.Cleanup(func() {
		l.Close()
		cancel()
		waitFor(h.t, "the server to end", served.Wait)
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
		runtime.Gosched()
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
	return privateSigner{s, key}
}

func hostSigner(t testing.TB, ca ssh.Signer) ssh.Signer {
	t.Helper()
	key := newKey(t)
	cert := &ssh.Certificate{Key: key.PublicKey(), CertType: ssh.HostCert, KeyId: "web1",
		ValidPrincipals: []string{"web1", "127.0.0.1"}, ValidBefore: uint64(time.Now().Add(time.Hour).Unix())}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// certificate is alice's, good for an hour; change may spoil it before it is
// signed.
func (h *host) certificate(key ssh.PublicKey, change func(*ssh.Certificate)) *ssh.Certificate {
	h.t.Helper()
	cert := &ssh.Certificate{
		Key: key, Serial: 7, CertType: ssh.UserCert, KeyId: "alice", ValidPrincipals: []string{h.login},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": "", "permit-port-forwarding": "", "permit-agent-forwarding": "", identity.SSHExtensionName: identityOf(h.t, "alice", cluster)}},
	}
	if change != nil {
		change(cert)
	}
	if err := cert.SignCert(rand.Reader, h.userCA); err != nil {
		h.t.Fatal(err)
	}
	return cert
}

func identityOf(t testing.TB, name, cluster string) string {
	t.Helper()
	value, err := identity.SSHValue(sallyport.Identity{Kind: sallyport.KindUser, Name: name, Cluster: cluster, Roles: []string{"dev"}})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func (h *host) signer(change func(*ssh.Certificate)) ssh.Signer {
	h.t.Helper()
	key := newKey(h.t)
	s, err := ssh.NewCertSigner(h.certificate(key.PublicKey(), change), key)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// client is a client's view of one connection: banners, and the connection.
type client struct {
	*ssh.Client
	banner string
}

func (h *host) dialAs(login string, signers ...ssh.Signer) (*client, error) {
	h.t.Helper()
	c := &client{}
	config := &ssh.ClientConfig{
		User: login, Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)}, Timeout: deadline,
		HostKeyCallback: (&ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool {
			return bytes.Equal(k.Marshal(), h.hostCA.PublicKey().Marshal())
		}}).CheckHostKey,
		BannerCallback: func(m string) error { c.banner += m; return nil },
	}
	var err error
	c.Client, err = ssh.Dial("tcp", h.addr, config)
	return c, err
}

// dial is alice's connection with a good certificate.
func (h *host) dial() *client {
	h.t.Helper()
	c, err := h.dialAs(h.login, h.signer(nil))
	if err != nil {
		h.t.Fatalf("%v (banner %q)", err, c.banner)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

func (h *host) session() *ssh.Session {
	h.t.Helper()
	s, err := h.dial().NewSession()
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// result is what a command came to.
type result struct {
	out, err string
	status   int
	signal   string
}

func runOn(t testing.TB, s *ssh.Session, command string) result {
	t.Helper()
	var out, errs bytes.Buffer
	s.Stdout, s.Stderr = &out, &errs
	var r result
	waitFor(t, command, func() {
		var exit *ssh.ExitError
		switch err := s.Run(command); {
		case errors.As(err, &exit):
			r.status, r.signal = exit.ExitStatus(), exit.Signal()
		case err != nil:
			t.Errorf("%s: %v", command, err)
		}
	})
	r.out, r.err = out.String(), errs.String()
	return r
}

func (h *host) run(command string) result {
	h.t.Helper()
	return runOn(h.t, h.session(), command)
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// alive says whether a process runs (a zombie does not).
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
