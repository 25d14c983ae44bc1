package redis

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/test/leak"
	"github.com/sallyport/sallyport/tools/peers"
	peer "github.com/sallyport/sallyport/tools/peers/redis"
)

// patience is how long anything may take before a test says that it hangs.
const patience = time.Minute

// unhurried is how long a client of a test may take to hear why it is sent away:
// on a busy machine longer than one of the product's. A session that only ends
// because it is over has taken too long.
const unhurried = patience

func TestMain(m *testing.M) {
	code := m.Run()
	openServer.stop()
	closedServer.stop()
	os.Exit(leak.CodeOf(code, "protocol/redis.(*"))
}

// sharedServer is a Redis that tests use which do not harm it.
type sharedServer struct {
	once sync.Once
	acl  []string
	s    *peer.Server
	err  error
}

// The servers: on the open one nobody needs a password but carol, on the closed
// one "default" does too.
var (
	openServer = sharedServer{acl: []string{
		"user default on nopass ~* &* +@all", "user alice on nopass ~* &* +@all", "user bob on nopass ~* &* +@all", "user jürgen on nopass ~* &* +@all",
		"user carol on >secret ~* &* +@all", "user reader on nopass ~* +get +ping",
	}}
	closedServer = sharedServer{acl: []string{"user default on >secret ~* &* +@all", "user alice on nopass ~* &* +@all"}}
)

func (s *sharedServer) start() (*peer.Server, error) {
	s.once.Do(func() {
		cert, key := dbtest.DBCA.Issue("server", "127.0.0.1", "db.internal")
		s.s, s.err = peer.Start(peer.Options{Cert: cert, Key: key, ClientCA: dbtest.DBCA.PEM, ACL: s.acl})
	})
	return s.s, s.err
}

func (s *sharedServer) stop() {
	s.once.Do(func() {})
	if s.s != nil {
		s.s.Stop()
	}
}

// addr is where the server is.
func (s *sharedServer) addr(t testing.TB) string {
	t.Helper()
	server, err := s.start()
	if errors.Is(err, peer.ErrMissing) {
		peers.Missing(t, "redis")
	}
	if err != nil {
		t.Fatal(err)
	}
	return server.Addr
}

// rig is a Server behind a door.
type rig struct {
	*dbtest.Door
	t      testing.TB
	gate   *dbtest.Gate
	server *Server
}

func newRig(t testing.TB, change ...func(*rig)) *rig {
	t.Helper()
	r := &rig{t: t, gate: dbtest.NewGate()}
	r.server = &Server{
		Cluster: "gw.example.com",
		Roots:   func() *x509.CertPool { return dbtest.DBCA.Pool },
		Certificate: func(_ context.Context, _, user string) (*tls.Certificate, error) {
			return new(dbtest.DBCA.Pair(user)), nil
		},
		Bounds: Bounds{Farewell: unhurried},
	}
	r.Door = &dbtest.Door{Protocol: "redis", ALPN: "sallyport-db/1", Gate: r.gate, Serve: r.server.Serve}
	for _, f := range change {
		f(r)
	}
	if r.server.Target.Address == "" {
		r.server.Target.Address = openServer.addr(t)
	}
	r.Open(t)
	return r
}

// cli is the stock client, through a local port.
func (r *rig) cli(args ...string) *exec.Cmd {
	return r.command(append([]string{"-h", "127.0.0.1", "-p", r.Local()}, args...)...)
}

// straight is the stock client by its own TLS.
func (r *rig) straight(args ...string) *exec.Cmd {
	dir := r.t.TempDir()
	cert, key := dbtest.UserCA.Issue("alice")
	for name, text := range map[string][]byte{"ca": dbtest.HostCA.PEM, "cert": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	host, port, _ := net.SplitHostPort(r.Addr)
	return r.command(append([]string{"-h", host, "-p", port, "--tls", "--sni", "orders.db.gw.example.com",
		"--cacert", filepath.Join(dir, "ca"), "--cert", filepath.Join(dir, "cert"), "--key", filepath.Join(dir, "key")}, args...)...)
}

func (r *rig) command(args ...string) *exec.Cmd {
	r.t.Helper()
	path, err := exec.LookPath("redis-cli")
	if err != nil {
		peers.Missing(r.t, "redis-cli")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, append([]string{"--no-auth-warning"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+r.t.TempDir())
	return cmd
}

// queries are the texts of all recorded commands.
func (r *rig) queries() []string {
	var out []string
	for _, e := range r.gate.All("db.session.query") {
		out = append(out, e.Fields["db_query"].(string))
	}
	return out
}

// raw is a client of commands and answers.
type raw struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func (r *rig) raw() *raw {
	r.t.Helper()
	conn, err := r.Dial(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	r.t.Cleanup(func() { conn.Close() })
	return &raw{r.t, conn, bufio.NewReader(conn)}
}

// as is a client that is logged in.
func (r *rig) as(user string) *raw {
	r.t.Helper()
	c := r.raw()
	c.want("+OK", "AUTH", user, "")
	return c
}

// send sends one command as an array.
func (c *raw) send(args ...string) {
	c.t.Helper()
	var list [][]byte
	for _, a := range args {
		list = append(list, []byte(a))
	}
	c.write(string(appendCommand(nil, list...)))
}

func (c *raw) write(text string) {
	c.t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// want sends a command, if there is one, and checks the answer.
func (c *raw) want(answer string, command ...string) {
	c.t.Helper()
	if len(command) > 0 {
		c.send(command...)
	}
	if got := c.receive(); got != answer && !(strings.HasSuffix(answer, "…") && strings.HasPrefix(got, strings.TrimSuffix(answer, "…"))) {
		c.t.Errorf("%.60q: %.200q, want %.200q", command[:min(3, len(command))], got, answer)
	}
}

// receive reads an answer, written in one line.
func (c *raw) receive() string {
	c.t.Helper()
	s, err := readValue(c.r)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// ends reads up to the end, which must come in order, and ends its side too.
func (c *raw) ends() {
	c.t.Helper()
	defer c.Close()
	if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		c.t.Errorf("no end: %v", err)
	}
}

// readValue is a second reader of RESP: slow, and by the specification's table.
func readValue(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	for err == nil && !strings.HasSuffix(line, "\r\n") {
		var more string
		more, err = r.ReadString('\n')
		line += more
	}
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return "", errors.New("an empty line")
	}
	n := 0
	if strings.ContainsRune("$=!*~>%|", rune(line[0])) {
		if n, err = strconv.Atoi(line[1:]); err != nil {
			return "", err
		}
	}
	switch line[0] {
	case '$', '=', '!':
		if n < 0 {
			return "nil", nil
		}
		b := make([]byte, n+2)
		_, err := io.ReadFull(r, b)
		return string(b[:n]), err
	case '%':
		n *= 2
	case '|':
		n = 2*n + 1
	case '*', '~', '>':
	case '+', '-', ':', ',', '#', '_', '(':
		return line, nil
	default:
		return "", fmt.Errorf("%q", line)
	}
	list := []string{}
	for range n {
		v, err := readValue(r)
		if err != nil {
			return "", err
		}
		list = append(list, v)
	}
	return string(line[0]) + "[" + strings.Join(list, " ") + "]", nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
