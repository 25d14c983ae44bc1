package app

import (
	"bufio"
	"bytes"
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
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/test/keepalive"
	"github.com/sallyport/sallyport/test/leak"
)

const (
	patience = time.Minute // the most that anything may take, on a busy machine too
	cluster  = "gw.test"
	appHost  = "web.app.gw.test"
)

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	os.Exit(leak.CodeOf(m.Run(), "protocol/app.(*"))
}

// rig is a server for one application, and clients that come with TLS as from
// the door.
type rig struct {
	t      testing.TB
	server *Server
	cert   tls.Certificate
	id     sallyport.Identity
	wrap   func(net.Conn) net.Conn // nil: connections of clients as they are

	mu       sync.Mutex
	denial   *sallyport.Problem
	options  sallyport.Options
	cancels  []context.CancelCauseFunc
	events   []sallyport.Event
	ended    []map[string]any
	opened   int
	finished sync.WaitGroup
}

func newRig(t testing.TB, target Target) *rig {
	t.Helper()
	r := &rig{t: t, server: &Server{Cluster: cluster, Target: target}, cert: selfSigned(t), id: sallyport.Identity{Name: "alice", Cluster: cluster, Traits: map[string][]string{"email": {"alice@example.com"}}}}
	t.Cleanup(r.server.Close)
	t.Cleanup(r.finished.Wait)
	return r
}

func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{appHost, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (r *rig) Admit(sallyport.Identity, netip.AddrPort) *sallyport.Problem { return nil }

func (r *rig) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened++
	if c.Refusal != nil {
		return nil, c.Refusal
	}
	if r.denial != nil {
		r.events = append(r.events, use.Denied)
		return nil, r.denial
	}
	sctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r.cancels = append(r.cancels, cancel)
	r.events = append(r.events, use.Start)
	return &session.Session{
		ID: "s1", Context: sctx, Options: r.options, Resource: c.Resource, Identity: c.Identity,
		Cancel: func(p *sallyport.Problem) { cancel(p) },
		Emit: func(e sallyport.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
		},
		End: func(f map[string]any) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ended = append(r.ended, f)
			cancel(context.Canceled)
		},
	}, nil
}

// end cancels all sessions.
func (r *rig) end(why *sallyport.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.cancels {
		c(why)
	}
}

func (r *rig) named(name string) (out []sallyport.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Name == name {
			out = append(out, e)
		}
	}
	return out
}

// dial makes a connection as the door would hand it over.
func (r *rig) dial(protocols ...string) *tls.Conn {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	under, err := l.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	if r.wrap != nil {
		under = r.wrap(under)
	}
	if len(protocols) == 0 {
		protocols = []string{"http/1.1"}
	}
	server := tls.Server(under, &tls.Config{Certificates: []tls.Certificate{r.cert}, NextProtos: protocols, ClientAuth: tls.RequireAnyClientCert, DynamicRecordSizingDisabled: true})
	client := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{r.cert}, NextProtos: protocols})
	c := &session.Candidate{Identity: r.id, Gate: r, ALPN: protocols[0], ClientAddr: netip.MustParseAddrPort("203.0.113.9:4711"),
		Resource: sallyport.Resource{Kind: sallyport.KindApp, Name: "web", Address: r.server.Target.URI, Labels: map[string]string{"env": "prod"}}}
	r.finished.Go(func() {
		defer under.Close()
		if server.Handshake() == nil {
			r.server.Serve(context.Background(), c, server)
		}
	})
	if err := client.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { client.Close() })
	client.SetDeadline(time.Now().Add(patience))
	return client
}

// as makes clients that come by another certificate.
func (r *rig) as(cert tls.Certificate) *rig {
	other := &rig{t: r.t, server: r.server, cert: cert, id: r.id}
	r.t.Cleanup(other.finished.Wait)
	return other
}

// keep makes a client whose requests go one after another on one connection.
func (r *rig) keep() *http.Client {
	conn := r.dial()
	return keepalive.New(conn)
}

// client makes requests over connections of its own.
func (r *rig) client(protocol string) *http.Client {
	var p http.Protocols
	p.SetHTTP1(protocol == "http/1.1")
	p.SetHTTP2(protocol == "h2")
	tr := &http.Transport{Protocols: &p, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		conn := r.dial(protocol)
		conn.SetDeadline(time.Time{})
		return conn, nil
	}, DisableCompression: true}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (r *rig) get(c *http.Client, path string, change func(*http.Request)) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest("GET", "https://"+appHost+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(b)
}

// seen keeps what an application got.
type seen struct {
	mu  sync.Mutex
	all []*http.Request
}

func (s *seen) add(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, r.Clone(context.Background()))
}

func (s *seen) last(t testing.TB) *http.Request {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 {
		t.Fatal("the application got nothing")
	}
	return s.all[len(s.all)-1]
}

func (s *seen) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// application starts one on loopback.
func application(t testing.TB, h http.HandlerFunc) (*httptest.Server, *seen) {
	t.Helper()
	s := &seen{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.add(r)
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv, s
}

func ok(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }

// raw sends bytes on a connection and returns all answers.
func (r *rig) raw(text string) string {
	r.t.Helper()
	conn := r.dial()
	go io.Copy(conn, strings.NewReader(text))
	conn.SetReadDeadline(time.Now().Add(patience))
	var b bytes.Buffer
	br := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return b.String()
		}
		body, _ := io.ReadAll(resp.Body)
		fmt.Fprintf(&b, "%d %s\n", resp.StatusCode, strings.TrimSpace(string(body)))
		if resp.Close {
			return b.String()
		}
	}
}
