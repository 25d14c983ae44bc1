package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/test/leak"
	"github.com/sallyport/sallyport/tools/peers"
	peer "github.com/sallyport/sallyport/tools/peers/postgres"
)

// patience is how long anything may take before a test says that it hangs.
const patience = time.Minute

// unhurried is how long a client of a test may take to hear why it is sent away:
// on a busy machine longer than one of the product's. A session that only ends
// because it is over has taken too long.
const unhurried = patience

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if s, err := shared.get(); err == nil && s != nil {
		s.Stop()
	}
	os.Exit(leak.CodeOf(code, "protocol/postgres.(*"))
}

// sharedServer is the PostgreSQL that tests use which do not harm it.
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
	s.once.Do(func() { s.s, s.err = peer.Start("", serverOptions()) })
	return s.s, s.err
}

func serverOptions() peer.Options {
	cert, key := dbtest.DBCA.Issue("server", "127.0.0.1", "db.internal")
	return peer.Options{
		Cert: cert, Key: key, ClientCA: dbtest.DBCA.PEM,
		HBA: []string{
			"hostssl all byPassword 127.0.0.1/32 scram-sha-256",
			"hostssl nobodys all 127.0.0.1/32 reject",
			"hostssl all all 127.0.0.1/32 cert",
		},
		SQL: []string{
			"CREATE ROLE alice LOGIN;", "CREATE ROLE bob LOGIN;", `CREATE ROLE "Ali ce" LOGIN;`,
			`CREATE ROLE "byPassword" LOGIN PASSWORD 'x';`,
			"CREATE DATABASE orders OWNER alice;", "CREATE DATABASE nobodys;", `CREATE DATABASE "Or ders";`,
			"GRANT pg_monitor, pg_signal_backend TO bob;",
		},
		Settings: []string{"log_connections = on", "log_statement = all"},
	}
}

// theServer returns the shared server, or one of the test's own.
func theServer(t testing.TB) *peer.Server {
	t.Helper()
	return started(t)(shared.start())
}

func ownServer(t testing.TB) *peer.Server {
	t.Helper()
	s := started(t)(peer.Start("", serverOptions()))
	t.Cleanup(s.Stop)
	return s
}

