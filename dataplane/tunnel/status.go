package tunnel

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// Status is what an operator may see of a hub.
type Status struct {
	Tunnels  []TunnelStatus // by agent
	HalfOpen int            // streams, and clients that wait for one
	Waiting  int            // clients in the queue
	Draining bool
	Counters map[string]uint64
	Waits    Waits // of the clients that got a connection

	Carried int // data connections inside TLS or a WebSocket, leased ones included

	// Of all tunnels: connections ready for clients, those asked for and not yet
	// here, and the bound of both together.
	Parked, Pending, PoolLimit int
}

// Waits says how long clients have waited for a connection, since the start.
type Waits struct {
	Count  uint64
	Sum    time.Duration
	Within []WaitsWithin // by Most, each including those before it
}

// WaitsWithin is how many waited no longer than Most.
type WaitsWithin struct {
	Most  time.Duration
	Count uint64
}

// waitSteps are the borders of Waits. The first is a connection that was there.
var waitSteps = [...]time.Duration{
	0, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second,
}

// waits counts without a lock. A reader may see a wait in one field and not yet
// in another.
type waits struct {
	sum   atomic.Int64
	steps [len(waitSteps) + 1]atomic.Uint64
}

func (w *waits) add(d time.Duration) {
	w.sum.Add(int64(d))
	i := 0
	for i < len(waitSteps) && d > waitSteps[i] {
		i++
	}
	w.steps[i].Add(1)
}

func (w *waits) snapshot() Waits {
	out := Waits{Sum: time.Duration(w.sum.Load())}
	for i := range w.steps {
		out.Count += w.steps[i].Load()
		if i < len(waitSteps) {
			out.Within = append(out.Within, WaitsWithin{waitSteps[i], out.Count})
		}
	}
	return out
}

// TunnelStatus is one agent's tunnel.
type TunnelStatus struct {
	AgentID   string
	Version   string
	Since     time.Time
	Revision  uint64 // of the assignment
	Resources int    // that lead here, each once
	RoundTrip time.Duration
	Streams   int // leased and not ended

	Parked   int // connections ready for clients
	Pending  int // asked for and not yet here
	Target   int // wanted
	HalfOpen int
	Carrier  string // how its data connections come: "tcp", "tls", "websocket"; "" before the first
	Moved    bool   // its control connection was the process's before the last upgrade
}

// Status returns the present state and the counters since the start.
func (h *Hub) Status() Status {
	s := Status{
		HalfOpen: h.strangers.halfOpen(),
		Waiting:  int(h.queue.length.Load()),
		Draining: h.draining.Load(),
		Counters: h.counters.snapshot(),
		Waits:    h.waits.snapshot(), PoolLimit: h.bounds.PoolGateway, Carried: int(h.carried.Load()),
	}
	for _, t := range h.all() {
		u := t.status()
		s.Parked += u.Parked
		s.Pending += u.Pending
		s.Tunnels = append(s.Tunnels, u)
	}
	slices.SortFunc(s.Tunnels, func(a, b TunnelStatus) int { return cmp.Compare(a.AgentID, b.AgentID) })
	return s
}

func (h *Hub) all() (out []*tunnel) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, t := range h.tunnels {
		out = append(out, t)
	}
	return out
}

func (t *tunnel) status() TunnelStatus {
	s := TunnelStatus{
		AgentID: t.agent, Version: t.version, Since: t.since,
		Revision:  t.assignment.Load().Revision,
		Resources: t.served(),
		Streams:   int(t.streams()),
		Carrier:   carrierName(t.carrier.Load()),
		Moved:     t.orphan != nil,
	}
	if t.talk != nil {
		s.RoundTrip = time.Duration(t.talk.round.Load())
	}
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	s.Parked, s.Pending, s.Target, s.HalfOpen = t.pool.parked, t.pool.pending, t.pool.target, t.pool.halfCount
	return s
}

// served counts the resources that lead here. A node does so by its agent's id
// as well (namesOf), unless that is its name.
func (t *tunnel) served() int {
	names := *t.names.Load()
	own := func(r sallyport.Resource) bool { return r.Kind == sallyport.KindNode && r.Name == t.agent }
	if names[resourceName{string(sallyport.KindNode), t.agent}] && !slices.ContainsFunc(t.assignment.Load().Resources, own) {
		return len(names) - 1
	}
	return len(names)
}

// Present is the full set of agents that are up, for who missed the changes.
func (h *Hub) Present() (out []Presence) {
	h.presence.Lock()
	defer h.presence.Unlock()
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, t := range h.agents {
		out = append(out, t.presence(true))
	}
	return out
}

// Evict ends an agent's tunnel, for a lock or a removal. It reports whether
// there was one. That the agent does not come back is for Verify to see to.
func (h *Hub) Evict(agentID string) bool {
	h.gate.RLock()
	defer h.gate.RUnlock()
	h.mu.RLock()
	t := h.agents[agentID]
	h.mu.RUnlock()
	if t == nil {
		return false
	}
	h.close(t)
	t.end(errEvicted)
	return true
}

// Drain sends all agents away: no lease is given and no tunnel taken from now
// on. Each agent is told to come back after a time of its own between after and
// after + spread, so that they do not come all at once. Streams that run are
// not touched. Serve returns for every connection soon after.
func (h *Hub) Drain(after, spread time.Duration) {
	h.draining.Store(true)
	tunnels := h.all()
	for i, t := range tunnels {
		if t.orphan != nil {
			h.forsake(t)
			continue
		}
		share := spread / time.Duration(len(tunnels))
		back := after + share*time.Duration(i) + rand.N(share+1)
		t.talk.send(&tunnelv1.Control{Message: &tunnelv1.Control_Drain{
			Drain: &tunnelv1.Drain{ComeBackAfterMs: uint32(back.Milliseconds())},
		}})
		t.end(errDrained)
	}
}
