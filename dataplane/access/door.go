package access

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

const (
	// DefaultHandshakeTimeout is how long a stranger may stay one.
	DefaultHandshakeTimeout = 10 * time.Second

	// DefaultMaxWaiting bounds unfinished handshakes. Each holds a goroutine
	// and a few buffers; a gateway leaves at most 64 of them to one agent.
	DefaultMaxWaiting = 512

	// letGo is how long a protocol may take to close once its session's
	// context is done. Then the door closes the connection.
	letGo = time.Second

	// lingerTime and lingerBytes bound how long the door reads after its own
	// end of the stream: closing a socket with unread bytes resets it, and the
	// peer would lose the last answer.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// Door checks clients and opens sessions. It implements session.Gate. The
// fields are set before first use and not changed afterwards.
type Door struct {
	Cluster     string
	AgentID     string
	Snapshot    Snapshot
	Decider     Decider
	Events      Events
	Credentials Credentials

	// Resources finds what this agent serves by kind and name (nodes: also by
	// UUID). It must not block.
	Resources func(kind sallyport.Kind, name string) (sallyport.Resource, bool)

	// Elsewhere is how many sessions a user has here that this door does not
	// know: those of an earlier process that max_sessions bounds, as SessionsBy
	// counts them there. nil: none.
	Elsewhere func(user string) int64

	Log *slog.Logger
	Now func() time.Time // nil: time.Now

	HandshakeTimeout time.Duration // 0: DefaultHandshakeTimeout
	Handshakes       int           // computed in parallel; 0: twice the cores
	MaxWaiting       int           // handshakes under way; 0: DefaultMaxWaiting

	init     sync.Once
	slots    chan struct{} // one for each handshake that computes
	waiting  atomic.Int64
	refused  counters
	decided  cache
	known    known
	sessions table
}

// Opening is one stream as the tunnel hands it over: who is at the other end
// according to the gateway, and what it wants according to the open frame.
type Opening struct {
	ConnectionID [16]byte
	Kind         sallyport.Kind
	Name         string
	Client       netip.AddrPort
	GatewayID    string // UUID of the gateway whose tunnel carries the stream

	// Up is called once, when the client has proved to hold one of our
	// certificates. Refuse is called instead when it has not, with a short
	// word for counters. Either may be nil.
	Up     func()
	Refuse func(reason string)
}

// Handler serves a candidate on the TLS connection. It may set deadlines; there
// are none when it is called, except for a candidate with a Refusal. The door
// closes the connection when it returns: with TLS's end of stream, or with a
// reset when the error wraps session.ErrCut. The client's end of stream is
// io.EOF only when TLS ended it, where the protocol's id is one of ours.
type Handler func(ctx context.Context, c *session.Candidate, conn net.Conn) error

// Serve takes conn over, identifies the client and calls serve. It returns when
// the connection is closed. Sessions end when ctx is done.
func (d *Door) Serve(ctx context.Context, conn net.Conn, open Opening, serve Handler) error {
	d.setUp()
	v := &visit{door: d, open: open, raw: conn}
	defer conn.Close()
	tc, err := v.handshake(ctx)
	if err != nil {
		v.refuse(err)
		return err
	}
	if open.Up != nil {
		open.Up()
	}
	c := v.candidate(tc.Conn)
	stop := context.AfterFunc(ctx, v.cutLater)
	defer stop()
	err = serve(ctx, c, stream(c, tc))
	v.endAll()
	v.auditRefusal(ctx, c)
	if errors.Is(err, session.ErrCut) {
		v.cut()
		return err
	}
	linger(tc.Conn, conn)
	return err
}

// stream is what a protocol gets: for the ids that are ours, a stream whose end
// is proven; else the *tls.Conn itself, as servers of HTTP want it.
func stream(c *session.Candidate, tc *whole) net.Conn {
	if strings.HasPrefix(c.ALPN, "sallyport-") {
		return tc
	}
	return tc.Conn
}

// setUp fills in what the zero value leaves out.
func (d *Door) setUp() {
	d.init.Do(func() {
		if d.Now == nil {
			d.Now = time.Now
		}
		if d.Log == nil {
			d.Log = slog.New(slog.DiscardHandler)
		}
		if d.HandshakeTimeout <= 0 {
			d.HandshakeTimeout = DefaultHandshakeTimeout
		}
		if d.Handshakes <= 0 {
			d.Handshakes = 2 * runtime.GOMAXPROCS(0)
		}
		if d.MaxWaiting <= 0 {
			d.MaxWaiting = DefaultMaxWaiting
		}
		d.slots = make(chan struct{}, d.Handshakes)
	})
}

// Refused counts strangers turned away, by reason.
func (d *Door) Refused() map[string]uint64 { return d.refused.all() }

// Sessions is the number of open sessions.
func (d *Door) Sessions() int { return d.sessions.len() }

// SessionsBy counts open sessions by kind of resource, and those that max_sessions
// bounds by user.
func (d *Door) SessionsBy() (kinds, users map[string]int64) { return d.sessions.by() }

// visit is one connection at the door. It stands as Gate in the candidate, so
// that a session knows the connection that it must not outlive.
type visit struct {
	door *Door
	open Opening
	raw  net.Conn

	hello   hello   // of the handshake; set on its goroutine
	verdict verdict // same
	audited atomic.Bool

	mu   sync.Mutex
	live map[*live]struct{} // sessions that have not ended
}

func (v *visit) candidate(tc *tls.Conn) *session.Candidate {
	if v.verdict.refusal != nil {
		// Enough to read the first message and to tell the reason.
		tc.SetDeadline(time.Now().Add(v.door.HandshakeTimeout))
	}
	return &session.Candidate{
		Identity:     v.verdict.identity,
		Resource:     v.hello.resource,
		ClientAddr:   v.open.Client,
		LocalAddr:    localAddr(v.raw),
		ConnectionID: v.id(),
		ALPN:         tc.ConnectionState().NegotiatedProtocol,
		Refusal:      v.verdict.refusal,
		Gate:         v,
	}
}

func localAddr(conn net.Conn) netip.AddrPort {
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func (v *visit) id() string { return hex.EncodeToString(v.open.ConnectionID[:]) }

// Admit meets session.Gate.
func (v *visit) Admit(id sallyport.Identity, addr netip.AddrPort) *sallyport.Problem {
	return v.door.Admit(id, addr)
}

// Open meets session.Gate.
func (v *visit) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	v.audited.Store(true)
	return v.door.openSession(ctx, c, use, v)
}

// auditRefusal writes the refusal down when the protocol told it to the client
// without asking for a session.
func (v *visit) auditRefusal(ctx context.Context, c *session.Candidate) {
	if v.verdict.refusal == nil || v.audited.Load() {
		return
	}
	v.door.auditDenial(ctx, c, session.Use{Denied: denialOf(c.Resource.Kind)}, v.verdict.refusal.Fact)
}

func (v *visit) add(l *live) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.live == nil {
		v.live = make(map[*live]struct{})
	}
	v.live[l] = struct{}{}
}

