package jump

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

func TestJump(t *testing.T) {
	g := newGate(t, nil)
	c := g.dial()
	for host, port := range map[string]uint32{"web1": 22, "WEB1": 0, "web1." + cluster: 3022, "web1.node." + cluster: 3022, "Web1.GW.example.com": 22} {
		ch, err := c.to(host, port)
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		echoes(t, ch, ch.CloseWrite)
		ch.Close()
	}
	if n := g.proven.Load(); n != 1 {
		t.Errorf("proven %d times", n)
	}
	g.mu.Lock()
	if len(g.reached) != 5 || slices.ContainsFunc(g.reached, func(s string) bool { return s != "web1 from 127.0.0.1" }) {
		t.Errorf("reached %q", g.reached)
	}
	g.mu.Unlock()
	eventually(t, "the ends in the log", func() bool { return len(g.named("port", "T3003S")) == 5 })
	e := g.named("port", "T3003S")[0]
	if e.User != "alice" || e.UserKind != "human" || e.Addr == "" || e.ServerID != g.server.GatewayID || e.UID == "" ||
		e.Fields["server_hostname"] != "web1" || e.Fields["bytes_sent"] != int64(1<<20) || e.Fields["bytes_received"] != int64(1<<20) || e.Fields["mode"] != "jump" {
		t.Errorf("event %+v", e)
	}
	if ok, _, err := c.SendRequest("keepalive@openssh.com", true, nil); !ok || err != nil {
		t.Errorf("keep-alive: %v, %v", ok, err)
	}
}

// TestA02_NowhereElse: every type of channel and request but the one is refused,
// and nothing is dialed for it.
func TestA02_NowhereElse(t *testing.T) {
	g := newGate(t, nil)
	began := time.Now()
	c := g.dial()
	for _, r := range append(channelRules(), channelRule{rule: rule{name: "own@example.com", fact: unknownType}}) {
		if r.serve != nil {
			continue
		}
		for _, payload := range [][]byte{nil, ssh.Marshal(directTCP{Host: "web1", Port: 22})} {
			_, _, err := c.OpenChannel(r.name, payload)
			wantRefused(t, r.name, err, r.fact)
		}
	}
	for _, r := range append(globalRules(), globalRule{rule: rule{name: "own@example.com"}}) {
		ok, _, err := c.SendRequest(r.name, true, ssh.Marshal(struct {
			Host string
			Port uint32
		}{"0.0.0.0", 2222}))
		if err != nil || ok != r.granted {
			t.Errorf("%s: %v, %v", r.name, ok, err)
		}
	}
	for _, payload := range [][]byte{nil, {0}, {0xff, 0xff, 0xff, 0xff}, ssh.Marshal(directTCP{Port: 22}), ssh.Marshal(directTCP{Host: strings.Repeat("a", 256), Port: 22}), append(ssh.Marshal(directTCP{Host: "web1", Port: 22}), 0)} {
		_, _, err := c.OpenChannel("direct-tcpip", payload)
		wantRefused(t, "malformed", err, "malformed")
	}
	g.wantReached(nil)
	n, took := len(g.named("port", "T3003E")), time.Since(began)
	if n == 0 || n > burst+1+int(took/time.Second) { // one more each second
		t.Errorf("%d refusals in the log, in %v", n, took)
	}
	if ch, err := c.to("web1", 22); err != nil {
		t.Errorf("after all of that: %v", err)
	} else {
		ch.Close()
	}
}

// TestA11_NoFiles: there is nothing at the gateway to run, to copy from or to copy
// to: a session, which shells, commands, scp and sftp need, is not opened.
func TestA11_NoFiles(t *testing.T) {
	g := newGate(t, nil)
	c := g.dial()
	if _, err := c.NewSession(); err == nil || !strings.Contains(err.Error(), "ssh -J "+cluster+" LOGIN@NODE."+cluster) {
		t.Errorf("a session: %v", err)
	}
	eventually(t, "the refusal in the log", func() bool { return slices.Contains(said(g.named("port", "T3003E")), noShell) })
	for _, name := range []string{"session", "sftp", "subsystem", "direct-streamlocal@openssh.com"} {
		_, _, err := c.OpenChannel(name, nil)
		wantRefused(t, name, err)
	}
	g.wantReached(nil)
}

