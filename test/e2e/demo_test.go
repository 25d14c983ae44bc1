package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sallyport/sallyport/tools/peers"
)

// TestDemo is the main job: one process, one port, and a person with sally and
// with stock clients.
func TestDemo(t *testing.T) {
	for _, peer := range []string{"ssh", "psql"} {
		if _, err := exec.LookPath(peer); err != nil {
			peers.Missing(t, peer)
		}
	}
	d := startDemo(t)
	p := newPerson(t)
	if d.name("db") == "" {
		peers.Missing(t, "postgres")
	}

	t.Run("refuses", func(t *testing.T) { testLoginRefusals(t, d) })
	p.login(d)

	t.Run("status", func(t *testing.T) { testStatus(t, d, p) })
	t.Run("listings", func(t *testing.T) { testListings(t, d, p) })
	t.Run("tsh", func(t *testing.T) {
		if out := p.run("tsh", "status"); !strings.Contains(out, "Logged in as:       admin") {
			t.Errorf("tsh status:\n%s", out)
		}
	})
	t.Run("ssh", func(t *testing.T) { testSSH(t, d, p) })
	t.Run("openssh", func(t *testing.T) { testOpenSSH(t, d, p) })
	t.Run("jump", func(t *testing.T) { testJump(t, d, p) })
	t.Run("ansible", func(t *testing.T) { testAnsible(t, d, p) })
	t.Run("files", func(t *testing.T) { testFiles(t, d, p) })
	t.Run("resume", func(t *testing.T) { testResume(t, d, p) })
	t.Run("forwards", func(t *testing.T) { testForwards(t, d, p) })
	t.Run("psql", func(t *testing.T) { testPsql(t, d, p) })
	t.Run("pgx", func(t *testing.T) { testDirectTLS(t, d, p) })
	t.Run("cancel", func(t *testing.T) { testCancel(t, d, p) })
	t.Run("proxies", func(t *testing.T) { testProxies(t, d, p) })
	t.Run("apps", func(t *testing.T) { testApps(t, d, p) })
	t.Run("identity file", func(t *testing.T) { testIdentityFile(t, d) })
	t.Run("audit", func(t *testing.T) { testAudit(t, d, p) })
	t.Run("admin", func(t *testing.T) { testAdmin(t, d, p) })
	t.Run("lock", func(t *testing.T) { testLock(t, d, p) })
	t.Run("strangers", func(t *testing.T) { testStrangers(t, d) })
	t.Run("one port", func(t *testing.T) { testOnePort(t, d) })
	t.Run("modes", func(t *testing.T) { testModes(t, d, p) })
	t.Run("second process", func(t *testing.T) { testSecondProcess(t, d) })
	t.Run("logout", func(t *testing.T) {
		p.run("sally", "logout")
		p.refused(1, []string{"Not logged in."}, "sally", "status")
		if files, _ := filepath.Glob(filepath.Join(p.home, ".sally/keys/*/*")); len(files) > 0 {
			t.Errorf("keys are left: %v", files)
		}
	})
}

