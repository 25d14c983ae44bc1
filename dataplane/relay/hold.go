package relay

import "sync"

// Held is a loop that stands still: what it is given runs, and nothing else.
// Events and timers wait; none is lost.
type Held struct {
	loop Loop
	over chan struct{}

	mu       sync.Mutex // held while a function of Do runs: they are as on one thread
	released bool       // guarded by mu
	first    func()     // what the loop begins with; guarded by mu until released
}

// Hold stops the loop between two events and returns when it stands still. It
// is not to be called on the loop's thread. It returns nil when the loop has been
// closed. Loop.Close waits for Release.
func Hold(l Loop) *Held { return HoldAll([]Loop{l}, nil)[0] }

// HoldAll is Hold for several loops, which stop at the same time. On its own
// thread each does at once what is to be done first, which is told the loop's
// place; nil for nothing. HoldAll returns when that is done too.
func HoldAll(loops []Loop, first func(place int)) []*Held {
	all, still := make([]*Held, len(loops)), make([]chan struct{}, len(loops))
	for i, l := range loops {
		h := &Held{loop: l, over: make(chan struct{})}
		stands := make(chan struct{})
		if l.Post(func() { h.stop(i, first, stands); h.stand() }) {
			all[i], still[i] = h, stands
		}
	}
	for _, stands := range still {
		if stands != nil {
			<-stands
		}
	}
	return all
}

// rester is a Loop that leaves nothing to be done later when it stands still.
type rester interface{ rest() }

func rest(l Loop) {
	if l, ok := l.(rester); ok {
		l.rest()
	}
}

// stop does what is to be done first.
func (h *Held) stop(place int, first func(place int), stands chan struct{}) {
	defer close(stands)
	rest(h.loop)
	if first != nil {
		first(place)
	}
}

// stand keeps the loop's thread until the release.
func (h *Held) stand() {
	<-h.over
	s, sifts := h.loop.(sifter)
	if sifts {
		s.refresh()
	}
	if h.first != nil {
		h.first()
	}
	if sifts {
		s.deliver()
	}
}

// Do runs f and returns when it has. While the loop stands still that is here,
// in place of its thread: to wake that one and to wait for it would cost more than
// most of what is done for a hand-over. What f watches is reported after Release.
// After Release f runs in the loop's next round; Do is false, and f is not run,
// when the loop has been closed. f calls neither Do nor Release.
func (h *Held) Do(f func()) bool {
	if h.stands(f) {
		return true
	}
	done := make(chan struct{})
	if !h.loop.Post(func() { defer close(done); f() }) {
		return false
	}
	<-done
	return true
}

// stands runs f if the loop does.
func (h *Held) stands(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		return false
	}
	f()
	return true
}

// Release lets the loop go on: with what happened meanwhile.
func (h *Held) Release() { h.Begin(nil) }

// Begin is Release, and before anything else the loop's thread runs first. It
// reports false, and first is never run, when the loop has been released before.
func (h *Held) Begin(first func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		return false
	}
	h.released, h.first = true, first
	close(h.over)
	return true
}

// sifter is a Loop that can fetch events while it is held.
type sifter interface {
	sift()    // fetches
	refresh() // Now is now
	deliver() // reports what sift has fetched
}

// Sift fetches what the descriptors of a held loop have become ready for; it is
// called within Do. It is reported after Release, but for the room to write of
// relays that were adopted: each new descriptor has some, and to be told so by
// thousands would keep a loop that begins from those that wait for it. Whoever
// wants room tries when he begins. Without Sift all is reported by and by.
func Sift(l Loop) {
	if s, ok := l.(sifter); ok {
		s.sift()
	}
}
