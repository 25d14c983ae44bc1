package tunnel

import (
	"net/netip"
	"sync"
	"time"
)

// Streams change their process with the relays that carry their bytes, which are
// not this package's. What it counts of them is bound again here.

// StreamRef names a leased stream to another process: what a Lease gives and
// AdoptStream takes. The zero value names none.
type StreamRef struct{ Tunnel, Connection ID }

// Ref names the stream. Its agent may have got a newer tunnel: then it names
// that one.
func (l *Lease) Ref() StreamRef {
	t := l.tunnel
	for heir := t.heir.Load(); heir != nil; heir = t.heir.Load() {
		t = heir
	}
	return StreamRef{Tunnel: t.id, Connection: l.ConnectionID}
}

// adoptedFor is how long a stream that was half-open when its process changed is
// counted as that. Its agent may have said what became of it to the process
// before: nobody heard. An agent that knows of upgrades says it again within 2 s;
// for others the slot is given back after this. The stream goes on.
const adoptedFor = 3 * time.Second

// adoptions are streams of another process that are being bound. Half-open ones
// hold their slots only once their relay has come, too.
type adoptions struct {
	mu      sync.Mutex
	taking  bool            // tunnels are on their way
	waiting map[*Lease]ID   // the tunnels that they name
	half    map[ID]moveHalf // by connection id
	former  map[ID]*tunnel  // by the ids of tunnels that have ended before
	open    []*Lease        // adopted half-open
}

// moveHalf is a half-open stream of another process.
type moveHalf struct {
	tunnel    *tunnel
	admission admission
}

// AdoptStream counts a stream that another process has leased, from now until
// ended is called, which may be more than once. Both may be called from
// anywhere, before the hub's tunnels have been taken over, and for a tunnel that
// is not here.
func (h *Hub) AdoptStream(r StreamRef) (ended func()) {
	l := &Lease{ConnectionID: r.Connection, hub: h}
	a := &h.adoptions
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taking {
		a.waiting[l] = r.Tunnel
	} else {
		h.bind(l, r.Tunnel)
	}
	return func() { h.endAdopted(l) }
}

// bind counts an adopted stream, with adoptions.mu held.
func (h *Hub) bind(l *Lease, id ID) {
	a := &h.adoptions
	t := h.tunnel(id)
	half, isHalf := a.half[l.ConnectionID]
	if isHalf {
		t = half.tunnel
		delete(a.half, l.ConnectionID)
	}
	if t == nil {
		t = a.former[id]
	}
	if t == nil {
		return // it ended before the stream
	}
	l.tunnel, l.AgentID = t, t.agent
	t.pool.share.streams.Add(1)
	if isHalf && t.pool.adopt(l) {
		l.admission = half.admission
		h.strangers.adopt(l.admission)
		a.open = append(a.open, l)
	}
}

func (h *Hub) endAdopted(l *Lease) {
	a := &h.adoptions
	a.mu.Lock()
	delete(a.waiting, l)
	bound := l.tunnel != nil
	if !bound {
		l.ended.Store(true)
	}
	a.mu.Unlock()
	if bound {
		l.Ended()
	}
}

// expect begins to take streams over.
func (a *adoptions) expect() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taking, a.waiting, a.half = true, map[*Lease]ID{}, map[ID]moveHalf{}
}

// bindAll binds the streams that came before their tunnels.
func (h *Hub) bindAll(half map[ID]moveHalf, former map[ID]*tunnel) {
	a := &h.adoptions
	a.mu.Lock()
	defer a.mu.Unlock()
	a.half, a.former = half, former
	for l, id := range a.waiting {
		h.bind(l, id)
	}
	a.taking, a.waiting = false, nil
}

// settleAdopted gives the slots back that no agent has said anything about.
func (h *Hub) settleAdopted() {
	a := &h.adoptions
	a.mu.Lock()
	open := a.open
	a.half, a.former, a.open = nil, nil, nil
	a.mu.Unlock()
	for _, l := range open {
		h.settle(l, false)
	}
}

// adopt takes an agent's half-open slot for a stream that has one already. It is
// false when the pool is closed.
func (p *pool) adopt(l *Lease) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	l.holds = true
	p.half[l.ConnectionID] = l
	p.halfCount++
	p.share.half.Add(1)
	return true
}

// adopt counts a slot that was admitted by another process.
func (s *strangers) adopt(a admission) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total++
	s.half[a.source]++
}

// known are the sources with a recent stream-up.
func (s *strangers) known(now time.Time) (out []netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent.turn(now)
	for k := range s.recent.now {
		out = append(out, k)
	}
	for k := range s.recent.past {
		if _, ok := s.recent.now[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}

// recall makes sources known that were to another process.
func (s *strangers) recall(sources []netip.Prefix, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range sources {
		if len(s.recent.now) < maxSources {
			s.recent.put(k, struct{}{}, now)
		}
	}
}
