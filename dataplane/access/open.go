package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// recheck is how often a session looks again without being told: at the clock,
// which may have jumped or slept, and at the age of the snapshot.
const recheck = 10 * time.Second

// Open meets session.Gate.
func (d *Door) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	return d.openSession(ctx, c, use, nil)
}

// openSession decides, registers, writes the start down, and only then lets the
// session be.
func (d *Door) openSession(ctx context.Context, c *session.Candidate, use session.Use, v *visit) (*session.Session, error) {
	d.setUp()
	if use.Action == "" {
		use.Action = sallyport.ActionConnect
	}
	// Taken before the decision: a change in between is then not missed.
	changed := d.Snapshot.Changed()
	dec, denial := d.judge(c, use)
	if denial != nil {
		d.auditDenial(ctx, c, use, denial.Fact)
		return nil, denial
	}
	l := d.newLive(c, use, dec.Options, v)
	if denial := d.register(l, dec.Options.MaxSessions); denial != nil {
		use.Denied = session.TooMany(dec.Options.MaxSessions, use.Denied.Fields)
		d.auditDenial(ctx, c, use, denial.Fact)
		return nil, denial
	}
	l.start(ctx, changed, dec.Options)
	if err := l.write(ctx); err != nil {
		denial := notAudited(err)
		l.abandon(denial)
		return nil, denial
	}
	return &l.session, nil
}

// write makes the session's start durable. The protocol reaches for its resource
// meanwhile.
func (l *live) write(ctx context.Context) error {
	start := l.complete(l.use.Start, yes())
	who(start.Fields, l.client.Identity)
	if l.use.Meanwhile == nil {
		return l.emitStart(ctx, start)
	}
	written := make(chan error, 1)
	go func() {
		err := l.emitStart(ctx, start)
		if err != nil {
			l.stop(notAudited(err)) // the protocol need not reach any further
		}
		written <- err
	}()
	returned := false
	defer func() {
		if !returned { // a bug of the protocol, on its way to who serves the client
			l.forsake(<-written)
		}
	}()
	l.use.Meanwhile(l.session.Context)
	returned = true
	return <-written
}

// emitStart is Emit, of which a bug is an error: it must not end the agent, nor
// leave a session behind.
func (l *live) emitStart(ctx context.Context, start sallyport.Event) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			l.door.Log.Error("bug while writing a session's start", "session", l.session.ID, "panic", fmt.Sprint(bug), "stack", string(debug.Stack()))
			err = errors.New("internal error")
		}
	}()
	return l.door.Events.Emit(ctx, start, true)
}

// forsake ends a session whose protocol does not live to have it, given how it
// went to write its start down.
func (l *live) forsake(err error) {
	if err != nil {
		l.abandon(notAudited(err))
		return
	}
	l.end(map[string]any{"error": "internal error"})
}

// register enters a session unless its user has too many.
func (d *Door) register(l *live, most int64) *sallyport.Problem {
	var elsewhere int64
	if !counts(l.session.Resource.Kind) {
		most = 0
	}
	if most > 0 && d.Elsewhere != nil {
		elsewhere = d.Elsewhere(l.session.Identity.Name)
	}
	return d.sessions.add(l, most, elsewhere)
}

// counts says that a session of a kind is one of those that max_sessions bounds: what
// a person opens one by one. One kubectl has several connections, and one page of an
// application a connection for each WebSocket.
func counts(kind sallyport.Kind) bool {
	return kind != sallyport.KindKube && kind != sallyport.KindApp
}

// judge is everything that must hold for a use, now.
func (d *Door) judge(c *session.Candidate, use session.Use) (sallyport.Decision, *sallyport.Problem) {
	if c.Refusal != nil {
		return sallyport.Decision{}, c.Refusal
	}
	if p := d.Admit(c.Identity, c.ClientAddr); p != nil {
		return sallyport.Decision{}, p
	}
	trust, err := d.Snapshot.Trust()
	if trust == nil || err != nil {
		return sallyport.Decision{}, staleProblem(err)
	}
	return d.judgeUse(trust, c, use)
}

// judgeUse is the part of judge that is asked again while a session runs.
func (d *Door) judgeUse(trust *sallyport.Trust, c *session.Candidate, use session.Use) (sallyport.Decision, *sallyport.Problem) {
	if p := checkUsage(c.Identity, c.Resource.Kind); p != nil {
		return sallyport.Decision{}, p
	}
	if p := d.locked(trust, subject{id: c.Identity, login: use.Login, resource: c.Resource}); p != nil {
		return sallyport.Decision{}, p
	}
	if p := d.checkResources(c); p != nil {
		return sallyport.Decision{}, p
	}
	dec := d.decide(sallyport.AccessRequest{
		Identity: c.Identity, Resource: c.Resource, Action: use.Action,
		Login: use.Login, DBUser: use.DBUser, DBName: use.DBName, AWSRole: use.AWSRole,
		ClientAddr: c.ClientAddr.Addr().Unmap(), Now: d.Now(),
	}, trust.Revision)
	if !dec.Allowed {
		return dec, denied(c.Resource, dec.Reason)
	}
	return dec, checkStrict(trust, dec.Options, d.Now())
}

