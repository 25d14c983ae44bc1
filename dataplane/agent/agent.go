package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync/atomic"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/access"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// Service serves the resources of one kind and protocol. Serve is called once
// for each client, concurrently.
type Service struct {
	Kind     sallyport.Kind
	Protocol string // databases: "postgres"; "" for kinds that have one
	Serve    access.Handler
}

// Agent is one agent. The fields are set before Run and not changed afterwards.
type Agent struct {
	// Door identifies clients. Run sets its Resources, when they are nil.
	Door *access.Door

	// Tunnel is how gateways are reached. Run sets its Serve.
	Tunnel tunnel.AgentConfig

	// Services is the table of what this program can serve.
	Services []Service

	// Resources is the agent's own configuration, until SetResources. A node
	// has no name of its own: auth gives it one; it is known by ID.
	Resources []sallyport.Resource

	// Assigned are the resources of the newest assignment by auth. It must
	// not block.
	Assigned func() []sallyport.Resource

	Log *slog.Logger // nil: none

	running atomic.Int64
	changed atomic.Pointer[[]sallyport.Resource] // nil while Resources holds
}

// Run keeps the tunnels and serves their streams until ctx is done; then it
// ends all sessions and waits for them. Its error is that of ctx, or says what
// is wrong with the configuration.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.check(); err != nil {
		return err
	}
	cfg := a.Tunnel
	cfg.Serve = a.serve
	return tunnel.RunAgent(ctx, cfg)
}

// Streams is how many streams are being served, strangers included.
func (a *Agent) Streams() int { return int(a.running.Load()) }

// check finds what cannot work before anything is dialed.
func (a *Agent) check() error {
	if a.Door == nil || a.Assigned == nil {
		return errors.New("agent: door and assigned resources are needed")
	}
	if a.Log == nil {
		a.Log = slog.New(slog.DiscardHandler)
	}
	if a.Door.Resources == nil {
		a.Door.Resources = a.resolve
	}
	return a.Check(a.Resources)
}

// SetResources replaces the agent's own configuration, or says what is wrong
// with it. Streams that are being served go on as they began.
func (a *Agent) SetResources(resources []sallyport.Resource) error {
	if err := a.Check(resources); err != nil {
		return err
	}
	a.changed.Store(&resources)
	return nil
}

func (a *Agent) configured() []sallyport.Resource {
	if r := a.changed.Load(); r != nil {
		return *r
	}
	return a.Resources
}

// Check says what is wrong with a configuration of resources.
func (a *Agent) Check(resources []sallyport.Resource) error {
	seen := make(map[[2]string]bool)
	for _, r := range resources {
		if a.service(r) == nil {
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Hint: "see the list of protocols in the reference of the configuration",
				Fact: fmt.Sprintf("resource %s: this version does not serve %s %s", r.Name, r.Kind, r.Protocol)}
		}
		key := [2]string{string(r.Kind), r.Name}
		if r.Kind != sallyport.KindNode && seen[key] {
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Hint: "names of one kind must differ",
				Fact: fmt.Sprintf("resource %s: there are two of kind %s", r.Name, r.Kind)}
		}
		seen[key] = true
	}
	return nil
}

// serve takes one stream through the door to its protocol.
func (a *Agent) serve(ctx context.Context, s *tunnel.Stream) {
	a.running.Add(1)
	defer a.running.Add(-1)
	open := access.Opening{
		ConnectionID: s.ConnectionID, Kind: sallyport.Kind(s.Kind), Name: s.Name,
		Client: s.Client, GatewayID: s.GatewayID, Up: s.Up, Refuse: s.Refuse,
	}
	a.log(s, a.Door.Serve(ctx, s.Conn, open, a.handle))
}

// handle gives a candidate to the service of its resource. A bug in one
// protocol ends one client's connection, not everybody's.
func (a *Agent) handle(ctx context.Context, c *session.Candidate, conn net.Conn) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			a.Log.Error("bug while serving a client", "connection", c.ConnectionID, "resource", c.Resource.Name,
				"panic", fmt.Sprint(bug), "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: internal error", session.ErrCut)
		}
	}()
	s := a.service(c.Resource)
	if s == nil { // auth's assignment cannot bring a protocol that we lack
		return fmt.Errorf("%w: no service for %s %s", session.ErrCut, c.Resource.Kind, c.Resource.Protocol)
	}
	return s.Serve(ctx, c, conn)
}

// log notes why a stream ended. What clients do wrong is audited by the door
// and no news to an operator. That a database does not serve is: its clients are
// told to look here. Other kinds have said so themselves.
func (a *Agent) log(s *tunnel.Stream, err error) {
	if err == nil {
		return
	}
	why := []any{"connection", fmt.Sprintf("%x", s.ConnectionID), "kind", s.Kind, "name", s.Name, "reason", err}
	if cause := unserved(err); cause != nil && s.Kind == string(sallyport.KindDatabase) {
		a.Log.Warn("the database does not serve the agent", append(why, "cause", cause)...)
		return
	}
	a.Log.Debug("stream ended", why...)
}

// unserved is what lies behind an error that is neither the client's doing nor
// the end of the agent or of a session: nothing answered, or it did not take the
// agent's certificate. It is nil for others, among them what our own side cannot do
// (a full spool, auth away: a cause that is a Problem itself) and a server that ends a
// session as it may.
func unserved(err error) error {
	p, ok := errors.AsType[*sallyport.Problem](err)
	if !ok || p.Cause == nil || errors.Is(p.Cause, context.Canceled) || errors.Is(p.Cause, io.EOF) {
		return nil
	}
	if _, ours := errors.AsType[*sallyport.Problem](p.Cause); ours {
		return nil
	}
	alert, ok := errors.AsType[*net.OpError](p.Cause)
	if p.Kind == sallyport.ErrUnavailable || ok && alert.Op == "remote error" { // as crypto/tls calls an alert of the other side
		return p.Cause
	}
	return nil
}

func (a *Agent) service(r sallyport.Resource) *Service {
	for i := range a.Services {
		s := &a.Services[i]
		if s.Kind == r.Kind && (s.Protocol == "" || s.Protocol == r.Protocol) {
			return s
		}
	}
	return nil
}

// resolve finds a resource as this agent serves it: assigned by auth, reached
// as the configuration here says. Auth's word on where to dial is not taken: an
// agent reaches what its own host's owner wrote down.
func (a *Agent) resolve(kind sallyport.Kind, name string) (sallyport.Resource, bool) {
	for _, assigned := range a.Assigned() {
		if assigned.Kind != kind || assigned.Name != name && (kind != sallyport.KindNode || assigned.ID != name) {
			continue
		}
		own, ok := a.own(assigned)
		if !ok {
			return sallyport.Resource{}, false
		}
		own.Name, own.ID, own.AgentID, own.Labels = assigned.Name, assigned.ID, assigned.AgentID, assigned.Labels
		return own, true
	}
	return sallyport.Resource{}, false
}

// own finds the configuration of an assigned resource. There is one node.
func (a *Agent) own(assigned sallyport.Resource) (sallyport.Resource, bool) {
	for _, r := range a.configured() {
		if r.Kind == assigned.Kind && (r.Name == assigned.Name || r.Kind == sallyport.KindNode) {
			return r, true
		}
	}
	return sallyport.Resource{}, false
}