// TestA11_Verdicts writes down what is served, beside the tables that say it: a row
// that says otherwise would be believed by every test that reads them.
func TestA11_Verdicts(t *testing.T) {
	g := newGate(t, nil)
	c := g.dial()
	to := ssh.Marshal(directTCP{Host: "web1", Port: 22})
	for _, name := range []string{
		"session", "x11", "forwarded-tcpip", "direct-streamlocal@openssh.com", "forwarded-streamlocal@openssh.com", "tun@openssh.com",
		"auth-agent", "auth-agent@openssh.com", "direct-tcpip@openssh.com", "DIRECT-TCPIP", "",
	} {
		_, _, err := c.OpenChannel(name, to)
		wantRefused(t, name, err)
	}
	g.wantReached(nil)
	at := ssh.Marshal(struct {
		Host string
		Port uint32
	}{"127.0.0.1", 2222})
	for name, want := range map[string]bool{
		"keepalive@openssh.com": true, "no-more-sessions@openssh.com": true,
		"tcpip-forward": false, "cancel-tcpip-forward": false, "streamlocal-forward@openssh.com": false, "cancel-streamlocal-forward@openssh.com": false,
		"hostkeys-00@openssh.com": false, "hostkeys-prove-00@openssh.com": false, "": false,
	} {
		if ok, _, err := c.SendRequest(name, true, at); err != nil || ok != want {
			t.Errorf("%q: %v, %v, want %v", name, ok, err, want)
		}
	}
}

// TestA12_RegisteredOnly: of destinations those that are a node's name and its
// port are sought among the agents; nothing else is, whatever it may lead to, and
// no address is dialed.
func TestA12_RegisteredOnly(t *testing.T) {
	g := newGate(t, nil)
	c := g.dial()
	for _, to := range []struct {
		host string
		port uint32
	}{
		{"127.0.0.1", 22}, {"127.1", 22}, {"::1", 22}, {"[::1]", 22}, {"::ffff:127.0.0.1", 22}, {"0.0.0.0", 22}, {"::", 22}, {"10.0.0.1", 3022},
		{"169.254.169.254", 80}, {"169.254.169.254", 22}, {"fe80::1%lo", 22}, {"fd00:ec2::254", 80}, {"localhost", 443}, {"metadata.google.internal", 22}, {"web1", 80}, {"web1", 443}, {"web1", 65536 + 22}, {"web1", 1<<32 - 1},
		{"web1.db." + cluster, 22}, {"a.web1." + cluster, 22}, {"web1.other.example.com", 22}, {"web1." + cluster + ".other", 22}, {cluster, 22}, {cluster, 443}, {"." + cluster, 22}, {"web1.node", 22}, {"web1.node.node." + cluster, 22},
		{"web1\x00", 22}, {"web1\x00." + cluster, 22}, {"web1 -oProxyCommand=x", 22}, {"`id`", 22}, {"$(id)", 22}, {"-oProxyCommand=x", 22}, {"\u212Aube", 22}, {"../web1", 22}, {"web1/", 22}, {"/var/run/x", 22},
		{strings.Repeat("a", 64), 22}, {strings.Repeat("a.", 127) + "a", 22}, {"web1\x1b[2J", 22},
	} {
		_, err := c.to(to.host, to.port)
		wantRefused(t, to.host, err, "the jump server of "+cluster+" leads to its nodes only")
	}
	g.wantReached(nil)
	var sought []string
	for _, name := range []string{"nobody", "localhost", "2130706433", "0x7f000001"} { // names like any
		_, err := c.to(name, 22)
		wantRefused(t, name, err, "node "+name+": unknown, or no agent")
		sought = append(sought, name+" from 127.0.0.1")
	}
	g.wantReached(sought)
}

// wantRefused fails unless err is a refusal to open a channel that says all of wants,
// in a message that does no harm to a terminal: err itself hides what would.
func wantRefused(t *testing.T, what string, err error, wants ...string) {
	t.Helper()
	var open *ssh.OpenChannelError
	if !errors.As(err, &open) {
		t.Fatalf("%s: %v, not a refusal", what, err)
	}
	if strings.ContainsAny(open.Message, "\x00\x1b\r\n") {
		t.Errorf("%q: the answer is %q", what, open.Message)
	}
	for _, want := range wants {
		if !strings.Contains(open.Message, want) {
			t.Errorf("%s: %q does not say %q", what, open.Message, want)
		}
	}
}

