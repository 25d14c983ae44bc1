//go:build unix

package gateway

import "math/bits"

// linksByID are links by their relay's id. There are thousands, while two processes
// have them: a map would take four times as much, since it has the ids too.
//
// Invariant: between a link and its home there is no free slot.
type linksByID struct {
	slots []*link // a power of two, at least a quarter of them free
	n     int
}

// linksByIDLeast are the slots that there are at first.
const linksByIDLeast = 256

func (s *linksByID) len() int { return s.n }

// home is the slot in which the search for an id begins: ids are given out one
// after the other, and each loop has some. It is called when there are slots.
func (s *linksByID) home(id uint64) int {
	const golden = 0x9e3779b97f4a7c15 // 2^64 over the golden ratio
	return int((id * golden) >> bits.LeadingZeros64(uint64(len(s.slots)-1)))
}

func (s *linksByID) next(i int) int { return (i + 1) & (len(s.slots) - 1) }

// find is the slot of an id, or the free one where it would be.
func (s *linksByID) find(id uint64) int {
	i := s.home(id)
	for s.slots[i] != nil && s.slots[i].relay.ID() != id {
		i = s.next(i)
	}
	return i
}

// of is nil when there is none.
func (s *linksByID) of(id uint64) *link {
	if s.n == 0 {
		return nil
	}
	return s.slots[s.find(id)]
}

// add puts in a link with a relay, whose id is not there.
func (s *linksByID) add(l *link) {
	if s.n >= len(s.slots)/4*3 {
		s.grow()
	}
	s.slots[s.find(l.relay.ID())] = l
	s.n++
}

func (s *linksByID) grow() {
	before := s.slots
	s.slots = make([]*link, max(linksByIDLeast, 2*len(before)))
	for _, l := range before {
		if l != nil {
			s.slots[s.find(l.relay.ID())] = l
		}
	}
}

// remove takes a link out and returns it; nil when there is none. What stands behind
// it closes the gap, unless that is where its home is, or behind.
func (s *linksByID) remove(id uint64) *link {
	if s.n == 0 {
		return nil
	}
	gap := s.find(id)
	out := s.slots[gap]
	if out == nil {
		return nil
	}
	s.n--
	for i := s.next(gap); s.slots[i] != nil; i = s.next(i) {
		way := (i - s.home(s.slots[i].relay.ID())) & (len(s.slots) - 1)
		if way >= (i-gap)&(len(s.slots)-1) {
			s.slots[gap], gap = s.slots[i], i
		}
	}
	s.slots[gap] = nil
	return out
}