func testLoginRefusals(t *testing.T, d *demo) {
	p := newPerson(t)
	file := filepath.Join(p.home, "pw")
	if err := os.WriteFile(file, []byte("not the password\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := func(extra ...string) []string {
		return append([]string{"login", "--proxy=" + d.Proxy, "--password-file=" + file}, extra...)
	}
	pin := "--ca-pin=" + d.CAPin
	p.refused(1, []string{"ERROR: "}, "sally", args(pin, "--user=admin", "--otp=000000")...)
	p.refused(1, []string{"ERROR: "}, "sally", args(pin, "--user=nobody-of-that-name", "--otp=000000")...)
	known := p.try("", "sally", args(pin, "--user=admin", "--otp=000000")...)
	unknown := p.try("", "sally", args(pin, "--user=nobody-of-that-name", "--otp=000000")...)
	if known.stderr != unknown.stderr {
		t.Errorf("a known and an unknown user are told apart:\n%s%s", known.stderr, unknown.stderr)
	}
	p.refused(1, []string{"pin"}, "sally", args("--ca-pin=sha256:"+strings.Repeat("0", 64), "--user=admin")...)
	p.refused(1, []string{"not from a public authority", "--ca-pin"}, "sally", args("--user=admin")...)
}

func testStatus(t *testing.T, d *demo, p *person) {
	var s struct {
		Active struct {
			ProfileURL string    `json:"profile_url"`
			Username   string    `json:"username"`
			Cluster    string    `json:"cluster"`
			Roles      []string  `json:"roles"`
			Logins     []string  `json:"logins"`
			ValidUntil time.Time `json:"valid_until"`
		} `json:"active"`
	}
	if err := json.Unmarshal([]byte(p.run("sally", "status", "--format=json")), &s); err != nil {
		t.Fatal(err)
	}
	a := s.Active
	if a.Username != "admin" || a.Cluster != d.Cluster || a.ProfileURL != "https://"+d.Proxy || len(a.Roles) == 0 || len(a.Logins) != 1 {
		t.Errorf("status: %+v", a)
	}
	if left := time.Until(a.ValidUntil); left <= 11*time.Hour || left > 12*time.Hour {
		t.Errorf("valid for %s", left)
	}
}

func testListings(t *testing.T, d *demo, p *person) {
	var nodes []struct {
		Kind string `json:"kind"`
		Spec struct {
			Hostname  string `json:"hostname"`
			UseTunnel bool   `json:"use_tunnel"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(p.run("sally", "ls", "-f", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 1 || nodes[0].Kind != "node" || nodes[0].Spec.Hostname != d.name("node") || !nodes[0].Spec.UseTunnel {
		t.Errorf("nodes: %+v", nodes)
	}
	if out := p.run("sally", "ls", "env=none", "-f", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("a label that none has: %s", out)
	}
	for query, want := range map[string]string{`labels["env"] == "demo" && hasPrefix(name, "` + d.name("node") + `")`: d.name("node") + "\n", `!exists(labels.env)`: ""} {
		if out := p.run("sally", "ls", "-f", "names", "--query", query); out != want {
			t.Errorf("ls --query %s: %q", query, out)
		}
	}
	if out := p.run("sally", "ls"); !strings.Contains(out, "⟵ Tunnel") {
		t.Errorf("ls:\n%s", out)
	}
	if out := p.run("sally", "db", "ls"); !strings.Contains(out, "[reader writer]") {
		t.Errorf("db ls:\n%s", out)
	}
	if out := p.run("sally", "clusters", "-f", "json"); !strings.Contains(out, `"cluster_name": "localhost"`) {
		t.Errorf("clusters: %s", out)
	}
	if out := p.run("sally", "version"); !strings.Contains(out, "Proxy version: e2e") {
		t.Errorf("version: %s", out)
	}
}

func login(t testing.TB) string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return me.Username
}

// testIdentityFile: a login in a file is enough, and leaves no profile.
func testIdentityFile(t *testing.T, d *demo) {
	p := newPerson(t)
	file := filepath.Join(p.home, "id")
	p.login(d, "--out="+file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	at := []string{"--identity=" + file, "--proxy=" + d.Proxy}
	if out := p.run("sally", append([]string{"ls", "-f", "names"}, at...)...); out != d.name("node")+"\n" {
		t.Errorf("ls: %q", out)
	}
	if r := p.try("", "sally", append(append([]string{"ssh"}, at...), login(t)+"@"+d.name("node"), "echo here; exit 3")...); r.stdout != "here\n" || r.code != 3 {
		t.Errorf("ssh: %+v", r)
	}
	if out := p.run("sally", append([]string{"status"}, at...)...); !strings.Contains(out, "Logged in as:       "+d.User) || !strings.Contains(out, "permit-pty") {
		t.Errorf("status: %q", out)
	}
	there := filepath.Join(t.TempDir(), "copy")
	p.run("sally", append(append([]string{"scp"}, at...), file, login(t)+"@"+d.name("node")+":"+there)...)
	if b, err := os.ReadFile(there); err != nil || !strings.Contains(string(b), "PRIVATE KEY") {
		t.Errorf("scp: %v", err)
	}
	if r := p.try("hello\n", "sally", append([]string{"proxy", "tcp", "--stdio", "echo"}, at...)...); r.stdout != "hello\n" {
		t.Errorf("proxy: %+v", r)
	}
	if _, err := os.Stat(filepath.Join(p.home, ".sally")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a profile directory: %v", err)
	}
}

func testSSH(t *testing.T, d *demo, p *person) {
	at := login(t) + "@" + d.name("node")
	if out := p.run("sally", "ssh", at, "echo", "$((6*7))"); out != "42\n" {
		t.Errorf("ssh: %q", out)
	}
	for _, code := range []int{0, 3, 130} {
		if r := p.try("", "sally", "ssh", at, fmt.Sprintf("echo out; echo err >&2; exit %d", code)); r.code != code || r.stdout != "out\n" || r.stderr != "err\n" {
			t.Errorf("exit %d: %+v", code, r)
		}
	}
	if r := p.try("", "sally", "ssh", at, "kill -TERM $$"); r.code != 128+15 {
		t.Errorf("killed by SIGTERM: exit %d", r.code)
	}
	if r := p.try("line\n", "sally", "ssh", at, "cat"); r.stdout != "line\n" {
		t.Errorf("standard input: %+v", r)
	}
	if out := p.run("sally", "ssh", "-t", at, "test -t 0 && echo terminal"); !strings.Contains(out, "terminal") {
		t.Errorf("-t: %q", out)
	}
	if here, err := os.ReadFile("/proc/self/timerslack_ns"); err == nil { // proc_pid_timerslack_ns(5); the agent's own is wide
		if out := p.run("sally", "ssh", at, "cat", "/proc/self/timerslack_ns"); out != string(here) {
			t.Errorf("the timer slack of people's programs is %s ns, elsewhere %s", out, here)
		}
		if own := slacks(d.cmd.Process.Pid); len(own) > 0 && !slices.Contains(own, "500000") {
			t.Errorf("the timer slacks of the demo's threads are %v ns; the monitor's is to be 500000", own)
		}
	}
	p.refused(1, []string{`ERROR: `, "no-such-login"}, "sally", "ssh", "no-such-login@"+d.name("node"), "id")
	p.refused(1, []string{`node "nowhere" is not known`, "hint: sally ls"}, "sally", "ssh", "nowhere", "id")
	p.refused(1, []string{"is not [bind:]port:host:port"}, "sally", "ssh", "-L", "1:a", at, "id")
}

// slacks are the timer slacks of a process's threads, which has the usual one on any of
// them where it starts people's programs; nothing for who may not read them
// (CAP_SYS_NICE).
func slacks(pid int) (ns []string) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, e := range threads {
		if b, err := os.ReadFile("/proc/" + e.Name() + "/timerslack_ns"); err == nil {
			ns = append(ns, strings.TrimSpace(string(b)))
		}
	}
	return ns
}

func (p *person) sshConfig(t testing.TB) string {
	t.Helper()
	file := filepath.Join(p.home, "ssh_config")
	if err := os.WriteFile(file, []byte(p.run("sally", "config")), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func testOpenSSH(t *testing.T, d *demo, p *person) {
	config, at := p.sshConfig(t), login(t)+"@"+d.name("node")+"."+d.Cluster
	if r := p.try("", "ssh", "-F", config, at, "echo stock; exit 5"); r.code != 5 || r.stdout != "stock\n" {
		t.Errorf("ssh: %+v", r)
	}
	blob := make([]byte, 5<<20)
	rand.Read(blob)
	if r := p.try(string(blob), "ssh", "-F", config, at, "cat"); r.stdout != string(blob) {
		t.Errorf("5 MiB there and back: %d bytes came, exit %d: %s", len(r.stdout), r.code, r.stderr)
	}
	if r := p.try("", "ssh", "-F", config, "-tt", at, "tty"); !strings.Contains(r.stdout, "/dev/pts/") {
		t.Errorf("terminal: %+v", r)
	}
	if r := p.try("", "ssh", "-F", config, "no-such-login@"+d.name("node")+"."+d.Cluster, "id"); r.code != 255 || !strings.Contains(r.stderr, "no-such-login") {
		t.Errorf("a login that is not allowed: %+v", r)
	}
}

// testFiles copies there and back by each program and each protocol, and reaches
// the gateway's own port through the node.
func testFiles(t *testing.T, d *demo, p *person) {
	config, node := p.sshConfig(t), login(t)+"@"+d.name("node")
	at := node + "." + d.Cluster
	here, there := t.TempDir(), t.TempDir()
	tree := filepath.Join(here, "tree")
	blob := make([]byte, 9<<20+17)
	rand.Read(blob)
	for name, data := range map[string][]byte{"a/large": blob, "a/empty": nil, "b/a name of three": []byte("x")} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for name, program := range map[string]struct {
		at   string
		argv []string
	}{
		"sally": {node, []string{"sally", "scp", "-r", "-p"}}, "scp": {at, []string{"scp", "-F", config, "-r", "-p"}}, "scp-O": {at, []string{"scp", "-O", "-F", config, "-r", "-p"}},
	} {
		up, back := filepath.Join(there, name), filepath.Join(here, name)
		p.run(program.argv[0], append(program.argv[1:], tree, program.at+":"+up)...)
		p.run(program.argv[0], append(program.argv[1:], program.at+":"+up, back)...)
		for _, copied := range []string{up, back} {
			if out, err := exec.Command("diff", "-r", tree, copied).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", name, err, out)
			}
			if info, err := os.Stat(filepath.Join(copied, "a", "large")); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
	}
	p.run("sally", "scp", node+":"+there+"/sally/a/*", here)
	if got, err := os.ReadFile(filepath.Join(here, "large")); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("by a pattern: %d bytes, %v", len(got), err)
	}
	p.refused(1, []string{"does not exist on the node"}, "sally", "scp", node+":"+there+"/nothing", here)
	p.refused(1, []string{"is a directory"}, "sally", "scp", node+":"+there+"/sally", here)
	// OpenSSH's sftp by "sally ssh -s", as it calls ssh.
	link := filepath.Join(p.home, "ssh")
	if err := os.Symlink(program(t, "sally"), link); err != nil {
		t.Fatal(err)
	}
	if r := p.try("put "+tree+"/a/large "+there+"/by-sftp\nget "+there+"/by-sftp "+here+"/by-sftp\n", "sftp", "-S", link, "-b", "-", node); r.code != 0 {
		t.Errorf("sftp: %+v", r)
	}
	if got, err := os.ReadFile(filepath.Join(here, "by-sftp")); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("sftp: %d bytes, %v", len(got), err)
	}
	p.refused(1, []string{`does not serve the subsystem "nothing"`}, "sally", "ssh", "-s", node, "nothing")
	if r := p.try("GET / HTTP/1.0\r\n\r\n", "sally", "ssh", "-W", d.Proxy, node); !strings.HasPrefix(r.stdout, "HTTP/1.") {
		t.Errorf("-W: %+v", r)
	}
	if r := p.try("GET / HTTP/1.0\r\n\r\n", "ssh", "-F", config, "-W", d.Proxy, at); !strings.HasPrefix(r.stdout, "HTTP/1.") {
		t.Errorf("ssh -W: %+v", r)
	}
}

func testPsql(t *testing.T, d *demo, p *person) {
	db := d.name("db")
	if out := p.run("sally", "db", "connect", "--db-user=writer", "--db-name=demo", db, "--", "-Atc", "select current_user"); out != "writer\n" {
		t.Errorf("db connect: %q", out)
	}
	p.run("sally", "db", "login", "--db-user=writer", "--db-name=demo", db)
	service := "service=" + d.Cluster + "-" + db
	if out := p.run("psql", service, "-Atc", "select 1; select 2"); out != "1\n2\n" {
		t.Errorf("psql: %q", out)
	}
	script := "create table t(a int, b text);\n\\copy t from stdin\n1\tone\n2\ttwo\n\\.\n\\copy (select * from t order by a) to stdout\ndrop table t;\n"
	if r := p.try(script, "psql", "-Atq", service); r.stdout != "1\tone\n2\ttwo\n" {
		t.Errorf("copy: %+v", r)
	}
	p.refused(2, []string{"FATAL", `"postgres" is not among them`}, "psql", service+" user=postgres", "-c", "select 1")
	p.refused(2, []string{"FATAL", `"template1" is not among them`}, "psql", service+" dbname=template1", "-c", "select 1")
	if out := p.run("sally", "db", "config", "--format=json", db); !strings.Contains(out, `"host": "`+db+".db."+d.Cluster) {
		t.Errorf("db config: %s", out)
	}
	if out := p.run("sally", "db", "env", "--db-user=reader", db); !strings.Contains(out, "export PGUSER=reader") {
		t.Errorf("db env: %s", out)
	}
}

// testDirectTLS is what libpq 17 does with sslnegotiation=direct.
func testDirectTLS(t *testing.T, d *demo, p *person) {
	var c struct {
		Host, Hostaddr, CA, Cert, Key string
		Port                          int
	}
	service := filepath.Join(p.home, ".pg_service.conf")
	before, err := os.ReadFile(service)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(p.run("sally", "db", "config", "--format=json", d.name("db"))), &c); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(service); err != nil || string(after) != string(before) {
		t.Errorf("db config changed the service file: %v\n%s", err, after)
	}
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d user=reader dbname=demo sslmode=disable", c.Host, c.Port))
	if err != nil {
		t.Fatal(err)
	}
	cfg.TLSConfig = nil
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{c.Hostaddr}, nil }
	dialed := false
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialed = true
		return (&tls.Dialer{Config: &tls.Config{ServerName: c.Host, RootCAs: pool, Certificates: []tls.Certificate{cert}, NextProtos: []string{"postgresql"}}}).DialContext(ctx, network, addr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var who string
	if err := conn.QueryRow(ctx, "select current_user || $1::text", "!").Scan(&who); err != nil || who != "reader!" || !dialed {
		t.Errorf("direct TLS: %q, %v", who, err)
	}
	var pe *pgconn.PgError
	if _, err := conn.Exec(ctx, "create table nope(a int)"); err == nil {
		t.Error("reader may write")
	} else if pe = new(pgconn.PgError); !strings.Contains(err.Error(), "42501") {
		t.Errorf("reader: %v %v", err, pe)
	}
}

// testCancel interrupts psql, whose cancel request comes in clear, without a
// server name.
func testCancel(t *testing.T, d *demo, p *person) {
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	cmd := p.command(ctx, "psql", "service="+d.Cluster+"-"+d.name("db"), "-c", "select 'cancel-me', pg_sleep(80)")
	var errs tail
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the query runs", runWait, func() bool {
		if errs.String() != "" {
			t.Fatalf("psql: %s", errs.String())
		}
		out := p.run("sally", "db", "connect", "--db-user=writer", "--db-name=demo", d.name("db"), "--", "-Atc",
			"select count(*) from pg_stat_activity where query like '%cancel-me%' and state = 'active' and pid <> pg_backend_pid()")
		return strings.TrimSpace(out) != "0"
	})
	began := time.Now()
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if took := time.Since(began); took > 30*time.Second || !strings.Contains(errs.String(), "canceling statement due to user request") {
		t.Errorf("after %s: %s", took, errs.String())
	}
}

