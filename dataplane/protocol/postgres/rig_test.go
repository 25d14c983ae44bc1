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
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/tools/peers"
	peer "github.com/sallyport/sallyport/tools/peers/postgres"
)

// patience is how long anything may take before a test says that it hangs.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	code := m.Run()
	if s, err := shared.get(); err == nil && s != nil {
		s.Stop()
	}
	if code == 0 {
		if left := leftovers(); left != "" {
			fmt.Fprintln(os.Stderr, "goroutines left behind:\n"+left)
			code = 1
		}
	}
	os.Exit(code)
}

// leftovers waits for our goroutines to end and returns the stacks of those
// that do not.
func leftovers() string {
	for end := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		var left []string
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			if strings.Contains(g, "protocol/postgres.(*") {
				left = append(left, g)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return strings.Join(left, "\n\n")
		}
	}
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
	cert, key := dbCA.issue("server", "127.0.0.1", "db.internal")
	return peer.Options{
		Cert: cert, Key: key, ClientCA: dbCA.pem,
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

// gate is a session.Gate that a test decides for.
type gate struct {
	deny    func(use session.Use) *sallyport.Problem // nil: allow
	options sallyport.Options

	mu      sync.Mutex
	events  []sallyport.Event
	changed chan struct{} // closed and replaced at each event
	locks   []context.CancelCauseFunc
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

func (g *gate) Admit(sallyport.Identity, netip.AddrPort) *sallyport.Problem { return nil }

func (g *gate) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	why := c.Refusal
	if why == nil && g.deny != nil {
		why = g.deny(use)
	}
	if why != nil {
		g.emit(use.Denied)
		return nil, why
	}
	g.emit(use.Start)
	ctx, cancel := context.WithCancelCause(ctx)
	g.mu.Lock()
	g.locks = append(g.locks, cancel)
	g.mu.Unlock()
	var once sync.Once
	return &session.Session{
		ID: "s1", Identity: c.Identity, Resource: c.Resource, Principal: use.DBUser, DBName: use.DBName,
		Options: g.options, Client: c.ClientAddr, Started: time.Now(), Context: ctx,
		Allow: func(sallyport.Action) *sallyport.Problem { return nil },
		Emit:  g.emit,
		End: func(fields map[string]any) {
			once.Do(func() {
				cancel(nil)
				for k, v := range fields {
					use.End.Fields[k] = v
				}
				g.emit(use.End)
			})
		},
	}, nil
}

// lock ends all sessions as a lock does.
func (g *gate) lock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, cancel := range g.locks {
		cancel(sallyport.Denied("user alice is locked: on leave", "ask your administrator"))
	}
}

func (g *gate) emit(e sallyport.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, e)
	close(g.changed)
	g.changed = make(chan struct{})
}

// all returns the events so far of the names given, all without.
func (g *gate) all(names ...string) []sallyport.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []sallyport.Event
	for _, e := range g.events {
		for _, name := range names {
			if e.Name == name {
				out = append(out, e)
			}
		}
		if len(names) == 0 {
			out = append(out, e)
		}
	}
	return out
}

// await waits for the nth event of a name.
func (g *gate) await(t testing.TB, name string, n int) sallyport.Event {
	t.Helper()
	late := time.After(patience)
	for {
		g.mu.Lock()
		changed := g.changed
		g.mu.Unlock()
		if got := g.all(name); len(got) >= n {
			return got[n-1]
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("no event %s number %d; have %v", name, n, g.all())
		}
	}
}

// rig is a Server behind a listener that does what gateway and door do.
type rig struct {
	t       testing.TB
	gate    *gate
	server  *Server
	addr    string
	refusal *sallyport.Problem
	ctx     context.Context
	stop    context.CancelFunc

	listener net.Listener
	wg       sync.WaitGroup
	ended    chan error // what each Serve returned
}

