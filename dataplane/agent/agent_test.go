package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/access"
	"github.com/sallyport/sallyport/dataplane/dial"
	"github.com/sallyport/sallyport/dataplane/protocol/tcp"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// control is the control plane as an agent holds it: all in memory.
type control struct {
	mu      sync.Mutex
	trust   *sallyport.Trust
	changed chan struct{}
	deny    string
	events  []sallyport.Event
	ended   chan sallyport.Event // each session's end
	certs   map[string]*tls.Certificate
}

func (c *control) Trust() (*sallyport.Trust, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trust, nil
}

func (c *control) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *control) Decide(sallyport.AccessRequest) sallyport.Decision {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sallyport.Decision{Allowed: c.deny == "", Reason: c.deny, Fleeting: true}
}

func (c *control) Emit(_ context.Context, e sallyport.Event, _ bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
	if e.Code == "T2011I" {
		c.ended <- e
	}
	return nil
}

func (c *control) codes() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		out = append(out, e.Code)
	}
	return out
}

func (c *control) ServerCertificate(name string) (*tls.Certificate, error) {
	if cert := c.certs[name]; cert != nil {
		return cert, nil
	}
	return nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "not assigned"}
}

func (c *control) DatabaseCertificate(context.Context, string, string) (*tls.Certificate, error) {
	return nil, sallyport.ErrNotFound
}

func (c *control) change(f func(*control)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.trust
	next.Revision++
	c.trust = &next
	f(c)
	close(c.changed)
	c.changed = make(chan struct{})
}

// house is a gateway, an agent with one TCP echo, and a user.
type house struct {
	t       *testing.T
	control *control
	gateway *gateway
	agent   *Agent
	dialer  *dial.Dialer
	stop    context.CancelFunc
	done    chan error
}

func newHouse(t *testing.T, services ...Service) *house {
	t.Helper()
	hostCA, userCA := newAuthority(t, "host CA"), newAuthority(t, "user CA")
	echoAt := echoServer(t)
	assigned := []sallyport.Resource{
		{Kind: sallyport.KindTCP, Name: "echo", AgentID: agentID, Address: "203.0.113.1:1", Labels: map[string]string{"by": "auth"}},
		{Kind: sallyport.KindTCP, Name: "other", AgentID: agentID},
		{Kind: sallyport.KindTCP, Name: "unconfigured", AgentID: agentID},
	}
	c := &control{changed: make(chan struct{}), ended: make(chan sallyport.Event, 16), certs: map[string]*tls.Certificate{}, trust: &sallyport.Trust{
		Cluster: cluster, Revision: 1, IssuedAt: time.Now(),
		UserCAs: []*x509.Certificate{userCA.cert}, HostCAs: []*x509.Certificate{hostCA.cert}}}
	self := sallyport.Identity{Kind: sallyport.KindAgent, Name: agentID, Cluster: cluster}
	for _, r := range assigned {
		name := alpn.ServerName(string(r.Kind), r.Name, cluster)
		c.certs[name] = hostCA.issue(t, self, name)
	}
	if services == nil {
		services = []Service{{Kind: sallyport.KindTCP, Serve: new(tcp.Server).Serve}}
	}
	h := &house{t: t, control: c, gateway: startGateway(t, hostCA, assigned), done: make(chan error, 1)}
	cert := hostCA.issue(t, self)
	assignments := make(chan []byte, 1)
	assignments <- []byte("assignment")
	h.agent = &Agent{
		Door:     &access.Door{Cluster: cluster, AgentID: agentID, Snapshot: c, Decider: c, Events: c, Credentials: c},
		Services: services,
		Assigned: func() []sallyport.Resource { return assigned },
		Resources: []sallyport.Resource{
			{Kind: sallyport.KindTCP, Name: "echo", Address: echoAt},
			{Kind: sallyport.KindTCP, Name: "other", Address: echoAt},
			{Kind: sallyport.KindTCP, Name: "unassigned", Address: echoAt},
		},
		Tunnel: tunnel.AgentConfig{AgentID: agentID, Cluster: cluster, Version: "test", Assignments: assignments,
			Gateways: []string{h.gateway.control.Addr().String()},
			TLS: func(string) (*tls.Config, error) {
				return &tls.Config{Certificates: []tls.Certificate{*cert}, RootCAs: hostCA.pool, ServerName: cluster}, nil
			}},
	}
	alice := userCA.issue(t, sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: cluster, Roles: []string{"access"}})
	h.dialer = &dial.Dialer{Proxy: h.gateway.public.Addr().String(), Cluster: cluster, Roots: hostCA.pool, Timeout: patience,
		Certificate: func() (*tls.Certificate, error) { return alice, nil }}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go func() { h.done <- h.agent.Run(ctx) }()
	receive(t, h.gateway.presence)
	t.Cleanup(func() {
		stop()
		if err := receive(t, h.done); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		h.done <- nil
	})
	return h
}