func testProxies(t *testing.T, d *demo, p *person) {
	if r := p.try("hello\n", "sally", "proxy", "tcp", "--stdio", "echo"); r.stdout != "hello\n" {
		t.Errorf("stdio: %+v", r)
	}
	addr := p.listens(t, `on (127\.0\.0\.1:\d+)`, "proxy", "tcp", "echo")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(runWait))
	io.WriteString(conn, "over the port\n")
	conn.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(conn); string(b) != "over the port\n" {
		t.Errorf("echo: %q, %v", b, err)
	}
	addr = p.listens(t, `on (127\.0\.0\.1:\d+)`, "proxy", "db", "--tunnel", "--db-user=reader", "--db-name=demo", d.name("db"))
	if out := p.run("psql", "postgres://reader@"+addr+"/demo?sslmode=disable", "-Atc", "select current_user"); out != "reader\n" {
		t.Errorf("proxy db: %q", out)
	}
	p.refused(1, []string{"other machines", "--insecure-listen-anywhere"}, "sally", "proxy", "tcp", "--listen=0.0.0.0:0", "echo")
}

// listens starts a local proxy and returns the address that it prints.
func (p *person) listens(t *testing.T, pattern string, args ...string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(p.printed(t, pattern, args...))
	return m[1]
}

// printed starts a local proxy and returns what it has printed once the pattern is
// there and the line ended.
func (p *person) printed(t *testing.T, pattern string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := p.command(ctx, "sally", args...)
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	re := regexp.MustCompile(pattern)
	var text string
	await(t, "sally "+strings.Join(args, " "), upWait, func() bool {
		text = out.String()
		return re.MatchString(text) && strings.HasSuffix(text, "\n")
	})
	return text
}