// wantReached fails unless these nodes have been sought, as "node from address".
func (g *gate) wantReached(want []string) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(g.reached, want) {
		g.t.Errorf("reached %q, want %q", g.reached, want)
	}
}

// TestA01_Strangers: whoever has no certificate that the user CA has signed, or
// not its key, is nobody, and writes nothing into the log.
func TestA01_Strangers(t *testing.T) {
	g := newGate(t, func(g *gate) { g.server.MaxAuthTries = 3 })
	stranger, alice := newKey(t), g.person("alice", g.userCA, nil)
	asHost := g.person("alice", g.userCA, func(c *ssh.Certificate) { c.CertType = ssh.HostCert })
	for name, auth := range map[string][]ssh.AuthMethod{
		"nothing":              nil,
		"password":             {ssh.Password("x")},
		"keyboard":             {ssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return []string{"x"}, nil })},
		"plain key":            {ssh.PublicKeys(newKey(t))},
		"the CA's own key":     {ssh.PublicKeys(g.userCA)},
		"another CA":           {ssh.PublicKeys(g.person("alice", stranger, nil))},
		"the host CA":          {ssh.PublicKeys(g.person("alice", g.hostCA, nil))},
		"signed by a user":     {ssh.PublicKeys(g.person("alice", newKey(t), nil))},
		"a host's certificate": {ssh.PublicKeys(asHost)},
		"another's, offered":   {ssh.PublicKeys(offerer{newKey(t), alice.PublicKey()})},
		"an expired, offered": {ssh.PublicKeys(offerer{newKey(t), g.person("alice", g.userCA, func(c *ssh.Certificate) {
			c.ValidBefore = uint64(time.Now().Add(-time.Second).Unix())
		}).PublicKey()})},
		"changed after it was signed": {ssh.PublicKeys(changed(t, g, alice))},
	} {
		c, err := g.dialAs(auth...)
		if err == nil {
			t.Errorf("%s: in", name)
		}
		if strings.Contains(c.banner, "expired") {
			t.Errorf("%s: told %q", name, c.banner)
		}
		waitFor(t, "the server to let go", func() { <-g.errs })
	}
	if n := g.proven.Load(); n != 0 || len(g.events) != 0 {
		t.Errorf("%d proven, events %+v", n, g.events)
	}
	c, err := g.dialAs(ssh.PublicKeys(offerer{newKey(t), alice.PublicKey()}, g.person("bob", g.userCA, nil)))
	if err == nil {
		if ch, err := c.to("web1", 22); err == nil {
			ch.Close()
		}
		eventually(t, "the log", func() bool { return len(g.named("port", "T3003I")) > 0 })
		if e := g.named("port", "T3003I")[0]; e.User != "bob" {
			t.Errorf("in as %q", e.User)
		}
	}
}

// offerer shows a public key that is not its own, and then signs with its own
// (threat A40, CVE-2024-45337).
type offerer struct {
	ssh.Signer
	shows ssh.PublicKey
}

func (o offerer) PublicKey() ssh.PublicKey { return o.shows }

