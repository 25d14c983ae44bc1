package tunnel

import (
	"context"
	"slices"
	"sync"
	"time"

	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// An orphan is a tunnel whose control connection was the process's before the
// last upgrade. It is served from what is parked, and cannot be asked for more:
//
//	moved ──▶ orphan ── the agent's new tunnel is announced ──▶ elder of that heir
//	            │                                                │
//	            │ its agent does not come, its assignment ends   │ used up, or its time is over
//	            ▼                                                ▼
//	          closed ◀───────────────────────────────────────────┘
//
// The names of an elder are its heir's: what auth has taken away is not served by
// what was parked before. Invariant: a tunnel is the agent's own in Hub.agents, or
// in the elders of that one, and never both.

const (
	// lonelyFor is how long an orphan waits for its agent, which comes within 2 s
	// of an upgrade, and within 5 s of anything. It is not pinged meanwhile.
	lonelyFor = 15 * time.Second

	// usedUpFor is how long an elder's connections are there for clients. What is
	// left is retired meanwhile, a part each second.
	usedUpFor = 10 * time.Second

	// orphanTick is how often orphans are looked at.
	orphanTick = time.Second

	// maxHeldCancels bounds the cancel requests that wait for an orphan's heir;
	// one older than heldFor is dropped: it would meet another query.
	maxHeldCancels = 32
	heldFor        = 5 * time.Second
)

// orphan is what a tunnel has in place of a control connection.
type orphan struct {
	lost  time.Time // when it was
	until time.Time // an elder's end; guarded by Hub.presence

	mu   sync.Mutex
	heir *tunnel // cancel requests are its
	held []heldCancel
}

type heldCancel struct {
	msg  *tunnelv1.PgCancel
	came time.Time
}

// cancelLater keeps a cancel request until the agent's new tunnel is there.
func (h *Hub) cancelLater(t *tunnel, msg *tunnelv1.PgCancel) bool {
	o := t.orphan
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.heir != nil {
		return h.cancelBy(o.heir, msg)
	}
	if len(o.held) >= maxHeldCancels {
		h.counters.add("cancel_late")
		return false
	}
	o.held = append(o.held, heldCancel{msg, h.cfg.Now()})
	h.counters.add("cancel_held")
	return true
}

// cancelNow gives the heir what was kept for it. Without one it is dropped.
func (h *Hub) cancelNow(o *orphan, heir *tunnel) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heir = heir
	for _, c := range o.held {
		if heir == nil || h.cfg.Now().Sub(c.came) > heldFor {
			h.counters.add("cancel_late")
			continue
		}
		h.cancelBy(heir, c.msg)
	}
	o.held = nil
}

// follow makes a tunnel that nobody can find yet the next one of an agent whose
// last one is an orphan. It is the heir when it is announced.
func (t *tunnel) follow(old *tunnel) {
	elders := old.older()
	if old.orphan != nil {
		elders = append([]*tunnel{old}, elders...)
	} else if old.up {
		return // its elders end with it
	}
	if len(elders) == 0 {
		return
	}
	t.pool.share = elders[0].pool.share
	t.elders.Store(&elders)
}

// older are the tunnel's elders.
func (t *tunnel) older() []*tunnel {
	if e := t.elders.Load(); e != nil {
		return *e
	}
	return nil
}

func (t *tunnel) setElders(elders []*tunnel) {
	if len(elders) == 0 {
		t.elders.Store(nil)
		return
	}
	t.elders.Store(&elders)
}

// inherit takes over what leads to a tunnel's elders, with Hub.presence held.
func (h *Hub) inherit(t *tunnel) {
	for _, e := range t.older() {
		if e.heir.Swap(t) == t {
			continue
		}
		h.setNames(e, map[resourceName]bool{})
		h.setTag(e, 0)
		e.elders.Store(nil) // they are t's as well
		t.pool.inherit(e.pool.bequeath())
		t.remember(append(e.former, e.id)...)
		if end := h.cfg.Now().Add(usedUpFor); e.orphan.until.IsZero() || end.Before(e.orphan.until) {
			e.orphan.until = end
		}
		if t.orphan == nil {
			h.cancelNow(e.orphan, t)
		}
	}
}

// maxFormer bounds what is remembered of an agent's tunnels of before.
const maxFormer = 32

