package tunnel

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// LeaseRequest is one client that wants a stream to a resource. It may be made
// only for a client whose first bytes were a whole ClientHello: what is not TLS
// never enters a data connection.
type LeaseRequest struct {
	Kind, Name   string
	Source       netip.AddrPort // the client
	ConnectionID ID             // random; the same on each attempt
	Attempt      int            // 0, then 1 and 2 when a data connection ended before the agent's first byte
}

// Waiter is told the outcome of a lease, once, on the thread of the loop that
// asked: from within Lease, or later. It is told nothing after its cancel.
type Waiter interface {
	// Leased hands a data connection over: the descriptor is the waiter's,
	// watched by no loop, with nothing read from it or written to it. It is to
	// write Frame and then the client's bytes, to call Lease.Ended when it has
	// closed the descriptor.
	Leased(l *Lease)

	// LeaseFailed says why there is none: one of the Fail words.
	LeaseFailed(reason string)
}

// Why a lease failed: words for counters, not for a stranger.
const (
	FailNoTunnel        = "no_tunnel"
	FailPoolEmpty       = "pool_empty"
	FailSourceHalfOpen  = "source_half_open"
	FailSourceRate      = "source_rate"
	FailAgentHalfOpen   = "agent_half_open"
	FailGatewayHalfOpen = "gateway_half_open"
	FailDraining        = "draining"
	FailAttempts        = "attempts"
	FailBadName         = "bad_name"
)

// Lease is a data connection that belongs to one client's stream.
type Lease struct {
	FD           int
	Frame        []byte // the open frame, to be written first
	ConnectionID ID
	AgentID      string
	Kind, Name   string

	hub       *Hub
	tunnel    *tunnel
	admission admission
	holds     bool // an agent's half-open slot; guarded by the pool's lock
	ended     atomic.Bool
	up        atomic.Bool
}

// Up says whether the agent has reported that the client proved itself.
func (l *Lease) Up() bool { return l.up.Load() }

// Ended tells the hub that the stream is over. It may be called from anywhere,
// and more than once.
func (l *Lease) Ended() {
	if l.ended.Swap(true) {
		return
	}
	l.tunnel.pool.share.streams.Add(-1)
	l.hub.settle(l, false)
}

// Lease finds a data connection to an agent that serves a resource. It runs on
// l's thread. Without a parked connection the client waits for at most
// Bounds.LeaseWait. cancel, on the same thread, takes the request back; after
// an answer it does nothing.
func (h *Hub) Lease(l relay.Loop, r LeaseRequest, w Waiter) (cancel func()) {
	q := &request{hub: h, loop: l, waiter: w, LeaseRequest: r, name: resourceName{r.Kind, r.Name}}
	if reason := h.admitClient(q); reason != "" {
		q.fail(reason)
		return q.cancel
	}
	q.began = l.Now()
	q.deadline = q.began.Add(h.bounds.LeaseWait)
	q.seek()
	return q.cancel
}

func (h *Hub) admitClient(q *request) (reason string) {
	switch {
	case h.draining.Load():
		return FailDraining
	case q.Attempt >= maxAttempts || q.Attempt < 0:
		return FailAttempts
	case !validName(q.Kind, q.Name):
		return FailBadName
	case len(h.serving(q.name)) == 0:
		return FailNoTunnel
	}
	q.admission, reason = h.strangers.admit(q.Source.Addr(), q.Attempt, h.cfg.Now())
	q.admitted = reason == ""
	return reason
}

// request is a client's lease from the question to the answer. All its fields
// but those of the queue belong to its loop's thread.
//
//	seek ──▶ claimed ──▶ (owner's loop: unwatch) ──▶ received ──▶ Leased
//	  │         ▲                                       │ dead: seek again
//	  ▼         │ feed                                  ▼
//	queued ─────┴──▶ Due: LeaseFailed              cancelled: park again
type request struct {
	LeaseRequest
	hub       *Hub
	loop      relay.Loop
	waiter    Waiter
	name      resourceName
	admission admission
	admitted  bool // holds a half-open slot of source and gateway
	began     time.Time
	deadline  time.Time
	armed     bool
	done      bool // answered or cancelled
	reason    string

	next, prev *request // guarded by queue.mu
	in         *line    // guarded by queue.mu; nil: not in the queue
}

// seek claims a connection now, or joins the queue.
func (q *request) seek() {
	e, lease, reason := q.hub.claim(q, true)
	if e == nil {
		q.reason = reason
		if e, lease = q.hub.enqueue(q); e == nil {
			q.wait()
			return
		}
	}
	q.takeOver(e, lease)
}

// wait arms the timer of a request that is in the queue.
func (q *request) wait() {
	left := q.deadline.Sub(q.loop.Now())
	if !q.armed {
		q.armed = true
		q.loop.Arm(q, max(left, 0))
	}
}

// Due ends the wait. A connection that was claimed meanwhile is on its way and
// will do. When another process has the tunnels, it has the client too.
func (q *request) Due(time.Time) {
	q.armed = false
	if q.hub.queue.remove(q) && !q.hub.left.Load() {
		q.fail(q.reason)
	}
}