func (v *visit) remove(l *live) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.live, l)
}

// endAll ends what the protocol left open.
func (v *visit) endAll() {
	v.mu.Lock()
	left := slices.Collect(maps.Keys(v.live))
	v.mu.Unlock()
	for _, l := range left {
		l.end(nil)
	}
}

// cutLater closes the connection of a protocol that does not let go.
func (v *visit) cutLater() { time.AfterFunc(letGo, v.cut) }

// cut closes with a reset, where there is one: TLS clients that do not insist on
// close_notify would take a plain end for the end of the stream.
func (v *visit) cut() {
	if l, ok := v.raw.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	v.raw.Close()
}

// refuse counts a stranger. The reason is for the operator; the stranger has
// seen an alert.
func (v *visit) refuse(err error) {
	reason := reasonOf(err)
	v.door.refused.add(reason)
	v.door.Log.Debug("client refused", "connection", v.id(), "client", v.open.Client, "gateway", v.open.GatewayID,
		"kind", v.open.Kind, "name", v.open.Name, "reason", reason, "error", err)
	if v.open.Refuse != nil {
		v.open.Refuse(reason)
	}
}

// linger ends the TLS stream and waits for the client to end its own.
func linger(tc *tls.Conn, raw net.Conn) {
	// Not a deadline: CloseWrite sets its own, which is longer.
	timer := time.AfterFunc(lingerTime, func() { raw.Close() })
	defer timer.Stop()
	raw.SetReadDeadline(time.Time{}) // the protocol's own may have passed
	if err := tc.CloseWrite(); err != nil {
		return
	}
	if half, ok := raw.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil {
			return
		}
	}
	io.CopyN(io.Discard, raw, lingerBytes)
}

// counters counts by reason. Reasons are words of this package, so the map is
// bounded.
type counters struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (c *counters) add(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]uint64)
	}
	c.n[reason]++
}

func (c *counters) all() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

// stranger is why a client was refused before it was anybody.
type stranger struct {
	reason string
	err    error
}

// Reasons for counters.
const (
	refusedBusy        = "busy"
	refusedName        = "name"
	refusedALPN        = "alpn"
	refusedCertificate = "certificate"
	refusedTimeout     = "timeout"
	refusedHandshake   = "handshake"
	refusedShutdown    = "shutdown"
	refusedNoTrust     = "no-trust"
)

func (s *stranger) Error() string { return s.err.Error() }
func (s *stranger) Unwrap() error { return s.err }

func reasonOf(err error) string {
	var s *stranger
	if errors.As(err, &s) {
		return s.reason
	}
	return refusedHandshake
}