func started(t testing.TB) func(*peer.Server, error) *peer.Server {
	return func(s *peer.Server, err error) *peer.Server {
		t.Helper()
		if errors.Is(err, peer.ErrMissing) {
			peers.Missing(t, "postgres")
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
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
		Cluster:   "gw.example.com",
		CancelTag: func() uint16 { return 0x1234 },
		Roots:     func() *x509.CertPool { return dbtest.DBCA.Pool },
		Certificate: func(_ context.Context, _, user string) (*tls.Certificate, error) {
			return new(dbtest.DBCA.Pair(user)), nil
		},
		Bounds: Bounds{Farewell: unhurried},
	}
	r.Door = &dbtest.Door{Protocol: "postgres", ALPN: "postgresql", Gate: r.gate, Serve: r.server.Serve, Preamble: r.preamble}
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
	if n := len(r.server.sessions.byID); n != 0 {
		r.t.Errorf("%d sessions left in the registry", n)
	}
}

// preamble is the small talk before TLS.
func (r *rig) preamble(conn net.Conn) net.Conn {
	var head [8]byte
	if _, err := io.ReadFull(conn, head[:1]); err != nil {
		return nil
	}
	if head[0] == 0x16 {
		return &unread{Conn: conn, r: io.MultiReader(bytes.NewReader(head[:1:1]), conn)}
	}
	if _, err := io.ReadFull(conn, head[1:]); err != nil {
		return nil
	}
	switch binary.BigEndian.Uint32(head[4:]) {
	case sslCode:
		conn.Write([]byte{'S'})
		return conn
	case cancelCode:
		var id [8]byte
		io.ReadFull(conn, id[:])
		r.server.Cancel(binary.BigEndian.Uint32(id[:]), binary.BigEndian.Uint32(id[4:]))
	}
	return nil
}

// unread is a connection with a byte put back.
type unread struct {
	net.Conn
	r io.Reader
}

func (u *unread) Read(b []byte) (int, error) { return u.r.Read(b) }

func (u *unread) CloseWrite() error { return u.Conn.(*net.TCPConn).CloseWrite() }

// connect is pgx as a user, logged in as the same database user.
func (r *rig) connect(who string, params ...string) (*pgx.Conn, error) {
	text := fmt.Sprintf("postgres://%s/orders?sslmode=require", r.Addr)
	config := must(pgx.ParseConfig(text))
	config.User = who
	config.TLSConfig = r.TLS(who)
	config.Fallbacks = nil
	for _, p := range params {
		name, value, _ := strings.Cut(p, "=")
		switch name {
		case "user":
			config.User = value
		case "database":
			config.Database = value
		default:
			config.RuntimeParams[name] = value
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return pgx.ConnectConfig(ctx, config)
}

func (r *rig) mustConnect(who string, params ...string) *pgx.Conn {
	r.t.Helper()
	conn, err := r.connect(who, params...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// raw is a client of bytes: TLS at once, as with sslnegotiation=direct.
type raw struct {
	t testing.TB
	*tls.Conn
	front *pgproto3.Frontend
}

func (r *rig) dialRaw(who string) *raw {
	r.t.Helper()
	conn, err := tls.Dial("tcp", r.Addr, r.TLS(who))
	if err != nil {
		r.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	r.t.Cleanup(func() { conn.NetConn().Close() })
	front := pgproto3.NewFrontend(conn, conn)
	front.SetMaxBodyLen(64 << 20)
	return &raw{r.t, conn, front}
}

func (c *raw) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *raw) sendMessages(messages ...pgproto3.FrontendMessage) {
	c.t.Helper()
	var b []byte
	for _, m := range messages {
		b = must(m.Encode(b))
	}
	c.send(b)
}

// login sends a StartupMessage and reads up to ReadyForQuery.
func (c *raw) login(params ...string) *pgproto3.BackendKeyData {
	c.t.Helper()
	c.send(startupBytes(protocol30, params...))
	var key *pgproto3.BackendKeyData
	for {
		switch m := c.receive().(type) {
		case *pgproto3.BackendKeyData:
			key = &pgproto3.BackendKeyData{ProcessID: m.ProcessID, SecretKey: bytes.Clone(m.SecretKey)}
		case *pgproto3.ReadyForQuery:
			return key
		case *pgproto3.ErrorResponse:
			c.t.Fatalf("login: %s %s", m.Code, m.Message)
		}
	}
}

func (c *raw) receive() pgproto3.BackendMessage {
	c.t.Helper()
	m, err := c.front.Receive()
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// fatal reads up to an ErrorResponse, which must be followed by the end.
func (c *raw) fatal() *pgproto3.ErrorResponse {
	c.t.Helper()
	for {
		if e, ok := c.receive().(*pgproto3.ErrorResponse); ok {
			got := *e
			if m, err := c.front.Receive(); err == nil {
				c.t.Errorf("%T after a FATAL error", m)
			} else if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
				c.t.Errorf("after a FATAL error: %v", err)
			}
			return &got
		}
	}
}

func startupBytes(code uint32, params ...string) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 4), code)
	for _, p := range params {
		name, value, _ := strings.Cut(p, "=")
		b = append(append(append(append(b, name...), 0), value...), 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// files writes what psql wants as files and returns its connection string.
func (r *rig) psqlString(who string) string {
	dir := r.t.TempDir()
	cert, key := dbtest.UserCA.Issue(who)
	for name, text := range map[string][]byte{"ca": dbtest.HostCA.PEM, "cert": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	host, port, _ := net.SplitHostPort(r.Addr)
	return fmt.Sprintf("host=%s port=%s user=%s dbname=orders sslmode=verify-full sslrootcert=%s/ca sslcert=%s/cert sslkey=%s/key connect_timeout=60",
		host, port, who, dir, dir, dir)
}

// admin is a connection straight to the server, as its superuser.
func admin(t testing.TB, s *peer.Server) *pgx.Conn {
	t.Helper()
	config := must(pgx.ParseConfig("postgres://postgres@" + s.Addr + "/postgres?sslmode=require"))
	config.TLSConfig = &tls.Config{RootCAs: dbtest.DBCA.Pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{dbtest.DBCA.Pair("postgres")}}
	conn, err := pgx.ConnectConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// until asks the server again and again until a count is as wanted.
func until(t testing.TB, conn *pgx.Conn, want int, query string, args ...any) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		var n int
		if err := conn.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: still %d, want %d", query, n, want)
		}
	}
}

const sleepers = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and application_name = $1"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
