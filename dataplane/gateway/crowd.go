//go:build unix

package gateway

import (
	"net/netip"
	"sync"
	"time"
)

// crowd counts who is not routed yet: per source, in all, and how fast they come.
// A source from which somebody has proved himself lately may hold more, and a
// quarter of all places is for such sources alone: a flood does not lock agents
// and users out.
type crowd struct {
	mu     sync.Mutex
	bounds Bounds
	whole  bool                 // nobody can be known: no place is kept for those who are
	half   map[netip.Prefix]int // at most bounds.WaitingGateway entries
	total  int
	ended  map[netip.Prefix]int // at most bounds.EndedGateway entries
	open   int                  // their sum
	speech int                  // strangers that speak SSH
	rate   fading[int64]        // when the source's next connection is within its rate, Unix nanoseconds
	known  fading[struct{}]
}

const (
	// knownFactor: an agent's pool (256) may come at once.
	knownFactor = 16

	// reservedPart of all places is for known sources.
	reservedPart = 4

	// rateBurst is the time that a source's burst spans.
	rateBurst = time.Second

	// knownFor is how long a proof makes a source known: one to two times this.
	knownFor = 10 * time.Minute

	// fadingMost bounds each table of sources.
	fadingMost = 32768
)

// newCrowd keeps a part of all places for known sources, if it reserves.
func newCrowd(b Bounds, reserves bool) *crowd {
	return &crowd{
		bounds: b, whole: !reserves, half: map[netip.Prefix]int{}, ended: map[netip.Prefix]int{},
		rate:  fading[int64]{period: rateBurst},
		known: fading[struct{}]{period: knownFor},
	}
}

// bound replaces the bounds. Who has a place keeps it.
func (c *crowd) bound(b Bounds, reserves bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bounds, c.whole = b, !reserves
}

// slot is a connection's place in the crowd. The zero value has none.
type slot struct {
	source netip.Prefix
	exempt bool // a trusted proxy: the sources behind it are counted, not itself
	held   bool
	paid   bool // the rate was charged, for this connection
}

// enter takes a place, or says which bound is in the way. charge counts the
// connection towards its source's rate, once.
func (c *crowd) enter(s *slot, from netip.Addr, charge bool, now time.Time) (bound outcome, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.held {
		if bound, ok := c.placeLocked(s, sourceOf(from), now); !ok {
			return bound, false
		}
	}
	if charge && !s.paid && !s.exempt {
		if !c.chargeLocked(s.source, now) {
			return outcomeSourceRate, false
		}
		s.paid = true
	}
	return 0, true
}

func (c *crowd) placeLocked(s *slot, source netip.Prefix, now time.Time) (outcome, bool) {
	_, known := c.known.get(source, now)
	perSource, inAll := c.bounds.WaitingSource, c.bounds.WaitingGateway
	if known {
		perSource *= knownFactor
	} else if !s.exempt && !c.whole {
		inAll -= inAll / reservedPart
	}
	switch {
	case c.total >= inAll:
		return outcomeGatewayFull, false
	case !s.exempt && c.half[source] >= perSource:
		return outcomeSourceFull, false
	}
	s.source, s.held = source, true
	c.total++
	c.half[source]++
	return 0, true
}

// restore gives a connection the place that it had in another process.
func (c *crowd) restore(s *slot, from netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.source, s.held = sourceOf(from), true
	c.total++
	c.half[s.source]++
}

// proven are the sources that are known now.
func (c *crowd) proven(now time.Time) []netip.Prefix {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known.keys(now)
}

// remember makes sources known.
func (c *crowd) remember(sources []netip.Prefix, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range sources {
		c.known.put(s, struct{}{}, now)
	}
}

// leave gives the place back. With good the connection came to something: what
// its rate was charged is given back too, the rate is a stranger's.
func (c *crowd) leave(s *slot, good bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.held {
		s.held = false
		c.total--
		if c.half[s.source]--; c.half[s.source] <= 0 {
			delete(c.half, s.source)
		}
	}
	if good && s.paid {
		s.paid = false
		if next, ok := c.rate.get(s.source, now); ok {
			c.rate.put(s.source, next-c.step(), now)
		}
	}
}

