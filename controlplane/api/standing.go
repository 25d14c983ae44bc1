package api

import (
	"context"
	"errors"
	"slices"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/rbac"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// Standing is what a Listener asks before it gives a caller a place.
func (s *Server) Standing(ctx context.Context, c Caller) error { return s.standing(ctx, c) }

// standing refuses certificates that are good and yet good for nothing now. It
// is asked at every call: a connection outlives locks and users. What a host
// may call whose certificate had ended before, the table says.
func (s *Server) standing(ctx context.Context, c Caller) error {
	if c.Refusal != nil {
		return c.Refusal
	}
	if c.Web {
		return s.unlocked(c.Via)
	}
	switch c.Identity.Kind {
	case "", sallyport.KindLocalAdmin:
		return nil
	case sallyport.KindUser:
		if _, err := s.record(ctx, c.Identity); err != nil {
			return err
		}
	}
	if c.EndedKey == nil && !s.cfg.Now().Before(c.Identity.NotAfter) {
		return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "the certificate has ended", Hint: "log in again"}
	}
	return s.unlocked(c.Identity)
}

// record is the user as the record says now, with the certificate's own facts.
// Who is not in the view may have been made a moment ago.
func (s *Server) record(ctx context.Context, id sallyport.Identity) (sallyport.Identity, error) {
	u, ok := s.state.view().users[id.Name]
	if !ok {
		var err error
		u, err = s.cfg.Users.GetUser(ctx, id.Name)
		if errors.Is(err, sallyport.ErrNotFound) {
			return id, &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "this user does not exist any more", Hint: "ask your administrator"}
		}
		if err != nil {
			return id, err
		}
	}
	id.Roles, id.Traits = u.Roles, u.Traits
	return id, nil
}

// asker asks what one caller may do. The certificate and the record must both
// allow: who lost a role has lost it here at once, and who got one logs in for it.
type asker struct {
	policy *rbac.Policy
	as     []sallyport.Identity // empty for the admin socket, which may do everything
}

func (s *Server) asker(ctx context.Context, c Caller) (asker, error) {
	if c.Identity.Kind == sallyport.KindLocalAdmin {
		return asker{}, nil
	}
	if c.Identity.Kind != sallyport.KindUser {
		return asker{}, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "this is for users only"}
	}
	now, err := s.record(ctx, c.Identity)
	if err != nil {
		return asker{}, err
	}
	return asker{s.state.view().policy, []sallyport.Identity{c.Identity, now}}, nil
}

// every asks for all objects of a kind, some for at least one, and named for one.
func (a asker) every(kind, verb string) error {
	return a.each(func(id sallyport.Identity) error { return a.policy.CheckRule(id, kind, verb) })
}

func (a asker) some(kind, verb string) error {
	return a.each(func(id sallyport.Identity) error { return a.policy.CheckRuleSome(id, kind, verb) })
}

func (a asker) named(kind, verb, name string) error {
	return a.each(func(id sallyport.Identity) error { return a.policy.CheckRuleNamed(id, kind, verb, name) })
}

func (a asker) each(ask func(sallyport.Identity) error) error {
	for _, id := range a.as {
		if err := ask(id); err != nil {
			return err
		}
	}
	return nil
}

// check is what the table asks of a caller's roles, before there is a request.
func (s *Server) check(ctx context.Context, c Caller, r rule) error {
	a, err := s.asker(ctx, c)
	if err != nil {
		return err
	}
	if r.named {
		return a.some(r.kind, r.verb)
	}
	return a.every(r.kind, r.verb)
}

// allow is what a handler asks before it acts on the object of that name, or, for
// the audit log, refuses to.
func (s *Server) allow(ctx context.Context, procedure, kind, verb, name string) error {
	c := callerOf(ctx)
	a, err := s.asker(ctx, c)
	if err == nil {
		err = a.named(kind, verb, name)
	}
	if err != nil {
		s.denied(ctx, c, procedure, err)
	}
	return err
}

// among is what a handler asks that shows objects of a kind: which of them, by
// name. Who may see none, whatever there is, is refused.
func (s *Server) among(ctx context.Context, procedure, kind string, verbs ...string) (func(name string) bool, error) {
	c := callerOf(ctx)
	a, err := s.asker(ctx, c)
	all := true
	for _, verb := range verbs {
		if err == nil {
			err = a.some(kind, verb)
			all = all && a.every(kind, verb) == nil
		}
	}
	if err != nil {
		s.denied(ctx, c, procedure, err)
		return nil, err
	}
	return func(name string) bool {
		return all || !slices.ContainsFunc(verbs, func(verb string) bool { return a.named(kind, verb, name) != nil })
	}, nil
}

// denied records a refused call of somebody who has a certificate. The call is
// refused whether that succeeds or not.
func (s *Server) denied(ctx context.Context, c Caller, procedure string, err error) {
	if c.Identity.Kind == "" {
		return
	}
	e := sallyport.Event{Name: audit.AccessDenied, Code: audit.AccessDeniedCode, Fields: map[string]any{"method": procedure}}
	if aerr := s.emitAttempt(ctx, c, c.name(), e, err); aerr != nil {
		s.cfg.Log.Warn("a refused call was not recorded", "method", procedure, "caller", c.name(), "error", aerr)
	}
}

// hostRemoved is what a host is told that was removed.
const hostRemoved = "this host was removed from the cluster"

func removedProblem() error {
	return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: hostRemoved, Hint: "join again with a new token, and an empty data directory"}
}

// unlocked refuses callers that a lock names, and hosts that were removed.
func (s *Server) unlocked(id sallyport.Identity) error {
	if id.Kind != sallyport.KindUser && s.state.view().removed[id.Name] {
		return removedProblem()
	}
	now := s.cfg.Now().Unix()
	for _, l := range s.state.view().locks {
		if l.GetExpires() != 0 && l.GetExpires() <= now {
			continue
		}
		if hits(l, id) {
			fact := "you are locked"
			if l.GetMessage() != "" {
				fact += ": " + l.GetMessage()
			}
			return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: fact, Hint: "ask your administrator"}
		}
	}
	return nil
}

// hits says whether every part of the lock's target that an API caller can have
// is the caller's. A lock on a login is for sessions, not for the API.
func hits(l *sallyportv1.Lock, id sallyport.Identity) bool {
	if l.GetLogin() != "" {
		return false
	}
	parts, hit := 0, true
	match := func(want string, ok bool) {
		if want != "" {
			parts++
			hit = hit && ok
		}
	}
	match(l.GetUser(), id.Kind == sallyport.KindUser && id.Name == l.GetUser())
	match(l.GetRole(), slices.Contains(id.Roles, l.GetRole()))
	match(l.GetServerId(), id.Kind != sallyport.KindUser && id.Name == l.GetServerId())
	match(l.GetMfa(), id.MFA == l.GetMfa())
	match(l.GetRequest(), slices.Contains(id.ActiveRequests, l.GetRequest()))
	return parts > 0 && hit
}

// factOf is what may be told, and logged, of an error.
func factOf(err error) string {
	var p *sallyport.Problem
	if errors.As(err, &p) {
		return p.Fact
	}
	return "internal error"
}
