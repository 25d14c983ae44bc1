package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/dial"
	"github.com/sallyport/sallyport/dataplane/handover"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// agentHouse is a whole cluster in this process, whose agent is upgraded by its
// Giver and Taker as if the new one were in another process.
type agentHouse struct {
	t       *testing.T
	node    *node
	admin   sallyportv1connect.AdminServiceClient
	current *agentRole
	ended   map[*agentRole]chan error
	stop    map[*agentRole]context.CancelFunc
}

func newAgentHouse(t *testing.T) *agentHouse {
	t.Helper()
	cfg := &config{
		Version: configVersion, Cluster: "gw.example.com", DataDir: t.TempDir(), Roles: []string{roleAuth, roleGateway, roleAgent},
		Gateway: gatewayConfig{Listen: []string{"127.0.0.1:0"}},
		Agent:   agentConfig{TCP: []tcpConfig{{Name: "echo", Address: echoTarget(t), Labels: map[string]string{"env": "test"}}}},
	}
	if err := cfg.check(); err != nil {
		t.Fatal(err)
	}
	cfg.complete()
	n := newNode(cfg, slog.New(slog.DiscardHandler))
	h := &agentHouse{t: t, node: n, ended: map[*agentRole]chan error{}, stop: map[*agentRole]context.CancelFunc{}}
	t.Cleanup(n.close)
	if err := n.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.current, n.agent = n.agent, nil // run here
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(cfg.DataDir, adminSocket))
	}}}
	t.Cleanup(hc.CloseIdleConnections)
	h.admin = sallyportv1connect.NewAdminServiceClient(hc, "http://admin")
	h.run(h.current)
	h.await("the first tunnel", func() bool { return h.parked() > 0 })
	return h
}

// echoTarget says every line back.
func echoTarget(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// run runs an agent until the test ends.
func (h *agentHouse) run(r *agentRole) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	h.ended[r], h.stop[r] = done, cancel
	h.t.Cleanup(func() {
		cancel()
		if err, ok := <-done; ok && err != nil {
			h.t.Error(err)
		}
	})
}

// over waits for the end of an agent whose sessions have ended.
func (h *agentHouse) over(r *agentRole) {
	h.t.Helper()
	select {
	case err := <-h.ended[r]:
		if err != nil {
			h.t.Error(err)
		}
		close(h.ended[r])
		if held := r.holds(); len(held) > 0 {
			h.t.Errorf("an agent that is over holds %v", held)
		}
	case <-time.After(time.Minute):
		h.t.Fatal("an old agent without sessions does not end")
	}
}

func (h *agentHouse) await(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("%s: not in time", what)
		}
	}
}

func (h *agentHouse) parked() (n int) {
	for _, t := range h.node.gateway.hub.Status().Tunnels {
		n += t.Parked
	}
	return n
}

// passing gives records straight to the new agent.
type passing struct{ to handover.Taker }

func (p passing) Send(_ context.Context, r handover.Record) error { return p.to.Take(r) }
func (p passing) TrySend(r handover.Record) (bool, error)         { return true, p.to.Take(r) }

// next opens the new process's agent.
func (h *agentHouse) next() *agentRole {
	h.t.Helper()
	n := h.node
	host, err := client.OpenHost(client.HostConfig{
		Dir: agentDir(n.cfg), Kind: sallyport.KindAgent, Name: hostname(), Log: n.log, Held: true,
		Addresses: func() []string { return []string{"unix:" + n.authAt} }, Resources: n.cfg.resources(),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := openAgent(n.cfg, host, []string{n.gateway.addr()}, n.log)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// freeze takes an upgrade to the point where the commit is due.
func (h *agentHouse) freeze() (*agentRole, handover.Giver, handover.Taker) {
	h.t.Helper()
	next := h.next()
	give, take := h.current.giver(), next.taker()
	w := passing{take}
	if err := errors.Join(give.Copy(h.t.Context(), w), give.Freeze(h.t.Context(), w), take.Complete(h.t.Context())); err != nil {
		h.t.Fatal(err)
	}
	return next, give, take
}

// upgrade makes a new agent the current one and returns the old one.
func (h *agentHouse) upgrade() *agentRole {
	h.t.Helper()
	old := h.current
	next, give, take := h.freeze()
	before := h.since()
	take.Start()
	h.run(next)
	give.Leave()
	h.current = next
	h.await("the new tunnel", func() bool { return h.since().After(before) && h.parked() > 0 })
	return old
}

func (h *agentHouse) since() (last time.Time) {
	for _, t := range h.node.gateway.hub.Status().Tunnels {
		if t.Since.After(last) {
			last = t.Since
		}
	}
	return last
}

// conversation is a session of the echo service.
type conversation struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (h *agentHouse) dial(user string) *conversation {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		h.t.Fatal(err)
	}
	issued, err := h.node.auth.keys.IssueUser(ca.UserRequest{TLSKey: pub, TTL: time.Hour, Identity: sallyport.Identity{
		Kind: sallyport.KindUser, Name: user, Cluster: "gw.example.com", Roles: []string{"access"}}})
	if err != nil {
		h.t.Fatal(err)
	}
	d := &dial.Dialer{Proxy: h.node.gateway.addr(), Cluster: "gw.example.com", Roots: client.Pool(h.node.auth.keys.Authority(ca.Host).Certificates),
		Certificate: func() (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{issued.X509}, PrivateKey: key}, nil
		}}
	conn, err := d.DialResource(h.t.Context(), sallyport.KindTCP, "echo", alpn.TCP1)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	return &conversation{h.t, conn, bufio.NewReader(conn)}
}

func (c *conversation) say(text string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.conn, text); err != nil {
		c.t.Fatal(err)
	}
	got, err := c.in.ReadString('\n')
	if err != nil || got != text+"\n" {
		c.t.Fatalf("said %q, heard %q: %v", text, got, err)
	}
}

