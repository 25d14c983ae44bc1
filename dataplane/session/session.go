// Package session is one authorized use of a resource, as a protocol sees it.
//
// A protocol gets a Candidate: a client whose certificate chains to our CA. It
// reads what the client wants in its own language, calls Open, and gets either
// a Session or the reason to tell the client, again in its own language.
//
//	Candidate ──Open(Use)──▶ Session ──End──▶ (events: start … end)
//	     └─ Refusal / *sallyport.Problem: tell it in the protocol's own error
package session

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport"
)

// ErrCut, wrapped in what a protocol returns, makes the door reset the client's
// connection in place of TLS's end of stream (close_notify): the client can then
// tell a stream that broke off from one that ended.
var ErrCut = errors.New("stream cut")

// Gate decides and records; access.Door is the one implementation.
// All methods may be called concurrently.
type Gate interface {
	// Admit checks an identity that arrives by another certificate than the
	// outer one (SSH): expiry, lock, pinned address, cluster, freshness of the
	// snapshot. It returns nil or the refusal.
	Admit(id sallyport.Identity, addr netip.AddrPort) *sallyport.Problem

	// Open decides about the use, and when it is allowed makes the session's
	// start durable in the audit log before it returns. A denial is audited
	// here too. The error is a *sallyport.Problem.
	Open(ctx context.Context, c *Candidate, use Use) (*Session, error)
}

// Candidate is a client that has proved who it is and has not yet said what
// it wants.
type Candidate struct {
	Identity     sallyport.Identity
	Resource     sallyport.Resource
	ClientAddr   netip.AddrPort
	LocalAddr    netip.AddrPort // this end of the stream; not valid where it is no socket's
	ConnectionID string         // hex; the same in the gateway's log
	ALPN         string

	// Refusal is why this client gets no session whatever it asks for
	// (expired, locked, pinned elsewhere), or nil. A protocol reads the
	// client's first message, answers with Refusal.Fact in its own error, and
	// closes. Open returns it too.
	Refusal *sallyport.Problem

	Gate Gate
}

// Open asks for a use. See Gate.Open.
func (c *Candidate) Open(ctx context.Context, use Use) (*Session, error) {
	return c.Gate.Open(ctx, c, use)
}

// Use is what a client asks for, read from its protocol.
type Use struct {
	Login   string // nodes
	DBUser  string // databases
	DBName  string
	AWSRole string           // applications at AWS: the ARN of the role
	Action  sallyport.Action // empty: connect

	// Start is the event that marks the start, with the protocol's own
	// fields; Open fills in the common ones. Denied is the event of a denial
	// (for example session.rejected, or db.session.start with code TDB00W).
	Start  sallyport.Event
	Denied sallyport.Event

	// End is the event that Session.End completes and emits.
	End sallyport.Event

	// Meanwhile, when not nil, is called once the use is allowed, while its start
	// is being made durable, which takes as long as a disk does. It may connect to
	// the resource, and passes nothing of the client's on: not before Open has
	// returned. ctx is the session's. Open returns when Meanwhile has.
	Meanwhile func(ctx context.Context)
}

// TooMany is the event of a session that max_sessions, which is most, keeps from
// starting. fields are the protocol's own, and are not changed.
func TooMany(most int64, fields map[string]any) sallyport.Event {
	e := sallyport.Event{Name: "session.rejected", Code: "T1006W", Fields: map[string]any{}}
	maps.Copy(e.Fields, fields)
	e.Fields["reason"], e.Fields["max"] = "max_sessions limit reached", most
	return e
}

// Sink takes events. Emit returns once the event is in the spool, without waiting
// for a disk that keeps up, or with the reason why it is not; with durable it returns after the spool's fsync, and an error means
// that it is not there.
type Sink interface {
	Emit(ctx context.Context, e sallyport.Event, durable bool) error
}

// Session is one use that was allowed. It ends when the protocol calls End, or
// before, when Context is done: a lock, an expiry, a shutdown. The protocol
// watches Context and then closes within a second.
type Session struct {
	ID        string
	Identity  sallyport.Identity
	Resource  sallyport.Resource
	Principal string // the login, the database user or the role of AWS
	DBName    string
	Options   sallyport.Options
	Client    netip.AddrPort
	Started   time.Time

	// Context is done when the session must end; context.Cause is a
	// *sallyport.Problem with the fact to tell the user.
	Context context.Context

	// Allow asks for a further action within the session (a forward, an
	// agent); nil means yes. Denials are audited.
	Allow func(a sallyport.Action) *sallyport.Problem

	// Kube says what the roles of this moment grant on a Kubernetes cluster; nil
	// for other kinds. It is asked for each request and costs little.
	Kube func() (sallyport.KubeGrant, *sallyport.Problem)

	// Emit adds the session's common fields and spools the event. When that cannot
	// be, Context is done when it returns: what the event was to tell of is not to
	// be, where it has not been yet.
	Emit func(e sallyport.Event)

	// Cancel makes Context done with this cause, which the user is told; the
	// protocol then closes as for any other. It is idempotent. May be nil.
	Cancel func(cause *sallyport.Problem)

	// End emits the end event with the fields given, durably, and releases
	// the session. It is idempotent and must be called.
	End func(fields map[string]any)
}
