package kube

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/oneconn"
	"github.com/sallyport/sallyport/dataplane/session"
)

// Server serves one Kubernetes cluster. Its fields are set before the first
// call and not changed; its methods may be called concurrently.
type Server struct {
	Target *Target
	Bounds Bounds
	Log    *slog.Logger // nil: nothing is logged

	init  sync.Once
	proxy http.Handler
	held  held // of requests
	shown held // of answers
}

// Bounds limit what one client can use. A zero field means the default.
type Bounds struct {
	Header  time.Duration // for a request's header; 10 s
	Body    time.Duration // for a request's body; 2 min
	Idle    time.Duration // between requests; 3 min
	Stalled time.Duration // for a client that does not read; 2 min
	Streams int           // requests at a time on one HTTP/2 connection; 250, as API servers have it
	Size    int64         // bytes of a request's body; 8 MiB, API servers take 3
}

const maxHeader = 64 << 10

func (b Bounds) withDefaults() Bounds {
	set(&b.Header, 10*time.Second)
	set(&b.Body, 2*time.Minute)
	set(&b.Idle, 3*time.Minute)
	set(&b.Stalled, 2*time.Minute)
	set(&b.Streams, 250)
	set(&b.Size, 8<<20)
	return b
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Serve serves one client on conn, the inside of the TLS connection that the
// door has ended, and closes conn: when the client is done, and at most a second
// after ctx or the session's Context is done.
func (s *Server) Serve(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	s.init.Do(func() {
		s.proxy = s.newProxy()
		s.shown.ofUser, s.shown.ofAll = cmp.Or(s.shown.ofUser, shownToUser), cmp.Or(s.shown.ofAll, shownToAll)
	})
	defer conn.Close()
	l := &live{server: s, bounds: s.Bounds.withDefaults(), candidate: c}
	sess, err := c.Open(ctx, connection(c))
	if err != nil {
		if !errors.As(err, &l.refusal) {
			return err
		}
	} else {
		defer sess.End(nil)
		l.sess = sess
		watched, stop := session.Idle(sess, conn)
		defer stop()
		conn = watched
		var done func()
		ctx, done = joined(sess.Context, ctx)
		defer done()
	}
	l.serve(ctx, conn)
	return err
}

// live is one client's connection.
type live struct {
	server    *Server
	bounds    Bounds
	candidate *session.Candidate
	sess      *session.Session   // nil: refused
	refusal   *sallyport.Problem // why
	conn      *connected
	http      oneconn.Server
	farewells farewells
}

// serve speaks HTTP until the connection is closed, and waits for all requests.
func (l *live) serve(ctx context.Context, conn net.Conn) {
	l.conn = &connected{Conn: conn, stalled: l.bounds.Stalled}
	l.http.Handler, l.http.MaxHead, l.http.HeadTime, l.http.IdleTime = l, maxHeader, l.bounds.Header, l.bounds.Idle
	l.http.ErrorLog = log.New(io.Discard, "", 0) // what clients do wrong is no news
	l.http.Parting = l.farewells.part
	if l.candidate.ALPN == "h2" {
		l.http.Protocols.SetUnencryptedHTTP2(true) // TLS has been ended before
	} else {
		l.http.Protocols.SetHTTP1(true)
	}
	l.http.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: l.bounds.Streams, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second,
		WriteByteTimeout: l.bounds.Stalled,
	}
	stop := context.AfterFunc(ctx, l.conn.cut)
	defer stop()
	l.http.Serve(ctx, l.conn)
}

// connected is the client's connection. It counts, and it does not wait forever
// for a client that does not read, except within a stream: there a person may
// have stopped the terminal.
type connected struct {
	net.Conn
	stalled  time.Duration
	stream   atomic.Bool
	over     atomic.Bool // no stream goes on
	in, out  atomic.Int64
	deadline time.Time // of writes; written by the one writer
}

func (c *connected) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(int64(n))
	return n, err
}

func (c *connected) Write(p []byte) (int, error) {
	if now := time.Now(); !c.stream.Load() && c.deadline.Sub(now) < c.stalled/2 {
		c.deadline = now.Add(c.stalled)
		if err := c.Conn.SetWriteDeadline(c.deadline); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n))
	return n, err
}

// CloseWrite passes a half-close on: port-forwards end one way first.
func (c *connected) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// switched lifts the limits of HTTP: from here on bytes are the stream's, whose
// peer has proved who it is.
func (c *connected) switched() {
	c.stream.Store(true)
	c.Conn.SetDeadline(time.Time{})
	if c.over.Load() {
		c.Close()
	}
}

// cut closes a stream, which is not the HTTP server's any more, and one that is about
// to begin.
func (c *connected) cut() {
	c.over.Store(true)
	if c.stream.Load() {
		c.Close()
	}
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