func echoServer(t *testing.T) string {
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); tasks.Wait() })
	return l.Addr().String()
}

func (h *house) dial(name string) (net.Conn, error) {
	conn, err := h.dialer.DialResource(h.t.Context(), sallyport.KindTCP, name, alpn.TCP1)
	if err == nil {
		conn.SetDeadline(time.Now().Add(patience))
		h.t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// TestEndToEnd: client, gateway, tunnel, agent, door, protocol, target, and back.
func TestEndToEnd(t *testing.T) {
	h := newHouse(t)
	conn, err := h.dial("echo")
	if err != nil {
		t.Fatal(err)
	}
	const secret = "nobody on the way reads this"
	io.WriteString(conn, secret)
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if b, err := io.ReadAll(conn); err != nil || string(b) != secret {
		t.Fatalf("%q %v", b, err)
	}
	conn.Close()
	receive(t, h.control.ended) // of itself: an agent that stops first would end it
	h.stop()
	receive(t, h.done)
	h.done <- context.Canceled
	if got := strings.Join(h.control.codes(), " "); got != "T2007I T2011I" {
		t.Errorf("audited %s", got)
	}
	end := h.control.events[1]
	if end.User != "alice" || end.Addr != "192.0.2.7:50000" || end.Fields["rx"] != int64(len(secret)) {
		t.Errorf("end event %+v", end)
	}
	if labels, _ := end.Fields["app_labels"].(map[string]string); labels["by"] != "auth" {
		t.Errorf("labels %v, want the assignment's", end.Fields["app_labels"])
	}
	// What the gateway passed on is the client's own TLS.
	passed := h.gateway.passed()
	if len(passed) == 0 || passed[0] != 0x16 || bytes.Contains(passed, []byte("nobody")) {
		t.Errorf("the gateway saw %q", passed[:min(len(passed), 64)])
	}
}

func TestDeniedWithReason(t *testing.T) {
	h := newHouse(t)
	h.control.change(func(c *control) { c.deny = "no role allows it" })
	_, err := h.dial("echo")
	if err == nil || err.Error() != "access to tcp echo denied: no role allows it" || !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("told %v", err)
	}
	if got := strings.Join(h.control.codes(), " "); got != "T2007E" {
		t.Errorf("audited %s", got)
	}
}

// TestA06_Names: an agent serves what is both assigned and configured, and only
// when the frame names what the hello names.
func TestA06_Names(t *testing.T) {
	h := newHouse(t)
	for _, name := range []string{"unassigned", "unconfigured", "unknown"} {
		_, err := h.dial(name)
		if !errors.Is(err, sallyport.ErrNotFound) || err.Error() != "resource "+name+": unknown or no live agent" {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.gateway.mu.Lock()
	h.gateway.frame = func(kind, _ string) (string, string) { return kind, "other" }
	h.gateway.mu.Unlock()
	if _, err := h.dial("echo"); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("a frame for another resource: %v", err)
	}
	if _, err := h.dial("other"); err != nil {
		t.Errorf("a frame for this resource: %v", err)
	}
}

// TestA31_OneConnectionIDOneClient: a second stream with the id of a first gets
// nothing, although its client is in order.
func TestA31_OneConnectionIDOneClient(t *testing.T) {
	h := newHouse(t)
	h.gateway.mu.Lock()
	h.gateway.id = tunnel.ID{1, 2, 3}
	h.gateway.mu.Unlock()
	conn, err := h.dial("echo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.dial("echo"); err == nil {
		t.Error("the second client was served")
	}
	io.WriteString(conn, "x")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Errorf("the first client: %v", err)
	}
}

// TestLockEndsStream: from the lock to the client's error in a second, if the
// machine does nothing else meanwhile.
func TestLockEndsStream(t *testing.T) {
	h := newHouse(t)
	took := time.Hour
	for tries := 0; tries < 5 && took > time.Second; tries++ {
		h.control.change(func(c *control) { c.trust.Locks = nil })
		conn, err := h.dial("echo")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		h.control.change(func(c *control) { c.trust.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{User: "alice"}}} })
		if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the client was told %v: a cut stream must not look like one that ended", err)
		}
		took = time.Since(start)
		if _, err := h.dial("echo"); err == nil || !strings.Contains(err.Error(), "lock targeting") {
			t.Errorf("a new session: %v", err)
		}
	}
	if took > time.Second {
		t.Errorf("ended after %s", took)
	}
}

// TestShutdown: the agent ends what it serves, and waits for it.
func TestShutdown(t *testing.T) {
	h := newHouse(t)
	conn, err := h.dial("echo")
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	receive(t, h.done)
	h.done <- context.Canceled
	if got := strings.Join(h.control.codes(), " "); got != "T2007I T3006I T2011I" {
		t.Errorf("audited %s", got)
	}
	if n := h.agent.Streams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the client is still connected")
	}
}

