package tunnel

import (
	"context"
	"math/rand/v2"
	"time"

	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// The end of a process whose tunnels another process has: its agents are sent
// there, one after the other, and then nothing is left but the carried streams,
// whose bytes only this process can move.

const (
	// leaveSpread is the time over which agents are told to come to the new
	// process, leaveFor the longest that a control connection stays, and leaveBye
	// when those that are still here are told goodbye.
	leaveSpread = 1500 * time.Millisecond
	leaveBye    = 1700 * time.Millisecond
	leaveFor    = 2 * time.Second

	// soon is what an agent that cannot dial first is told: it has the successor
	// where it had this process, and nothing to serve with meanwhile.
	soon = time.Millisecond

	// remnantTick is how often it is looked whether something is left.
	remnantTick = 50 * time.Millisecond
)

// Remaining is what a process still has after its tunnels have moved.
type Remaining struct {
	Control int // agents' control connections, those that are being greeted included
	Carried int // streams inside TLS or a WebSocket; here until they end
}

// Remaining says what is left. It is meant for a hub that has left.
func (h *Hub) Remaining() Remaining {
	return Remaining{Control: int(h.greeted.Load()), Carried: int(h.carried.Load())}
}

// Wait returns when nothing is left, or when ctx is done.
func (h *Hub) Wait(ctx context.Context) error {
	tick := time.NewTicker(remnantTick)
	defer tick.Stop()
	for h.Remaining() != (Remaining{}) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// abandon lets go of what has moved. Nobody notices: the connections are another
// process's too. Carried ones that are parked are not, and end.
func (h *Hub) abandon() {
	for _, t := range h.all() {
		parked := t.pool.abandon()
		discard(parked)
	}
}

// abandon closes the pool of a tunnel that has moved.
func (p *pool) abandon() (parked []*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for i := range p.shelves {
		for e := p.shelves[i].oldest; e != nil; e = p.shelves[i].oldest {
			e.shared = false // the end is not to be said
			p.remove(e)
			parked = append(parked, e)
		}
	}
	for e := p.inFlight.oldest; e != nil; e = e.newer {
		e.shared = false
	}
	p.forget()
	return parked
}

// sendAway tells all agents where their tunnels are now. Pings go on until they
// have gone there.
func (h *Hub) sendAway() {
	tunnels := h.all()
	for i, t := range tunnels {
		if t.orphan != nil {
			continue
		}
		share := leaveSpread / time.Duration(len(tunnels))
		back := share*time.Duration(i) + rand.N(share+1)
		if t.follows {
			t.talk.send(drainMessage(back, true))
			continue
		}
		time.AfterFunc(back, func() { h.sendBack(t) })
	}
	// The end comes behind the goodbyes, also when this process has stood still
	// and all these times have passed at once: then they are to go out first.
	time.AfterFunc(leaveBye, func() {
		for _, t := range tunnels {
			if t.orphan == nil && !t.follows {
				h.sendBack(t) // again, or before its turn
				continue
			}
			t.end(errDrained)
		}
		time.AfterFunc(leaveFor-leaveBye, h.leave)
	})
}

// sendBack makes an agent that cannot dial first go and come again at once.
func (h *Hub) sendBack(t *tunnel) {
	t.talk.send(drainMessage(soon, false))
	t.end(errDrained)
}

func drainMessage(back time.Duration, successor bool) *tunnelv1.Control {
	return &tunnelv1.Control{Message: &tunnelv1.Control_Drain{
		Drain: &tunnelv1.Drain{ComeBackAfterMs: uint32(back.Milliseconds()), Successor: successor},
	}}
}
