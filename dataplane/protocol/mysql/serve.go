package mysql

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/session"
)

// Server serves one database server. Its fields are set before the first call
// and not changed; its methods may be called concurrently.
type Server struct {
	Cluster string
	Target  database.Target

	// Certificate is the client certificate for a user of a database, from
	// memory when there is one.
	Certificate func(ctx context.Context, database, user string) (*tls.Certificate, error)

	// Roots are the cluster's database CAs of this moment. nil: only
	// Target.Roots count.
	Roots func() *x509.CertPool

	Bounds Bounds

	memory database.Memory
	rooms  database.Rooms
	ahead  ahead
}

// Bounds limit what one client can use. A zero field means the default.
type Bounds struct {
	Ahead     time.Duration // from the dial to the server's greeting, which the client waits for; 3 s
	Startup   time.Duration // for the client's login; 10 s
	Connect   time.Duration // from the dial to the server's OK; 15 s
	Linger    time.Duration // for the server after the client has ended its half; 30 s
	Farewell  time.Duration // for a client that is sent away to hear why; 800 ms
	Command   int           // bytes of a command that is not a file's; 64 MiB
	Statement int           // bytes of a statement's text that are recorded; 1 MiB
}

func (b Bounds) withDefaults() Bounds {
	set(&b.Ahead, 3*time.Second)
	set(&b.Startup, 10*time.Second)
	set(&b.Connect, 15*time.Second)
	set(&b.Linger, 30*time.Second)
	set(&b.Farewell, 800*time.Millisecond)
	set(&b.Command, 64<<20)
	set(&b.Statement, 1<<20)
	return b
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Serve serves one client on conn, the inside of the TLS connection that the
// door has ended, and closes conn: when the session is over, and at most a
// second after ctx or the session's Context is done. The error, for the caller's
// log, says why the session did not begin or not end in order; the client has
// been told what concerns it.
func (s *Server) Serve(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	defer database.HangUp(conn)
	bounds := s.Bounds.withDefaults()
	m := s.meet(ctx, c)
	defer m.release()
	first, err := s.hello(conn, m, bounds)
	if err != nil {
		return err
	}
	sess, err := c.Open(ctx, s.use(c, first))
	if err != nil {
		database.Dismiss(conn, appendPacket(nil, first.seq, refusalOf(err, faultDenied()).payload()), bounds.Farewell)
		return err
	}
	l := &live{server: s, bounds: bounds, sess: sess, first: first, met: m, client: conn}
	return l.serve(ctx)
}

// hello greets the client, reads its login and checks what needs no role.
func (s *Server) hello(conn net.Conn, m *met, bounds Bounds) (*response, error) {
	conn.SetDeadline(time.Now().Add(bounds.Startup))
	first, err := greet(conn, &m.greeting)
	seq := byte(2)
	if err == nil {
		seq, err = first.seq, first.check(&m.greeting)
	}
	if err != nil {
		if r, ok := errors.AsType[*refusal](err); ok {
			database.Dismiss(conn, appendPacket(nil, seq, r.payload()), bounds.Farewell)
			return nil, r
		}
		return nil, fmt.Errorf("the client did not log in: %w", err)
	}
	conn.SetDeadline(time.Time{}) // the door has proved who it is; roles decide from here
	return first, nil
}

// check refuses what no role can allow.
func (r *response) check(g *greeting) error {
	if r.user == "" {
		return refuse(faultDenied(), sallyport.ErrInvalid, "no database user is named", "give one, for example with mysql -u")
	}
	// The server cuts longer names, and so takes them for others than were
	// authorized (USERNAME_CHAR_LENGTH of MySQL; ub-common-name of a certificate).
	most := 32
	if g.isMariaDB() {
		most = 64
	}
	if n := utf8.RuneCountInString(r.user); n > most {
		return refuse(faultDenied(), sallyport.ErrInvalid, fmt.Sprintf("the database user has %d characters, more than %d", n, most), "")
	}
	// It also takes away quotes around a name (parse_client_handshake_packet).
	if strings.HasPrefix(r.user, "'") || strings.HasSuffix(r.user, "'") {
		return refuse(faultDenied(), sallyport.ErrInvalid, fmt.Sprintf("the database user %q stands in quotes", r.user), "")
	}
	if len(r.schema) > schemaMax {
		return refuse(faultDenied(), sallyport.ErrInvalid, fmt.Sprintf("the database name has %d bytes, more than %d", len(r.schema), schemaMax), "")
	}
	if err := r.checkName("user", r.user); err != nil {
		return err
	}
	return r.checkName("name", r.schema)
}

// checkName refuses a name that the server could read as another one. It reads
// names in the character set that the client announces; letters, digits and most
// signs are the same in all of them, everything else only in UTF-8.
func (r *response) checkName(what, name string) error {
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return refuse(faultDenied(), sallyport.ErrInvalid, fmt.Sprintf("the database %s %q has characters that are not allowed", what, name), "")
	}
	if !isUTF8(r.charset) && strings.ContainsFunc(name, func(c rune) bool { return c >= 0x7f || strings.ContainsRune("@[\\]^`{|}~", c) }) {
		return refuse(faultDenied(), sallyport.ErrInvalid, fmt.Sprintf("the database %s %q is not in UTF-8 for the server", what, name), "connect with --default-character-set=utf8mb4")
	}
	return nil
}