func (d *demo) events(t testing.TB, p *person, names ...string) []map[string]any {
	t.Helper()
	args := []string{"--data-dir=" + d.data, "audit", "search", "--limit=10000"}
	if len(names) > 0 {
		args = append(args, "--event="+strings.Join(names, ","))
	}
	var out []map[string]any
	for line := range strings.Lines(p.run("sallyctl", args...)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, e)
	}
	return out
}

// testAudit looks for what the tests before have done.
func testAudit(t *testing.T, d *demo, p *person) {
	wants := []struct {
		code  string
		field string
		value any
	}{
		{"T1000I", "user", "admin"},
		{"T1000W", "user", "nobody-of-that-name"},
		{"TJ002I", "role", "agent"},
		{"T2000I", "login", login(t)},
		{"T3002I", "command", "echo $((6*7))"},
		{"T3003I", "mode", "jump"},
		{"T3003E", "addr", "127.0.0.1:22"},
		{"TDB00I", "db_user", "writer"},
		{"TDB00W", "db_user", "postgres"},
		{"TDB02I", "db_query", "select 1; select 2"},
		{"TDB01I", "db_name", "demo"},
	}
	await(t, "events have come to auth", upWait, func() bool {
		all := d.events(t, p)
		for _, w := range wants {
			found := false
			for _, e := range all {
				found = found || e["code"] == w.code && e[w.field] == w.value
			}
			if !found {
				t.Logf("not yet: %s with %s %v", w.code, w.field, w.value)
				return false
			}
		}
		return true
	})
}

