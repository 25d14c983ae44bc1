package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/protocol/postgres"
)

// TestTakeOver: what a reload takes is what the documentation says, and each
// field of it arrives.
func TestTakeOver(t *testing.T) {
	full, err := parseConfig([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	var effective config
	effective.takeOver(full)
	want := []string{
		"gateway.certificates", "gateway.proxy_protocol.trusted", "gateway.routes", "gateway.upstreams", "gateway.silent.after", "gateway.silent.to", "gateway.silent.send_proxy",
		"gateway.limits.handshake", "gateway.limits.connect", "gateway.limits.idle", "gateway.limits.waiting_per_source", "gateway.limits.waiting",
		"gateway.limits.rate_per_source", "gateway.limits.large_hellos", "gateway.limits.web_per_source", "gateway.limits.web",
		"agent.group", "agent.ssh.enabled", "agent.ssh.name", "agent.ssh.labels", "agent.ssh.listen_anywhere", "agent.databases", "agent.tcp", "agent.apps", "agent.kubernetes", "log.level", "upgrade.drain",
	}
	if got := differences(new(config), &effective); !slices.Equal(got, want) {
		t.Errorf("taken: %q", got)
	}
	rest := differences(&effective, full)
	for _, path := range []string{"data_dir", "roles", "cluster", "gateway.listen", "gateway.auth", "gateway.limits.half_open", "metrics.listen", "log.format", "auth.listen", "auth.etcd.endpoints"} {
		if !slices.Contains(rest, path) {
			t.Errorf("%s is not said to need a restart", path)
		}
	}
	for _, path := range append(want, rest...) {
		if path == "" || strings.HasPrefix(path, ".") {
			t.Errorf("a field without a name: %q", path)
		}
	}
	if d := differences(full, full); len(d) != 0 {
		t.Errorf("a configuration differs from itself: %q", d)
	}
	quota := new(config)
	quota.Auth.Etcd.QuotaMiB = new(int)
	if rest := differences(&effective, quota); !slices.Contains(rest, "auth.etcd.quota_mib") {
		t.Errorf("the store's quota is not said to need a restart: %q", rest)
	}
	// Restart is needed for these limits, and their comments say so.
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "config.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range full.Gateway.Limits.ranges() {
		_, line, _ := strings.Cut(string(page), "\n| `"+r.name+"` |")
		line, _, _ = strings.Cut(line, "\n")
		if said, needs := strings.Contains(line, "next start"), slices.Contains(rest, "gateway.limits."+r.name); said != needs {
			t.Errorf("gateway.limits.%s: needs a restart: %v; the page says so: %v", r.name, needs, said)
		}
	}
}

// served is a running gateway of static routes, with its file.
type served struct {
	*node
	stop func()
	t    *testing.T
	file string
	addr string
}

// serve starts a gateway; text is its routes and what follows.
func serve(t *testing.T, text string) *served {
	t.Helper()
	dir, err := os.MkdirTemp("", "sp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &served{t: t, file: filepath.Join(dir, "c.yaml")}
	s.write(text)
	cfg, err := loadConfig(s.file)
	if err != nil {
		t.Fatal(err)
	}
	s.node = newNode(cfg, slog.New(slog.DiscardHandler))
	s.reloads.file, s.reloads.level = s.file, new(slog.LevelVar)
	t.Cleanup(s.close)
	if _, err := s.reload(t.Context(), "test"); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("reloaded before it is up: %v", err)
	}
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil && !(errors.Is(err, errHanded) && s.upgrades.isHanded()) {
			t.Errorf("run: %v", err)
		}
	})
	for deadline := time.Now().Add(time.Minute); !s.reloads.up.Load(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("not up within a minute")
		}
	}
	s.addr = s.gateway.addr()
	return s
}

