package tunnel

import (
	"sync/atomic"
	"time"
)

// The size of a pool: fast up, slow down.

// demand is what a pool knows of how many connections are wanted. It is guarded
// by the pool's lock.
type demand struct {
	target int // parked connections wanted
	taken  int // claims since the last tick
	short  int // clients that found nothing, and for whom nothing has come since

	pending int // asked of the agent and not yet here
	unsent  int // of those, what the tunnel's writer has still to say
	low     int // the least that pending without unsent has been in the present round
	ticks   int // of the present round

	began  bool   // counts among the pools that share the budget
	hunger uint64 // budget.hunger at the last tick
	tight  bool   // others have less than their share: this pool gets no more than its own
}

const (
	// askTicks are a round: 3 s. A connection that was asked for comes within
	// one, so what pending did not fall below in all of it has been lost, however
	// many others were asked for and came meanwhile. It is asked for again.
	askTicks = 3

	// askPart is how much of a pool is missing before the agent is told between
	// ticks: with many streams a second a message for each would cost both sides as
	// much as the connection itself.
	askPart = 16

	// decayPart is how much of its excess a pool gives up per tick.
	decayPart = 32

	// retirePart is how much of a pool is retired per tick, so that neither a
	// pool that was filled at once nor one that is too large comes down at once.
	retirePart = 8
)

// begin asks for the first connections.
func (p *pool) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.began && !p.closed {
		p.began, p.hunger = true, p.all.hunger.Load()
		p.all.pools.Add(1)
	}
	p.refill()
}

// grow answers a client that found nothing: one more is asked for than those
// before it have asked for, and the first of them makes the pool larger by a
// quarter. So a crowd gets what it waits for, and no more.
func (p *pool) grow() {
	if p.short == 0 {
		p.target = min(p.target+max(p.target/4, 1), p.ceiling)
	}
	p.short = min(p.short+1, p.ceiling)
	p.refill()
}

// refill asks for what is missing: what is wanted, and what those who wait will
// take of it.
func (p *pool) refill() {
	n := p.target - p.parked - int(p.share.spare.Load()) + p.short - p.pending
	have := p.parked + p.pending
	n = min(n, p.ceiling-have)
	if n <= 0 || p.closed || p.orphan {
		return
	}
	bite, share := n, p.all.share()
	if p.tight {
		n = min(n, max(share-have, 0))
		bite = min(n, max(share/decayPart, 1)) // some for each, before one has its share
	}
	got := p.all.take(bite, have < p.floor)
	if got < n && have+got < share {
		p.all.hunger.Add(1)
	}
	p.pending += got
	p.unsent += got
}

// asks says that the agent should be asked for connections now: somebody waits,
// or enough are missing. Else the next tick asks.
func (p *pool) asks() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.orphan {
		return true // its heir is asked
	}
	return p.unsent > 0 && (p.short > 0 || p.unsent >= p.target/askPart)
}

// need returns how many connections to ask for now; its caller sends them.
func (p *pool) need() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.unsent
	p.unsent = 0
	return n
}

// arrived counts a connection that has come. It reports false for one that
// nobody asked for when all pools together are full.
func (p *pool) arrived() bool {
	p.short = max(p.short-1, 0)
	if p.pending == 0 {
		return p.all.room()
	}
	p.pending--
	p.unsent = min(p.unsent, p.pending)
	p.low = min(p.low, p.pending-p.unsent)
	p.all.add(-1) // until it is parked
	return true
}

// forget gives back what was asked for: the pool is closed.
func (p *pool) forget() {
	if p.began {
		p.began = false
		p.all.pools.Add(-1)
	}
	p.all.add(-p.pending)
	p.pending, p.unsent, p.low = 0, 0, 0
}

// tick runs once a second: it follows the demand, asks again for what has not
// come, and returns the connections that are too many or too old.
func (p *pool) tick(now time.Time) (retired []*entry, lost int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := min(max(p.taken, p.floor), p.ceiling)
	p.taken = 0
	hunger := p.all.hunger.Load()
	p.tight, p.hunger = hunger != p.hunger, hunger
	if p.tight {
		want = min(want, p.all.share())
	}
	if want >= p.target {
		p.target = want
	} else {
		p.target -= max((p.target-want)/decayPart, 1)
	}
	lost = p.expire()
	retired = p.retire(now)
	p.refill()
	return retired, lost
}

// expire gives up what was asked for and does not come.
func (p *pool) expire() (lost int) {
	if p.ticks++; p.ticks >= askTicks {
		lost = min(p.low, p.pending-p.unsent)
		p.pending -= lost
		p.all.add(-lost)
		p.low, p.ticks = p.pending-p.unsent, 0
	}
	if p.pending == 0 {
		p.short = 0 // whoever waited has been served, or has gone
	}
	return lost
}

// retire takes out what is above the target, and what is older than anything on
// the way may remember: the oldest, a part of the pool at a time.
func (p *pool) retire(now time.Time) (out []*entry) {
	most := max(p.parked/retirePart, 1)
	for len(out) < most && p.parked > p.target {
		e := p.fullest().oldest
		p.remove(e)
		out = append(out, e)
	}
	for i := range p.shelves {
		for e := p.shelves[i].oldest; e != nil && len(out) < most && now.Sub(e.since) > p.parkedFor; e = p.shelves[i].oldest {
			p.remove(e)
			out = append(out, e)
		}
	}
	return out
}

// budget bounds the connections of all pools together, those asked for included.
// While there is not enough, pools with more than their share give up of it, until
// none has less that wants more: an agent that comes late, or is seldom used, is not
// left without any, however many the floor promises to those that were first.
type budget struct {
	most    int64
	used    atomic.Int64
	pools   atomic.Int64   // that ask
	hunger  atomic.Uint64  // how often a pool with less than its share got less than it asked for
	refused *atomic.Uint64 // how often there was less than was asked for
}

// share is what each pool may have when there is not enough for all: a part of
// what is not kept for those below their floor.
func (b *budget) share() int {
	return int(max(int64(open(int(b.most), false))/max(b.pools.Load(), 1), 1))
}

// take grants as much of n as there is room for. A quarter is kept for pools
// that are below their floor, so that one busy agent does not lock another out.
func (b *budget) take(n int, belowFloor bool) int {
	most := int64(open(int(b.most), belowFloor))
	for {
		used := b.used.Load()
		got := min(int64(n), max(most-used, 0))
		if got < int64(n) {
			b.refused.Add(1)
		}
		if got == 0 || b.used.CompareAndSwap(used, used+got) {
			return int(got)
		}
	}
}

func (b *budget) add(n int)  { b.used.Add(int64(n)) }
func (b *budget) room() bool { return b.used.Load() < b.most }