func testAdmin(t *testing.T, d *demo, p *person) {
	admin := func(args ...string) []string { return append([]string{"--data-dir=" + d.data}, args...) }
	if out := p.run("sallyctl", admin("status")...); !strings.Contains(out, d.CAPin) {
		t.Errorf("status: %s", out)
	}
	role := "kind: role\nversion: v7\nmetadata: {name: only-reader}\nspec:\n  allow:\n    db_labels: {'*': '*'}\n    db_users: [reader]\n    db_names: [demo]\n"
	if r := p.try(role, "sallyctl", admin("create", "-")...); r.code != 0 {
		t.Fatalf("create: %+v", r)
	}
	if r := p.try(role, "sallyctl", admin("create", "-")...); r.code != 1 || !strings.Contains(r.stderr, "--force") {
		t.Errorf("create again: %+v", r)
	}
	if r := p.try(strings.Replace(role, "allow:", "options: {lock: strict, device_trust_mode: required}\n  allow:", 1), "sallyctl", admin("create", "-f", "-")...); r.code != 1 || !strings.Contains(r.stderr, "does not enforce") {
		t.Errorf("an option that is not enforced: %+v", r)
	}
	if out := p.run("sallyctl", admin("get", "role/only-reader")...); !strings.Contains(out, "only-reader") {
		t.Errorf("get: %s", out)
	}
	out := p.run("sallyctl", admin("users", "add", "--roles=only-reader", "bob")...)
	link := regexp.MustCompile(`https://\S+/claim/\S+`).FindString(out)
	password := "correct horse battery"
	claim(t, link, password)
	bob := newPerson(t)
	bob.loginAs(d.Proxy, d.CAPin, "bob", password, "")
	if out := bob.run("sally", "ls", "-f", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("bob sees nodes: %s", out)
	}
	if out := bob.run("sally", "db", "connect", "--db-name=demo", d.name("db"), "--", "-Atc", "select current_user"); out != "reader\n" {
		t.Errorf("bob: %q", out)
	}
	bob.refused(1, []string{"does not allow login"}, "sally", "ssh", login(t)+"@"+d.name("node"), "id")
	bob.refused(1, []string{"ERROR: "}, "sallyctl", "users", "ls")
	if out := p.run("sallyctl", "users", "ls"); !strings.Contains(out, "bob") {
		t.Errorf("the admin by profile: %s", out)
	}
	p.refused(1, []string{"is held by bob"}, "sallyctl", admin("rm", "role/only-reader")...)
	p.run("sallyctl", admin("users", "rm", "bob")...)
	p.run("sallyctl", admin("rm", "role/only-reader")...)
	if out := p.run("sallyctl", admin("tokens", "add", "--type=node")...); !strings.Contains(out, d.CAPin) {
		t.Errorf("tokens add: %s", out)
	}
	if out := p.run("sallyctl", admin("tokens", "ls", "--format=json")...); !strings.Contains(out, `"agent"`) {
		t.Errorf("tokens ls: %s", out)
	}
}