// TestBugInProtocol: it costs one client, not the agent.
func TestBugInProtocol(t *testing.T) {
	var first sync.Once
	good := new(tcp.Server).Serve
	h := newHouse(t, Service{Kind: sallyport.KindTCP, Serve: func(ctx context.Context, c *session.Candidate, conn net.Conn) error {
		first.Do(func() { panic("bug") })
		return good(ctx, c, conn)
	}})
	if _, err := h.dial("echo"); err == nil {
		t.Error("the first client was served")
	}
	if _, err := h.dial("echo"); err != nil {
		t.Errorf("the second client: %v", err)
	}
}

func TestConfiguration(t *testing.T) {
	handler := func(context.Context, *session.Candidate, net.Conn) error { return nil }
	services := []Service{{Kind: sallyport.KindDatabase, Protocol: "postgres", Serve: handler}, {Kind: sallyport.KindTCP, Serve: handler}}
	tests := []struct {
		name  string
		of    []sallyport.Resource
		words string
	}{
		{"fine", []sallyport.Resource{{Kind: sallyport.KindDatabase, Name: "a", Protocol: "postgres"}, {Kind: sallyport.KindTCP, Name: "a"}}, ""},
		{"unknown protocol", []sallyport.Resource{{Kind: sallyport.KindDatabase, Name: "a", Protocol: "oracle"}}, "resource a: this version does not serve db oracle"},
		{"unknown kind", []sallyport.Resource{{Kind: sallyport.KindKube, Name: "a"}}, "does not serve kube"},
		{"twice", []sallyport.Resource{{Kind: sallyport.KindTCP, Name: "a"}, {Kind: sallyport.KindTCP, Name: "a"}}, "there are two"},
	}
	for _, tt := range tests {
		a := &Agent{Door: &access.Door{}, Services: services, Resources: tt.of, Assigned: func() []sallyport.Resource { return nil }}
		err := a.check()
		if (err == nil) != (tt.words == "") || err != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if err := new(Agent).Run(t.Context()); err == nil {
		t.Error("an empty agent runs")
	}
}

func TestResolve(t *testing.T) {
	a := &Agent{
		Resources: []sallyport.Resource{
			{Kind: sallyport.KindNode, Hostname: "web.internal"},
			{Kind: sallyport.KindDatabase, Name: "orders", Address: "localhost:5432", Protocol: "postgres"},
		},
		Assigned: func() []sallyport.Resource {
			return []sallyport.Resource{
				{Kind: sallyport.KindNode, Name: "web-2", ID: agentID, AgentID: agentID},
				{Kind: sallyport.KindDatabase, Name: "orders", Address: "evil:1", Protocol: "mysql", AgentID: agentID},
			}
		},
	}
	for _, name := range []string{"web-2", agentID} {
		if r, ok := a.resolve(sallyport.KindNode, name); !ok || r.Name != "web-2" || r.ID != agentID || r.Hostname != "web.internal" {
			t.Errorf("%s: %+v %v", name, r, ok)
		}
	}
	if r, ok := a.resolve(sallyport.KindDatabase, "orders"); !ok || r.Address != "localhost:5432" || r.Protocol != "postgres" {
		t.Errorf("auth's word on where to dial was taken: %+v", r)
	}
	if r, ok := a.resolve(sallyport.KindDatabase, agentID); ok {
		t.Errorf("a database by an id: %+v", r)
	}
}

// TestSetResources: a configuration that is good replaces the old one, and one
// that is not changes nothing.
func TestSetResources(t *testing.T) {
	a := &Agent{
		Services:  []Service{{Kind: sallyport.KindTCP}},
		Resources: []sallyport.Resource{{Kind: sallyport.KindTCP, Name: "echo", Address: "a:1"}},
		Assigned:  func() []sallyport.Resource { return []sallyport.Resource{{Kind: sallyport.KindTCP, Name: "echo"}} },
	}
	reaches := func(want string) {
		t.Helper()
		if r, ok := a.resolve(sallyport.KindTCP, "echo"); ok != (want != "") || r.Address != want {
			t.Errorf("echo is at %q, want %q", r.Address, want)
		}
	}
	reaches("a:1")
	echo := sallyport.Resource{Kind: sallyport.KindTCP, Name: "echo", Address: "a:2"}
	if err := a.SetResources([]sallyport.Resource{echo, echo}); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("twice: %v", err)
	}
	if err := a.SetResources([]sallyport.Resource{echo, {Kind: sallyport.KindDatabase}}); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("not served: %v", err)
	}
	reaches("a:1")
	if err := a.SetResources([]sallyport.Resource{echo}); err != nil {
		t.Error(err)
	}
	reaches("a:2")
	if err := a.SetResources(nil); err != nil {
		t.Error(err)
	}
	reaches("")
}
