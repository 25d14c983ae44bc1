//go:build unix

package gateway

import "iter"

// links are the relays of a lane, in no order: a relay is idle most of its time, and
// what it is kept in is to cost little. A map would take three times as much, and
// leave as much again behind each time it grows; pages stay where they are.
type links struct {
	pages []*[linksPage]*link
	n     int
}

// linksPage is as many as the allocator gives without a header of its own: 512 bytes.
const linksPage = 64

// add puts in a link that is in none.
func (s *links) add(l *link) {
	if s.n == len(s.pages)*linksPage {
		s.pages = append(s.pages, new([linksPage]*link))
	}
	*s.at(s.n) = l
	s.n++
	l.place = uint32(s.n)
}

// remove takes a link out that is in, or does nothing.
func (s *links) remove(l *link) {
	if l.place == 0 {
		return
	}
	s.n--
	last := s.at(s.n)
	*s.at(int(l.place) - 1) = *last
	(*last).place = l.place
	*last, l.place = nil, 0
	if spare := len(s.pages) - 1; s.n < (spare-1)*linksPage { // one is kept: the next may come at once
		s.pages[spare] = nil
		s.pages = s.pages[:spare]
	}
}

func (s *links) at(i int) **link { return &s.pages[i/linksPage][i%linksPage] }

// len is their number.
func (s *links) len() int { return s.n }

// all are those that are there from its begin to its end. Meanwhile any may be added
// and removed: the last comes first, since it takes the place of one that is removed.
// Whoever removes another one than that which was yielded may see one twice.
func (s *links) all() iter.Seq[*link] {
	return func(yield func(*link) bool) {
		for i := s.n - 1; i >= 0; i-- {
			if i < s.n && !yield(*s.at(i)) {
				return
			}
		}
	}
}
