package tunnel

import (
	"net/netip"
	"sync"
	"time"
)

// strangers counts the half-open streams per source and of the whole gateway,
// limits the rate of new ones, and remembers which sources somebody has proved
// himself from.
type strangers struct {
	bounds Bounds

	mu     sync.Mutex
	half   map[netip.Prefix]int // at most bounds.HalfOpenGateway entries
	total  int
	rate   generations[int64] // theoretical arrival time, Unix nanoseconds
	recent generations[struct{}]
}

func newStrangers(b Bounds) *strangers {
	return &strangers{
		bounds: b,
		half:   map[netip.Prefix]int{},
		rate:   generations[int64]{period: rateBurst},
		recent: generations[struct{}]{period: recentFor},
	}
}

// rateBurst is the time that a source's burst spans: SourceRate of them at once
// is allowed after a quiet second.
const rateBurst = time.Second

// admission is what a client's half-open stream holds until it is settled.
type admission struct {
	source netip.Prefix
	known  bool // the source had a recent stream-up
	paid   bool // the rate limit was charged
}

// admit takes a half-open slot for a client, or says which bound is in the way.
// A further attempt of the same client is not charged to the rate.
func (s *strangers) admit(src netip.Addr, attempt int, now time.Time) (admission, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := admission{source: sourceOf(src)}
	_, a.known = s.recent.get(a.source, now)
	perSource := s.bounds.HalfOpenSource
	if a.known {
		perSource *= trustedFactor
	}
	if s.total >= open(s.bounds.HalfOpenGateway, a.known) {
		return a, FailGatewayHalfOpen
	}
	if s.half[a.source] >= perSource {
		return a, FailSourceHalfOpen
	}
	if attempt == 0 && !a.known { // the rate is a stranger's
		if !s.charge(a.source, now) {
			return a, FailSourceRate
		}
		a.paid = true
	}
	s.total++
	s.half[a.source]++
	return a, ""
}

// settle gives the slot back. A stream that came up pays nothing: the rate is a
// stranger's.
func (s *strangers) settle(a admission, up bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.half[a.source]--; s.half[a.source] <= 0 {
		delete(s.half, a.source)
	}
	if !up {
		return
	}
	s.recent.put(a.source, struct{}{}, now)
	if tat, ok := s.rate.get(a.source, now); ok && a.paid {
		s.rate.put(a.source, tat-s.step(), now)
	}
}

// charge is the generic cell rate algorithm: one number per source.
func (s *strangers) charge(src netip.Prefix, now time.Time) bool {
	tat, _ := s.rate.get(src, now)
	tat = max(tat, now.UnixNano()) + s.step()
	if tat-now.UnixNano() > int64(rateBurst) {
		return false
	}
	s.rate.put(src, tat, now)
	return true
}

func (s *strangers) step() int64 { return int64(rateBurst) / int64(s.bounds.SourceRate) }

func (s *strangers) halfOpen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// sourceOf is what counts as one source: a /32 or a /64.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // the zero Prefix for an unknown address: one source
	return p
}

// generations is a map that forgets: a value lives for one to two periods after
// it was last put, and less only when there are too many of them. The zero
// value with a period is empty.
type generations[V any] struct {
	period    time.Duration
	turned    time.Time
	now, past map[netip.Prefix]V
}

func (g *generations[V]) get(k netip.Prefix, at time.Time) (V, bool) {
	g.turn(at)
	if v, ok := g.now[k]; ok {
		return v, true
	}
	v, ok := g.past[k]
	return v, ok
}

func (g *generations[V]) put(k netip.Prefix, v V, at time.Time) {
	g.turn(at)
	if g.now == nil {
		g.now = map[netip.Prefix]V{}
	}
	g.now[k] = v
}

func (g *generations[V]) turn(at time.Time) {
	gone := at.Sub(g.turned)
	switch {
	case gone >= 2*g.period:
		g.now, g.past, g.turned = nil, nil, at
	case gone >= g.period, len(g.now) >= maxSources:
		g.now, g.past, g.turned = nil, g.now, at
	}
}