func changed(t *testing.T, g *gate, of ssh.Signer) ssh.Signer {
	t.Helper()
	key := newKey(t)
	cert := *of.PublicKey().(*ssh.Certificate)
	cert.Key = key.PublicKey()
	s, err := ssh.NewCertSigner(&cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRefused: who has proved who he is hears why he may not pass, and it is
// written down once, with his name.
func TestRefused(t *testing.T) {
	id := func(id sallyport.Identity) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.Extensions[identity.SSHExtensionName] = identityOf(t, id) }
	}
	for name, row := range map[string]struct {
		spoil  func(*ssh.Certificate)
		lock   *sallyport.Problem
		reason string
	}{
		"expired":         {spoil: func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Add(-time.Second).Unix()) }, reason: "the certificate has expired"},
		"not yet":         {spoil: func(c *ssh.Certificate) { c.ValidAfter = uint64(time.Now().Add(time.Hour).Unix()) - 10 }, reason: "the certificate is not valid yet"},
		"for ever":        {spoil: func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, reason: "the certificate never expires"},
		"nobody's logins": {spoil: func(c *ssh.Certificate) { c.ValidPrincipals = nil }, reason: "the certificate names no logins"},
		"bound elsewhere": {spoil: func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "192.0.2.7/32"} }, reason: "bound to another address"},
		"a command":       {spoil: func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} }, reason: "forced command"},
		"unknown option":  {spoil: func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"verify-required": ""} }, reason: "is not known"},
		"a browser's":     {spoil: id(sallyport.Identity{Name: "alice", Cluster: cluster, Usage: sallyport.UsageWeb, BoundTo: "spiffe://" + cluster + "/gateway/0d1e5f57-4c58-4a33-9d6d-1f5b7f5b0001"}), reason: "not for SSH"},
		"another cluster": {spoil: id(sallyport.Identity{Name: "alice", Cluster: "other.example.com"}), reason: "another cluster"},
		"locked":          {lock: sallyport.Denied(`lock targeting User:"alice" is in force`, "ask your administrator"), reason: "lock targeting"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, func(g *gate) { g.refusal = row.lock })
			signer := g.person("alice", g.userCA, row.spoil)
			c, err := g.dialAs(ssh.PublicKeys(signer, signer))
			if err == nil || !strings.Contains(c.banner, row.reason) {
				t.Errorf("%v, told %q", err, c.banner)
			}
			waitFor(t, "the server to let go", func() { <-g.errs })
			e := g.named("auth", "T3007W")
			if len(e) != 1 || e[0].User != "alice" || !has(said(e), row.reason) || e[0].Success == nil || *e[0].Success {
				t.Errorf("events %+v", e)
			}
			if g.proven.Load() != 0 {
				t.Error("proven")
			}
		})
	}
}

// TestLockEnds: a lock ends the connection and what it carries; an old view of
// the control plane does not, and opens nothing.
func TestLockEnds(t *testing.T) {
	g := newGate(t, nil)
	c := g.dial()
	ch, err := c.to("web1", 22)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	g.refuse(&sallyport.Problem{Kind: sallyport.ErrStaleSnapshot, Fact: "no contact with auth\x1b[2J"})
	_, err = c.to("web1", 22)
	wantRefused(t, "with an old view", err, "no contact with auth")
	if _, err := ch.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ch, make([]byte, len("still here"))); err != nil {
		t.Fatal(err)
	}
	g.refuse(sallyport.Denied(`lock targeting User:"alice" is in force`, ""))
	waitFor(t, "the end of the channel", func() { _, _ = io.Copy(io.Discard, ch) })
	waitFor(t, "the end of the connection", func() { _ = c.Wait() })
	g.mu.Lock()
	stream := g.streams[0]
	g.mu.Unlock()
	eventually(t, "the end of the stream", func() bool {
		_, err := stream.Write(nil)
		return errors.Is(err, net.ErrClosed)
	})
	eventually(t, "the log", func() bool { return len(g.named("client.disconnect", "T3006I")) == 1 })
	if e := g.named("client.disconnect", "T3006I")[0]; e.User != "alice" || !strings.Contains(e.Fields["reason"].(string), "lock") {
		t.Errorf("event %+v", e)
	}
}

// TestDataWithoutMeaning: a client that sends extended data, which no node would
// be given, loses its connection, also while the node sends nothing.
func TestDataWithoutMeaning(t *testing.T) {
	g := newGate(t, nil)
	c := g.dial()
	for range 3 { // others that are open do not change it
		if _, err := c.to("web1", 22); err != nil {
			t.Fatal(err)
		}
	}
	ch, err := c.to("web1", 22)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.Stderr().Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the connection", func() { _ = c.Wait() })
	eventually(t, "the ends in the log", func() bool { return len(g.named("port", "T3003S")) == 4 })
	if all := g.named("client.disconnect", "T3006I"); len(all) != 1 || !strings.Contains(all[0].Fields["reason"].(string), "where none may be") {
		t.Errorf("events %+v", all)
	}
}

