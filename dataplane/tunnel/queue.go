package tunnel

import (
	"sync"
	"sync/atomic"
)

// queue holds the clients that wait for a connection, in order. Each has a
// half-open slot, so the bounds of strangers bound it too.
//
// A client joins and looks once more; whoever frees something frees it and then
// looks here. So one of the two sees the other: nobody is forgotten.
type queue struct {
	length atomic.Int64 // read without the lock: nobody waits, usually

	mu         sync.Mutex
	head, tail *request
}

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
			closeFD(e.fd)
			h.counters.add(why)
			return
		}
		_ = h.shelve(e.loop, e) // refused only when the tunnel has ended
	})
}

// feed serves the clients that wait for something of t, in order. A stranger
// for whom the rest is reserved does not stop those behind him.
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

func (h *Hub) grants(t *tunnel) (out []grant) {
	h.queue.mu.Lock()
	defer h.queue.mu.Unlock()
	var next *request
	for q := h.queue.head; q != nil; q = next {
		next = q.next
		if !t.serves(q.name) {
			continue
		}
		e, lease, _ := h.claimFrom(t, q, false)
		if e != nil {
			h.queue.unlink(q)
			out = append(out, grant{q, e, lease})
		} else if q.admission.known {
			break // there is nothing, for anybody
		}
	}
	return out
}

func (s *queue) push(q *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q.queued, q.prev, q.next = true, s.tail, nil
	if s.tail != nil {
		s.tail.next = q
	} else {
		s.head = q
	}
	s.tail = q
	s.length.Add(1)
}

// remove reports whether q was still waiting.
func (s *queue) remove(q *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !q.queued {
		return false
	}
	s.unlink(q)
	return true
}

func (s *queue) unlink(q *request) {
	if q.prev != nil {
		q.prev.next = q.next
	} else {
		s.head = q.next
	}
	if q.next != nil {
		q.next.prev = q.prev
	} else {
		s.tail = q.prev
	}
	q.queued, q.prev, q.next = false, nil, nil
	s.length.Add(-1)
}
