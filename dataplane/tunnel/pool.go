package tunnel

import (
	"sync"
	"sync/atomic"
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
// In an upgrade of the process parked entries are copied to the new one while
// they are here; one that leaves the pool after that is named in dropped.
//
// Invariant: whoever moves an entry out of parked, under the lock, is the only
// one that may touch its descriptor from then on, and does so on the loop that
// watches it.
type pool struct {
	floor, ceiling int
	halfMax        int

	parkedFor time.Duration
	all       *budget // of all pools
	share     *share  // with the agent's other tunnels; set before the tunnel can be found

	mu         sync.Mutex
	closed     bool
	orphan     bool    // there is nobody to ask for connections
	shelves    []shelf // one per loop
	inFlight   shelf   // claimed, on the way to a client
	parked     int
	generation uint64
	seen       window
	demand     // size.go

	half      map[ID]*Lease // leased, not settled
	halfCount int           // claimed or leased, not settled

	copies  int      // entries that another process has now
	dropped []uint64 // counters of those that have left since they were copied
}

// share is what the tunnels that one agent has at once have in common. It has
// more than one only for a while after an upgrade of the gateway.
type share struct {
	streams atomic.Int64 // leased and not ended
	half    atomic.Int64 // claimed or leased, not settled
	spare   atomic.Int64 // parked with tunnels that nobody can be asked for more
}

// take takes one of so many half-open slots.
func (s *share) take(most int) bool {
	if s.half.Add(1) <= int64(most) {
		return true
	}
	s.half.Add(-1)
	return false
}

// shelf holds the entries that one loop watches, in the order of their parking.
// To add one and to take any one out costs the same however many there are.
type shelf struct {
	loop           relay.Loop
	oldest, newest *entry
	length         int
	fresh          int // of them, those that are to be copied and have not been
}

func (s *shelf) push(e *entry) {
	e.older, e.newer = s.newest, nil
	if s.newest != nil {
		s.newest.newer = e
	} else {
		s.oldest = e
	}
	s.newest = e
	s.length++
	if e.moves() {
		s.fresh++
	}
}

func (s *shelf) unlink(e *entry) {
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		s.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		s.newest = e.older
	}
	e.older, e.newer = nil, nil
	s.length--
	if e.moves() {
		s.fresh--
	}
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
	carried bool // fd is one end of a pair in this process: it cannot move

	// Guarded by the pool's lock.
	state      entryState
	loop       relay.Loop // whose epoll set fd is in
	generation uint64     // one per parking: a stale event names an old one
	since      time.Time  // of the first parking
	copied     bool       // another process has the descriptor, and counts on it
	shared     bool       // another process may have the descriptor
	older      *entry     // on its shelf
	newer      *entry
}

// moves says that the entry is still to be copied.
func (e *entry) moves() bool { return !e.copied && !e.carried }

// close closes the descriptor of an entry that is gone and watched by nobody.
// When another process may have it too, the end is said at the socket: a close
// here says nothing then.
func (e *entry) close() {
	if e.shared {
		endSocket(e.fd)
	}
	closeFD(e.fd)
}

func newPool(b Bounds, all *budget) *pool {
	return &pool{
		floor: b.PoolFloor, ceiling: b.PoolCeiling, halfMax: b.HalfOpenAgent, parkedFor: b.ParkedFor, all: all, share: &share{},
		demand: demand{target: b.PoolFloor}, half: map[ID]*Lease{},
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
	if p.parked >= p.ceiling || !p.arrived() {
		return ErrPoolFull
	}
	return nil
}

// park puts an entry on its loop's shelf and returns the generation that its
// watcher carries. ok is false when the pool is closed.
func (p *pool) park(e *entry, l relay.Loop) (generation uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.state == entryClaimed {
		p.inFlight.unlink(e)
	}
	if p.closed {
		p.gone(e)
		return 0, false
	}
	p.shelve(e, l)
	return e.generation, true
}

func (p *pool) shelve(e *entry, l relay.Loop) {
	p.generation++
	e.state, e.loop, e.generation = entryParked, l, p.generation
	if e.since.IsZero() {
		e.since = l.Now()
	}
	p.shelf(l).push(e)
	p.count(1)
}

// count counts parked entries.
func (p *pool) count(n int) {
	p.parked += n
	p.all.add(n)
	if p.orphan {
		p.share.spare.Add(int64(n))
	}
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
	if !p.share.take(open(p.halfMax, known)) {
		return nil, FailAgentHalfOpen
	}
	if p.parked <= p.target-open(p.target, known) {
		p.share.half.Add(-1)
		if first {
			p.grow()
		}
		return nil, FailPoolEmpty
	}
	e := p.take(l)
	p.taken++
	p.halfCount++
	p.refill()
	return e, ""
}

// take removes the best entry. There is one.
func (p *pool) take(l relay.Loop) *entry {
	s := p.shelf(l)
	if s.length == 0 {
		s = p.fullest()
	}
	e := s.newest
	p.unshelve(e)
	e.state = entryClaimed
	p.inFlight.push(e)
	return e
}

func (p *pool) fullest() *shelf {
	best := &p.shelves[0]
	for i := range p.shelves {
		if p.shelves[i].length > best.length {
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
	p.refill()
	return true
}

// remove takes a parked entry out for good.
func (p *pool) remove(e *entry) {
	p.unshelve(e)
	p.gone(e)
}

func (p *pool) unshelve(e *entry) {
	p.shelf(e.loop).unlink(e)
	p.count(-1)
}

// gone notes that an entry will not be parked any more.
func (p *pool) gone(e *entry) {
	e.state = entryGone
	if e.copied {
		e.copied = false
		p.copies--
		p.dropped = append(p.dropped, e.counter)
	}
}

// dismiss takes a claimed entry out for good.
func (p *pool) dismiss(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight.unlink(e)
	p.gone(e)
}

// byCounter takes parked entries out that the agent asks to be rid of.
func (p *pool) byCounter(counters []uint64) (out []*entry) {
	named := make(map[uint64]bool, len(counters))
	for _, c := range counters {
		named[c] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.shelves {
		for e := p.shelves[i].oldest; e != nil; {
			next := e.newer
			if named[e.counter] {
				p.remove(e)
				out = append(out, e)
			}
			e = next
		}
	}
	p.refill()
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
		for e := p.shelves[i].oldest; e != nil; e = p.shelves[i].oldest {
			p.remove(e)
			parked = append(parked, e)
		}
	}
	p.shelves = nil
	p.forget()
	for _, l := range p.half {
		half = append(half, l)
	}
	return parked, half
}

// deliver makes a claimed connection a leased one: from now on the agent's word
// settles it. ok is false when the pool is closed.
func (p *pool) deliver(e *entry, l *Lease) (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight.unlink(e)
	p.gone(e)
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
	p.share.half.Add(-1)
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
