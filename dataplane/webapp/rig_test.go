package webapp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/test/leak"
)

const (
	cluster  = "gw.test"
	patience = 30 * time.Second
)

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) { leak.Main(m) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

// authority signs for everybody here.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) sign(t testing.TB, public any, name string, ends time.Time, names ...string) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: ends,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, public, a.key)
	check(t, err)
	return der
}

func (a *authority) pair(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{a.sign(t, &key.PublicKey, names[0], time.Now().Add(24*time.Hour), names...)}, PrivateKey: key}
}

// rig is a server, with auth and an agent that are played here.
type rig struct {
	t      testing.TB
	server *Server
	ca     *authority
	addr   string
	agent  string // address

	now   atomic.Int64 // nanoseconds that the clock is ahead
	dials atomic.Int64

	mu        sync.Mutex
	apps      map[string]http.Handler
	codes     map[string]Code // that are good: verifier and app
	good      map[string]string
	roles     []string
	refusal   error // of Renew
	questions []Question
	asking    func(Question) // within Renew
	silent    bool           // Renew answers nothing
	lag       time.Duration  // of Renew's answers
	ends      time.Time      // of web sessions; zero: 12 hours from now
	seen      []string

	uncertified error // of Renew with a key
}

// cookie is the value of a session that auth knows.
func cookie(n int) string { return fmt.Sprintf("%075d", n) }

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigWith(t, patience)
}

// newRigWith sets the server's deadlines, which are for strangers.
func newRigWith(t testing.TB, deadline time.Duration) *rig {
	t.Helper()
	r := &rig{t: t, ca: newAuthority(t), apps: map[string]http.Handler{}, codes: map[string]Code{}, good: map[string]string{}, roles: []string{"access"}}
	r.server = &Server{Cluster: cluster, Desk: r, Dial: r.dial, Roots: func() *x509.CertPool { return r.ca.pool },
		Now: func() time.Time { return time.Now().Add(time.Duration(r.now.Load())) }}
	ctx, cancel := context.WithCancel(context.Background())
	r.agent = r.listen(ctx, &http.Server{Handler: http.HandlerFunc(r.serveAgent), MaxHeaderBytes: maxHead}, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: r.ca.pool,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair := r.ca.pair(t, h.ServerName)
			return &pair, nil
		}})
	front := &http.Server{Handler: r.server, ConnContext: ConnContext, ReadTimeout: deadline, WriteTimeout: deadline}
	pair := r.ca.pair(t, cluster, "*."+cluster)
	r.addr = r.listen(ctx, front, &tls.Config{Certificates: []tls.Certificate{pair}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.server.Run(ctx) // has no error
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

func (r *rig) listen(ctx context.Context, s *http.Server, cfg *tls.Config) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(r.t, err)
	s.TLSConfig = cfg
	s.BaseContext = func(net.Listener) context.Context { return ctx }
	s.ErrorLog = nil
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.ServeTLS(ln, "", "") // ends with Close
	}()
	r.t.Cleanup(func() {
		s.Close()
		<-done
	})
	return ln.Addr().String()
}

// dial is a Dialer.
func (r *rig) dial(ctx context.Context, app string, browser netip.AddrPort, cfg *tls.Config) (net.Conn, error) {
	r.dials.Add(1)
	if !browser.IsValid() || cfg.ServerName != app+".app."+cluster {
		return nil, fmt.Errorf("asked for %s of %s for %v", cfg.ServerName, app, browser)
	}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", r.agent)
	return conn, err
}

func (r *rig) serveAgent(w http.ResponseWriter, q *http.Request) {
	name, _, _ := strings.Cut(q.TLS.ServerName, ".")
	r.mu.Lock()
	h := r.apps[name]
	r.seen = append(r.seen, name+" "+q.Method+" "+q.URL.RequestURI())
	r.mu.Unlock()
	if h == nil {
		h = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			fmt.Fprintf(w, "%s for %s: %s %s cookies=%q", name, q.TLS.PeerCertificates[0].Subject.CommonName, q.Method, q.URL.RequestURI(), q.Header["Cookie"])
		})
	}
	h.ServeHTTP(w, q)
}