// TestExpiryEnds: with an expired certificate nothing begins, and what carries
// nothing ends; what is carried is the node's to end.
func TestExpiryEnds(t *testing.T) {
	g := newGate(t, nil)
	c := &connection{server: g.server, identity: sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: cluster, NotAfter: time.Now().Add(-time.Second)}}
	c.place = &place{server: g.server, identity: c.identity, user: &usage{}}
	if p := c.judge(time.Now()); p == nil || !strings.Contains(p.Fact, "expired") {
		t.Errorf("carrying nothing: %v", p)
	}
	if _, p := c.mayOpen(destination{node: "web1"}); p == nil {
		t.Error("a channel begins")
	}
	c.channels = 1
	if p := c.judge(time.Now()); p != nil {
		t.Errorf("carrying: %v", p)
	}
	if _, p := c.mayOpen(destination{node: "web1"}); p == nil {
		t.Error("another channel begins")
	}
	g.refuse(sallyport.Denied("locked", ""))
	if p := c.judge(time.Now()); p == nil || p.Fact != "locked" {
		t.Errorf("carrying, and locked: %v", p)
	}
}

// TestBounds: how many of each there may be.
func TestBounds(t *testing.T) {
	g := newGate(t, func(g *gate) {
		g.server.MaxUserConnections, g.server.MaxConnections, g.server.MaxChannels, g.server.MaxUserChannels = 2, 3, 2, 3
	})
	as := func(name string) (*client, error) { return g.dialAs(ssh.PublicKeys(g.person(name, g.userCA, nil))) }
	open := func(name string) *client {
		c, err := as(name)
		if err != nil {
			t.Fatalf("%s: %v, told %q", name, err, c.banner)
		}
		return c
	}
	one, two := open("alice"), open("alice")
	if c, err := as("alice"); err == nil || !strings.Contains(c.banner, "you have 2 connections") {
		t.Errorf("a third: %v, told %q", err, c.banner)
	}
	open("bob")
	if c, err := as("carol"); err == nil || !strings.Contains(c.banner, "too many connections") {
		t.Errorf("a fourth in all: %v, told %q", err, c.banner)
	}
	var last ssh.Channel
	for _, c := range []*client{one, one, two} {
		ch, err := c.to("web1", 22)
		if err != nil {
			t.Fatal(err)
		}
		last = ch
	}
	for _, c := range []*client{one, two} { // one has two, alice has three
		if _, err := c.to("web1", 22); err == nil || !strings.Contains(err.Error(), "too many connections to nodes") {
			t.Errorf("one too many: %v", err)
		}
	}
	last.Close()
	eventually(t, "room for another", func() bool {
		ch, err := two.to("web1", 22)
		if err == nil {
			ch.Close()
		}
		return err == nil
	})
	one.Close()
	eventually(t, "a place for another", func() bool { _, err := as("alice"); return err == nil })
}

// TestA75_Silence: who does not go on is gone after its time, at each stage.
func TestA75_Silence(t *testing.T) {
	g := newGate(t, func(g *gate) {
		g.server.HandshakeTimeout, g.server.LoginGrace = 100*time.Millisecond, 200*time.Millisecond
	})
	for _, head := range []string{"", "SSH-2.0-x", "SSH-2.0-x\r\n", "SSH-2.0-x\r\n\x00\x00"} {
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(head)); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the end of "+head, func() { _, _ = io.Copy(io.Discard, conn) })
		conn.Close()
		waitFor(t, "the server to let go", func() { <-g.errs })
	}
	// Keys are agreed, and nobody logs in.
	held := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := g.dialAs(ssh.PublicKeysCallback(func() ([]ssh.Signer, error) { <-held; return nil, nil }))
		done <- err
	}()
	waitFor(t, "the server to let go", func() { <-g.errs })
	close(held)
	waitFor(t, "the client to notice", func() { <-done })
	if g.proven.Load() != 0 {
		t.Error("proven")
	}
}

// TestManyTries: a client has so many tries.
func TestManyTries(t *testing.T) {
	g := newGate(t, func(g *gate) { g.server.MaxAuthTries = 2 })
	signers := []ssh.Signer{newKey(t), newKey(t), newKey(t), g.person("alice", g.userCA, nil)}
	if _, err := g.dialAs(ssh.PublicKeys(signers...)); err == nil {
		t.Error("in by the fourth key")
	}
	if _, err := g.dialAs(ssh.PublicKeys(signers[2:]...)); err != nil {
		t.Errorf("by the second key: %v", err)
	}
}

