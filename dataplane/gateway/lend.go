//go:build unix

package gateway

import (
	"sync"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// lentMost questions of a guest wait for an answer at once.
const lentMost = 1 << 14

// Lender leases agents' data connections for a guest.
type Lender struct {
	talk    *handover.Talk
	tunnels Tunnels
	loops   []relay.Loop

	mu     sync.Mutex
	turn   int
	asked  map[uint64]*lending
	held   map[tunnel.StreamRef]Lease
	closed bool
}

// lending is a guest's question.
type lending struct {
	from   *Lender
	loop   relay.Loop
	number uint64

	// Of the loop's thread.
	cancel func()
	over   bool
}

// NewLender answers by the talk. Who receives calls Hear, and Close at the end.
func NewLender(t *handover.Talk, tunnels Tunnels, loops []relay.Loop) *Lender {
	return &Lender{talk: t, tunnels: tunnels, loops: loops, asked: map[uint64]*lending{}, held: map[tunnel.StreamRef]Lease{}}
}

// Hear takes a record of the guest's that is none of Gateway's. It has no
// descriptors; one of an unknown kind is passed over.
func (l *Lender) Hear(r handover.Record) error {
	switch handoverv1.CanaryKind(r.Kind) {
	case handoverv1.CanaryKind_CANARY_KIND_LEASE:
		return decode(r.Body, l.ask)
	case handoverv1.CanaryKind_CANARY_KIND_LEASE_CANCEL:
		return decode(r.Body, l.takeBack)
	case handoverv1.CanaryKind_CANARY_KIND_LEASE_ENDED:
		return decode(r.Body, func(m *handoverv1.CanaryLeased) error { return l.end(m.Tunnel, m.Connection) })
	}
	return nil
}

func (l *Lender) ask(m *handoverv1.CanaryLease) error {
	source, err := address(m.Source)
	if err != nil || len(m.Connection) != len(tunnel.ID{}) || m.Attempt > maxAttempts {
		return errRecord
	}
	r := tunnel.LeaseRequest{Kind: m.Kind, Name: m.Name, Source: source, Attempt: int(m.Attempt)}
	copy(r.ConnectionID[:], m.Connection)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.asked) >= lentMost || l.asked[m.Number] != nil {
		return errRecord
	}
	l.turn++
	q := &lending{from: l, loop: l.loops[l.turn%len(l.loops)], number: m.Number}
	l.asked[m.Number] = q
	q.loop.Post(func() {
		if cancel := l.tunnels.Lease(q.loop, r, q); !q.over {
			q.cancel = cancel
		}
	})
	return nil
}

func (l *Lender) takeBack(m *handoverv1.CanaryLease) error {
	l.mu.Lock()
	q := l.asked[m.Number]
	delete(l.asked, m.Number)
	l.mu.Unlock()
	if q != nil {
		q.loop.Post(q.drop)
	}
	return nil
}

// drop takes a question back that was not answered; on the loop's thread.
func (q *lending) drop() {
	if !q.over && q.cancel != nil {
		q.cancel()
	}
	q.over = true
}

// answered takes the question off the list; on the loop's thread. It is false
// when nobody waits for it any more.
func (q *lending) answered() bool {
	q.over = true
	q.from.mu.Lock()
	defer q.from.mu.Unlock()
	delete(q.from.asked, q.number)
	return !q.from.closed
}

// Leased implements Waiter.
func (q *lending) Leased(s Stream) {
	defer relay.Close(s.FD) // the guest gets one of its own
	if !q.answered() {
		s.Lease.Ended()
		return
	}
	ref := s.Lease.Ref()
	q.from.hold(ref, s.Lease)
	r := guestRecord(handoverv1.CanaryKind_CANARY_KIND_LEASED, &handoverv1.CanaryLeased{
		Number: q.number, Tunnel: ref.Tunnel[:], Connection: ref.Connection[:], Frame: s.Frame}, []int{s.FD})
	if sent, err := q.from.talk.TrySend(r); !sent || err != nil {
		_ = q.from.end(ref.Tunnel[:], ref.Connection[:]) // the guest's client will not wait for ever
	}
}

// LeaseFailed implements Waiter.
func (q *lending) LeaseFailed(reason string) {
	if q.answered() {
		// Without room for it the guest's client waits for its deadline.
		_, _ = q.from.talk.TrySend(guestRecord(handoverv1.CanaryKind_CANARY_KIND_LEASE_FAILED, &handoverv1.CanaryLeased{Number: q.number, Reason: reason}, nil))
	}
}

func (l *Lender) hold(ref tunnel.StreamRef, lease Lease) {
	l.mu.Lock()
	was := l.held[ref]
	l.held[ref] = lease
	l.mu.Unlock()
	if was != nil {
		was.Ended()
	}
}

func (l *Lender) end(tunnelID, connection []byte) error {
	var ref tunnel.StreamRef
	if len(tunnelID) != len(ref.Tunnel) || len(connection) != len(ref.Connection) {
		return errRecord
	}
	copy(ref.Tunnel[:], tunnelID)
	copy(ref.Connection[:], connection)
	l.mu.Lock()
	lease := l.held[ref]
	delete(l.held, ref)
	l.mu.Unlock()
	if lease != nil {
		lease.Ended()
	}
	return nil
}

// Back is told of each connection and relay that has come back: the gateway
// counts its stream from now on.
func (l *Lender) Back(r handover.Record) {
	if handoverv1.CanaryKind(r.Kind) == handoverv1.CanaryKind_CANARY_KIND_RELAY {
		_ = decode(r.Body, func(m *handoverv1.CanaryRelay) error {
			return l.end(m.GetRelay().GetTunnel(), m.GetRelay().GetConnection())
		})
		return
	}
	_ = decode(r.Body, func(m *handoverv1.CanaryConnection) error {
		return l.end(m.GetConnection().GetTunnel(), m.GetConnection().GetConnection())
	})
}

// Held is how many streams the guest has.
func (l *Lender) Held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held)
}

// Close ends all leases: the guest is gone, and its streams with it.
func (l *Lender) Close() {
	l.mu.Lock()
	asked, held := l.asked, l.held
	l.asked, l.held, l.closed = nil, map[tunnel.StreamRef]Lease{}, true
	l.mu.Unlock()
	for _, q := range asked {
		q.loop.Post(q.drop)
	}
	for _, lease := range held {
		lease.Ended()
	}
}