func newRig(t testing.TB, change ...func(*rig)) *rig {
	t.Helper()
	r := &rig{t: t, gate: newGate(), ended: make(chan error, 64)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.server = &Server{
		Cluster:   "gw.example.com",
		CancelTag: func() uint16 { return 0x1234 },
		Roots:     func() *x509.CertPool { return dbCA.pool },
		Certificate: func(_ context.Context, _, user string) (*tls.Certificate, error) {
			return new(dbCA.pair(user)), nil
		},
	}
	for _, f := range change {
		f(r)
	}
	if r.server.Target.Address == "" {
		r.server.Target.Address = theServer(t).Addr
	}
	r.listener = must(net.Listen("tcp", "127.0.0.1:0"))
	r.addr = r.listener.Addr().String()
	r.wg.Add(1)
	go r.accept()
	t.Cleanup(r.close)
	return r
}

// close ends the rig; all calls of Serve must have returned soon after.
func (r *rig) close() {
	r.listener.Close()
	r.stop()
	done := make(chan struct{})
	go func() { r.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		r.t.Errorf("Serve did not return\n%s", buf[:runtime.Stack(buf, true)])
	}
	if n := len(r.server.sessions.byID); n != 0 {
		r.t.Errorf("%d sessions left in the registry", n)
	}
}

func (r *rig) accept() {
	defer r.wg.Done()
	for {
		conn, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.wg.Add(1)
		go r.serve(conn)
	}
}

// serve does the small talk before TLS, and TLS.
func (r *rig) serve(conn net.Conn) {
	defer r.wg.Done()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	var head [8]byte
	if _, err := io.ReadFull(conn, head[:1]); err != nil {
		return
	}
	if head[0] == 0x16 {
		conn = &unread{Conn: conn, r: io.MultiReader(bytes.NewReader(head[:1:1]), conn)}
	} else {
		if _, err := io.ReadFull(conn, head[1:]); err != nil {
			return
		}
		switch binary.BigEndian.Uint32(head[4:]) {
		case sslCode:
			conn.Write([]byte{'S'})
		case cancelCode:
			var id [8]byte
			io.ReadFull(conn, id[:])
			r.server.Cancel(binary.BigEndian.Uint32(id[:]), binary.BigEndian.Uint32(id[4:]))
			return
		default:
			return
		}
	}
	inner := tls.Server(conn, &tls.Config{
		Certificates: []tls.Certificate{hostCert},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: userCA.pool,
		NextProtos: []string{"postgresql"}, SessionTicketsDisabled: true,
	})
	if inner.Handshake() != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	name := inner.ConnectionState().PeerCertificates[0].Subject.CommonName
	r.ended <- r.server.Serve(r.ctx, &session.Candidate{
		Identity:   sallyport.Identity{Kind: sallyport.KindUser, Name: name, Cluster: "gw.example.com"},
		Resource:   sallyport.Resource{Kind: sallyport.KindDatabase, Name: "orders", Protocol: "postgres"},
		ClientAddr: netip.MustParseAddrPort("192.0.2.1:1234"),
		Refusal:    r.refusal,
		Gate:       r.gate,
	}, inner)
}

var hostCert = hostCA.pair("orders.db", "127.0.0.1", "localhost")

// unread is a connection with a byte put back.
type unread struct {
	net.Conn
	r io.Reader
}

func (u *unread) Read(b []byte) (int, error) { return u.r.Read(b) }

func (u *unread) CloseWrite() error { return u.Conn.(*net.TCPConn).CloseWrite() }

// result is what the next Serve that ends returned.
func (r *rig) result() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(patience):
		r.t.Fatal("Serve did not return")
		return nil
	}
}

// clientTLS is the configuration of a client with a user's certificate.
func clientTLS(who string) *tls.Config {
	return &tls.Config{
		RootCAs: hostCA.pool, ServerName: "localhost",
		Certificates: []tls.Certificate{userCA.pair(who)}, NextProtos: []string{"postgresql"},
	}
}

// connect is pgx as a user, logged in as the same database user.
func (r *rig) connect(who string, params ...string) (*pgx.Conn, error) {
	text := fmt.Sprintf("postgres://%s/orders?sslmode=require", r.addr)
	config := must(pgx.ParseConfig(text))
	config.User = who
	config.TLSConfig = clientTLS(who)
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
	conn, err := tls.Dial("tcp", r.addr, clientTLS(who))
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
	cert, key := userCA.issue(who)
	for name, text := range map[string][]byte{"ca": hostCA.pem, "cert": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	host, port, _ := net.SplitHostPort(r.addr)
	return fmt.Sprintf("host=%s port=%s user=%s dbname=orders sslmode=verify-full sslrootcert=%s/ca sslcert=%s/cert sslkey=%s/key connect_timeout=10",
		host, port, who, dir, dir, dir)
}

// admin is a connection straight to the server, as its superuser.
func admin(t testing.TB, s *peer.Server) *pgx.Conn {
	t.Helper()
	config := must(pgx.ParseConfig("postgres://postgres@" + s.Addr + "/postgres?sslmode=require"))
	config.TLSConfig = &tls.Config{RootCAs: dbCA.pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{dbCA.pair("postgres")}}
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