// arrived are the requests at the agent.
func (r *rig) arrived() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.seen...)
}

// serve makes h an application.
func (r *rig) serve(app string, h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apps[app] = h
}

func denied() error {
	return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "not logged in"}
}

// Redeem meets Desk.
func (r *rig) Redeem(_ context.Context, c Code) (Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	want, ok := r.codes[c.Code]
	delete(r.codes, c.Code)
	if !ok || want.Verifier != c.Verifier || want.App != c.App {
		return Grant{}, denied()
	}
	session := cookie(1000 + len(r.good))
	r.good[session] = c.App
	g, err := r.grantLocked(c.Key)
	g.Session = session
	return g, err
}

// Renew meets Desk.
func (r *rig) Renew(ctx context.Context, q Question) (Grant, error) {
	r.mu.Lock()
	asking, silent, lag := r.asking, r.silent, r.lag
	r.mu.Unlock()
	if asking != nil {
		asking(q)
	}
	if silent {
		<-ctx.Done()
		return Grant{}, ctx.Err()
	}
	if lag > 0 {
		select {
		case <-ctx.Done():
			return Grant{}, ctx.Err()
		case <-time.After(lag):
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.questions = append(r.questions, q)
	if r.refusal != nil {
		return Grant{}, r.refusal
	}
	if app, ok := r.good[q.Session]; !ok || app != q.App {
		return Grant{}, denied()
	}
	if q.Key != nil && r.uncertified != nil {
		return Grant{}, r.uncertified
	}
	return r.grantLocked(q.Key)
}

func (r *rig) grantLocked(key []byte) (Grant, error) {
	g := Grant{User: "ann", Roles: r.roles, Traits: map[string][]string{}, Ends: r.ends}
	if g.Ends.IsZero() {
		g.Ends = r.server.now().Add(12 * time.Hour)
	}
	if key == nil {
		return g, nil
	}
	public, err := x509.ParsePKIXPublicKey(key)
	if err != nil {
		return Grant{}, err
	}
	g.Expires = r.server.now().Add(10 * time.Minute)
	g.Certificate = r.ca.sign(r.t, public, "ann, "+strings.Join(g.Roles, "+"), g.Expires)
	return g, nil
}

// End meets Desk.
func (r *rig) End(_ context.Context, session, app string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.good[session] == app {
		delete(r.good, session)
	}
	return nil
}

// know makes a session that auth knows, and returns its cookie.
func (r *rig) know(app string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := cookie(len(r.good))
	r.good[c] = app
	return c
}

func (r *rig) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// client connects to the server under a name.
func (r *rig) client(name, protocol string) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, r.addr)
		},
		TLSClientConfig:    &tls.Config{RootCAs: r.ca.pool, ServerName: name, NextProtos: []string{protocol}},
		DisableCompression: true,
	}
	if tr.ForceAttemptHTTP2 = protocol == "h2"; !tr.ForceAttemptHTTP2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// ask makes one request and reads the answer.
func (r *rig) ask(c *http.Client, method, url string, change func(*http.Request)) (*http.Response, string) {
	r.t.Helper()
	q, err := http.NewRequest(method, url, nil)
	check(r.t, err)
	if change != nil {
		change(q)
	}
	resp, err := c.Do(q)
	check(r.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(r.t, err)
	return resp, string(b)
}

// with is a request of who is logged in, from a page of the same origin.
func with(cookie string) func(*http.Request) {
	return func(q *http.Request) {
		q.Header.Set("Sec-Fetch-Site", "same-origin")
		q.AddCookie(&http.Cookie{Name: sessionCookie, Value: cookie})
	}
}