// claim fills in the page as a browser without JavaScript does.
func claim(t testing.TB, link, password string) {
	t.Helper()
	c := &http.Client{Timeout: runWait, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer c.CloseIdleConnections()
	get, err := c.Get(link)
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(get.Body)
	get.Body.Close()
	if get.StatusCode != http.StatusOK || !bytes.Contains(page, []byte("data:image/png;base64,")) || bytes.Contains(page, []byte("<script")) {
		t.Fatalf("claim page: %s\n%s", get.Status, page)
	}
	post := func() (int, string) {
		resp, err := c.PostForm(link, map[string][]string{"password": {password}, "again": {password}, "code": {""}})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, body := post(); code != http.StatusOK || !strings.Contains(body, "sally login") {
		t.Fatalf("claim: %d\n%s", code, body)
	}
	if code, _ := post(); code == http.StatusOK {
		t.Error("the link works twice")
	}
}

// testLock ends a running session by the lock.
func testLock(t *testing.T, d *demo, p *person) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*runWait)
	defer cancel()
	cmd := p.command(ctx, "sally", "ssh", login(t)+"@"+d.name("node"), "echo up; sleep 600")
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the session runs", runWait, func() bool { return strings.Contains(out.String(), "up") })
	// Bytes of a TCP service have no place for a reason: auth is asked.
	pipe := p.command(ctx, "sally", "proxy", "tcp", "--stdio", "echo")
	var echoed, said tail
	pipe.Stdout, pipe.Stderr = &echoed, &said
	open, err := pipe.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := pipe.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(open, "up\n"); err != nil {
		t.Fatal(err)
	}
	await(t, "the TCP session runs", runWait, func() bool { return echoed.String() == "up\n" })
	lock := "kind: lock\nversion: v2\nmetadata: {name: stop}\nspec: {target: {user: admin}, message: for the test}\n"
	if r := p.try(lock, "sallyctl", "--data-dir="+d.data, "create", "-"); r.code != 0 {
		t.Fatalf("lock: %+v", r)
	}
	began := time.Now()
	cmd.Wait()
	if took := time.Since(began); took > time.Minute { // it would go on for longer
		t.Errorf("the session lived on for %s", took)
	}
	if !strings.Contains(out.String(), "for the test") {
		t.Errorf("the session was not told why:\n%s", out.String())
	}
	if err := pipe.Wait(); pipe.ProcessState.ExitCode() != 1 || said.String() != "ERROR: you are locked: for the test\nhint: ask your administrator\n" {
		t.Errorf("proxy tcp --stdio: %v, and said:\n%s", err, said.String())
	}
	p.refused(1, []string{"for the test"}, "sally", "ssh", login(t)+"@"+d.name("node"), "id")
	p.refused(2, []string{"for the test"}, "psql", "service="+d.Cluster+"-"+d.name("db"), "-c", "select 1")
	p.refused(255, []string{"for the test", "Permission denied"}, "ssh", "-F", p.jumpConfig(t), login(t)+"@"+d.name("node")+"."+d.Cluster, "id")
	p.run("sallyctl", "--data-dir="+d.data, "rm", "lock/stop")
	await(t, "the lock is gone", upWait, func() bool {
		return p.try("", "sally", "ssh", login(t)+"@"+d.name("node"), "true").code == 0
	})
}

