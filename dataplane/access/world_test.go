package access

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/identity"
)

const (
	cluster   = "gw.test"
	agentID   = "a6e17000-0000-4000-8000-000000000001"
	gatewayID = "9a7e0000-0000-4000-8000-000000000001"
)

// authority is a real CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{cluster}},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(10000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// issue signs a leaf for id, changed by change.
func (a *authority) issue(t testing.TB, id sallyport.Identity, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	ext, err := identity.Extension(id)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: id.Name},
		URIs:      []*url.URL{identity.URI(id.Kind, id.Cluster, id.Name)},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{ext},
	}
	if change != nil {
		change(tmpl)
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// snapshot is a view that tests change.
type snapshot struct {
	mu      sync.Mutex
	trust   *sallyport.Trust
	err     error
	changed chan struct{}
}

func (s *snapshot) Trust() (*sallyport.Trust, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trust, s.err
}

func (s *snapshot) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// change makes a new view from the old one and tells.
func (s *snapshot) change(f func(*sallyport.Trust)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.trust
	next.Revision++
	f(&next)
	s.trust = &next
	close(s.changed)
	s.changed = make(chan struct{})
}

// grow makes the view too old, without telling: that is what time does.
func (s *snapshot) grow(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// decider answers by a function and counts.
type decider struct {
	mu    sync.Mutex
	asked int
	f     func(sallyport.AccessRequest) sallyport.Decision
}

func (d *decider) Decide(r sallyport.AccessRequest) sallyport.Decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	return d.f(r)
}

func (d *decider) set(f func(sallyport.AccessRequest) sallyport.Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.f = f
}

// spool keeps events in memory.
type spool struct {
	mu     sync.Mutex
	err    error    // of all of them
	late   []string // codes of those that may not wait
	events []sallyport.Event
	loose  map[string]bool // UIDs of events that did not wait
	disk   chan struct{}   // durable ones wait until it is closed; nil: they do not
}

func (s *spool) Emit(ctx context.Context, e sallyport.Event, durable bool) error {
	if durable && s.disk != nil {
		<-s.disk
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if ctx.Err() != nil {
		s.late = append(s.late, e.Code)
	}
	if !durable {
		if s.loose == nil {
			s.loose = map[string]bool{}
		}
		s.loose[e.UID] = true
	}
	s.events = append(s.events, e)
	return nil
}

func (s *spool) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *spool) named(name string) (out []sallyport.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Name == name {
			out = append(out, e)
		}
	}
	return out
}

func (s *spool) codes() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		out = append(out, e.Code)
	}
	return out
}

// credentials shows one certificate for the names it has.
type credentials map[string]*tls.Certificate

func (c credentials) ServerCertificate(name string) (*tls.Certificate, error) {
	if cert, ok := c[name]; ok {
		return cert, nil
	}
	return nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "not assigned"}
}

func (c credentials) DatabaseCertificate(context.Context, string, string) (*tls.Certificate, error) {
	return nil, sallyport.ErrNotFound
}

// world is a door with everything around it.
type world struct {
	t       testing.TB
	door    *Door
	userCA  *authority
	hostCA  *authority
	snap    *snapshot
	decider *decider
	spool   *spool
	creds   credentials
	known   map[string]sallyport.Resource
}

var resources = []sallyport.Resource{
	{Kind: sallyport.KindNode, Name: "web-1", ID: agentID, Hostname: "web-1.internal", Labels: map[string]string{"env": "prod"}},
	{Kind: sallyport.KindDatabase, Name: "orders", Protocol: "postgres"},
	{Kind: sallyport.KindKube, Name: "prod"},
	{Kind: sallyport.KindApp, Name: "grafana"},
	{Kind: sallyport.KindTCP, Name: "echo"},
	{Kind: sallyport.KindDesktop, Name: "win"},
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, userCA: newAuthority(t, "user CA"), hostCA: newAuthority(t, "host CA"),
		spool: &spool{}, creds: credentials{}, known: map[string]sallyport.Resource{}}
	w.snap = &snapshot{changed: make(chan struct{}), trust: &sallyport.Trust{
		Cluster: cluster, Revision: 7, IssuedAt: time.Now(),
		UserCAs: []*x509.Certificate{w.userCA.cert}, HostCAs: []*x509.Certificate{w.hostCA.cert},
	}}
	w.decider = &decider{f: allow(sallyport.Options{})}
	for _, r := range resources {
		r.AgentID = agentID
		w.serve(r, r.Name)
	}
	w.serve(sallyport.Resource{Kind: sallyport.KindNode, Name: "web-1", ID: agentID, AgentID: agentID}, agentID)
	w.door = &Door{
		Cluster: cluster, AgentID: agentID, Snapshot: w.snap, Decider: w.decider, Events: w.spool, Credentials: w.creds,
		Resources: func(kind sallyport.Kind, name string) (sallyport.Resource, bool) {
			r, ok := w.known[string(kind)+"/"+name]
			return r, ok
		},
	}
	return w
}

