package tunnel

import (
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// A pool is the parked connections of one tunnel, and what is known about the
// demand for them. All loops share it, behind one lock that is held for a few
// map and slice operations and never while another lock is taken, a message is
// sent or a system call is made.
//
//	             park                claim                 deliver
//	(new) ───────────────▶ parked ───────────▶ claimed ───────────▶ leased
//	                          │                   │  cancelled: park again
//	                          │ byte, end, retire │  dead: another is claimed
//	                          ▼                   ▼
//	                        gone ◀────────────────┘
//
// Invariant: whoever moves an entry out of parked, under the lock, is the only
// one that may touch its descriptor from then on, and does so on the loop that
// watches it.
type pool struct {
	floor, ceiling int
	halfMax        int

	mu         sync.Mutex
	closed     bool
	shelves    []shelf
	parked     int
	generation uint64
	seen       window

	target  int // parked connections wanted
	pending int // asked of the agent and not yet here
	asked   time.Time
	unsent  int // to be asked by the tunnel's writer
	taken   int // claims since the last tick

	half      map[ID]*Lease // leased, not settled
	halfCount int           // claimed or leased, not settled
}

// shelf holds the entries that one loop watches, oldest first.
type shelf struct {
	loop    relay.Loop
	entries []*entry
}

// entryState is where in the drawing above an entry is.
type entryState uint8

const (
	entryParked entryState = iota
	entryClaimed
	entryGone
)

// entry is one data connection of an agent, from hello to lease.
type entry struct {
	tunnel  *tunnel
	fd      int
	counter uint64

	// Guarded by the pool's lock.
	state      entryState
	loop       relay.Loop // whose epoll set fd is in
	generation uint64     // one per parking: a stale event names an old one
}

func newPool(b Bounds) *pool {
	return &pool{
		floor: b.PoolFloor, ceiling: b.PoolCeiling, halfMax: b.HalfOpenAgent,
		target: b.PoolFloor, half: map[ID]*Lease{},
	}
}

// accept marks a data hello's counter as used. It fails for one that was seen,
// and when the pool is closed or full.
func (p *pool) accept(counter uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrUnknownTunnel
	}
	if !p.seen.use(counter) {
		return ErrReplayed
	}
	if p.parked >= p.ceiling {
		return ErrPoolFull
	}
	p.pending = max(p.pending-1, 0)
	return nil
}

// park puts an entry on its loop's shelf and returns the generation that its
// watcher carries. ok is false when the pool is closed.
func (p *pool) park(e *entry, l relay.Loop) (generation uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		e.state = entryGone
		return 0, false
	}
	p.generation++
	e.state, e.loop, e.generation = entryParked, l, p.generation
	s := p.shelf(l)
	s.entries = append(s.entries, e)
	p.parked++
	return p.generation, true
}

func (p *pool) shelf(l relay.Loop) *shelf {
	for i := range p.shelves {
		if p.shelves[i].loop == l {
			return &p.shelves[i]
		}
	}
	p.shelves = append(p.shelves, shelf{loop: l})
	return &p.shelves[len(p.shelves)-1]
}

// claim takes a connection for a client of loop l: the newest that l itself
// watches, else the newest of the fullest shelf. It also takes one of the
// agent's half-open slots, which release gives back. Each client that finds
// nothing makes the pool grow once: at its first look. Whether there is something
// depends on nothing but the pool and on whether the client's source is known.
func (p *pool) claim(l relay.Loop, known, first bool) (*entry, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, FailNoTunnel
	}
	if p.halfCount >= open(p.halfMax, known) {
		return nil, FailAgentHalfOpen
	}
	if p.parked <= p.target-open(p.target, known) {
		if first {
			p.grow()
		}
		return nil, FailPoolEmpty
	}
	e := p.take(l)
	p.taken++
	p.halfCount++
	p.refill(0)
	return e, ""
}

// take removes the best entry. There is one.
func (p *pool) take(l relay.Loop) *entry {
	s := p.shelf(l)
	if len(s.entries) == 0 {
		s = p.fullest()
	}
	last := len(s.entries) - 1
	e := s.entries[last]
	s.entries[last] = nil
	s.entries = s.entries[:last]
	p.parked--
	e.state = entryClaimed
	return e
}