// checkResources holds a certificate to the resources it was issued for.
func (d *Door) checkResources(c *session.Candidate) *sallyport.Problem {
	list := c.Identity.AllowedResources
	if len(list) == 0 || slices.Contains(list, "/"+d.Cluster+"/"+string(c.Resource.Kind)+"/"+c.Resource.Name) {
		return nil
	}
	return denied(c.Resource, "your certificate was issued for other resources")
}

func denied(r sallyport.Resource, reason string) *sallyport.Problem {
	fact := fmt.Sprintf("access to %s %s denied", r.Kind, r.Name)
	if reason != "" {
		fact += ": " + reason
	}
	return sallyport.Denied(fact, "")
}

// notAudited refuses a session whose start could not be written down.
func notAudited(err error) *sallyport.Problem {
	var p *sallyport.Problem
	if errors.As(err, &p) {
		return p
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err,
		Fact: "the audit log takes no more events, so no session may start", Hint: "tell your administrator"}
}

// live is an open session on the door's side.
type live struct {
	door    *Door
	visit   *visit // nil when the session has no connection of its own
	client  session.Candidate
	use     session.Use
	session session.Session

	cancel context.CancelCauseFunc
	once   sync.Once
	over   chan struct{} // closed when End begins
	gone   chan struct{} // closed when watch has returned
	lost   atomic.Bool   // an event after the end, and it was told
	events atomic.Int64  // so far
}

func (d *Door) newLive(c *session.Candidate, use session.Use, o sallyport.Options, v *visit) *live {
	l := &live{door: d, visit: v, client: *c, use: use, over: make(chan struct{}), gone: make(chan struct{})}
	principal := use.Login
	if principal == "" {
		principal = use.DBUser
	}
	if principal == "" {
		principal = use.AWSRole
	}
	l.session = session.Session{
		ID: uuid.NewString(), Identity: c.Identity, Resource: c.Resource,
		Principal: principal, DBName: use.DBName, Options: o, Client: c.ClientAddr, Started: d.Now(),
		Allow: l.allow, Emit: l.emit, End: l.end, Cancel: l.stop,
	}
	if c.Resource.Kind == sallyport.KindKube {
		l.session.Kube = l.kube
	}
	return l
}

// start gives the session its life. The parent's end is one cause among others,
// so the session's context does not hang on it.
func (l *live) start(parent context.Context, changed <-chan struct{}, o sallyport.Options) {
	l.session.Context, l.cancel = context.WithCancelCause(context.WithoutCancel(parent))
	if l.visit != nil {
		l.visit.add(l)
	}
	go l.watch(parent, changed, o)
}

// watch ends the session when what allowed it is no longer so. It returns when
// the session has ended, or its connection has been cut.
func (l *live) watch(parent context.Context, changed <-chan struct{}, o sallyport.Options) {
	defer close(l.gone)
	timer := time.NewTimer(recheck)
	defer timer.Stop()
	for {
		timer.Reset(l.wait(o))
		select {
		case <-l.over:
			return
		case <-l.session.Context.Done():
			l.insist()
			return
		case <-parent.Done():
			l.stop(parentProblem(parent))
			continue
		case <-changed:
			changed = l.door.Snapshot.Changed()
		case <-timer.C:
		}
		newer, p := l.judgeAgain(o)
		if p != nil {
			l.stop(p)
			continue
		}
		o = newer
	}
}

// wait is the time to the next look.
func (l *live) wait(o sallyport.Options) time.Duration {
	end := l.limit(o)
	if end.IsZero() {
		return recheck
	}
	return min(max(end.Sub(l.door.Now()), 0), recheck)
}

// limit is when the session must end at the latest; zero for never.
func (l *live) limit(o sallyport.Options) time.Time {
	var end time.Time
	if o.MaxSessionTTL > 0 {
		end = l.session.Started.Add(o.MaxSessionTTL)
	}
	if na := l.session.Identity.NotAfter; endsWithCertificate(o, l.session.Identity) && (end.IsZero() || na.Before(end)) {
		end = na
	}
	return end
}

// endsWithCertificate says that disconnect_expired_cert ends a session. A browser's
// certificate is none that a person has logged in for: it lives for minutes, and is
// renewed for as long as the web session is good. The gateway that holds its key ends
// what runs when that is over, or when there is no newer certificate.
func endsWithCertificate(o sallyport.Options, id sallyport.Identity) bool {
	return o.DisconnectExpiredCert && id.Usage != sallyport.UsageWeb
}