func (s *served) write(text string) {
	s.t.Helper()
	const head = "version: 1\ndata_dir: d\nroles: [gateway]\ngateway:\n  listen: [\"127.0.0.1:0\"]\n"
	if err := os.WriteFile(s.file, []byte(head+text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// backend answers each connection with its name, after TLS.
func backend(t *testing.T, name string) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{selfSigned(t, time.Hour, "*.example.com")}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func selfSigned(t *testing.T, life time.Duration, names ...string) tls.Certificate {
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

// reaches says which backend a name leads to; "" for none.
func (s *served) reaches(name string) string {
	s.t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", s.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	b, err := io.ReadAll(conn)
	if err != nil {
		s.t.Errorf("%s: %v", name, err)
	}
	return string(b)
}

// TestReload: routes change, come and go; what is wrong has no effect; what
// needs a restart is said, each time.
func TestReload(t *testing.T) {
	one, two := backend(t, "one"), backend(t, "two")
	s := serve(t, fmt.Sprintf("  routes:\n    - {names: [a.example.com], to: [%q]}\n    - {names: [b.example.com], to: [%q]}\n", one, one))
	if a, b := s.reaches("a.example.com"), s.reaches("b.example.com"); a != "one" || b != "one" {
		t.Fatalf("a is %q, b is %q", a, b)
	}

	s.write(fmt.Sprintf("  routes:\n    - {names: [a.example.com], to: [%q]}\n    - {names: [c.example.com], to: [%q]}\n    - {names: [A.example.com], to: [%q]}\n", two, two, two))
	report, err := s.reload(t.Context(), "test")
	if err == nil || !errors.Is(err, sallyport.ErrInvalid) || !strings.Contains(report.Problem, s.file+`:9:16: gateway.routes[2].names[0]: server name "A.example.com": any protocol: route 0 has it too`) {
		t.Errorf("a name of two routes: %v, %+v", err, report)
	}
	if a, c := s.reaches("a.example.com"), s.reaches("c.example.com"); a != "one" || c != "" {
		t.Errorf("after a reload that was refused a is %q, c is %q", a, c)
	}
	if got := s.status().Reload; got == nil || got.Problem == "" {
		t.Errorf("status does not say that a reload was refused: %+v", got)
	}

	s.write(fmt.Sprintf("  routes:\n    - {names: [c.example.com], to: [%q]}\n    - {names: [a.example.com], to: [%q]}\n  limits: {waiting: 100, half_open: 100}\nlog: {level: debug, format: json}\nagent: {group: x}\n", two, two))
	report, err = s.reload(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	if want := (routeChanges{Added: 1, Changed: 1, Removed: 1}); *report.Routes != want {
		t.Errorf("%+v", *report.Routes)
	}
	if want := []string{"gateway.routes", "gateway.limits.waiting", "log.level"}; !slices.Equal(report.Changed, want) {
		t.Errorf("changed: %q", report.Changed)
	}
	restart := []string{"gateway.limits.half_open", "log.format"}
	if !slices.Equal(report.NeedsRestart, restart) {
		t.Errorf("needs a restart: %q", report.NeedsRestart)
	}
	// Who was told of a restart cut connections that an upgrade keeps.
	for fields, want := range map[string]string{
		"gateway.listen":       "NOT in effect yet: gateway.listen, by sallyport upgrade or a restart.\n",
		"gateway.listen roles": "NOT in effect yet: gateway.listen, roles, by a restart.\n",
		"data_dir":             "NOT in effect yet: data_dir, by a restart.\n",
	} {
		var out strings.Builder
		r := reloadReport{NeedsRestart: strings.Fields(fields)}
		if err := r.print(&out); err != nil || !strings.HasSuffix(out.String(), want) {
			t.Errorf("%s: %q, %v", fields, &out, err)
		}
	}
	if a, b, c := s.reaches("a.example.com"), s.reaches("b.example.com"), s.reaches("c.example.com"); a != "two" || b != "" || c != "two" {
		t.Errorf("a is %q, b is %q, c is %q", a, b, c)
	}
	if s.reloads.level.Level() != slog.LevelDebug {
		t.Errorf("level %v", s.reloads.level.Level())
	}

	report, err = s.reload(t.Context(), "test")
	if err != nil || len(report.Changed) != 0 || *report.Routes != (routeChanges{Kept: 2}) || !slices.Equal(report.NeedsRestart, restart) {
		t.Errorf("the same once more: %v, %+v, %+v", err, report, report.Routes)
	}
	if err := os.Remove(s.file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.reload(t.Context(), "test"); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
	if a := s.reaches("a.example.com"); a != "two" {
		t.Errorf("a is %q", a)
	}
}

// TestReloadSocket: the command, through the admin socket, and who may not.
func TestReloadSocket(t *testing.T) {
	one := backend(t, "one")
	s := serve(t, fmt.Sprintf("  routes: [{names: [a.example.com], to: [%q]}]\n", one))
	run := func(args ...string) (string, error) {
		var out strings.Builder
		err := (&program{ctx: t.Context(), stdout: &out}).run(append([]string{"reload", "-c", s.file}, args...))
		return out.String(), err
	}
	s.write(fmt.Sprintf("  routes: [{names: [a.example.com], to: [%q]}, {names: [b.example.com], to: [%q]}]\n", one, one))
	if out, err := run(); err != nil || out != "Reloaded: gateway.routes.\nRoutes: 1 added, 0 changed, 0 removed, 1 as they were.\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := run("--format=json"); err != nil || !strings.Contains(out, `"kept": 2`) {
		t.Errorf("%q, %v", out, err)
	}
	// A file that is no good still says where the process is.
	s.write("  rotues: []\n")
	out, err := run()
	if !errors.Is(err, sallyport.ErrInvalid) || out != "" || !strings.Contains(err.Error(), `unknown field "rotues"; did you mean "routes"?`) || !strings.HasSuffix(err.Error(), "\nnothing was changed") {
		t.Errorf("%q, %v", out, err)
	}
	if s.reloads.last.Load().Problem == "" {
		t.Error("the process has not heard of it")
	}
	if b := s.reaches("b.example.com"); b != "one" {
		t.Errorf("b is %q", b)
	}

	// Who is not let in by the socket's listener is nobody.
	w := httptest.NewRecorder()
	s.serveReload(w, httptest.NewRequest(http.MethodPost, "/reload", nil))
	if w.Code != http.StatusForbidden {
		t.Errorf("a stranger: %d", w.Code)
	}
	if err := (&program{ctx: t.Context(), stdout: io.Discard}).run([]string{"reload", "--data-dir", t.TempDir()}); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestF28_ReloadStorm: many reloads at once, good and bad in turn, while clients
// connect: none of them is refused, and one that is there is not cut off. Behind it
// what is broken is refused as ever, and what is good has its effect.
func TestF28_ReloadStorm(t *testing.T) {
	one, echo := backend(t, "one"), echoing(t)
	route := func(name string) string {
		return fmt.Sprintf("  routes: [{names: [a.example.com], to: [%q]}, {names: [%s], to: [%q]}]\n", one, name, echo)
	}
	s := serve(t, route("echo.example.com"))
	live, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", s.addr, &tls.Config{ServerName: "echo.example.com", InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	speaks := func(text string) {
		t.Helper()
		live.SetDeadline(time.Now().Add(time.Minute))
		_, err := io.WriteString(live, text)
		b := make([]byte, len(text))
		if err == nil {
			_, err = io.ReadFull(live, b)
		}
		if err != nil || string(b) != text {
			t.Fatalf("the connection from before: %q, %v", b, err)
		}
	}
	hangUp := make(chan os.Signal, 1)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.reloadOn(ctx, hangUp) }()
	defer func() { stop(); <-done }()
	const half = "  routes: [{names: [a.exam"
	for i := range 50 {
		text := route("echo.example.com")
		if i%2 == 1 {
			text = half
		}
		s.write(text)
		select {
		case hangUp <- os.Interrupt:
		default:
		}
		if got := s.reaches("a.example.com"); got != "one" {
			t.Fatalf("connection %d reaches %q", i, got)
		}
		speaks(fmt.Sprint(i))
	}

	hang := func() {
		t.Helper()
		select {
		case hangUp <- os.Interrupt:
		case <-time.After(time.Minute):
			t.Fatal("a reload does not come to an end")
		}
	}
	const misspelt = "rotues"
	s.write("  " + misspelt + ": []\n")
	hang()
	await(t, "the refusal", func() bool {
		r := s.reloads.last.Load()
		return r != nil && strings.Contains(r.Problem, misspelt)
	})
	s.write(route("other.example.com"))
	hang()
	dial := func(name string) (*tls.Conn, error) {
		return tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", s.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	}
	await(t, "the new route", func() bool {
		conn, err := dial("other.example.com")
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if got := s.reaches("a.example.com"); got != "one" {
		t.Errorf("behind the storm a is %q", got)
	}
	if conn, err := dial("echo.example.com"); err == nil {
		conn.Close()
		t.Error("the route that is gone still leads somewhere")
	}
	speaks("the end") // its route is gone; it is not
}

// echoing is a backend that says what it hears.
func echoing(t *testing.T) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{selfSigned(t, time.Hour, "*.example.com")}})
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return l.Addr().String()
}

// TestCertificates: what is half there, not a pair, or not of this time is
// refused; what changed is counted.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, c tls.Certificate) certificateConfig {
		t.Helper()
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		out := certificateConfig{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key")}
		for file, block := range map[string]*pem.Block{out.Cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, out.Key: {Type: "PRIVATE KEY", Bytes: key}} {
			if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	a, b, old := write("a", selfSigned(t, time.Hour, "gw.test")), write("b", selfSigned(t, time.Hour, "gw.test")), write("old", selfSigned(t, -time.Minute, "gw.test"))
	load := func(files ...certificateConfig) ([]tls.Certificate, error) {
		certs, err := loadCertificates(files)
		if err == nil {
			err = current(files, certs, time.Now())
		}
		return certs, err
	}
	first, err := load(a, b)
	if err != nil {
		t.Fatal(err)
	}
	second, err := load(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		old, now []tls.Certificate
		want     int
	}{{nil, nil, 0}, {nil, first, 2}, {first, first, 0}, {first, second, 1}, {second, first, 1}, {first, nil, 2}} {
		if got := otherCertificates(tt.old, tt.now); got != tt.want {
			t.Errorf("%d instead of %d: %d are others, want %d", len(tt.now), len(tt.old), got, tt.want)
		}
	}
	half, err := os.ReadFile(b.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "half.pem"), half[:len(half)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]certificateConfig{
		"expired": old, "not a pair": {Cert: a.Cert, Key: b.Key}, "half": {Cert: filepath.Join(dir, "half.pem"), Key: b.Key}, "no file": {Cert: dir + "/x", Key: b.Key},
	} {
		_, err := load(a, c)
		if !errors.Is(err, sallyport.ErrInvalid) || !strings.Contains(err.Error(), "gateway.certificates[1]: ") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE KEY") {
			t.Errorf("%s: the error shows the file: %v", name, err)
		}
	}

	// A new handshake gets the certificate of this moment.
	r := &gatewayRole{}
	hello := &tls.ClientHelloInfo{ServerName: "gw.test", SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}
	for _, certs := range [][]tls.Certificate{first, second} {
		r.certs.Store(&certs)
		got, err := r.webCertificate(hello)
		if err != nil || !reflect.DeepEqual(got.Certificate, certs[0].Certificate) {
			t.Errorf("%v", err)
		}
	}

	// A reload replaces them when all of it is good, and not before.
	n := &node{}
	r.host = &client.Host{}
	n.shownGateway.Store(r)
	shown := func() []tls.Certificate { return *r.certs.Load() }
	for _, bad := range []certificateConfig{old, {Cert: a.Cert, Key: b.Key}} {
		if _, err := n.prepareReload(&config{Gateway: gatewayConfig{Certificates: []certificateConfig{a, bad}}}, &reloadReport{}); err == nil || !reflect.DeepEqual(shown(), second) {
			t.Errorf("a certificate that is no good: %v, and %d are shown", err, len(shown()))
		}
	}
	var report reloadReport
	apply, err := n.prepareReload(&config{Gateway: gatewayConfig{Certificates: []certificateConfig{a, b}}}, &report)
	if err != nil || report.Certificates != 1 || !reflect.DeepEqual(shown(), second) {
		t.Fatalf("prepared: %v, %d are others, %d are shown", err, report.Certificates, len(shown()))
	}
	if apply(); !reflect.DeepEqual(shown(), first) {
		t.Errorf("after the reload %d are shown, not those of the files", len(shown()))
	}
}

// TestDatabasesChange: a server stays the same while its target does.
func TestDatabasesChange(t *testing.T) {
	open := func(d databaseConfig) (databaseServer, error) {
		if d.Address == "" {
			return nil, errors.New("bad")
		}
		return &postgres.Server{Target: database.Target{Address: d.Address}}, nil
	}
	change := func(d *databases, c ...databaseConfig) *databases {
		t.Helper()
		next, err := d.change(c, open)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	first := change(new(databases), databaseConfig{Name: "a", Address: "a:1"}, databaseConfig{Name: "b", Address: "b:1"})
	second := change(first, databaseConfig{Name: "a", Address: "a:1", Labels: map[string]string{"x": "y"}}, databaseConfig{Name: "b", Address: "b:2"}, databaseConfig{Name: "c", Address: "c:1"})
	if second.servers["a"] != first.servers["a"] || second.servers["b"] == first.servers["b"] || second.servers["c"] == nil {
		t.Errorf("%+v", second.servers)
	}
	if !slices.Equal(second.retired, []databaseServer{first.servers["b"]}) || second.configured["a"].Labels["x"] != "y" {
		t.Errorf("%+v", second)
	}
	if _, err := second.change([]databaseConfig{{Name: "a"}}, open); err == nil || second.servers["a"] != first.servers["a"] {
		t.Errorf("a change that fails: %v", err)
	}
	last := second
	for i := range 2 * retiredMost {
		last = change(last, databaseConfig{Name: "a", Address: fmt.Sprint("a:", i+10)})
	}
	if len(last.retired) != retiredMost || len(last.servers) != 1 {
		t.Errorf("%d retired", len(last.retired))
	}
}

func TestLooseDataDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state", adminSocket), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "c.yaml")
	for text, want := range map[string]string{
		"data_dir: state # here\nx: [":    filepath.Join(dir, "state"),
		"data_dir: \"" + dir + "/state\"": filepath.Join(dir, "state"),
		"data_dir: other\n":               "",
		"  data_dir: state\n":             "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := looseDataDir(file); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