func (p *pool) fullest() *shelf {
	best := &p.shelves[0]
	for i := range p.shelves {
		if len(p.shelves[i].entries) > len(best.entries) {
			best = &p.shelves[i]
		}
	}
	return best
}

// lose takes a parked entry out because its connection is no good. It reports
// false when somebody was faster, or the event was meant for an earlier parking.
func (p *pool) lose(e *entry, generation uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.state != entryParked || e.generation != generation {
		return false
	}
	p.remove(e)
	p.refill(0)
	return true
}

func (p *pool) remove(e *entry) {
	s := p.shelf(e.loop)
	if i := slices.Index(s.entries, e); i >= 0 {
		s.entries = slices.Delete(s.entries, i, i+1)
		p.parked--
	}
	e.state = entryGone
}

// byCounter takes parked entries out that the agent asks to be rid of.
func (p *pool) byCounter(counters []uint64) (out []*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.shelves {
		for _, e := range slices.Clone(p.shelves[i].entries) {
			if slices.Contains(counters, e.counter) {
				p.remove(e)
				out = append(out, e)
			}
		}
	}
	p.refill(0)
	return out
}

// close ends the pool: nothing is parked, claimed or settled here any more. It
// returns what was parked, and the streams that were half-open; what is claimed
// at this moment finds out at its delivery.
func (p *pool) close() (parked []*entry, half []*Lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for i := range p.shelves {
		for _, e := range p.shelves[i].entries {
			e.state = entryGone
			parked = append(parked, e)
		}
	}
	p.shelves, p.parked, p.unsent, p.pending = nil, 0, 0, 0
	for _, l := range p.half {
		half = append(half, l)
	}
	return parked, half
}

// deliver makes a claimed connection a leased one: from now on the agent's word
// settles it. ok is false when the pool is closed.
func (p *pool) deliver(l *Lease) (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.half[l.ConnectionID] = l
	}
	return !p.closed
}

// release reports whether the lease held a slot until now.
func (p *pool) release(l *Lease) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !l.holds {
		return false
	}
	l.holds = false
	p.halfCount--
	if p.half[l.ConnectionID] == l {
		delete(p.half, l.ConnectionID)
	}
	return true
}

// leased finds the half-open stream that an agent's message names.
func (p *pool) leased(id ID) *Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.half[id]
}

// Size: fast up, slow down.

// decayPart is how much of its excess a pool gives up per tick.
const decayPart = 32

// pendingFor is how long a connection that was asked for may take; after that
// it is asked for again.
const pendingFor = 3 * time.Second

// begin asks for the first connections.
func (p *pool) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill(0)
}

// grow answers a client that found nothing: a quarter more from now on.
func (p *pool) grow() {
	p.target = min(p.target+max(p.target/4, 1), p.ceiling)
	p.refill(1)
}

// refill asks for what is missing, and for at least as much as stated.
func (p *pool) refill(least int) {
	n := p.target - p.parked - p.pending
	if p.pending == 0 {
		n = max(n, least)
	}
	n = min(n, p.ceiling-p.parked-p.pending)
	if n <= 0 || p.closed {
		return
	}
	p.pending += n
	p.unsent += n
}

// need returns how many connections to ask for now; its caller sends them.
func (p *pool) need(now time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.unsent
	p.unsent = 0
	if n > 0 {
		p.asked = now
	}
	return n
}

// tick runs once a second: it follows the demand and returns the connections
// that are too many.
func (p *pool) tick(now time.Time) (retired []*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := min(max(p.taken, p.floor), p.ceiling)
	p.taken = 0
	if want >= p.target {
		p.target = want
	} else {
		p.target -= max((p.target-want)/decayPart, 1)
	}
	if p.pending > 0 && p.unsent == 0 && now.Sub(p.asked) > pendingFor {
		p.pending = 0
	}
	p.refill(0)
	for p.parked > p.target {
		e := p.fullest().entries[0]
		p.remove(e)
		retired = append(retired, e)
	}
	return retired
}
