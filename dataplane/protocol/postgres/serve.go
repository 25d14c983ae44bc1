package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/session"
)

// Server serves one database server. Its fields are set before the first call
// and not changed; its methods may be called concurrently.
type Server struct {
	Cluster string
	Target  database.Target

	// CancelTag is the agent's 16 bits of the process ids that clients get, by
	// which a gateway knows where a cancel request belongs. It is asked once
	// per session. nil: 0.
	CancelTag func() uint16

	// Certificate is the client certificate for a user of a database, from
	// memory when there is one.
	Certificate func(ctx context.Context, database, user string) (*tls.Certificate, error)

	// Roots are the cluster's database CAs of this moment. nil: only
	// Target.Roots count.
	Roots func() *x509.CertPool

	// CancelElsewhere is given a request by a known sender for a session that is
	// not here: it may be in an earlier process. It must not block. nil: nobody.
	CancelElsewhere func(holder sallyport.Identity, pid, key uint32)

	Bounds Bounds
	Log    *slog.Logger // nil: nothing is logged

	sessions registry
	memory   database.Memory
	rooms    database.Rooms
}

// Bounds limit what one client can use. A zero field means the default.
type Bounds struct {
	Startup   time.Duration // for the client's first message; 10 s
	Connect   time.Duration // from the dial to the server's ReadyForQuery; 15 s
	Cancel    time.Duration // for a cancel request to the server; 5 s
	Linger    time.Duration // for the server after the client has ended its half; 30 s
	Farewell  time.Duration // for a client that is sent away to hear why; 800 ms
	Message   uint32        // bytes of a message other than CopyData; 64 MiB
	Statement int           // bytes of a statement's text that are recorded; 1 MiB
}

func (b Bounds) withDefaults() Bounds {
	set(&b.Startup, 10*time.Second)
	set(&b.Connect, 15*time.Second)
	set(&b.Cancel, 5*time.Second)
	set(&b.Linger, 30*time.Second)
	set(&b.Farewell, 800*time.Millisecond)
	set(&b.Message, 64<<20)
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
	first, err := s.hello(conn, bounds)
	if err != nil {
		return err
	}
	if first.cancel != nil {
		s.cancelAs(ctx, c, first.cancel)
		// libpq 17 takes an end that is not in order for a request that has failed.
		database.Dismiss(conn, nil, bounds.Farewell)
		return nil
	}
	l := &live{server: s, bounds: bounds, name: c.Resource.Name, first: first, client: conn}
	use := s.use(c, first)
	use.Meanwhile = l.reach
	if l.sess, err = c.Open(ctx, use); err != nil {
		l.leave()
		database.Dismiss(conn, refusalOf(err, stateNotAuthorized).message(), bounds.Farewell)
		return err
	}
	return l.serve(ctx)
}

// hello reads the client's first message and checks what needs no role.
func (s *Server) hello(conn net.Conn, bounds Bounds) (*startup, error) {
	conn.SetDeadline(time.Now().Add(bounds.Startup))
	first, err := readStartup(conn)
	if err == nil && first.cancel == nil {
		err = first.check()
	}
	if err != nil {
		if r, ok := errors.AsType[*refusal](err); ok {
			database.Dismiss(conn, r.message(), bounds.Farewell)
			return nil, r
		}
		return nil, fmt.Errorf("the client sent no startup message: %w", err)
	}
	conn.SetDeadline(time.Time{}) // the door has proved who it is; roles decide from here
	return first, nil
}

// check refuses what no role can allow.
func (s *startup) check() error {
	if err := checkName("user", s.user); err != nil {
		return err
	}
	if err := checkName("name", s.database); err != nil {
		return err
	}
	switch strings.ToLower(s.replication) {
	case "", "false", "off", "no", "0":
		return nil
	}
	return refuse(stateNotAuthorized, sallyport.ErrDenied, "replication connections are not served", "connect straight to the database for replication")
}

// checkName refuses a name that the server could take for another one than was
// authorized, or that could mislead a reader of the log. Servers before 17 cut
// names of more than 63 bytes; case and quotes need no care, since names in a
// StartupMessage are taken as they are.
func checkName(what, name string) error {
	if len(name) > nameMax {
		return refuse(stateNotAuthorized, sallyport.ErrInvalid, fmt.Sprintf("the database %s has %d bytes, more than %d", what, len(name), nameMax), "")
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return refuse(stateNotAuthorized, sallyport.ErrInvalid, fmt.Sprintf("the database %s %q has characters that are not allowed", what, name), "")
	}
	return nil
}

// use is what the client asks for, and the events that go with it.
func (s *Server) use(c *session.Candidate, first *startup) session.Use {
	yes, no := true, false
	fields := func() map[string]any {
		return baseFields(c.Resource.Name, s.Target.Address, first.user, first.database)
	}
	return session.Use{
		DBUser: first.user,
		DBName: first.database,
		Action: sallyport.ActionConnect,
		Start:  sallyport.Event{Name: "db.session.start", Code: "TDB00I", Success: &yes, Fields: first.fields(fields())},
		Denied: sallyport.Event{Name: "db.session.start", Code: "TDB00W", Success: &no, Fields: first.fields(fields())},
		End:    sallyport.Event{Name: "db.session.end", Code: "TDB01I", Fields: fields()},
	}
}

// live is a session from when it is asked for.
type live struct {
	server *Server
	bounds Bounds
	name   string           // the resource's
	sess   *session.Session // once it was allowed and its start is written down
	first  *startup
	client net.Conn

	once   sync.Once // the database was dialed
	db     *backend  // nil with failed
	failed error

	// What the server lets a cancel request be known by.
	id   keyID
	real pgproto3.BackendKeyData

	cancels sync.WaitGroup // grows only while the registry holds the session
	sending chan struct{}  // holds one token while a cancel request is under way
}

// serve brings a session that has been opened to its end.
func (l *live) serve(ctx context.Context) (err error) {
	ctx, stop := joined(l.sess.Context, ctx)
	defer stop()
	defer l.forget()
	var sum totals
	defer func() { l.sess.End(sum.fields(err)) }()

	l.reach(ctx)
	db, err := l.db, l.failed
	if err != nil {
		database.Dismiss(l.client, refusalOf(err, stateUnableToConnect).message(), l.bounds.Farewell)
		return err
	}
	defer database.HangUp(db.conn)
	if err := l.login(ctx, db); err != nil {
		database.Dismiss(l.client, refusalOf(err, stateUnableToConnect).message(), l.bounds.Farewell)
		return err
	}
	r := newRelay(l, db)
	err = r.Run(ctx, r)
	sum = r.totals()
	return err
}

// joined returns a context that is done when either is, with that one's cause.
func joined(a, b context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(a)
	stop := context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx, func() { stop(); cancel(nil) }
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// totals are the figures of a session's end.
type totals struct {
	received, sent int64 // bytes, from and to the client
	errors         int64 // ErrorResponses of the server
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
