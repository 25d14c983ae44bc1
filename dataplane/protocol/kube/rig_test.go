package kube

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// waitTime is the most that anything may take, on a busy machine too.
const waitTime = time.Minute

// grant answers as a test says.
type grant func(r sallyport.KubeRequest) sallyport.KubeAnswer

func (g grant) Ask(r sallyport.KubeRequest) sallyport.KubeAnswer { return g(r) }

func everything(sallyport.KubeRequest) sallyport.KubeAnswer {
	return sallyport.KubeAnswer{Allowed: true, Users: []string{"kate"}, Groups: []string{"dev", "ops"}}
}

// rig is a Server between a client and an API server of the test's own.
type rig struct {
	t       testing.TB
	api     *httptest.Server
	server  *Server
	refusal *sallyport.Problem
	wrap    func(net.Conn) net.Conn // nil: the client's connection as it is
	ending  func()                  // called by End once the session's context is done; nil: nothing

	mu     sync.Mutex
	grant  grant
	events []sallyport.Event
	ends   []map[string]any
	cancel []context.CancelCauseFunc
	open   int
}

func newRig(t testing.TB, api http.HandlerFunc) *rig {
	t.Helper()
	r := &rig{t: t, grant: everything}
	r.api = httptest.NewUnstartedServer(api)
	r.api.EnableHTTP2 = true
	r.api.StartTLS()
	t.Cleanup(r.api.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.api.Certificate().Raw})
	write(t, filepath.Join(dir, "ca.crt"), string(ca))
	write(t, filepath.Join(dir, "token"), "agents-own-token\n")
	config := filepath.Join(dir, "config")
	write(t, config, fmt.Sprintf("current-context: c\nclusters: [{name: c, cluster: {server: %q, certificate-authority: ca.crt, tls-server-name: example.com}}]\n"+
		"users: [{name: u, user: {tokenFile: token}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n", r.api.URL))
	target, err := FromKubeconfig(config, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(target.Close)
	r.server = &Server{Target: target}
	return r
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Admit meets session.Gate.
func (r *rig) Admit(sallyport.Identity, netip.AddrPort) *sallyport.Problem { return nil }

// Open meets session.Gate.
func (r *rig) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	if c.Refusal != nil {
		return nil, c.Refusal
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, use.Start)
	r.open++
	live, cancel := context.WithCancelCause(context.Background())
	r.cancel = append(r.cancel, cancel)
	var once sync.Once
	s := &session.Session{ID: "s", Identity: c.Identity, Resource: c.Resource, Context: live}
	s.Emit = func(e sallyport.Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
	}
	s.Kube = func() (sallyport.KubeGrant, *sallyport.Problem) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.grant, nil
	}
	s.End = func(f map[string]any) {
		once.Do(func() {
			cancel(nil)
			if r.ending != nil {
				r.ending()
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.open--
			r.ends = append(r.ends, f)
			if use.End.Name != "" {
				r.events = append(r.events, use.End)
			}
		})
	}
	return s, nil
}

func (r *rig) roles(g grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.grant = g
}

// lock ends all sessions, as a lock does.
func (r *rig) lock() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.cancel {
		c(sallyport.Denied("locked", ""))
	}
}

// named are the events of a name.
func (r *rig) named(name string) []sallyport.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []sallyport.Event
	for _, e := range r.events {
		if e.Name == name {
			out = append(out, e)
		}
	}
	return out
}

// dial makes a connection of a client; served is closed when Serve has returned.
func (r *rig) dial(protocol string) (client net.Conn, served chan struct{}) {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		r.t.Fatal(err)
	}
	inner, err := l.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	if r.wrap != nil {
		inner = r.wrap(inner)
	}
	served = make(chan struct{})
	c := &session.Candidate{
		Identity: sallyport.Identity{Kind: sallyport.KindUser, Name: "kate"}, ALPN: protocol, Gate: r, Refusal: r.refusal,
		Resource: sallyport.Resource{Kind: sallyport.KindKube, Name: "prod", Labels: map[string]string{"env": "test"}},
	}
	go func() {
		defer close(served)
		_ = r.server.Serve(context.Background(), c, inner) // refusals are what some tests are about
	}()
	r.t.Cleanup(func() {
		client.Close()
		select {
		case <-served:
		case <-time.After(waitTime):
			r.t.Error("Serve did not return")
		}
	})
	return client, served
}

// client is an HTTP client over one protocol.
func (r *rig) client(protocol string) *http.Client {
	p := new(http.Protocols)
	if protocol == "h2" {
		p.SetUnencryptedHTTP2(true)
	} else {
		p.SetHTTP1(true)
	}
	tr := &http.Transport{Protocols: p, DisableCompression: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		conn, _ := r.dial(protocol)
		return conn, nil
	}}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: waitTime}
}

// do sends a request and reads the answer whole.
func do(t testing.TB, c *http.Client, method, path string, h http.Header, body io.Reader) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://kube"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range h {
		req.Header[k] = v
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// waitFor waits until something is true.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(waitTime); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}
