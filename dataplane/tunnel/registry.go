package tunnel

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
)

// Who is here, and which names lead to whom.

// open makes a tunnel findable by its id, so that data connections can be
// checked. An older tunnel of the same agent ends: its parked connections lead
// to a process that has gone, or has forgotten them. But an orphan waits for its
// heir: its agent has forgotten nothing.
func (h *Hub) open(t *tunnel) {
	old := h.enter(t)
	if old == nil {
		return
	}
	h.counters.add("replaced")
	h.cfg.Log.Info("tunnel replaced", "agent", t.agent)
	h.replace(old, t)
	old.end(errReplaced)
}

// replace closes a tunnel whose names, and what is known of the demand, are the agent's
// newer one's from now on: clients that come before its welcome wait.
func (h *Hub) replace(old, t *tunnel) {
	h.presence.Lock()
	defer h.presence.Unlock()
	if h.current(t) {
		t.pool.inherit(old.pool.bequeath())
		h.setNames(t, namesOf(t.assignment.Load().Resources, t.agent))
	}
	h.end(old)
}

func (h *Hub) enter(t *tunnel) (old *tunnel) {
	h.presence.Lock()
	defer h.presence.Unlock()
	if old = h.agentOf(t.agent); old != nil {
		t.follow(old)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tunnels[t.id] = t
	h.agents[t.agent] = t
	if old != nil && old.orphan != nil {
		return nil
	}
	return old
}

func (h *Hub) agentOf(agent string) *tunnel {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.agents[agent]
}

// announce routes what the tunnel's assignment names, asks for its first
// connections, and says that the agent is up.
func (h *Hub) announce(t *tunnel) {
	h.presence.Lock()
	defer h.presence.Unlock()
	if !h.current(t) || h.left.Load() {
		return
	}
	t.up = true
	a := t.assignment.Load()
	h.setNames(t, namesOf(a.Resources, t.agent))
	h.setTag(t, a.PgCancelTag)
	h.inherit(t)
	t.pool.begin()
	t.askForMore()
	h.cfg.Log.Info("agent up", "agent", t.agent, "resources", len(a.Resources), "revision", a.Revision)
	h.cfg.Presence(t.presence(true))
}

// reroute routes what the tunnel's assignment names again.
func (h *Hub) reroute(t *tunnel, a *assignmentView) {
	h.presence.Lock()
	defer h.presence.Unlock()
	if h.current(t) {
		h.setNames(t, namesOf(a.Resources, t.agent))
	}
}

// close forgets a tunnel: no name leads to it, its parked connections are
// closed, its half-open streams are no longer counted. Streams that run go on;
// they need no control connection. It is idempotent.
func (h *Hub) close(t *tunnel) {
	h.presence.Lock()
	defer h.presence.Unlock()
	h.end(t)
}

// end is close with Hub.presence held.
func (h *Hub) end(t *tunnel) {
	if !h.forget(t) {
		return
	}
	h.unhitch(t)
	h.setNames(t, map[resourceName]bool{})
	h.setTag(t, 0)
	h.shut(t)
	if h.gone(t) && !h.left.Load() {
		h.cfg.Log.Info("agent down", "agent", t.agent)
		h.cfg.Presence(t.presence(false))
	}
}

// shut closes what is parked, and counts no stream as half-open any more.
func (h *Hub) shut(t *tunnel) {
	parked, half := t.pool.close()
	discard(parked)
	for _, l := range half {
		h.settle(l, false)
	}
}

func (t *tunnel) presence(up bool) Presence {
	p := Presence{AgentID: t.agent, Up: up, Version: t.version}
	if up {
		p.Assignment = t.assignment.Load().raw
	}
	return p
}

func (h *Hub) current(t *tunnel) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.agents[t.agent] == t
}

// forget removes the tunnel's id, and reports whether it was there.
func (h *Hub) forget(t *tunnel) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.tunnels[t.id]
	delete(h.tunnels, t.id)
	delete(h.orphans, t)
	return ok
}

// gone removes the agent, unless another tunnel of it is here.
func (h *Hub) gone(t *tunnel) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agents[t.agent] != t {
		return false
	}
	delete(h.agents, t.agent)
	h.sweepLocked()
	return true
}

// sweepEvery is the least time between two looks at all revisions: an agent
// that leaves does not cost what all agents do.
const sweepEvery = time.Minute

func (h *Hub) sweepLocked() {
	now := h.cfg.Now()
	if now.Sub(h.swept) < sweepEvery {
		return
	}
	h.swept = now
	maps.DeleteFunc(h.revisions, func(_ string, r revision) bool {
		return !r.notAfter.IsZero() && now.After(r.notAfter)
	})
}

// unroute stops leading names to the tunnel until its next assignment.
func (h *Hub) unroute(t *tunnel, names []string) {
	left := maps.Clone(*t.names.Load())
	for _, n := range names {
		kind, name, _ := strings.Cut(n, "/")
		delete(left, resourceName{kind, name})
	}
	h.setNames(t, left)
}

// setNames makes exactly these names lead to the tunnel.
func (h *Hub) setNames(t *tunnel, names map[resourceName]bool) {
	h.mu.Lock()
	old := t.names.Swap(&names)
	for n := range *old {
		if !names[n] {
			h.removeRoute(n, t)
		}
	}
	for n := range names {
		if !(*old)[n] {
			h.names[n] = append(slices.Clip(h.names[n]), t)
		}
	}
	h.mu.Unlock()
	h.feed(t) // whoever waits may have waited for one of these names
}

func (h *Hub) removeRoute(n resourceName, t *tunnel) {
	rest := slices.DeleteFunc(slices.Clone(h.names[n]), func(o *tunnel) bool { return o == t })
	if len(rest) == 0 {
		delete(h.names, n)
		return
	}
	h.names[n] = rest
}

// setTag makes PostgreSQL cancel requests with this tag lead to the tunnel.
func (h *Hub) setTag(t *tunnel, tag uint16) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tags[t.tag] == t {
		delete(h.tags, t.tag)
	}
	if t.tag = tag; tag != 0 {
		h.tags[tag] = t
	}
}

// namesOf are the names of an assignment. An agent that serves a node is
// reached by its own id as well.
func namesOf(rs []sallyport.Resource, agent string) map[resourceName]bool {
	names := make(map[resourceName]bool, len(rs)+1)
	for _, r := range rs {
		if !validName(string(r.Kind), r.Name) {
			continue
		}
		names[resourceName{string(r.Kind), r.Name}] = true
		if r.Kind == sallyport.KindNode && validName(string(r.Kind), agent) {
			names[resourceName{string(r.Kind), agent}] = true
		}
	}
	return names
}
