package tcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

const (
	// Protocol is the id whose clients are greeted.
	Protocol = "sallyport-tcp/1"

	dialTimeout  = 10 * time.Second
	greetTimeout = 10 * time.Second
	maxText      = 1024     // bytes of a greeting's fact or hint
	bufferSize   = 32 << 10 // of one direction

	greetOpen    = 0
	greetRefused = 1
)

// Server serves TCP resources. The zero value works.
type Server struct {
	// Dial reaches the target of a resource; nil for net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger // nil: none

	buffers sync.Pool // of *[bufferSize]byte, for directions that have ended
}

// Serve carries one client's stream. It is an access.Handler.
func (s *Server) Serve(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	far := &far{server: s, resource: c.Resource}
	use := use(c)
	use.Meanwhile = far.reach
	sess, err := c.Open(ctx, use)
	if err != nil {
		far.drop()
		return refuse(c, conn, err)
	}
	var moved traffic
	defer func() { sess.End(moved.fields()) }()
	target, err := far.of(sess)
	if err != nil {
		moved.failed = err
		return refuse(c, conn, err)
	}
	defer target.Close()
	if err := greet(c, conn, []byte{greetOpen}); err != nil {
		return err
	}
	client, stop := session.Idle(sess, conn)
	defer stop()
	if err := s.join(sess.Context, client, target, &moved); err != nil {
		moved.failed = err
		return fmt.Errorf("%w: %w", session.ErrCut, err)
	}
	return nil
}

// far is the connection to the target. It is made while the session's start is
// being written down; nothing passes on it before that is done.
type far struct {
	server   *Server
	resource sallyport.Resource

	once sync.Once
	conn net.Conn // nil with err
	err  error
}

// reach dials, the first time that it is called; later calls wait for that.
func (f *far) reach(ctx context.Context) {
	f.once.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		dial := f.server.Dial
		if dial == nil {
			dial = (&net.Dialer{}).DialContext
		}
		f.conn, f.err = dial(ctx, "tcp", strings.TrimPrefix(f.resource.Address, "tcp://"))
	})
}

// drop is for a session that was refused.
func (f *far) drop() {
	if f.conn != nil {
		abort(f.conn)
	}
}

// of returns the connection for a session that has begun.
func (f *far) of(sess *session.Session) (net.Conn, error) {
	f.reach(sess.Context)
	if sess.Context.Err() != nil { // perhaps while the start was being written down
		f.drop()
		return nil, ended(sess.Context)
	}
	if f.err == nil {
		return f.conn, nil
	}
	if f.server.Log != nil {
		f.server.Log.Warn("target does not answer", "session", sess.ID, "resource", f.resource.Name, "error", f.err)
	}
	return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: f.err,
		Fact: "resource " + f.resource.Name + ": the target does not answer", Hint: "check that it runs, or tell its owner"}
}

// ended says why a session that must end now does.
func ended(ctx context.Context) *sallyport.Problem {
	if why, ok := errors.AsType[*sallyport.Problem](context.Cause(ctx)); ok {
		return why
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: context.Cause(ctx),
		Fact: "the session was ended by the agent", Hint: "connect again"}
}

// refuse tells the reason to a client that knows greetings.
func refuse(c *session.Candidate, conn net.Conn, err error) error {
	fact, hint := err.Error(), ""
	var p *sallyport.Problem
	if errors.As(err, &p) {
		fact, hint = p.Fact, p.Hint
	}
	b := appendText([]byte{greetRefused}, fact)
	if werr := greet(c, conn, appendText(b, hint)); werr != nil {
		return errors.Join(err, werr)
	}
	return err
}

// appendText cuts at a rune's border.
func appendText(b []byte, s string) []byte {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func greet(c *session.Candidate, conn net.Conn, greeting []byte) error {
	if c.ALPN != Protocol {
		return nil
	}
	if err := conn.SetWriteDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(greeting); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

// traffic counts what a session moved: rx from the client, tx to it.
type traffic struct {
	rx, tx atomic.Int64
	failed error
}

// join carries bytes both ways until both directions have ended, one has
// failed, or ctx is done. An error means that not all bytes arrived.
func (s *Server) join(ctx context.Context, client, target net.Conn, moved *traffic) error {
	cut := func() {
		// The client's connection is not ours to close.
		client.SetDeadline(time.Unix(1, 0))
		abort(target)
	}
	stop := context.AfterFunc(ctx, cut)
	defer stop()
	var once sync.Once
	var first error // what fails after it does so because of the cut
	carry := func(dst, src net.Conn, n *atomic.Int64) {
		if err := s.carry(dst, src, n); err != nil {
			once.Do(func() { first = err; cut() })
		}
	}
	var down sync.WaitGroup
	down.Go(func() { carry(client, target, &moved.tx) })
	// Here, and not in a goroutine of its own: its stack would wait as long as the
	// session, and what the client has sent already would wait for it.
	carry(target, client, &moved.rx)
	down.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return first
}

// abort closes with a reset: the other end must not take it for an end.
func abort(c net.Conn) {
	if tc, ok := c.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	c.Close()
}

// carry copies one direction and ends it.
func (s *Server) carry(dst, src net.Conn, n *atomic.Int64) error {
	room, _ := s.buffers.Get().(*[bufferSize]byte)
	if room == nil {
		room = new([bufferSize]byte)
	}
	defer s.buffers.Put(room)
	buf := room[:]
	for {
		r, err := src.Read(buf)
		if r > 0 {
			w, werr := dst.Write(buf[:r])
			n.Add(int64(w))
			if werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return closeWrite(dst)
		}
		if err != nil {
			return err
		}
	}
}

func closeWrite(c net.Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T cannot be half closed", c)
	}
	if err := half.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) && !isNotConnected(err) {
		return err
	}
	return nil
}
