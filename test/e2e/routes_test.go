package e2e

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/preamble"
)

// backend is a TLS server of the test: it says its name, the protocol and the
// client's address in one line, and then echoes.
type backend struct {
	name string
	addr string
	l    net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
	tasks sync.WaitGroup
}

func newBackend(t testing.TB, name string, proxied bool) *backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{name: name, addr: l.Addr().String(), l: l, conns: map[net.Conn]bool{}}
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t, time.Hour, "*.example.com")}, NextProtos: []string{"h2", "http/1.1", "imap"}}
	b.tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns[conn] = true
			b.mu.Unlock()
			b.tasks.Go(func() { defer conn.Close(); serveLine(conn, config, name, proxied) })
		}
	})
	t.Cleanup(b.kill)
	return b
}

func serveLine(conn net.Conn, config *tls.Config, name string, proxied bool) {
	from := conn.RemoteAddr().String()
	if proxied {
		head := make([]byte, 28) // version 2 over IPv4
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		p, need, err := preamble.ParseProxy(head)
		if err != nil || need > 0 {
			return
		}
		from = p.Source.String()
	}
	c := tls.Server(conn, config)
	if err := c.Handshake(); err != nil {
		return
	}
	if _, err := fmt.Fprintf(c, "%s %s %s\n", name, orDash(c.ConnectionState().NegotiatedProtocol), from); err != nil {
		return
	}
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// kill ends the server and all that it serves.
func (b *backend) kill() {
	b.l.Close()
	b.mu.Lock()
	for c := range b.conns {
		c.Close()
	}
	b.mu.Unlock()
	b.tasks.Wait()
}

func certificate(t testing.TB, life time.Duration, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life), DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// meeting is a connection that has met a backend.
type meeting struct {
	*tls.Conn
	r                    *bufio.Reader
	backend, proto, from string
}

// meet connects by a server name; before, such as a PROXY header, goes first.
func meet(at, name string, before string, protocols ...string) (*meeting, error) {
	raw, err := (&net.Dialer{Timeout: runWait}).Dial("tcp", at)
	if err != nil {
		return nil, err
	}
	_ = raw.SetDeadline(time.Now().Add(runWait))
	m := &meeting{Conn: tls.Client(raw, &tls.Config{ServerName: name, NextProtos: protocols, InsecureSkipVerify: true})}
	m.r = bufio.NewReader(m)
	if _, err = io.WriteString(raw, before); err == nil {
		_, err = fmt.Fscanf(m.r, "%s %s %s\n", &m.backend, &m.proto, &m.from)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return m, nil
}

// echo sends a line and reads it back.
func (m *meeting) echo(line string) error {
	if _, err := io.WriteString(m, line+"\n"); err != nil {
		return err
	}
	got, err := m.r.ReadString('\n')
	if err == nil && got != line+"\n" {
		err = fmt.Errorf("sent %q, got %q", line, got)
	}
	return err
}

// routesGateway is a gateway of static routes alone.
type routesGateway struct {
	*process
	*person
	t    testing.TB
	addr string
	file string
}

func startRoutes(t testing.TB, text string) *routesGateway {
	t.Helper()
	return startRoutesWith(t, text)
}

func startRoutesWith(t testing.TB, text string, args ...string) *routesGateway {
	t.Helper()
	return startRoutesAs(t, text, func(args ...string) *exec.Cmd { return exec.Command(program(t, "sallyport"), args...) }, args...)
}

// startRoutesAs starts it by a command made of its arguments.
func startRoutesAs(t testing.TB, text string, command func(args ...string) *exec.Cmd, args ...string) *routesGateway {
	t.Helper()
	g := &routesGateway{t: t, person: newPerson(t), addr: freePort(t)}
	g.file = filepath.Join(g.home, "routes.yaml")
	g.configure(text)
	g.process = startCommand(t, "sallyport", command(append([]string{"start", "-c", g.file}, args...)...))
	await(t, "the gateway's port", upWait, func() bool {
		conn, err := net.Dial("tcp", g.addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	g.awaitHealth()
	return g
}

// awaitHealth waits until the process has begun all that it does: its port is open
// before that.
func (g *routesGateway) awaitHealth() {
	g.t.Helper()
	await(g.t, "the gateway's health", upWait, func() bool {
		var s struct{ Health string }
		r := g.try("", "sallyport", "status", "-c", g.file, "-f", "json")
		return r.code == 0 && json.Unmarshal([]byte(r.stdout), &s) == nil && s.Health == "ok"
	})
}

func (g *routesGateway) configure(text string) {
	g.t.Helper()
	text = fmt.Sprintf("version: 1\ndata_dir: data\nroles: [gateway]\ngateway:\n  listen: [%q]\n", g.addr) + text
	if err := os.WriteFile(g.file, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// expect checks where a name and protocols lead; "" for nowhere.
func (g *routesGateway) expect(name, want string, protocols ...string) {
	g.t.Helper()
	m, err := meet(g.addr, name, "", protocols...)
	got := ""
	if err == nil {
		got = m.backend + " " + m.proto
		m.Close()
	}
	if got != want {
		g.t.Errorf("%s %q leads to %q (%v), want %q", name, protocols, got, err, want)
	}
}

// TestStaticRoutes: a gateway without auth and without a cluster.
func TestStaticRoutes(t *testing.T) {
	one, two, told := newBackend(t, "one", false), newBackend(t, "two", false), newBackend(t, "told", true)
	routes := func(moved string) string {
		return fmt.Sprintf(`  proxy_protocol: {trusted: [127.0.0.2/32]}
  routes:
    - {names: [both.example.com], to: [%[1]q, %[2]q]}
    - {names: [web.example.com], alpn: [h2], to: [%[1]q]}
    - {names: [web.example.com], alpn: [http/1.1], to: [%[2]q]}
    - {names: ["*.wild.example.com"], to: [%[2]q]}
    - {names: [moved.example.com], to: [%[4]q]}
    - match: {sni: [told.example.com]}
      upstream: told
    - {names: ["*"], to: [%[2]q]}
  upstreams: {told: {servers: [%[3]q], send_proxy: v2}}
`, one.addr, two.addr, told.addr, moved)
	}
	g := startRoutes(t, routes(one.addr))

	g.expect("web.example.com", "one h2", "h2", "http/1.1")
	g.expect("web.example.com", "two http/1.1", "http/1.1")
	g.expect("web.example.com", "", "imap") // its name has an owner, who does not speak that
	g.expect("a.wild.example.com", "two -")
	g.expect("other.example.com", "two -")
	g.expect("", "two -")
	seen := map[string]int{}
	for range 4 {
		m, err := meet(g.addr, "both.example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		seen[m.backend]++
		m.Close()
	}
	if seen["one"] != 2 || seen["two"] != 2 {
		t.Errorf("four connections in turn: %v", seen)
	}
	g.clientAddresses()

	// 100 connections on routes that stay carry bytes through all that follows.
	load := startLoad(t, g.addr, []string{"a.wild.example.com", "other.example.com", "web.example.com", "told.example.com"}, 100)
	onMoved, err := meet(g.addr, "moved.example.com", "")
	if err != nil {
		t.Fatal(err)
	}
	load.more()
	g.configure(routes(two.addr))
	out := g.run("sallyport", "reload", "-c", g.file)
	if !strings.Contains(out, "Routes: 0 added, 1 changed, 0 removed, 6 as they were.") {
		t.Errorf("reload says %q", out)
	}
	g.expect("moved.example.com", "two -")
	if err := onMoved.echo("still here"); err != nil || onMoved.backend != "one" {
		t.Errorf("a connection from before the change: %s, %v", onMoved.backend, err)
	}
	load.more()

	// What is wrong is refused, and says where.
	g.configure(strings.Replace(routes(one.addr), "told.example.com", "moved.example.com", 1))
	g.refused(1, []string{g.file + `:13:21: gateway.routes[5].match.sni[0]: server name "moved.example.com": any protocol: route 4 has it too`, "nothing was changed"},
		"sallyport", "reload", "-c", g.file)
	g.expect("moved.example.com", "two -")
	g.expect("told.example.com", "told -")
	load.more()
	if !strings.Contains(g.out.String(), "reload refused") {
		t.Error("the log does not say that a reload was refused")
	}

	// The same by a signal, and what needs a restart.
	g.configure(strings.Replace(routes(one.addr), "  routes:", "  limits: {half_open: 100}\n  routes:", 1))
	if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await(t, "the route by SIGHUP", runWait, func() bool {
		m, err := meet(g.addr, "moved.example.com", "")
		if err != nil {
			return false
		}
		defer m.Close()
		return m.backend == "one"
	})
	var status struct {
		Reload struct {
			NeedsRestart []string `json:"needs_restart"`
		} `json:"reload"`
	}
	await(t, "status says what needs a restart", runWait, func() bool {
		if err := json.Unmarshal([]byte(g.run("sallyport", "status", "-c", g.file, "-f", "json")), &status); err != nil {
			t.Fatal(err)
		}
		return slices.Equal(status.Reload.NeedsRestart, []string{"gateway.limits.half_open"})
	})
	load.more()
	load.stop()

	// One backend dies: who goes to both does not notice.
	onMoved.Close()
	one.kill()
	for range 6 {
		g.expect("both.example.com", "two -")
	}
	g.expect("moved.example.com", "") // it was the only one
	g.expect("a.wild.example.com", "two -")
}

// clientAddresses: PROXY protocol comes in from trusted sources only, and goes
// out where it is asked for.
func (g *routesGateway) clientAddresses() {
	g.t.Helper()
	m, err := meet(g.addr, "told.example.com", "")
	if err != nil {
		g.t.Fatal(err)
	}
	if m.from != m.LocalAddr().String() {
		g.t.Errorf("the backend was told %s, the client is %s", m.from, m.LocalAddr())
	}
	m.Close()
	if m, err := meet(g.addr, "told.example.com", "PROXY TCP4 192.0.2.7 192.0.2.8 4711 443\r\n"); err == nil {
		g.t.Errorf("a PROXY header of a stranger was believed: %s", m.from)
	}
	d := net.Dialer{Timeout: runWait, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	raw, err := d.Dial("tcp", g.addr)
	if err != nil {
		g.t.Logf("127.0.0.2 is not usable here: %v", err) // other systems than Linux
		return
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(runWait))
	if _, err := io.WriteString(raw, "PROXY TCP4 192.0.2.7 192.0.2.8 4711 443\r\n"); err != nil {
		g.t.Fatal(err)
	}
	line, err := bufio.NewReader(tls.Client(raw, &tls.Config{ServerName: "told.example.com", InsecureSkipVerify: true})).ReadString('\n')
	if err != nil || line != "told - 192.0.2.7:4711\n" {
		g.t.Errorf("behind a trusted proxy: %q, %v", line, err)
	}
}

// load is connections that echo without a pause.
type load struct {
	t     testing.TB
	done  context.CancelFunc
	tasks sync.WaitGroup
	turns []atomic.Int64
	errs  chan error
}

func startLoad(t testing.TB, at string, names []string, n int) *load {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l := &load{t: t, done: stop, turns: make([]atomic.Int64, n), errs: make(chan error, n)}
	for i := range n {
		m, err := meet(at, names[i%len(names)], "", "h2")
		if err != nil {
			t.Fatal(err)
		}
		l.tasks.Go(func() {
			defer m.Close()
			for ctx.Err() == nil {
				_ = m.SetDeadline(time.Now().Add(runWait))
				if err := m.echo(fmt.Sprintf("connection %d turn %d", i, l.turns[i].Load())); err != nil {
					l.errs <- fmt.Errorf("connection %d to %s: %w", i, m.backend, err)
					return
				}
				l.turns[i].Add(1)
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

// more waits until every connection has carried more than it had.
func (l *load) more() {
	l.t.Helper()
	before := make([]int64, len(l.turns))
	for i := range l.turns {
		before[i] = l.turns[i].Load()
	}
	await(l.t, "all connections carry bytes", runWait, func() bool {
		select {
		case err := <-l.errs:
			l.t.Fatal(err)
		default:
		}
		for i := range l.turns {
			if l.turns[i].Load() <= before[i] {
				return false
			}
		}
		return true
	})
}

func (l *load) stop() {
	l.done()
	l.tasks.Wait()
}

// TestReloadCluster: in a process with all roles a reload brings another
// certificate for the web origin, and another resource of the agent.
func TestReloadCluster(t *testing.T) {
	dir := shortDir(t)
	p := newPerson(t)
	at := freePort(t)
	writePair := func(c tls.Certificate) {
		t.Helper()
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for name, block := range map[string]*pem.Block{"web.pem": {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, "web.key": {Type: "PRIVATE KEY", Bytes: key}} {
			if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := filepath.Join(dir, "all.yaml")
	configure := func(agent string) {
		t.Helper()
		text := fmt.Sprintf("version: 1\ncluster: %s\ndata_dir: data\nroles: [auth, gateway, agent]\ngateway:\n  listen: [%q]\n  public_address: %q\n  certificates: [{cert: web.pem, key: web.key}]\nagent:\n  tcp: [%s]\n", clusterName, at, at, agent)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shown := func(protocols ...string) *x509.Certificate {
		t.Helper()
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: runWait}, "tcp", at, &tls.Config{ServerName: clusterName, InsecureSkipVerify: true, NextProtos: append(protocols, alpn.HTTP11)})
		if err != nil {
			return nil
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	serves := func(want ...string) {
		t.Helper()
		await(t, fmt.Sprintf("the agent serves %q", want), upWait, func() bool {
			var status struct {
				Agent struct {
					Resources []string `json:"resources"`
				} `json:"agent"`
			}
			r := p.try("", "sallyport", "status", "-c", file, "-f", "json")
			if r.code != 0 || json.Unmarshal([]byte(r.stdout), &status) != nil {
				return false
			}
			slices.Sort(status.Agent.Resources)
			return slices.Equal(status.Agent.Resources, want)
		})
	}
	first, second := certificate(t, time.Hour, clusterName), certificate(t, time.Hour, clusterName)
	writePair(first)
	configure(`{name: a, address: "127.0.0.1:7"}`)
	start(t, "sallyport", "start", "-c", file)
	serves("tcp/a")
	if c := shown(); c == nil || string(c.Raw) != string(first.Certificate[0]) {
		t.Fatal("the configured certificate is not shown")
	}
	if c := shown(alpn.Pinned1); c == nil || len(c.URIs) != 1 || !strings.HasPrefix(c.URIs[0].String(), "spiffe://"+clusterName+"/gateway/") {
		t.Error("who knows the cluster by a pin is not shown its own certificate")
	}

	writePair(second)
	configure(`{name: a, address: "127.0.0.1:7"}, {name: b, address: "127.0.0.1:9"}`)
	out := p.run("sallyport", "reload", "-c", file)
	if !strings.Contains(out, "Certificates: 1 changed.") || !strings.Contains(out, "agent.tcp") {
		t.Errorf("reload says %q", out)
	}
	if c := shown(); c == nil || string(c.Raw) != string(second.Certificate[0]) {
		t.Error("a new handshake gets the old certificate")
	}
	serves("tcp/a", "tcp/b")

	// A certificate that is half written keeps the good one.
	half, err := os.ReadFile(filepath.Join(dir, "web.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "web.pem"), half[:len(half)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	configure(`{name: b, address: "127.0.0.1:9"}`)
	p.refused(1, []string{"gateway.certificates[0]: ", "nothing was changed"}, "sallyport", "reload", "-c", file)
	if c := shown(); c == nil || string(c.Raw) != string(second.Certificate[0]) {
		t.Error("a reload that was refused has changed the certificate")
	}
	serves("tcp/a", "tcp/b")
	writePair(second)
	p.run("sallyport", "reload", "-c", file)
	serves("tcp/b")
}