// remember notes whose streams are this tunnel's too, the latest last.
func (t *tunnel) remember(ids ...ID) {
	t.former = append(t.former, ids...)
	t.former = t.former[max(len(t.former)-maxFormer, 0):]
}

// unhitch takes a tunnel that ends out of the row of its agent's, with
// Hub.presence held. Its elders end with it: their agent is dead, or has another
// process. But one that has never come to its welcome leaves things as they were.
func (h *Hub) unhitch(t *tunnel) {
	if t.orphan != nil {
		h.cancelNow(t.orphan, nil)
	}
	if heir := t.heir.Load(); heir != nil {
		heir.setElders(slices.DeleteFunc(slices.Clone(heir.older()), func(e *tunnel) bool { return e == t }))
		return
	}
	elders := t.older()
	if len(elders) == 0 || !t.up && h.agentOf(t.agent) != t {
		return // a newer tunnel has them
	}
	t.elders.Store(nil)
	if !t.up {
		h.restore(elders)
		return
	}
	for _, e := range elders {
		e.heir.Store(nil)
		e.elders.Store(nil)
		h.end(e)
	}
}

// restore makes the newest of an agent's orphans its tunnel again.
func (h *Hub) restore(elders []*tunnel) {
	h.mu.Lock()
	defer h.mu.Unlock()
	elders[0].setElders(elders[1:])
	h.agents[elders[0].agent] = elders[0]
}

// watchOrphans looks after them until there are none, or ctx is done: then they
// end, as tunnels with a control connection do.
func (h *Hub) watchOrphans(ctx context.Context) {
	context.AfterFunc(ctx, func() {
		for _, t := range h.allOrphans() {
			h.forsake(t)
		}
	})
	h.wind(ctx)
}

// wind winds the orphans' clock up for one tick.
func (h *Hub) wind(ctx context.Context) {
	time.AfterFunc(h.orphanTick, func() {
		if ctx.Err() == nil && h.tickOrphans() {
			h.wind(ctx)
		}
	})
}

// tickOrphans is a second in the life of all orphans. It is false when there are
// none any more. While tunnels are frozen nothing happens.
func (h *Hub) tickOrphans() bool {
	if !h.gate.TryRLock() {
		return true
	}
	defer h.gate.RUnlock()
	if h.left.Load() {
		return false
	}
	all := h.allOrphans()
	for _, t := range all {
		h.tickOrphan(t)
	}
	return len(all) > 0
}

func (h *Hub) tickOrphan(t *tunnel) {
	retired, empty := t.pool.age(h.cfg.Now())
	if len(retired) > 0 {
		h.drop(t, retired)
	}
	if word := h.endOf(t, empty); word != "" {
		h.counters.add(word)
		h.close(t)
	}
}

// endOf says why an orphan ends now, in the word under which that is counted.
func (h *Hub) endOf(t *tunnel, empty bool) string {
	h.presence.Lock()
	defer h.presence.Unlock()
	now := h.cfg.Now()
	switch {
	case t.heir.Load() != nil:
		if empty || now.After(t.orphan.until) {
			return "moved_used_up"
		}
	case h.expired(t.assignment.Load().Assignment):
		h.cfg.Log.Warn("assignment expired", "agent", t.agent)
		return "moved_lost"
	case now.Sub(t.orphan.lost) > min(lonelyFor, h.bounds.ParkedFor):
		h.cfg.Log.Warn("the agent did not come back after an upgrade", "agent", t.agent)
		return "moved_lost"
	}
	return ""
}

// forsake ends an orphan because all ends, or its agent is sent away.
func (h *Hub) forsake(t *tunnel) {
	h.gate.RLock()
	defer h.gate.RUnlock()
	h.close(t)
}

func (h *Hub) allOrphans() (out []*tunnel) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for t := range h.orphans {
		out = append(out, t)
	}
	return out
}

// bequeath returns what an elder's heir is to know of the demand. What is left
// here is for everybody: the heir keeps the part for known sources.
func (p *pool) bequeath() (target, short int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	target, short = p.target, p.short
	p.target, p.short = 0, 0
	return target, short
}

func (p *pool) inherit(target, short int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = min(max(p.target, target), p.ceiling)
	p.short = min(max(p.short, short), p.ceiling)
}

// age takes out what is too old or too many, and says whether nothing is left.
func (p *pool) age(now time.Time) (retired []*entry, empty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	retired = p.retire(now)
	return retired, p.parked == 0 && p.inFlight.length == 0
}
