package access

import (
	"context"
	"maps"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// auditTimeout bounds the wait for the spool once a client is gone.
const auditTimeout = 10 * time.Second

// auditContext outlives the connection: what happened is written down.
func auditContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
}

// auditDenial writes a denial down. When that fails the denial stands all the
// same, and the log has it.
func (d *Door) auditDenial(ctx context.Context, c *session.Candidate, use session.Use, fact string) {
	ctx, cancel := auditContext(ctx)
	defer cancel()
	e := use.Denied
	if e.Name == "" {
		e = denialOf(c.Resource.Kind)
	}
	e = d.common(e, c)
	e.Login = first(e.Login, use.Login)
	e.Success = no()
	put(e.Fields, "error", fact)
	who(e.Fields, c.Identity)
	if use.Action != "" && use.Action != sallyport.ActionConnect {
		put(e.Fields, "action", string(use.Action))
	}
	if err := d.Events.Emit(ctx, e, true); err != nil {
		d.Log.Error("denial is not in the audit log", "event", e.Name, "user", e.User, "reason", fact, "error", err)
	}
}

// denialOf is the event of a denial that the protocol has no words for.
func denialOf(kind sallyport.Kind) sallyport.Event {
	switch kind {
	case sallyport.KindDatabase:
		return sallyport.Event{Name: "db.session.start", Code: "TDB00W"}
	case sallyport.KindApp, sallyport.KindTCP:
		return sallyport.Event{Name: "app.session.start", Code: "T2007E"}
	case sallyport.KindKube:
		return sallyport.Event{Name: "kube.request", Code: "T3009I"}
	case sallyport.KindDesktop:
		return sallyport.Event{Name: "windows.desktop.session.start", Code: "TDP00W"}
	}
	return sallyport.Event{Name: "session.rejected", Code: "T1006W"}
}

func disconnectEvent(reason string) sallyport.Event {
	return sallyport.Event{Name: "client.disconnect", Code: "T3006I", Fields: map[string]any{"reason": reason}}
}

// auditDisconnect writes down what ended the session.
func (l *live) auditDisconnect(reason string) {
	ctx, cancel := auditContext(l.session.Context)
	defer cancel()
	e := l.complete(disconnectEvent(reason), nil)
	who(e.Fields, l.client.Identity)
	if err := l.door.Events.Emit(ctx, e, false); err != nil {
		l.door.Log.Error("event is not in the audit log", "event", "client.disconnect", "session", l.session.ID, "error", err)
	}
}

// auditEnd writes the end down, with how long it took.
func (l *live) auditEnd(fields map[string]any) {
	ctx, cancel := auditContext(l.session.Context)
	defer cancel()
	e := l.complete(l.use.End, nil)
	if e.Name == "" {
		return
	}
	maps.Copy(e.Fields, fields)
	who(e.Fields, l.client.Identity)
	stopped := l.door.Now()
	put(e.Fields, "session_start", milli(l.session.Started))
	put(e.Fields, "session_stop", milli(stopped))
	put(e.Fields, "duration_ms", stopped.Sub(l.session.Started).Milliseconds())
	if err := l.door.Events.Emit(ctx, e, true); err != nil {
		l.door.Log.Error("end of session is not in the audit log", "session", l.session.ID, "error", err)
	}
}

// emit meets Session.Emit. There is no bound on the time but the sink's own, until
// the session ends: a timer for each statement of a database would cost more than
// its event. Of a session that has ended nothing waits, however much is left to tell.
func (l *live) emit(e sallyport.Event) {
	ended := l.session.Context.Err() != nil
	err := l.door.Events.Emit(l.session.Context, l.complete(e, nil), false)
	switch {
	case err == nil:
		return
	case ended && l.lost.Swap(true): // there may be thousands: the first is told
		l.door.Log.Debug("event is not in the audit log", "event", e.Name, "session", l.session.ID, "error", err)
		return
	}
	l.door.Log.Error("event is not in the audit log", "event", e.Name, "session", l.session.ID, "after_its_end", ended, "error", err)
	if e.Name == "resize" { // it tells how to show a session, not what was done
		return
	}
	l.stop(&sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err,
		Fact: "the session ended: the audit log takes no more events", Hint: "tell your administrator"})
}

// complete adds the session's common fields, and numbers its events.
func (l *live) complete(e sallyport.Event, success *bool) sallyport.Event {
	e = l.door.common(e, &l.client)
	e.SessionID = l.session.ID
	e.Login = first(e.Login, l.use.Login)
	put(e.Fields, "private_key_policy", "none") // a key may be anywhere: no role asks for one in hardware
	if n := l.events.Add(1) - 1; n > 0 {
		put(e.Fields, "ei", n)
	}
	if e.Success == nil {
		e.Success = success
	}
	return e
}

// common fills in what every event of a client has, and leaves alone what the
// protocol has said itself. The fields are the event's own afterwards.
func (d *Door) common(e sallyport.Event, c *session.Candidate) sallyport.Event {
	id, r := c.Identity, c.Resource
	e.UID = first(e.UID, uuid.NewString())
	if e.Time.IsZero() {
		e.Time = d.Now()
	}
	e.Cluster = first(e.Cluster, d.Cluster)
	e.User = first(e.User, id.Name)
	e.UserKind = first(e.UserKind, kindOf(id))
	e.ServerID = first(e.ServerID, d.AgentID)
	if c.ClientAddr.IsValid() {
		e.Addr = first(e.Addr, c.ClientAddr.String())
	}
	room := 8 // for an event of a statement: a larger map takes twice the memory
	if r.Kind == sallyport.KindNode {
		room = 12
	}
	fields := make(map[string]any, len(e.Fields)+room)
	maps.Copy(fields, e.Fields)
	e.Fields = fields
	put(fields, "connection_id", c.ConnectionID)
	put(fields, "server_hostname", r.Hostname)
	put(fields, "server_version", r.Version)
	put(fields, "namespace", "default") // there is one
	if c.LocalAddr.IsValid() && r.Kind == sallyport.KindNode {
		put(fields, "addr.local", c.LocalAddr.String())
	}
	put(fields, "with_mfa", id.MFA)
	if len(r.Labels) > 0 && r.Kind == sallyport.KindNode {
		put(fields, "server_labels", maps.Clone(r.Labels))
	}
	if len(id.Roles) > 0 {
		put(fields, "user_roles", id.Roles)
	}
	if len(id.ActiveRequests) > 0 {
		put(fields, "access_requests", id.ActiveRequests)
	}
	return e
}

// who adds what else is known of a person to the events that begin and end a session:
// each of its statements would be longer by it.
func who(fields map[string]any, id sallyport.Identity) {
	put(fields, "user_cluster_name", id.Cluster)
	if len(id.Traits) > 0 {
		put(fields, "user_traits", id.Traits)
	}
}

func kindOf(id sallyport.Identity) string {
	if id.Kind == sallyport.KindUser {
		return "human"
	}
	return string(id.Kind)
}

// put sets a field that says something and is not there yet.
func put(fields map[string]any, name string, value any) {
	if _, set := fields[name]; set || value == "" {
		return
	}
	fields[name] = value
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func yes() *bool { b := true; return &b }
func no() *bool  { b := false; return &b }

// milli is how events write times.
func milli(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