// TestLeave: after an upgrade what runs goes on, nothing begins, and the
// connection ends with its last channel.
func TestLeave(t *testing.T) {
	g := newGate(t, nil)
	idle, busy := g.dial(), g.dial()
	ch, err := busy.to("web1", 22)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "both to be counted", func() bool { return g.server.Open() == 2 })
	g.server.Leave()
	waitFor(t, "the end of who carries nothing", func() { _ = idle.Wait() })
	if _, err := busy.to("web1", 22); err == nil || !strings.Contains(err.Error(), "has been upgraded") {
		t.Errorf("another channel: %v", err)
	}
	if c, err := g.dialAs(g.alice()); err == nil || !strings.Contains(c.banner, "has been upgraded") {
		t.Errorf("another connection: %v, told %q", err, c.banner)
	}
	echoes(t, ch, ch.CloseWrite)
	ch.Close()
	waitFor(t, "the end with the last channel", func() { _ = busy.Wait() })
	eventually(t, "nobody to be left", func() bool { return g.server.Open() == 0 })
}

// TestClose: the end of the gateway is the end of all.
func TestClose(t *testing.T) {
	g := newGate(t, nil)
	c := g.dial()
	if _, err := c.to("web1", 22); err != nil {
		t.Fatal(err)
	}
	g.stop()
	waitFor(t, "the end of the connection", func() { _ = c.Wait() })
	waitFor(t, "the server to return", func() { <-g.errs })
}

// TestDeadClient: a client that does not answer is gone.
func TestDeadClient(t *testing.T) {
	g := newGate(t, func(g *gate) { g.server.KeepAlive = 20 * time.Millisecond })
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stall := &staller{Conn: conn, stalled: make(chan struct{}), over: make(chan struct{})}
	defer close(stall.over)
	sc, chans, reqs, err := ssh.NewClientConn(stall, g.addr, &ssh.ClientConfig{User: "x", Auth: []ssh.AuthMethod{g.alice()}, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		t.Fatal(err)
	}
	defer sc.Close()
	go func() {
		for range chans {
		}
	}()
	go ssh.DiscardRequests(reqs)
	close(stall.stalled)
	waitFor(t, "the server to let go", func() { <-g.errs })
}

// staller is a connection of which nothing is read any more.
type staller struct {
	net.Conn
	stalled, over chan struct{}
}

func (s *staller) Read(b []byte) (int, error) {
	select {
	case <-s.stalled:
		<-s.over
		return 0, io.EOF
	default:
		return s.Conn.Read(b)
	}
}

// TestEndToEnd: what is inside the channel is another SSH connection, whose
// server need not be known here.
func TestEndToEnd(t *testing.T) {
	inner := newKey(t)
	g := newGate(t, nil)
	g.server.Reach = func(context.Context, string, netip.AddrPort) (net.Conn, error) {
		near, far := tcpPair(t)
		go func() {
			config := &ssh.ServerConfig{NoClientAuth: true}
			config.AddHostKey(inner)
			conn, chans, reqs, err := ssh.NewServerConn(far, config)
			if err != nil {
				far.Close()
				return
			}
			go ssh.DiscardRequests(reqs)
			for ch := range chans {
				_ = ch.Reject(ssh.Prohibited, "reached "+conn.User())
			}
		}()
		return near, nil
	}
	conn, err := g.dial().Dial("tcp", "web1:22")
	if err != nil {
		t.Fatal(err)
	}
	sc, chans, reqs, err := ssh.NewClientConn(conn, "web1:22", &ssh.ClientConfig{User: "root", HostKeyCallback: ssh.FixedHostKey(inner.PublicKey())})
	if err != nil {
		t.Fatal(err)
	}
	c := ssh.NewClient(sc, chans, reqs)
	defer c.Close()
	if _, err := c.NewSession(); err == nil || !strings.Contains(err.Error(), "reached root") {
		t.Errorf("%v", err)
	}
}

// TestA10_ProxyHeader: what comes before a client's version is not passed over, but
// ends the connection: all that the server has said is its own version.
func TestA10_ProxyHeader(t *testing.T) {
	g := newGate(t, nil)
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "PROXY TCP4 192.0.2.1 192.0.2.2 1 22\r\nSSH-2.0-x\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c) // its end may be a reset: there are bytes that nobody has read
	if _, more, _ := strings.Cut(string(b), "\n"); more != "" || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v", b, err)
	}
}