// testStrangers sends what is none of ours; the port goes on serving.
func testStrangers(t *testing.T, d *demo) {
	const most = 25 * time.Second // a stage lasts 10, the next longer bound of any 30
	var closing sync.WaitGroup
	for name, first := range map[string]string{
		"garbage": "\x01\x02\x03 garbage\r\n\r\n", "ssh": "SSH-2.0-x\r\n", "half hello": "\x16\x03\x01\x02\x00\x01\x00", "forged tunnel": "SLYP\x01\x00" + strings.Repeat("x", 56),
		"cancel": "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x01\x00\x01\x00\x00\x00\x00",
	} {
		closing.Go(func() {
			conn, err := net.Dial("tcp", d.Proxy)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, first)
			conn.SetReadDeadline(time.Now().Add(most))
			if b, err := io.ReadAll(io.LimitReader(conn, 4096)); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Errorf("%s: not closed within %s (%d bytes came)", name, most, len(b))
			}
		})
	}
	closing.Wait()
	alert := func(name string) string {
		conn, err := tls.Dial("tcp", d.Proxy, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
			return "no alert"
		}
		return err.Error()
	}
	if a, b := alert("nowhere.db."+d.Cluster), alert("nowhere.example.com"); a != b || !strings.Contains(a, "unrecognized name") {
		t.Errorf("unknown names: %q and %q", a, b)
	}
	resp, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Get("http://" + d.Proxy + "/")
	if err != nil || resp.StatusCode != http.StatusPermanentRedirect {
		t.Errorf("plain http: %v, %v", resp, err)
	}
}

