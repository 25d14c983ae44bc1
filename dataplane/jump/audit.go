package jump

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
)

const (
	proto       = "ssh"
	mode        = "jump"
	maxLogin    = 255 // bytes of a login in an event
	denyTimeout = 5 * time.Second
)

// event is one of somebody who has proved who he is.
func (s *Server) event(user string, client netip.AddrPort, e sallyport.Event) sallyport.Event {
	e.UID, e.Time = uuid.NewString(), time.Now().UTC()
	e.Cluster, e.ServerID, e.User, e.UserKind, e.Addr = s.Cluster, s.GatewayID, user, "human", client.String()
	fields := map[string]any{"proto": proto, "mode": mode}
	maps.Copy(fields, e.Fields)
	e.Fields = fields
	return e
}

// deny writes down who was refused, before he is told.
func (s *Server) deny(ctx context.Context, client netip.AddrPort, login string, r *refusal) {
	login, failed := sshauth.Printable(login, maxLogin), false
	why := []any{"peer", client, "user", r.user, "login", login, "reason", r.problem.Fact}
	if r.problem.Cause != nil {
		why = append(why, "cause", r.problem.Cause)
	}
	s.log().Info("jump: authentication refused", why...)
	s.emit(ctx, s.event(r.user, client, sallyport.Event{Name: "auth", Code: "T3007W", Login: login, Success: &failed,
		Fields: map[string]any{"error": sshauth.Printable(r.problem.Fact, sshauth.MaxText)}}), true)
}

func (s *Server) emit(ctx context.Context, e sallyport.Event, durable bool) {
	if s.Events == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), denyTimeout)
	defer cancel()
	if err := s.Events.Emit(ctx, e, durable); err != nil {
		s.log().Error("jump: event is not in the audit log", "event", e.Name, "user", e.User, "error", err)
	}
}

// refused writes that something was asked for which is not given, at most so
// often that a user cannot fill the log with it from many connections.
func (c *connection) refused(r rule, addr string) {
	if r.fact == "" || !c.place.user.refusals.take(time.Now()) {
		return
	}
	failed := false
	fields := map[string]any{"error": sshauth.Printable(r.fact, sshauth.MaxText), "type": sshauth.Printable(r.name, 64)}
	if addr != "" {
		fields["addr"] = addr
	}
	c.server.emit(c.life, c.server.event(c.identity.Name, c.client, sallyport.Event{Name: "port", Code: "T3003E", Success: &failed, Fields: fields}), false)
}

// carried writes that a way to a node began or ended. What was done there is in
// the node's own events.
func (c *connection) carried(to destination, code string, details map[string]any) {
	yes := true
	fields := map[string]any{"addr": to.text, "server_hostname": to.node}
	maps.Copy(fields, details)
	c.server.emit(c.life, c.server.event(c.identity.Name, c.client, sallyport.Event{Name: "port", Code: code, Success: &yes, Fields: fields}), false)
}

// disconnected writes that somebody had to leave.
func (c *connection) disconnected(why *sallyport.Problem) {
	c.server.log().Info("jump: connection ended", "peer", c.client, "user", c.identity.Name, "reason", why.Fact)
	c.server.emit(c.life, c.server.event(c.identity.Name, c.client, sallyport.Event{Name: "client.disconnect", Code: "T3006I",
		Fields: map[string]any{"reason": why.Fact}}), false)
}

// allowance bounds how often a user can make us write an event: a burst, then
// one per second.
type allowance struct {
	mu    sync.Mutex
	spent int
	last  time.Time
}

const burst = 20

// whole says that nothing of the burst is spent.
func (a *allowance) whole(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.recoverLocked(now)
	return a.spent == 0
}

func (a *allowance) recoverLocked(now time.Time) {
	if back := int(now.Sub(a.last) / time.Second); back > 0 {
		a.spent = max(0, a.spent-back)
		a.last = now
	}
}

func (a *allowance) take(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.recoverLocked(now)
	if a.spent >= burst {
		return false
	}
	a.spent++
	return true
}
