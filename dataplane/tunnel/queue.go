package tunnel

import (
	"sync"
	"sync/atomic"
)

// queue holds the clients that wait for a connection, by the name that they
// wait for: those of known sources in one line, strangers in another. Each has
// a half-open slot, so the bounds of strangers bound the queue too.
//
// A client joins and looks once more; whoever frees something frees it and then
// looks here. So one of the two sees the other: nobody is forgotten.
type queue struct {
	length atomic.Int64 // read without the lock: nobody waits, usually

	mu    sync.Mutex
	names map[resourceName]*lines // only those that somebody waits for
}

// lines are the clients that wait for one name, each line in order.
type lines struct{ known, strangers line }

type line struct{ head, tail *request }

// enqueue adds q and tries once more to claim for it.
func (h *Hub) enqueue(q *request) (*entry, *Lease) {
	h.queue.push(q)
	return h.lookAgain(q)
}

func (h *Hub) lookAgain(q *request) (*entry, *Lease) {
	e, lease, _ := h.claim(q, false)
	if e == nil {
		return nil, nil
	}
	if h.queue.remove(q) {
		return e, lease
	}
	// It was served in between: what was claimed here goes back.
	h.unclaim(lease)
	h.giveBack(e)
	return nil, nil
}

// giveBack returns a claimed connection to its pool by way of the loop that
// still watches it.
func (h *Hub) giveBack(e *entry) {
	e.unwatched(func() {
		if why := peek(e.fd); why != "" {
			e.tunnel.pool.dismiss(e)
			e.close()
			h.counters.add(why)
			return
		}
		_ = h.shelve(e.loop, e) // refused only when the tunnel has ended
	})
}

// feed serves the clients that wait for something of t. Its cost is that of what
// it gives, and one look per name that is waited for: not that of the waiting.
func (h *Hub) feed(t *tunnel) {
	if h.queue.length.Load() == 0 {
		return
	}
	for _, g := range h.grants(t) {
		g.request.handOver(g.entry, g.lease)
	}
}

// grant is a connection for a client of the queue.
type grant struct {
	request *request
	entry   *entry
	lease   *Lease
}

// grants claims for known sources first. What one client of a kind does not
// get, no other of that kind gets: see pool.claim.
func (h *Hub) grants(t *tunnel) (out []grant) {
	h.queue.mu.Lock()
	defer h.queue.mu.Unlock()
	for _, known := range []bool{true, false} {
		for name, ls := range h.queue.names {
			if t.serves(name) && !h.grantLine(t, ls.of(known), &out) {
				break
			}
		}
	}
	return out
}

// grantLine claims for a line in order, and reports whether all of it was served.
func (h *Hub) grantLine(t *tunnel, l *line, out *[]grant) bool {
	for l.head != nil {
		q := l.head
		e, lease, _ := h.claimFrom(t, q, false)
		if e == nil {
			return false
		}
		h.queue.unlink(q)
		*out = append(*out, grant{q, e, lease})
	}
	return true
}

func (l *lines) of(known bool) *line {
	if known {
		return &l.known
	}
	return &l.strangers
}

func (s *queue) push(q *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ls := s.names[q.name]
	if ls == nil {
		ls = &lines{}
		if s.names == nil {
			s.names = map[resourceName]*lines{}
		}
		s.names[q.name] = ls
	}
	l := ls.of(q.admission.known)
	q.in, q.prev, q.next = l, l.tail, nil
	if l.tail != nil {
		l.tail.next = q
	} else {
		l.head = q
	}
	l.tail = q
	s.length.Add(1)
}

// remove reports whether q was still waiting.
func (s *queue) remove(q *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.in == nil {
		return false
	}
	s.unlink(q)
	return true
}

func (s *queue) unlink(q *request) {
	l := q.in
	if q.prev != nil {
		q.prev.next = q.next
	} else {
		l.head = q.next
	}
	if q.next != nil {
		q.next.prev = q.prev
	} else {
		l.tail = q.prev
	}
	q.in, q.prev, q.next = nil, nil, nil
	s.length.Add(-1)
	if ls := s.names[q.name]; ls.known.head == nil && ls.strangers.head == nil {
		delete(s.names, q.name)
	}
}
