package webapp

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
)

// Whoever can connect can make a gateway ask auth, by a cookie or a code of the
// right length. How many such questions are under way at once is bounded, for one
// source and for all; the others wait for a while, and there is no place for more.
const (
	strangersSource  = 8
	strangersAll     = 64
	strangersWait    = 5 * time.Second
	strangersWaiting = 64   // of one source, with those whose question is under way
	strangersMost    = 2048 // of all sources, the same
)

// strangers counts questions about those who are not known here yet.
type strangers struct {
	mu      sync.Mutex
	sources map[netip.Prefix]*source
	all     chan struct{}
	waiting int // of all sources, with those whose question is under way
}

// source is where some of them come from: a /32 or a /64.
type source struct {
	slots chan struct{}
	users int // guarded by strangers.mu
}

// enter waits for a place; leave gives it back.
func (s *strangers) enter(ctx context.Context, from netip.Addr) (leave func(), err error) {
	place := prefixOf(from)
	here, all := s.join(place)
	if here == nil {
		return nil, tooMany()
	}
	wait := time.NewTimer(strangersWait)
	defer wait.Stop()
	held := 0
	leave = func() {
		if held > 1 {
			<-all
		}
		if held > 0 {
			<-here.slots
		}
		s.part(place)
	}
	for _, slots := range []chan struct{}{here.slots, all} {
		select {
		case slots <- struct{}{}:
			held++
		case <-ctx.Done():
			leave()
			return nil, ctx.Err()
		case <-wait.C:
			leave()
			return nil, tooMany()
		}
	}
	return leave, nil
}

func tooMany() error {
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many logins at once", Hint: "try again in a moment"}
}

// join counts one in; nil when there are too many.
func (s *strangers) join(place netip.Prefix) (*source, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all, s.sources = make(chan struct{}, strangersAll), map[netip.Prefix]*source{}
	}
	if s.waiting >= strangersMost {
		return nil, nil
	}
	here := s.sources[place]
	if here == nil {
		here = &source{slots: make(chan struct{}, strangersSource)}
		s.sources[place] = here
	}
	if here.users >= strangersWaiting {
		return nil, nil
	}
	here.users++
	s.waiting++
	return here, s.all
}

func (s *strangers) part(place netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
	here := s.sources[place]
	if here.users--; here.users == 0 {
		delete(s.sources, place)
	}
}

func prefixOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a = a.Unmap().WithZone(""); a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // both lengths are good
	return p
}
