package mysql

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	driver "github.com/go-mysql-org/go-mysql/client"

	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/test/leak"
	"github.com/sallyport/sallyport/tools/peers"
	peer "github.com/sallyport/sallyport/tools/peers/mariadb"
)

// patience is how long anything may take before a test says that it hangs.
const patience = time.Minute

// unhurried is how long a client of a test may take to hear why it is sent away:
// on a busy machine longer than one of the product's. A session that only ends
// because it is over has taken too long.
const unhurried = 20 * time.Second

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if s, err := shared.get(); err == nil && s != nil {
		s.Stop()
	}
	os.Exit(leak.CodeOf(code, "protocol/mysql.(*"))
}

// sharedServer is the MariaDB that tests use which do not harm it.
type sharedServer struct {
	once sync.Once
	s    *peer.Server
	err  error
}

var shared sharedServer

func (s *sharedServer) get() (*peer.Server, error) {
	s.once.Do(func() { s.err = errNotStarted })
	return s.s, s.err
}

var errNotStarted = errors.New("not started")

func (s *sharedServer) start() (*peer.Server, error) {
	s.once.Do(func() {
		cert, key := dbtest.DBCA.Issue("server", "127.0.0.1", "db.internal")
		s.s, s.err = peer.Start(peer.Options{
			Cert: cert, Key: key, ClientCA: dbtest.DBCA.PEM,
			SQL: []string{
				"CREATE USER alice REQUIRE SUBJECT '/CN=alice'", "CREATE USER bob REQUIRE SUBJECT '/CN=bob'", "CREATE USER `ali ce` REQUIRE SUBJECT '/CN=ali ce'",
				"CREATE USER `jürgen` REQUIRE SUBJECT '/CN=j\\\\xC3\\\\xBCrgen'", "CREATE USER password IDENTIFIED BY 'x'", "CREATE USER modern IDENTIFIED VIA ed25519 USING PASSWORD('x')",
				"CREATE DATABASE orders", "CREATE DATABASE other", "GRANT ALL ON orders.* TO alice, bob, `ali ce`, `jürgen`", "GRANT ALL ON other.* TO alice", "GRANT PROCESS ON *.* TO bob",
			},
			Settings: []string{"local-infile=ON", "character-set-server=utf8mb4", "max-allowed-packet=64M", "plugin-load-add=auth_ed25519"},
		})
	})
	return s.s, s.err
}

// theServer returns the shared server.
func theServer(t testing.TB) *peer.Server {
	t.Helper()
	s, err := shared.start()
	if errors.Is(err, peer.ErrMissing) {
		peers.Missing(t, "mariadb")
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
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
		Bounds: Bounds{Ahead: patience, Startup: patience, Farewell: unhurried},
	}
	r.Door = &dbtest.Door{Protocol: "mysql", ALPN: "sallyport-db/1", Gate: r.gate, Serve: r.server.Serve}
	for _, f := range change {
		f(r)
	}
	if r.server.Target.Address == "" {
		r.server.Target.Address = theServer(t).Addr
	}
	t.Cleanup(r.left)
	r.Open(t)
	return r
}

// left looks for what sessions have left behind, once all are over.
func (r *rig) left() {
	if n := r.server.ahead.open; n != 0 {
		r.t.Errorf("%d connections are still counted", n)
	}
}

// connect is go-mysql as alice, logged in as a database user.
func (r *rig) connect(user, schema string, options ...driver.Option) (*driver.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return r.Dial(ctx) }
	return driver.ConnectWithDialer(ctx, "tcp", r.Addr, user, "no matter", schema, dial, options...)
}

func (r *rig) mustConnect(user string, options ...driver.Option) *driver.Conn {
	r.t.Helper()
	conn, err := r.connect(user, "orders", options...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// mariadb is the stock client through a local port.
func (r *rig) mariadb(args ...string) *exec.Cmd {
	r.t.Helper()
	path, err := exec.LookPath("mariadb")
	if err != nil {
		peers.Missing(r.t, "mariadb")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, append([]string{"--no-defaults", "--host=127.0.0.1", "--port=" + r.Local(), "--skip-ssl", "--user=alice", "--batch", "--skip-column-names"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	return cmd
}

func (r *rig) names() []string {
	var out []string
	for _, e := range r.gate.All() {
		out = append(out, strings.TrimPrefix(e.Name, "db.session.")+" "+e.Code)
	}
	return out
}

// raw is a client of packets.
type raw struct {
	t testing.TB
	net.Conn
	g greeting
}

func (r *rig) dialRaw() *raw {
	r.t.Helper()
	conn, err := r.Dial(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	r.t.Cleanup(func() { conn.Close() })
	c := &raw{t: r.t, Conn: conn}
	payload, _ := c.receive()
	c.g = must(parseGreeting(payload))
	return c
}

func (c *raw) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *raw) receive() (payload []byte, seq byte) {
	c.t.Helper()
	payload, seq, err := readPacket(c, 1<<20)
	if err != nil {
		c.t.Fatal(err)
	}
	return payload, seq
}

// answer is a HandshakeResponse41.
func (c *raw) answer(caps uint32, rest string) []byte {
	r := response{maxPacket: 1 << 24, charset: 45}
	return append(r.head(caps), rest...)
}

const rawCaps = always &^ 0x00100000 // without attributes

// login logs in as a user, with an empty password.
func (c *raw) login(user string, caps uint32) {
	c.t.Helper()
	c.send(appendPacket(nil, 1, c.answer(rawCaps|caps, user+"\x00\x00orders\x00mysql_native_password\x00")))
	if payload, seq := c.receive(); payload[0] != 0 || seq != 2 {
		c.t.Fatalf("login: %q %d", payload, seq)
	}
}

func (c *raw) command(kind byte, body string) {
	c.t.Helper()
	c.send(appendPacket(nil, 0, append([]byte{kind}, body...)))
}

// fatal reads up to an ERR, which must be followed by the end.
func (c *raw) fatal() (code uint16, text string) {
	c.t.Helper()
	for {
		payload, _ := c.receive()
		if payload[0] != 0xff {
			continue
		}
		code, _, text, err := parseErr(payload)
		if err != nil {
			c.t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			c.t.Errorf("after an error: %d, %v", n, err)
		}
		return code, text
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