// testOnePort counts the listening TCP ports of the process.
func testOnePort(t *testing.T, d *demo) {
	if ports := listening(t, d.cmd.Process.Pid); len(ports) != 1 {
		t.Errorf("listening ports: %v", ports)
	}
}

// listening returns the addresses on which a process listens, as the kernel
// writes them.
func listening(t testing.TB, pid int) map[string]bool {
	t.Helper()
	onLinux(t)
	inodes := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && strings.HasPrefix(link, "socket:[") {
			inodes[strings.Trim(link, "socket:[]")] = true
		}
	}
	ports := map[string]bool{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == "0A" && inodes[f[9]] {
				ports[f[1]] = true
			}
		}
	}
	return ports
}

// testModes walks what is on disk: nothing that others can read.
func testModes(t *testing.T, d *demo, p *person) {
	for _, root := range []string{d.data, filepath.Join(p.home, ".sally")} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path != root {
				return nil // gone meanwhile
			}
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return nil // gone meanwhile
			}
			if info.Mode().Perm()&0o077 != 0 && info.Mode()&fs.ModeSymlink == 0 {
				t.Errorf("%s: mode %v", path, info.Mode())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	secrets := []string{d.Password, d.TOTPSecret}
	for _, s := range secrets {
		if strings.Contains(d.out.String(), s) {
			t.Error("a secret is in the log")
		}
	}
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", d.cmd.Process.Pid))
	if strings.Contains(string(cmdline), d.Password) {
		t.Error("the password is in the arguments")
	}
}

func testSecondProcess(t *testing.T, d *demo) {
	p := newPerson(t)
	p.refused(1, []string{"is in use by another sallyport", fmt.Sprintf("process %d", d.cmd.Process.Pid)}, "sallyport", "demo", "--listen=127.0.0.1:0", "--data="+d.data)
}