// claim tries the agents that serve the name, the least busy first.
func (h *Hub) claim(q *request, first bool) (*entry, *Lease, string) {
	reason := FailNoTunnel
	for _, t := range leastBusy(h.serving(q.name)) {
		e, lease, why := h.claimOf(t, q, first)
		if e != nil {
			return e, lease, ""
		}
		reason = why
	}
	return nil, nil, reason
}

// claimOf tries an agent's tunnel, and then those of before the last upgrade.
// The client counts as one that found nothing when there is nothing anywhere.
func (h *Hub) claimOf(t *tunnel, q *request, first bool) (*entry, *Lease, string) {
	elders := t.elders.Load()
	if elders == nil {
		return h.claimFrom(t, q, first)
	}
	e, lease, why := h.claimFrom(t, q, false)
	for i := 0; e == nil && i < len(*elders); i++ {
		e, lease, _ = h.claimFrom((*elders)[i], q, false)
	}
	if e == nil && first {
		return h.claimFrom(t, q, true)
	}
	return e, lease, why
}

func (h *Hub) claimFrom(t *tunnel, q *request, first bool) (*entry, *Lease, string) {
	e, reason := t.pool.claim(q.loop, q.admission.known, first)
	if t.pool.asks() {
		t.askForMore()
	}
	if e == nil {
		return nil, nil, reason
	}
	lease := &Lease{
		ConnectionID: q.ConnectionID, AgentID: t.agent, Kind: q.Kind, Name: q.Name,
		hub: h, tunnel: t, admission: q.admission, holds: true,
	}
	return e, lease, ""
}

// takeOver brings a claimed connection from its owner's epoll set to the
// request's loop. It may be called on any thread; on the owner's, when that is
// the request's own, it answers at once.
func (q *request) takeOver(e *entry, lease *Lease) {
	if e.loop == q.loop {
		e.loop.Unwatch(e.fd)
		q.received(e, lease)
		return
	}
	q.handOver(e, lease)
}

// handOver is takeOver from any thread.
func (q *request) handOver(e *entry, lease *Lease) {
	e.unwatched(func() {
		if !q.loop.Post(func() { q.received(e, lease) }) {
			e.tunnel.pool.dismiss(e) // the client's loop is gone, and the client with it
			e.close()
			q.hub.unclaim(lease)
			q.release()
		}
	})
}

// received is on the request's thread: the connection is watched by nobody.
func (q *request) received(e *entry, lease *Lease) {
	if q.done {
		q.hub.unclaim(lease)
		_ = q.hub.shelve(q.loop, e) // refused only when the tunnel has ended
		return
	}
	why := peek(e.fd)
	switch {
	case why != "":
		e.tunnel.pool.dismiss(e)
	case !e.tunnel.pool.deliver(e, lease):
		why = "tunnel_ended"
	}
	if why != "" {
		e.close()
		q.hub.counters.add(why)
		q.hub.unclaim(lease)
		q.seek()
		return
	}
	q.answer(e, lease)
}

func (q *request) answer(e *entry, lease *Lease) {
	f := OpenFrame{ConnectionID: q.ConnectionID, Kind: q.Kind, Name: q.Name, Client: q.Source}
	frame, err := AppendOpenFrame(make([]byte, 0, MaxFrameSize), f, Binding{e.tunnel.id, e.counter}, e.tunnel.keys.gateway)
	if err != nil {
		panic(err) // the name was checked at admission
	}
	q.finish()
	q.admitted = false // the lease's now
	lease.FD, lease.Frame = e.fd, frame
	e.tunnel.pool.share.streams.Add(1)
	q.hub.counters.add("leased")
	q.hub.waits.add(q.loop.Now().Sub(q.began))
	q.waiter.Leased(lease)
}

func (q *request) fail(reason string) {
	q.finish()
	q.release()
	q.hub.counters.add("lease_failed_" + reason)
	q.waiter.LeaseFailed(reason)
}

func (q *request) cancel() {
	if q.done {
		return
	}
	q.finish()
	q.release()
	q.hub.queue.remove(q)
	q.hub.counters.add("lease_cancelled")
}

func (q *request) finish() {
	q.done = true
	if q.armed {
		q.armed = false
		q.loop.Disarm(q)
	}
}

// release gives the half-open slot back that no lease has taken over.
func (q *request) release() {
	if q.admitted {
		q.admitted = false
		q.hub.strangers.settle(q.admission, false, q.hub.cfg.Now())
	}
}

// unclaim gives an agent's half-open slot back for a connection that came to
// nothing. The client's own slot stays with the request.
func (h *Hub) unclaim(l *Lease) {
	if l.tunnel.pool.release(l) {
		h.feed(l.tunnel)
	}
}

// settle ends a stream's being half-open.
func (h *Hub) settle(l *Lease, up bool) {
	if !l.tunnel.pool.release(l) {
		return
	}
	h.strangers.settle(l.admission, up, h.cfg.Now())
	h.feed(l.tunnel)
}