// judgeAgain asks whether a running session may go on. An old view of the
// control plane does not end it, except where locks are strict.
func (l *live) judgeAgain(o sallyport.Options) (sallyport.Options, *sallyport.Problem) {
	d, id := l.door, l.session.Identity
	now := d.Now()
	if endsWithCertificate(o, id) && !now.Before(id.NotAfter) {
		return o, checkTime(id, now)
	}
	if o.MaxSessionTTL > 0 && !now.Before(l.session.Started.Add(o.MaxSessionTTL)) {
		return o, sallyport.Denied("your session lasted "+o.MaxSessionTTL.String()+", the most that your roles allow", "")
	}
	trust, err := d.Snapshot.Trust()
	if trust == nil {
		return o, staleProblem(err)
	}
	if err != nil && o.StrictLock {
		return o, staleProblem(err)
	}
	dec, p := d.judgeUse(trust, &l.client, l.use)
	return dec.Options, p
}

// stop makes the session's context done; the first cause stays. It meets
// Session.Cancel.
func (l *live) stop(why *sallyport.Problem) { l.cancel(why) }

// insist gives the protocol time to let go, and then cuts its connection.
func (l *live) insist() {
	timer := time.NewTimer(letGo)
	defer timer.Stop()
	select {
	case <-l.over:
	case <-timer.C:
		l.door.Log.Warn("session did not let go; connection cut", "session", l.session.ID)
		if l.visit != nil {
			l.visit.cut()
		}
	}
}

// leave takes the session off all lists, and ends its watch.
func (l *live) leave(why *sallyport.Problem) {
	close(l.over)
	l.door.sessions.remove(l)
	if l.visit != nil {
		l.visit.remove(l)
	}
	l.cancel(why)
	<-l.gone
}

// abandon ends a session whose start was not written down: there is no end to
// tell of.
func (l *live) abandon(why *sallyport.Problem) { l.once.Do(func() { l.leave(why) }) }

// end meets Session.End.
func (l *live) end(fields map[string]any) {
	l.once.Do(func() {
		why := context.Cause(l.session.Context) // nil: the protocol's own end
		l.leave(&sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the session has ended"})
		if why != nil {
			l.auditDisconnect(why.Error())
		}
		l.auditEnd(fields)
	})
}

// allow meets Session.Allow.
func (l *live) allow(a sallyport.Action) *sallyport.Problem {
	use := l.use
	use.Action = a
	_, p := l.door.judge(&l.client, use)
	if p == nil {
		return nil
	}
	ctx, cancel := auditContext(l.session.Context)
	defer cancel()
	l.door.auditDenial(ctx, &l.client, use, p.Fact)
	return p
}

// kube meets Session.Kube. What ends sessions is judged as well, so that a
// request does not pass in the moment before its session ends.
func (l *live) kube() (sallyport.KubeGrant, *sallyport.Problem) {
	trust, err := l.door.Snapshot.Trust()
	if trust == nil {
		return nil, staleProblem(err)
	}
	dec, p := l.door.judgeUse(trust, &l.client, l.use)
	if p == nil && dec.Kube == nil {
		p = denied(l.client.Resource, "no role says what may be asked of it")
	}
	return dec.Kube, p
}

// parentProblem says why the context around a session ended.
func parentProblem(ctx context.Context) *sallyport.Problem {
	var p *sallyport.Problem
	if errors.As(context.Cause(ctx), &p) {
		return p
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the agent is shutting down", Hint: "connect again in a moment"}
}

// table is the open sessions and how many of those that max_sessions bounds each
// user has.
type table struct {
	mu   sync.Mutex
	all  map[*live]struct{}
	each map[string]int64
}

// add registers a session unless its user has max already, those elsewhere
// included; 0 is no limit.
func (t *table) add(l *live, max, elsewhere int64) *sallyport.Problem {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all, t.each = make(map[*live]struct{}), make(map[string]int64)
	}
	user := l.session.Identity.Name
	if max > 0 && t.each[user]+elsewhere >= max {
		return &sallyport.Problem{Kind: sallyport.ErrExhausted, Hint: "end another session first",
			Fact: fmt.Sprintf("too many sessions: your roles allow %d at a time here", max)}
	}
	t.all[l] = struct{}{}
	if counts(l.session.Resource.Kind) {
		t.each[user]++
	}
	return nil
}

func (t *table) remove(l *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, in := t.all[l]; !in {
		return
	}
	delete(t.all, l)
	if !counts(l.session.Resource.Kind) {
		return
	}
	user := l.session.Identity.Name
	if t.each[user]--; t.each[user] <= 0 {
		delete(t.each, user)
	}
}

// by are the sessions by kind of resource, and those that max_sessions bounds by user.
func (t *table) by() (kinds, users map[string]int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kinds = map[string]int64{}
	for l := range t.all {
		kinds[string(l.session.Resource.Kind)]++
	}
	return kinds, maps.Clone(t.each)
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}
