package dbtest

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// patience is the most that anything may take, on a busy machine too.
const patience = time.Minute

// Gate is a session.Gate that a test decides for. It may be used by many
// goroutines; what it emits is in order.
type Gate struct {
	Deny    func(use session.Use) *sallyport.Problem // nil: allow
	Options sallyport.Options

	mu      sync.Mutex
	events  []sallyport.Event
	changed chan struct{} // closed and replaced at each event
	locks   []context.CancelCauseFunc
}

// NewGate returns a gate that lets everything pass.
func NewGate() *Gate { return &Gate{changed: make(chan struct{})} }

// Admit lets everybody in.
func (g *Gate) Admit(sallyport.Identity, netip.AddrPort) *sallyport.Problem { return nil }

// Open meets session.Gate: it begins a session and emits its start, unless Deny
// or the candidate says why not.
func (g *Gate) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	why := c.Refusal
	if why == nil && g.Deny != nil {
		why = g.Deny(use)
	}
	if why != nil {
		g.Emit(use.Denied)
		return nil, why
	}
	ctx, cancel := context.WithCancelCause(ctx)
	g.mu.Lock()
	g.locks = append(g.locks, cancel)
	g.mu.Unlock()
	g.Emit(use.Start) // who waits for it may lock the session
	var once sync.Once
	return &session.Session{
		ID: "s1", Identity: c.Identity, Resource: c.Resource, Principal: use.DBUser, DBName: use.DBName,
		Options: g.Options, Client: c.ClientAddr, Started: time.Now(), Context: ctx,
		Allow: func(sallyport.Action) *sallyport.Problem { return nil },
		Emit:  g.Emit,
		End: func(fields map[string]any) {
			once.Do(func() {
				cancel(nil)
				for k, v := range fields {
					use.End.Fields[k] = v
				}
				g.Emit(use.End)
			})
		},
	}, nil
}

// Lock ends all sessions as a lock does.
func (g *Gate) Lock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, cancel := range g.locks {
		cancel(sallyport.Denied("user alice is locked: on leave", "ask your administrator"))
	}
}

// Emit adds an event.
func (g *Gate) Emit(e sallyport.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, e)
	close(g.changed)
	g.changed = make(chan struct{})
}

// All returns the events so far of the names given, all without.
func (g *Gate) All(names ...string) []sallyport.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []sallyport.Event
	for _, e := range g.events {
		for _, name := range names {
			if e.Name == name {
				out = append(out, e)
			}
		}
		if len(names) == 0 {
			out = append(out, e)
		}
	}
	return out
}

// Await waits for the nth event of a name.
func (g *Gate) Await(t testing.TB, name string, n int) sallyport.Event {
	t.Helper()
	late := time.After(patience)
	for {
		g.mu.Lock()
		changed := g.changed
		g.mu.Unlock()
		if got := g.All(name); len(got) >= n {
			return got[n-1]
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("no event %s number %d; have %v", name, n, g.All())
		}
	}
}