// isUTF8 says that a collation is of utf8mb3 or utf8mb4 (INFORMATION_SCHEMA.COLLATIONS).
func isUTF8(collation byte) bool {
	switch c := collation; {
	case c == 33, c == 45, c == 46, c == 76, c == 83, c == 255, c >= 192 && c <= 247:
		return true
	}
	return false
}

// use is what the client asks for, and the events that go with it.
func (s *Server) use(c *session.Candidate, first *response) session.Use {
	yes, no := true, false
	fields := func() map[string]any {
		return baseFields(c.Resource.Name, s.Target.Address, first.user, first.schema)
	}
	return session.Use{
		DBUser: first.user,
		DBName: first.schema,
		Action: sallyport.ActionConnect,
		Start:  sallyport.Event{Name: "db.session.start", Code: "TDB00I", Success: &yes, Fields: fields()},
		Denied: sallyport.Event{Name: "db.session.start", Code: "TDB00W", Success: &no, Fields: fields()},
		End:    sallyport.Event{Name: "db.session.end", Code: "TDB01I", Fields: fields()},
	}
}

// live is a session that was allowed.
type live struct {
	server *Server
	bounds Bounds
	sess   *session.Session
	first  *response
	met    *met
	client net.Conn
	kills  sync.WaitGroup
}

// serve brings a session that has been opened to its end.
func (l *live) serve(ctx context.Context) (err error) {
	ctx, stop := either(l.sess.Context, ctx)
	defer stop()
	var sum totals
	defer func() { l.sess.End(sum.fields(err)) }()
	defer l.kills.Wait()

	db, ok, err := l.connect(ctx)
	if err != nil {
		database.Dismiss(l.client, appendPacket(nil, l.first.seq, refusalOf(err, faultNotReached()).payload()), l.bounds.Farewell)
		return err
	}
	defer database.HangUp(db.conn)
	l.client.SetWriteDeadline(time.Now().Add(l.bounds.Connect))
	if _, err := l.client.Write(appendPacket(nil, l.first.seq, ok)); err != nil {
		return database.LostClient(err)
	}
	l.client.SetWriteDeadline(time.Time{})
	r := newRelay(l, db)
	err = r.Run(ctx, r)
	sum = r.totals()
	return err
}

// either returns a context that is done when one of two is, with that one's cause.
func either(a, b context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(a)
	stop := context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx, func() { stop(); cancel(nil) }
}

// totals are the figures of a session's end.
type totals struct {
	received, sent int64 // bytes, from and to the client
	errors         int64 // ERR packets of the server
}

func (t totals) fields(err error) map[string]any {
	f := map[string]any{"rx": t.received, "tx": t.sent, "server_errors": t.errors}
	if p, ok := errors.AsType[*sallyport.Problem](err); ok {
		f["error"] = p.Fact
	} else if err != nil && !errors.Is(err, io.EOF) {
		f["error"] = "the connection was lost"
	}
	return f
}