// serve gives the agent a resource under a name, with its certificate.
func (w *world) serve(r sallyport.Resource, name string) {
	w.t.Helper()
	host := name + "." + string(r.Kind) + "." + cluster
	cert := w.hostCA.issue(w.t, sallyport.Identity{Kind: sallyport.KindAgent, Name: agentID, Cluster: cluster}, func(c *x509.Certificate) {
		c.DNSNames = []string{host}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	w.creds[host] = &cert
	w.known[string(r.Kind)+"/"+name] = r
}

func allow(o sallyport.Options) func(sallyport.AccessRequest) sallyport.Decision {
	return func(sallyport.AccessRequest) sallyport.Decision {
		return sallyport.Decision{Allowed: true, Role: "access", Options: o, Revision: 7}
	}
}

func deny(reason string) func(sallyport.AccessRequest) sallyport.Decision {
	return func(sallyport.AccessRequest) sallyport.Decision {
		return sallyport.Decision{Reason: reason, Revision: 8}
	}
}

func user(name string) sallyport.Identity {
	return sallyport.Identity{Kind: sallyport.KindUser, Name: name, Cluster: cluster, Roles: []string{"access"}, MFA: "device-1"}
}

func (w *world) alice() tls.Certificate {
	w.t.Helper()
	return w.userCA.issue(w.t, user("alice"), nil)
}

var clientAddr = netip.MustParseAddrPort("192.0.2.7:50000")

// call is one connection to the door.
type call struct {
	kind    sallyport.Kind
	name    string
	sni     string   // "": by kind and name
	alpn    []string // of the client
	cert    *tls.Certificate
	client  netip.AddrPort
	gateway string
	change  func(*tls.Config)
}

func (c call) opening() Opening {
	o := Opening{Kind: c.kind, Name: c.name, Client: c.client, GatewayID: c.gateway, ConnectionID: [16]byte{1, 2, 3}}
	if !o.Client.IsValid() {
		o.Client = clientAddr
	}
	if o.GatewayID == "" {
		o.GatewayID = gatewayID
	}
	return o
}

func (w *world) config(c call) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(w.hostCA.cert)
	cfg := &tls.Config{RootCAs: roots, NextProtos: c.alpn, ServerName: c.sni}
	if c.sni == "" {
		cfg.ServerName = c.name + "." + string(c.kind) + "." + cluster
	}
	if c.cert != nil {
		cfg.Certificates = []tls.Certificate{*c.cert}
	}
	if c.change != nil {
		c.change(cfg)
	}
	return cfg
}

// outcome is what became of a call on the door's side.
type outcome struct {
	candidate *session.Candidate // nil: a stranger
	err       error
	up        bool
	refused   string
}

// dial connects and returns the client's end and the outcome, which comes when
// the door has closed the connection.
func (w *world) dial(ctx context.Context, c call, serve Handler) (*tls.Conn, <-chan outcome) {
	near, far := net.Pipe()
	out := w.take(ctx, far, c, serve)
	return tls.Client(near, w.config(c)), out
}

// take lets the door serve a connection.
func (w *world) take(ctx context.Context, conn net.Conn, c call, serve Handler) <-chan outcome {
	out := make(chan outcome, 1)
	go func() {
		var o outcome
		open := c.opening()
		open.Up = func() { o.up = true }
		open.Refuse = func(reason string) { o.refused = reason }
		o.err = w.door.Serve(ctx, conn, open, func(ctx context.Context, cand *session.Candidate, conn net.Conn) error {
			o.candidate = cand
			if serve == nil {
				return nil
			}
			return serve(ctx, cand, conn)
		})
		out <- o
	}()
	return out
}
