package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/port"
	"github.com/sallyport/sallyport/tools/peers/postgres"
)

// cluster is auth, gateway and agent as processes of their own.
type cluster struct {
	t       testing.TB
	dir     string
	pin     string
	authAt  string
	gateway string // what people use; the recorder in front when there is one
	listen  string // where the gateway itself listens
	proc    map[string]*process
}

const (
	clusterName     = "gw.test"
	clusterPassword = "a long enough password" // of its users
)

// freePort returns an address for a program that is started soon. What takes longer
// than the port is kept is done before: the programs are built.
func freePort(t testing.TB) string {
	t.Helper()
	program(t, "sallyport")
	address, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func (c *cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

func (c *cluster) write(name, text string) string {
	c.t.Helper()
	path := c.path(name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *cluster) up(role string) {
	c.proc[role] = start(c.t, "sallyport", "start", "-c", c.path(role+".yaml"))
}

func (c *cluster) admin(p *person, args ...string) string {
	c.t.Helper()
	return p.run("sallyctl", append([]string{"--data-dir=" + c.path("auth")}, args...)...)
}

// token makes a join token and puts it into a file.
func (c *cluster) token(p *person, role string) string {
	c.t.Helper()
	var t struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(c.admin(p, "tokens", "add", "--type="+role, "--single-use", "--format=json")), &t); err != nil {
		c.t.Fatal(err)
	}
	return c.write(role+".token", t.Token+"\n")
}

// startCluster brings auth, gateway and agent up; agent is the agent's part of
// the configuration, and reach is where the agent finds the gateway.
func startCluster(t testing.TB, p *person, agent func(c *cluster) string, reach func(c *cluster) string) *cluster {
	t.Helper()
	at := freePort(t)
	return (&cluster{gateway: at, listen: at}).start(t, p, agent, reach)
}

func (c *cluster) start(t testing.TB, p *person, agent func(c *cluster) string, reach func(c *cluster) string) *cluster {
	t.Helper()
	c.t, c.dir, c.authAt, c.proc = t, shortDir(t), freePort(t), map[string]*process{}
	c.write("auth.yaml", fmt.Sprintf("version: 1\ncluster: %s\ndata_dir: auth\nroles: [auth]\nauth: {listen: [%q], second_factor: optional}\ngateway: {public_address: %q}\n", clusterName, c.authAt, c.gateway))
	c.up("auth")
	var status struct {
		CAPins []string `json:"ca_pins"`
	}
	await(t, "auth", upWait, func() bool {
		r := p.try("", "sallyctl", "--data-dir="+c.path("auth"), "status", "--format=json")
		return r.code == 0 && json.Unmarshal([]byte(r.stdout), &status) == nil && len(status.CAPins) > 0
	})
	c.pin = status.CAPins[0]
	c.write("gateway.yaml", fmt.Sprintf("version: 1\ndata_dir: gateway\nroles: [gateway]\ngateway:\n  listen: [%q]\n  public_address: %q\n  auth: %q\n  join: {token_file: %q, ca_pin: %q}\n",
		c.listen, c.gateway, c.authAt, c.token(p, "gateway"), c.pin))
	c.up("gateway")
	await(t, "the gateway's port", upWait, func() bool {
		conn, err := net.Dial("tcp", c.listen)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	c.write("agent.yaml", fmt.Sprintf("version: 1\ndata_dir: agent\nroles: [agent]\nagent:\n  gateways: [%q]\n  join: {token_file: %q, ca_pin: %q}\n%s", reach(c), c.token(p, "agent"), c.pin, agent(c)))
	c.up("agent")
	return c
}

// user makes somebody who may use everything, and logs in.
func (c *cluster) user(p *person, name string) {
	c.t.Helper()
	var link struct {
		URL string `json:"url"`
	}
	out := c.admin(p, "users", "add", "--roles=access", "--logins="+login(c.t), "--db-users=app", "--db-names=app", "--format=json", name)
	if err := json.Unmarshal([]byte(out), &link); err != nil {
		c.t.Fatal(err)
	}
	link.URL = strings.Replace(link.URL, "https://"+clusterName, "https://127.0.0.1", 1)
	const password = clusterPassword
	claim(c.t, link.URL, password)
	p.loginAs(c.gateway, c.pin, name, password, "")
}

func (c *cluster) online(p *person, kind string) {
	c.t.Helper()
	args := map[string][]string{"node": {"ls", "-f", "json"}, "db": {"db", "ls", "-f", "json"}, "tcp": {"tcp", "ls", "-f", "json"}, "kube": {"kube", "ls", "-f", "json"}}[kind]
	await(c.t, kind+" online", upWait, func() bool {
		r := p.try("", "sally", args...)
		return r.code == 0 && strings.TrimSpace(r.stdout) != "[]"
	})
}

// TestGatewayAdded: a gateway that joins a cluster leads to the agents that are there.
func TestGatewayAdded(t *testing.T) {
	p := newPerson(t)
	c := startCluster(t, p, func(*cluster) string { return "  ssh: {enabled: true}\n" }, func(c *cluster) string { return c.gateway })
	c.user(p, "ann")
	c.online(p, "node")
	var nodes []string
	await(t, "the node's name", upWait, func() bool {
		nodes = strings.Fields(p.run("sally", "ls", "-f", "names"))
		return len(nodes) == 1
	})
	second := freePort(t)
	c.write("second.yaml", fmt.Sprintf("version: 1\ndata_dir: second\nroles: [gateway]\ngateway:\n  listen: [%q]\n  public_address: %q\n  auth: %q\n  join: {token_file: %q, ca_pin: %q}\n",
		second, second, c.authAt, c.token(p, "gateway"), c.pin))
	c.up("second")
	q := newPerson(t)
	await(t, "the second gateway's port", upWait, func() bool {
		conn, err := net.Dial("tcp", second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	q.loginAs(second, c.pin, "ann", clusterPassword, "")
	await(t, "the agent at the second gateway", upWait, func() bool {
		return q.try("", "sally", "ssh", login(t)+"@"+nodes[0], "echo here").stdout == "here\n"
	})
}

// TestAuthAway: with auth stopped, and agent and gateway restarted meanwhile,
// people who are logged in start new sessions; auth's return brings the audit
// log up to date.
func TestAuthAway(t *testing.T) {
	if _, err := exec.LookPath("psql"); err != nil {
		peers.Missing(t, "psql")
	}
	if _, err := postgres.Find(); err != nil {
		peers.Missing(t, "postgres")
	}
	p := newPerson(t)
	var db *postgres.Server
	c := startCluster(t, p, func(c *cluster) string {
		c.admin(p, "auth", "sign", "--format=db", "--host=localhost,127.0.0.1", "--out="+c.path("pg"))
		db = startDatabase(t, c)
		_, port, _ := net.SplitHostPort(db.Addr)
		return fmt.Sprintf("  ssh: {enabled: true}\n  databases: [{name: orders, protocol: postgres, address: %q}]\n", net.JoinHostPort("127.0.0.1", port))
	}, func(c *cluster) string { return c.gateway })
	c.user(p, "ann")
	c.online(p, "node")
	c.online(p, "db")
	node := nodeName(t, p)
	p.run("sally", "db", "login", "--db-user=app", "--db-name=app", "orders")
	use := func(when string) {
		t.Helper()
		if out := p.run("sally", "ssh", login(t)+"@"+node, "echo shell"); out != "shell\n" {
			t.Errorf("%s: ssh: %q", when, out)
		}
		if out := p.run("psql", "service="+clusterName+"-orders", "-Atc", "select current_user"); out != "app\n" {
			t.Errorf("%s: psql: %q", when, out)
		}
	}
	use("with auth")

	c.proc["auth"].stop()
	use("auth stopped")
	c.proc["agent"].stop()
	c.proc["gateway"].stop()
	c.up("gateway")
	c.up("agent")
	restarted := time.Now()
	await(t, "the agent is back", upWait, func() bool {
		return p.try("", "sally", "ssh", login(t)+"@"+node, "true").code == 0
	})
	t.Logf("first session %s after the restart of gateway and agent", time.Since(restarted).Round(10*time.Millisecond))
	use("auth stopped, gateway and agent restarted")
	p.refused(1, []string{"ERROR: "}, "sally", "ls")

	c.up("auth")
	await(t, "events of the time without auth have come", upWait, func() bool {
		r := p.try("", "sallyctl", "--data-dir="+c.path("auth"), "audit", "search", "--event=db.session.start,session.start", "--limit=1000")
		return r.code == 0 && strings.Count(r.stdout, "\n") >= 7
	})
	c.online(p, "node")
}

func startDatabase(t testing.TB, c *cluster) *postgres.Server {
	t.Helper()
	read := func(suffix string) []byte {
		b, err := os.ReadFile(c.path("pg" + suffix))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	dir, err := os.MkdirTemp("", "sallyport-e2e-pg-")
	if err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Start(dir, postgres.Options{Cert: read(".crt"), Key: read(".key"), ClientCA: read(".cas"),
		HBA: []string{"hostssl all all 127.0.0.1/32 cert"}, SQL: []string{"CREATE ROLE app LOGIN", "CREATE DATABASE app OWNER app"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		db.Stop()
		os.RemoveAll(dir)
	})
	return db
}

func nodeName(t testing.TB, p *person) string {
	t.Helper()
	return strings.TrimSpace(p.run("sally", "ls", "-f", "names"))
}

// recorder is a relay that keeps what passes, for each connection and direction.
type recorder struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	conns    []*recorded
}

type recorded struct {
	mu       sync.Mutex
	out, in  bytes.Buffer // from the dialer, and to it
	finished sync.WaitGroup
	done     chan struct{} // both directions have ended
}

func record(t testing.TB, target string) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{listener: l, target: target}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go r.carry(conn)
		}
	}()
	return r
}

func (r *recorder) carry(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer to.Close()
	rec := &recorded{done: make(chan struct{})}
	defer close(rec.done)
	r.mu.Lock()
	r.conns = append(r.conns, rec)
	r.mu.Unlock()
	rec.finished.Go(func() { rec.copy(to, from, &rec.out) })
	rec.finished.Go(func() { rec.copy(from, to, &rec.in) })
	rec.finished.Wait()
}

func (rec *recorded) copy(to, from net.Conn, keep *bytes.Buffer) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		rec.mu.Lock()
		keep.Write(buf[:n])
		rec.mu.Unlock()
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			to.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

// bytes returns copies of both directions.
func (rec *recorded) bytes() (out, in []byte) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return bytes.Clone(rec.out.Bytes()), bytes.Clone(rec.in.Bytes())
}

// find returns the last connection of a kind, once it has ended: who has heard all
// of it at one end may be ahead of what passes here.
func (r *recorder) find(t *testing.T, what string, is func(out, in []byte) bool) *recorded {
	t.Helper()
	r.mu.Lock()
	all := slices.Clone(r.conns)
	r.mu.Unlock()
	slices.Reverse(all)
	i := slices.IndexFunc(all, func(rec *recorded) bool { return is(rec.bytes()) })
	if i < 0 {
		t.Fatalf("%s was not recorded", what)
	}
	select {
	case <-all[i].done:
	case <-time.After(upWait):
		t.Fatalf("%s does not end", what)
	}
	return all[i]
}

// TestGatewayEndsNothing compares what a client sends to the gateway with what
// the agent gets on the data connection: the same TLS records, byte for byte,
// in both directions. The agent listens on no port.
func TestGatewayEndsNothing(t *testing.T) {
	p := newPerson(t)
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	var toAgent *recorder
	c := startCluster(t, p, func(c *cluster) string {
		return fmt.Sprintf("  tcp: [{name: echo, address: %q}]\n", echo.Addr())
	}, func(c *cluster) string {
		toAgent = record(t, c.gateway)
		return toAgent.listener.Addr().String()
	})
	c.user(p, "ann")
	c.online(p, "tcp")

	// The client's side is recorded too: sally goes by the recorder's port.
	toGateway := record(t, c.gateway)
	moved := newPerson(t)
	p.moveTo(moved, toGateway.listener.Addr().String())
	secret := "in nobody's sight " + strings.Repeat("0123456789", 5000)
	if r := moved.try(secret, "sally", "proxy", "tcp", "--stdio", "echo"); r.stdout != secret {
		t.Fatalf("echo: %d bytes, exit %d: %s", len(r.stdout), r.code, r.stderr)
	}

	client := toGateway.find(t, "the client's TLS", func(out, _ []byte) bool {
		return bytes.Contains(out, []byte("echo.tcp."+clusterName))
	})
	sent, got := client.bytes() // what the client sent and got
	if len(sent) < len(secret) || sent[0] != 0x16 || sent[1] != 0x03 {
		t.Fatalf("the client's TLS was not recorded: %d bytes", len(sent))
	}
	out, in := toAgent.find(t, "a data connection with the client's hello", func(out, in []byte) bool {
		return bytes.HasPrefix(out, []byte("SLYP")) && bytes.Contains(in, sent[:64])
	}).bytes()
	at := bytes.Index(in, sent[:64])
	if at > 1024 {
		t.Errorf("%d bytes before the client's hello: more than an open frame", at)
	}
	if !bytes.Equal(in[at:], sent) {
		t.Errorf("the agent got %d bytes, the client sent %d", len(in)-at, len(sent))
	}
	const hello = 62
	if !bytes.Equal(out[hello:], got) {
		t.Errorf("the agent sent %d bytes, the client got %d", len(out)-hello, len(got))
	}
	if bytes.Contains(in, []byte(secret[:32])) || bytes.Contains(out, []byte(secret[:32])) {
		t.Error("the payload is in clear")
	}
	if ports := listening(t, c.proc["agent"].cmd.Process.Pid); len(ports) != 0 {
		t.Errorf("the agent listens: %v", ports)
	}
	if ports := listening(t, c.proc["gateway"].cmd.Process.Pid); len(ports) != 1 {
		t.Errorf("the gateway listens: %v", ports)
	}
}

// moveTo copies a login to another home whose gateway is at another address of
// the same host.
func (p *person) moveTo(other *person, addr string) {
	p.t.Helper()
	from, to := filepath.Join(p.home, ".sally"), filepath.Join(other.home, ".sally")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		p.t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(to, "*.yaml"))
	if err != nil || len(files) != 1 {
		p.t.Fatalf("profiles: %v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		p.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "web_proxy_addr:") || strings.HasPrefix(line, "ssh_proxy_addr:") {
			key, _, _ := strings.Cut(line, ":")
			line = fmt.Sprintf("%s: %q\n", key, addr)
		}
		out = append(out, line)
	}
	if err := os.WriteFile(files[0], []byte(strings.Join(out, "")), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// TestGatewayRestart: an agent is back within seconds after its gateway was
// killed and started again.
func TestGatewayRestart(t *testing.T) {
	p := newPerson(t)
	c := startCluster(t, p, func(*cluster) string { return "  ssh: {enabled: true}\n" }, func(c *cluster) string { return c.gateway })
	c.user(p, "ann")
	c.online(p, "node")
	node := nodeName(t, p)
	c.proc["gateway"].kill()
	c.up("gateway")
	began := time.Now()
	await(t, "the agent is back", upWait, func() bool {
		return p.try("", "sally", "ssh", login(t)+"@"+node, "true").code == 0
	})
	t.Logf("a session %s after the start of the gateway", time.Since(began).Round(10*time.Millisecond))
	c.proc["agent"].kill()
	await(t, "the listing says offline", upWait, func() bool {
		return strings.TrimSpace(p.run("sally", "ls", "-f", "json")) == "[]"
	})
	p.refused(1, []string{"is offline"}, "sally", "ssh", login(t)+"@"+node, "true")
}
