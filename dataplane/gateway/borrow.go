//go:build unix

package gateway

import (
	"errors"
	"net/netip"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// Agents stay with the process that has their tunnels. A guest asks it for a data
// connection of theirs, and gets the descriptor:
//
//	guest                                          the process with the tunnels
//	Borrower.Lease   ── LEASE ──────────────────▶  Lender: Tunnels.Lease
//	                 ◀─ LEASED, descriptor ──────  keeps the Lease
//	Stream's Ended   ── LEASE_ENDED ────────────▶  Lease.Ended

// Borrower is Tunnels for a guest.
type Borrower struct {
	talk *handover.Talk

	mu     sync.Mutex
	number uint64
	asked  map[uint64]*borrowing
	late   []handover.Record // that there was no room for
}

// borrowing is a question for a lease.
type borrowing struct {
	loop   relay.Loop
	waiter Waiter
	over   bool // taken back; of the loop's thread
}

// NewBorrower asks by the talk; who receives calls Answer.
func NewBorrower(t *handover.Talk) *Borrower {
	return &Borrower{talk: t, asked: map[uint64]*borrowing{}}
}

// errNoParking: agents have their tunnels elsewhere.
var errNoParking = errors.New("a guest has no tunnels")

// Park implements Tunnels: no agent is sent here.
func (b *Borrower) Park(_ relay.Loop, fd int, _ []byte, _ netip.AddrPort) error {
	relay.Close(fd)
	return errNoParking
}

// Cancel implements Tunnels.
func (b *Borrower) Cancel(uint32, uint32) bool { return false }

// Lease implements Tunnels.
func (b *Borrower) Lease(l relay.Loop, r tunnel.LeaseRequest, w Waiter) (cancel func()) {
	q := &borrowing{loop: l, waiter: w}
	b.mu.Lock()
	b.number++
	n := b.number
	b.asked[n] = q
	b.mu.Unlock()
	ask := guestRecord(handoverv1.CanaryKind_CANARY_KIND_LEASE, &handoverv1.CanaryLease{
		Number: n, Kind: r.Kind, Name: r.Name, Source: encoded(r.Source), Connection: r.ConnectionID[:], Attempt: uint32(r.Attempt)}, nil)
	if sent, err := b.talk.TrySend(ask); !sent || err != nil {
		b.take(n)
		q.over = true
		w.LeaseFailed("the process with the tunnels is busy")
		return func() {}
	}
	return func() {
		q.over = true
		if b.take(n) != nil {
			b.tell(guestRecord(handoverv1.CanaryKind_CANARY_KIND_LEASE_CANCEL, &handoverv1.CanaryLease{Number: n}, nil))
		}
	}
}

func (b *Borrower) take(n uint64) *borrowing {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.asked[n]
	delete(b.asked, n)
	return q
}

// tell sends what must arrive, now or with Flush.
func (b *Borrower) tell(r handover.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.late = append(b.late, r)
	b.flushLocked()
}

// Flush sends what there was no room for before. It is to be called every so often.
func (b *Borrower) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flushLocked()
}

func (b *Borrower) flushLocked() {
	for len(b.late) > 0 {
		if sent, err := b.talk.TrySend(b.late[0]); !sent && err == nil {
			return
		}
		b.late = b.late[1:] // or nobody is there to be told
	}
	b.late = nil
}

// Answer takes a record of the kinds LEASED and LEASE_FAILED, with its descriptors.
func (b *Borrower) Answer(r handover.Record) error {
	in := &incoming{fds: r.FDs}
	defer in.close()
	m := &handoverv1.CanaryLeased{}
	if err := proto.Unmarshal(r.Body, m); err != nil {
		return err
	}
	good := handoverv1.CanaryKind(r.Kind) == handoverv1.CanaryKind_CANARY_KIND_LEASED
	q := b.take(m.Number)
	if !good {
		if q != nil {
			q.loop.Post(func() {
				if !q.over {
					q.waiter.LeaseFailed(m.Reason)
				}
			})
		}
		return nil
	}
	s := &borrowed{from: b}
	if len(in.fds) != 1 || len(m.Frame) > prefixRoom || len(m.Tunnel) != len(s.ref.Tunnel) || len(m.Connection) != len(s.ref.Connection) {
		return errRecord
	}
	copy(s.ref.Tunnel[:], m.Tunnel)
	copy(s.ref.Connection[:], m.Connection)
	fd := in.next()
	leave := func() {
		relay.Close(fd)
		s.Ended()
	}
	given := q != nil && q.loop.Post(func() {
		if q.over {
			leave()
			return
		}
		q.waiter.Leased(Stream{FD: fd, Frame: m.Frame, Lease: s})
	})
	if !given {
		leave()
	}
	return nil
}

// borrowed is a stream whose lease another process holds.
type borrowed struct {
	from *Borrower
	ref  tunnel.StreamRef
}

// Ended implements Lease.
func (s *borrowed) Ended() {
	s.from.tell(guestRecord(handoverv1.CanaryKind_CANARY_KIND_LEASE_ENDED, &handoverv1.CanaryLeased{Tunnel: s.ref.Tunnel[:], Connection: s.ref.Connection[:]}, nil))
}

// Ref implements Lease.
func (s *borrowed) Ref() tunnel.StreamRef { return s.ref }