// hold takes a place for a connection whose TLS has ended here and whose client
// has proved nothing; release gives it back when the connection is closed. Such
// clients may stay for as long as they talk: what is bounded is how many.
func (c *crowd) hold(from netip.Addr, now time.Time) (bound outcome, ok bool) {
	source := sourceOf(from)
	c.mu.Lock()
	defer c.mu.Unlock()
	perSource, inAll := c.bounds.EndedSource, c.bounds.EndedGateway
	if _, known := c.known.get(source, now); known {
		perSource *= knownFactor
	} else {
		inAll -= inAll / reservedPart
	}
	switch {
	case c.open >= inAll:
		return outcomeGatewayFull, false
	case c.ended[source] >= perSource:
		return outcomeSourceFull, false
	}
	c.open++
	c.ended[source]++
	return 0, true
}

func (c *crowd) release(from netip.Addr) {
	source := sourceOf(from)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.ended[source]--; c.ended[source] <= 0 {
		delete(c.ended, source)
	}
}

// speak takes a place for a stranger that speaks SSH, beside the one that it has;
// hush gives it back. Before it is known who he is, the first bytes of each may
// make the SSH library set 256 KiB aside.
func (c *crowd) speak(from netip.Addr, now time.Time) (bound outcome, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := c.bounds.WaitingSSH
	if _, known := c.known.get(sourceOf(from), now); !known {
		most -= most / reservedPart
	}
	if c.speech >= most {
		return outcomeGatewayFull, false
	}
	c.speech++
	return 0, true
}

func (c *crowd) hush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.speech--
}

// prove makes a source known.
func (c *crowd) prove(from netip.Addr, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known.put(sourceOf(from), struct{}{}, now)
}

// charge counts something that is no connection towards a source's rate.
func (c *crowd) charge(from netip.Addr, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.chargeLocked(sourceOf(from), now)
}

// chargeLocked is the generic cell rate algorithm: one number per source. The
// rate is a stranger's: a known source is bounded by its places alone.
func (c *crowd) chargeLocked(source netip.Prefix, now time.Time) bool {
	if _, known := c.known.get(source, now); known {
		return true
	}
	burst := int64(rateBurst)
	next, _ := c.rate.get(source, now)
	next = max(next, now.UnixNano()) + c.step()
	if next-now.UnixNano() > burst {
		return false
	}
	c.rate.put(source, next, now)
	return true
}

func (c *crowd) step() int64 { return int64(rateBurst) / int64(c.bounds.SourceRate) }

// size is how many are not routed yet.
func (c *crowd) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// holding is how many have places by hold.
func (c *crowd) holding() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// sourceOf is what counts as one source: a /32 or a /64. What has no address
// (a Unix socket) is one source, the zero prefix.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits)
	return p
}

// fading is a map that forgets: a value lives for one to two periods after it
// was last put, and less only when there are too many.
type fading[V any] struct {
	period    time.Duration
	turned    time.Time
	now, past map[netip.Prefix]V
}

func (f *fading[V]) get(k netip.Prefix, at time.Time) (V, bool) {
	f.turn(at)
	if v, ok := f.now[k]; ok {
		return v, true
	}
	v, ok := f.past[k]
	return v, ok
}

func (f *fading[V]) put(k netip.Prefix, v V, at time.Time) {
	f.turn(at)
	if f.now == nil {
		f.now = map[netip.Prefix]V{}
	}
	f.now[k] = v
}

func (f *fading[V]) turn(at time.Time) {
	gone := at.Sub(f.turned)
	switch {
	case gone >= 2*f.period:
		f.now, f.past, f.turned = nil, nil, at
	case gone >= f.period, len(f.now) >= fadingMost:
		f.now, f.past, f.turned = nil, f.now, at
	}
}

// keys are those that get finds.
func (f *fading[V]) keys(at time.Time) (out []netip.Prefix) {
	f.turn(at)
	for k := range f.now {
		out = append(out, k)
	}
	for k := range f.past {
		if _, ok := f.now[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}