// broken waits for the end, which must not look like one in order.
func (c *conversation) broken() {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := c.in.ReadByte(); err == nil || errors.Is(err, io.EOF) {
		c.t.Errorf("the session ended with %v", err)
	}
}

// ends are the events of sessions' ends in auth's log, by session.
func (h *agentHouse) events(name string) map[string]int {
	h.t.Helper()
	lines, err := h.node.auth.events.Search(h.t.Context(), audit.Query{Names: []string{name}, Limit: 1000})
	if err != nil {
		h.t.Fatal(err)
	}
	out := map[string]int{}
	for _, b := range lines {
		var e struct{ SID string }
		if err := json.Unmarshal(b, &e); err != nil {
			h.t.Fatal(err)
		}
		out[e.SID]++
	}
	return out
}

// TestAgentUpgrades: sessions opened before the first of three upgrades live
// through all of them; each old agent ends with its last session, and every
// session's start and end is in the log once.
func TestAgentUpgrades(t *testing.T) {
	h := newAgentHouse(t)
	var old []*agentRole
	var open []*conversation
	for i := range 3 {
		open = append(open, h.dial("alice"))
		old = append(old, h.upgrade())
		for k, c := range open {
			c.say(fmt.Sprintf("upgrade %d, session %d", i, k))
		}
	}
	open = append(open, h.dial("alice"))
	for i, r := range append(slices.Clone(old), h.current) {
		if n := r.holds()["tcp sessions"]; n != 1 {
			t.Errorf("agent %d has %d sessions", i, n)
		}
	}
	h.await("three remnants", func() bool { return len(h.current.spool.Remnants()) == 3 && h.current.spool.UserSessions("alice") == 3 })
	for _, i := range []int{1, 0, 2} {
		open[i].conn.Close()
		h.over(old[i])
	}
	h.await("no remnant", func() bool { return len(h.current.spool.Remnants()) == 0 })
	open[3].say("still here")
	open[3].conn.Close()
	h.await("four ends in the log", func() bool { return len(h.events("app.session.end")) == 4 })
	for _, name := range []string{"app.session.start", "app.session.end"} {
		for sid, n := range h.events(name) {
			if n != 1 {
				t.Errorf("%s of %s is there %d times", name, sid, n)
			}
		}
	}
	h.await("one tunnel", func() bool { return len(h.node.gateway.hub.Status().Tunnels) == 1 })
}

// TestAgentUpgradeLock: a lock ends the sessions of a remnant.
func TestAgentUpgradeLock(t *testing.T) {
	h := newAgentHouse(t)
	mallory, alice := h.dial("mallory"), h.dial("alice")
	old := h.upgrade()
	h.put("lock", `{"kind":"lock","metadata":{"name":"m"},"spec":{"target":{"user":"mallory"}}}`)
	mallory.broken()
	alice.say("not me")
	if n := old.holds()["tcp sessions"]; n > 1 {
		t.Errorf("%d sessions", n)
	}
	alice.conn.Close()
	h.over(old)
	h.await("the ends", func() bool { return len(h.events("app.session.end")) == 2 && len(h.events("client.disconnect")) == 1 })
}

func (h *agentHouse) put(kind, document string) {
	h.t.Helper()
	if _, err := h.admin.PutDocument(h.t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: document})); err != nil {
		h.t.Fatalf("%s: %v", kind, err)
	}
}

// TestAgentGoodbye: at the end of its time a remnant ends its sessions, says why
// in the log, and ends.
func TestAgentGoodbye(t *testing.T) {
	h := newAgentHouse(t)
	c := h.dial("alice")
	old := h.upgrade()
	other := h.dial("alice")
	old.goodbye()
	old.goodbye()
	c.broken()
	h.over(old)
	other.say("not me")
	h.await("the end in the log", func() bool { return len(h.events("app.session.end")) == 1 && len(h.events("client.disconnect")) == 1 })
	lines, err := h.node.auth.events.Search(t.Context(), audit.Query{Names: []string{"client.disconnect"}, Limit: 10})
	if err != nil || len(lines) != 1 || !strings.Contains(string(lines[0]), "sallyport was upgraded here") {
		t.Errorf("the log says %s, %v", lines, err)
	}
}

// TestAgentUpgradeUndone: the new process dies before the commit. Nothing is lost,
// nothing was refused, and the next upgrade works.
func TestAgentUpgradeUndone(t *testing.T) {
	h := newAgentHouse(t)
	c := h.dial("alice")
	for range 2 {
		next, give, _ := h.freeze()
		started := make(chan *conversation, 1)
		go func() { started <- h.dial("alice") }() // its start waits for the spool
		c.say("frozen")
		next.close() // killed: the kernel lets go of the lock
		if err := give.Thaw(); err != nil {
			t.Fatal(err)
		}
		s := <-started
		s.say("let in")
		s.conn.Close()
	}
	if err := h.current.giver().Thaw(); err != nil { // an upgrade that ended before its freeze
		t.Fatal(err)
	}
	old := h.upgrade()
	c.say("upgraded")
	c.conn.Close()
	h.over(old)
	h.await("three ends", func() bool { return len(h.events("app.session.end")) == 3 })
}
