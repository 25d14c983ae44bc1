package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

func (d *demo) sallyctl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(d.dir, "sallyctl"), append([]string{"--data-dir=" + d.data}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sallyctl %s: %v\n%s", strings.Join(args, " "), err, &errs)
	}
	return string(out)
}

func (d *demo) token(t testing.TB, role string) string {
	t.Helper()
	var tok struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(d.sallyctl(t, "tokens", "add", "--type="+role, "--format=json")), &tok); err != nil {
		t.Fatal(err)
	}
	return tok.Token
}

// rogue is an agent that joined by the rules and now breaks them.
func (d *demo) rogue(t testing.TB, resources ...sallyport.Resource) (*client.Host, *holder) {
	t.Helper()
	dir := t.TempDir()
	h, err := client.Join(context.Background(), client.HostConfig{
		Dir: dir, Kind: sallyport.KindAgent, Name: "rogue", Addresses: func() []string { return []string{d.Proxy} },
		Resources: resources, Log: slog.New(slog.DiscardHandler),
	}, d.token(t, "agent"), []string{d.CAPin})
	if err != nil {
		t.Fatal(err)
	}
	thief, _ := stolenFrom(t, filepath.Join(dir, "host.json"))
	return h, thief
}

// announced is what auth lets a host serve of what it asks for.
func announced(t testing.TB, h *client.Host, of *holder, resources ...*sallyportv1.Resource) *sallyportv1.AnnounceResponse {
	t.Helper()
	_, tlsPub, _, sshPub := newKeys(t)
	resp, err := h.API().Announce(context.Background(), connect.NewRequest(&sallyportv1.AnnounceRequest{TlsPublicKey: tlsPub, SshPublicKey: sshPub, Resources: resources}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg
}

// control is a control connection spoken by hand.
type control struct {
	conn   *tls.Conn
	agent  string
	tunnel tunnel.ID
	key    tunnel.Key // for data hellos
}

// keepTalking lets a control connection live for as long as the test: the gateway
// gives an agent up that says nothing for five seconds.
func (c *control) keepTalking(t testing.TB) {
	t.Helper()
	c.conn.SetDeadline(time.Time{}) // it ends with the test
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for n := uint64(1); ; n++ {
			b, err := tunnel.AppendControl(nil, &tunnelv1.Control{Message: &tunnelv1.Control_Ping{Ping: &tunnelv1.Ping{Sequence: n}}})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := c.conn.Write(b); err != nil {
				return // it was closed
			}
			time.Sleep(250 * time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		c.conn.Close()
		<-ended
	})
}

func (d *demo) control(t testing.TB, h *holder, hello *tunnelv1.Hello) (*control, *tunnelv1.Control) {
	t.Helper()
	conn := d.dialFrom(t, "127.5.0.1")
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(callWait))
	tc := tls.Client(conn, &tls.Config{NextProtos: []string{"sallyport-tunnel/1"}, Certificates: []tls.Certificate{h.tls}, InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	b, err := tunnel.AppendControl(nil, &tunnelv1.Control{Message: &tunnelv1.Control_Hello{Hello: hello}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tc.Write(b); err != nil {
		t.Fatal(err)
	}
	m, err := tunnel.ReadControl(tc)
	if err != nil {
		return nil, nil
	}
	w := m.GetWelcome()
	if w == nil {
		return nil, m
	}
	c := &control{conn: tc, agent: hello.GetAgentId(), tunnel: tunnel.ID(w.GetTunnelId())}
	cs := tc.ConnectionState()
	secret, err := cs.ExportKeyingMaterial("EXPORTER-sallyport-tunnel", append([]byte{1, 1}, c.tunnel[:]...), 32)
	if err != nil {
		t.Fatal(err)
	}
	c.key = tunnel.Key(secret)
	c.keepTalking(t)
	return c, m
}

// hello sends a data hello.
func (d *demo) hello(t testing.TB, b []byte) net.Conn {
	t.Helper()
	conn := d.dialFrom(t, "127.5.0.2")
	t.Cleanup(func() { conn.Close() })
	conn.Write(b)
	return conn
}

// parked sends a data hello of a tunnel, and waits until the gateway keeps the
// connection: what is sent after that meets a gateway that knows of it.
func (d *demo) parked(t testing.TB, of *control, b []byte) net.Conn {
	t.Helper()
	count := func() int {
		for _, tu := range d.status(t).Gateway.Tunnels {
			if tu.Agent == of.agent {
				return tu.Parked
			}
		}
		t.Fatal("the tunnel has ended")
		return 0
	}
	before := count()
	conn := d.hello(t, b)
	await(t, "a good hello is parked", callWait, func() bool { return count() > before })
	return conn
}

// refused sends a data hello, and wants the gateway to close the connection.
func (d *demo) refused(t testing.TB, what string, b []byte) {
	t.Helper()
	conn := d.hello(t, b)
	defer conn.Close()
	if _, _, err := untilClosed(conn, atOnce); err != nil {
		t.Errorf("a hello %s is parked", what)
	}
}

// TestA31_Data: a data connection is parked for who holds the tunnel's key, once.
func TestA31_Data(t *testing.T) {
	d := target(t)
	a, thiefA := d.rogue(t)
	b, thiefB := d.rogue(t)
	d.leavesNothing(t)
	open := func(h *client.Host, thief *holder) *control {
		c, m := d.control(t, thief, &tunnelv1.Hello{AgentId: h.ID(), Version: "rogue", Assignment: announced(t, h, thief).GetAssignment()})
		if c == nil {
			t.Fatalf("no welcome: %v", m)
		}
		return c
	}
	one, two := open(a, thiefA), open(b, thiefB)
	hello := func(id tunnel.ID, counter uint64, k tunnel.Key) []byte {
		return tunnel.AppendDataHello(nil, tunnel.DataHello{Tunnel: id, Counter: counter}, k)
	}
	good := hello(one.tunnel, 1, one.key)
	d.parked(t, one, good)
	flipped := bytes.Clone(hello(one.tunnel, 2, one.key))
	flipped[61] ^= 1
	counter := bytes.Clone(hello(one.tunnel, 3, one.key))
	counter[29] ^= 1
	for name, bad := range map[string][]byte{
		"replayed": good, "with a wrong code": flipped, "with another counter": counter,
		"of another tunnel's key": hello(one.tunnel, 4, two.key), "moved to another tunnel": hello(two.tunnel, 5, one.key),
		"for no tunnel": hello(tunnel.ID{1}, 6, one.key), "without a key": hello(one.tunnel, 7, tunnel.Key{}),
		"with a byte behind it": append(hello(one.tunnel, 8, one.key), 0), "with a TLS hello behind it": append(hello(one.tunnel, 9, one.key), helloFor(t, "x")...),
		"of version 2": func() []byte { x := hello(one.tunnel, 10, one.key); x[4] = 2; return x }(),
	} {
		d.refused(t, name, bad)
	}
	conn := d.parked(t, one, hello(one.tunnel, 5000, one.key))
	d.refused(t, "from far behind the window", hello(one.tunnel, 3000, one.key))
	conn.Write([]byte{1})
	if _, _, err := untilClosed(conn, callWait); err != nil {
		t.Errorf("a parked connection on which the agent speaks: %v", err)
	}
	one.conn.Close()
	d.refused(t, "of a tunnel that has ended", hello(one.tunnel, 5001, one.key))
}

// TestA06_Hello: a control connection's hello binds agent, certificate and
// assignment, and a name belongs to whom it was given first.
func TestA06_Hello(t *testing.T) {
	d := target(t)
	victim, _ := d.stolen(t, "agent")
	h, thief := d.rogue(t)
	d.leavesNothing(t)
	mine := announced(t, h, thief, &sallyportv1.Resource{Kind: "tcp", Name: "mine", Address: "127.0.0.1:9"})
	theirs := announced(t, h, thief,
		&sallyportv1.Resource{Kind: "tcp", Name: d.name("tcp"), Address: "127.0.0.1:9"},
		&sallyportv1.Resource{Kind: "db", Name: d.name("db"), Protocol: "postgres", Address: "127.0.0.1:9"},
		&sallyportv1.Resource{Kind: "tcp", Name: strings.ToUpper(d.name("tcp")), Address: "127.0.0.1:9"},
		&sallyportv1.Resource{Kind: "tcp", Name: d.name("tcp") + ".", Address: "127.0.0.1:9"},
		&sallyportv1.Resource{Kind: "auth", Name: "x"}, &sallyportv1.Resource{Kind: "tcp", Name: "a.b"},
		&sallyportv1.Resource{Kind: "node", Name: victim.name, Id: victim.name})
	for _, c := range theirs.GetCertificates() {
		switch c.GetServerName() {
		case d.serverName("tcp"), d.serverName("db"), d.serverName("node"), victim.name + ".node." + d.Cluster, "a.b.tcp." + d.Cluster:
			t.Errorf("auth certified %s for a rogue agent", c.GetServerName())
		}
	}
	served := struct {
		Assignment []byte `json:"assignment"`
	}{}
	readInto(t, filepath.Join(d.data, "agent", "served.json"), &served)
	broken := bytes.Clone(mine.GetAssignment())
	broken[len(broken)/2] ^= 1
	before := d.status(t).Gateway.Tunnel["replaced"]
	for name, hello := range map[string]*tunnelv1.Hello{
		"another agent's id": {AgentId: victim.name, Assignment: mine.GetAssignment()}, "no id": {Assignment: mine.GetAssignment()},
		"another agent's assignment": {AgentId: thief.name, Assignment: served.Assignment},
		"a broken assignment":        {AgentId: thief.name, Assignment: broken}, "no assignment": {AgentId: thief.name},
		"another agent's id and assignment": {AgentId: victim.name, Assignment: served.Assignment},
	} {
		if c, _ := d.control(t, thief, hello); c != nil {
			t.Errorf("a hello with %s is welcome", name)
		}
	}
	if d.status(t).Gateway.Tunnel["replaced"] != before {
		t.Error("the victim's tunnel was replaced")
	}
	// A revision that was replaced stays replaced.
	c, _ := d.control(t, thief, &tunnelv1.Hello{AgentId: thief.name, Assignment: theirs.GetAssignment()})
	if c == nil {
		t.Fatal("a good hello is refused")
	}
	c.conn.Close()
	if c, _ := d.control(t, thief, &tunnelv1.Hello{AgentId: thief.name, Assignment: mine.GetAssignment()}); c != nil && !bytes.Equal(mine.GetAssignment(), theirs.GetAssignment()) {
		t.Error("an older assignment is welcome after a newer one")
	}
}

// TestA28_HostCertificates: what a host may have certified, and whose audit
// spool and databases it may touch.
func TestA28_HostCertificates(t *testing.T) {
	d := target(t)
	victim, _ := d.stolen(t, "agent")
	h, _ := d.rogue(t)
	d.leavesNothing(t)
	ctx := context.Background()
	_, tlsPub, _, sshPub := newKeys(t)
	for _, addr := range []string{d.Cluster, "auth", d.serverName("db"), "127.0.0.1", "*"} {
		resp, err := h.API().RenewHost(ctx, connect.NewRequest(&sallyportv1.RenewHostRequest{TlsPublicKey: tlsPub, SshPublicKey: sshPub, Addresses: []string{addr}}))
		if err == nil && strings.Contains(namesIn(t, resp.Msg.GetTlsCertificate()), addr+" ") {
			t.Errorf("an agent's certificate names %s", addr)
		}
	}
	resp, err := h.API().RenewHost(ctx, connect.NewRequest(&sallyportv1.RenewHostRequest{TlsPublicKey: tlsPub, SshPublicKey: sshPub}))
	if err != nil {
		t.Fatal(err)
	}
	if names := namesIn(t, resp.Msg.GetTlsCertificate()); !strings.Contains(names, "/agent/"+h.ID()+" ") || strings.Contains(names, victim.name) {
		t.Errorf("an agent's certificate names %s", names)
	}
	if _, err := h.API().IssueDatabaseCertificate(ctx, connect.NewRequest(&sallyportv1.IssueDatabaseCertificateRequest{
		Database: d.name("db"), DatabaseUser: "postgres", TlsPublicKey: tlsPub})); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a certificate for another agent's database: %v", err)
	}
	for _, spool := range []string{victim.name, victim.name + "/x", h.ID(), h.ID() + "/", "/" + h.ID() + "/x", h.ID() + "x/y"} {
		_, err := h.API().AppendEvents(ctx, connect.NewRequest(&sallyportv1.AppendEventsRequest{Spool: spool, Events: []*sallyportv1.SpooledEvent{{Sequence: 1, Json: []byte(`{}`)}}}))
		if err == nil {
			t.Errorf("events for the spool %q were taken", spool)
		}
	}
	if _, err := h.API().ReportPresence(ctx, connect.NewRequest(&sallyportv1.ReportPresenceRequest{GatewayId: h.ID(), Full: true})); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("presence told by an agent: %v", err)
	}
}

// TestA08_Tokens: what lets one sort of caller in lets in no other.
func TestA08_Tokens(t *testing.T) {
	d := target(t)
	agentToken, gatewayToken := d.token(t, "agent"), d.token(t, "gateway")
	link := d.sallyctl(t, "users", "add", "--roles=access", "--format=json", "unclaimed")
	t.Cleanup(func() { d.sallyctl(t, "users", "rm", "unclaimed") })
	var u struct{ URL string }
	if err := json.Unmarshal([]byte(link), &u); err != nil {
		t.Fatal(err)
	}
	claim := u.URL[strings.LastIndex(u.URL, "/")+1:]
	d.leavesNothing(t)
	join := func(token string, roles ...string) error {
		_, tlsPub, _, sshPub := newKeys(t)
		hc := d.dialer(nil).HTTP(client.ProtocolJoin)
		defer hc.CloseIdleConnections()
		c := connect.NewClient[sallyportv1.JoinRequest, sallyportv1.JoinResponse](hc, client.BaseURL+"/sallyport.v1.JoinService/Join")
		_, err := c.CallUnary(context.Background(), connect.NewRequest(&sallyportv1.JoinRequest{Token: token, HostName: "x", Roles: roles, TlsPublicKey: tlsPub, SshPublicKey: sshPub}))
		return err
	}
	for name, err := range map[string]error{
		"agent's token as gateway": join(agentToken, "gateway"), "gateway's token as agent": join(gatewayToken, "agent"),
		"as auth": join(agentToken, "auth"), "as user": join(agentToken, "user"), "as nothing": join(agentToken), "as two": join(agentToken, "agent", "gateway"),
		"claim token": join(claim, "agent"), "no token": join("", "agent"), "garbage": join(strings.Repeat("x", 1<<16), "agent"),
	} {
		if err == nil {
			t.Errorf("%s: joined", name)
		}
	}
	for _, token := range []string{agentToken, gatewayToken} {
		resp, err := d.visitor().Get("https://" + d.Proxy + "/claim/" + token)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 200 {
			t.Error("a join token opens a claim page")
		}
	}
}

func readInto(t testing.TB, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

// namesIn are all that a certificate says its holder is, each with a space behind it.
func namesIn(t testing.TB, der []byte) string {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, n := range c.DNSNames {
		b.WriteString(n + " ")
	}
	for _, a := range c.IPAddresses {
		b.WriteString(a.String() + " ")
	}
	for _, u := range c.URIs {
		b.WriteString(u.String() + " ")
	}
	return b.String() + c.Subject.CommonName + " "
}
