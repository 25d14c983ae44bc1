package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"time"

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
}

// Bounds limit what one client can use. A zero field means the default.
type Bounds struct {
	Startup  time.Duration // for the client's first command; 60 s
	Login    time.Duration // for a user whom the server accepts, from there; 60 s
	Connect  time.Duration // from the dial to the server's first answer; 15 s
	Linger   time.Duration // for the server after the client has ended its half; 30 s
	Farewell time.Duration // for a client that is sent away to hear why; 800 ms
	Script   int           // bytes of a script that are recorded; 1 MiB
}

func (b Bounds) withDefaults() Bounds {
	set(&b.Startup, 60*time.Second)
	set(&b.Login, 60*time.Second)
	set(&b.Connect, 15*time.Second)
	set(&b.Linger, 30*time.Second)
	set(&b.Farewell, 800*time.Millisecond)
	set(&b.Script, 1<<20)
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
	in := &inlet{conn: conn, split: &splitter{}}
	first, err := in.first(bounds)
	if err != nil {
		return err
	}
	l := &live{server: s, bounds: bounds, name: c.Resource.Name, user: first.user, in: in, client: conn}
	use := s.use(c, first.user)
	use.Meanwhile = l.reach
	if l.sess, err = c.Open(ctx, use); err != nil {
		l.leave()
		database.Dismiss(conn, denied(err, first).reply(), bounds.Farewell)
		return err
	}
	return l.serve(ctx, first)
}

// denied is what a client hears whose user is not allowed. One that named none
// would have been the server's "default".
func denied(err error, w *credentials) *refusal {
	r := refusalOf(err, codeNoPerm)
	if w.named || !errors.Is(err, sallyport.ErrDenied) {
		return r
	}
	hint := "name another database user first: AUTH NAME PASSWORD, where any password will do if the server asks for none"
	if r.Hint != "" {
		hint = r.Hint + "; or " + hint
	}
	return refuse(codeNoAuth, sallyport.ErrDenied, r.Fact, hint).because(err)
}

// use is what the client asks for, and the events that go with it.
func (s *Server) use(c *session.Candidate, user string) session.Use {
	yes, no := true, false
	fields := func() map[string]any { return baseFields(c.Resource.Name, s.Target.Address, user) }
	return session.Use{
		DBUser: user,
		Action: sallyport.ActionConnect,
		Start:  sallyport.Event{Name: "db.session.start", Code: "TDB00I", Success: &yes, Fields: fields()},
		Denied: sallyport.Event{Name: "db.session.start", Code: "TDB00W", Success: &no, Fields: fields()},
		End:    sallyport.Event{Name: "db.session.end", Code: "TDB01I", Fields: fields()},
	}
}

// live is a session from when it is asked for.
type live struct {
	server *Server
	bounds Bounds
	name   string           // the resource's
	sess   *session.Session // once it was allowed and its start is written down
	user   string
	in     *inlet
	client net.Conn

	once   sync.Once // the database was dialed
	db     *backend  // nil with failed
	failed error

	proved bool // the server takes us for the user without a password
}

// serve brings a session that has been opened to its end.
func (l *live) serve(ctx context.Context, first *credentials) (err error) {
	ctx, stop := either(l.sess.Context, ctx)
	defer stop()
	var sum totals
	defer func() { l.sess.End(sum.fields(err)) }()

	l.reach(ctx)
	db, err := l.db, l.failed
	if err != nil {
		database.Dismiss(l.client, refusalOf(err, codeError).reply(), l.bounds.Farewell)
		return err
	}
	defer database.HangUp(db)
	ahead, err := l.login(ctx, db, first)
	if err != nil {
		if r, ok := errors.AsType[*refusal](err); ok {
			database.Dismiss(l.client, r.reply(), l.bounds.Farewell)
		}
		return err
	}
	r := newRelay(l, db, ahead)
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
	errors         int64 // of the server
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
