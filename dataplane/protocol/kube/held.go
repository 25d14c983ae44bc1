package kube

import (
	"cmp"
	"errors"
	"io"
	"sync"
)

// What the objects of requests take in memory while they are held because roles
// narrow them by name: of one user, and of all of a cluster's. One object has at
// most maxNamed; a client sends few at a time.
const (
	heldOfUser = 4 * (maxNamed + 1)
	heldOfAll  = 16 * (maxNamed + 1)
	heldStep   = 32 << 10 // what is asked for at once
)

// What the objects of answers take that are narrowed: of one user, and of all of a
// cluster's. A client that does not read has them held for as long as it may stall.
const (
	shownToUser = 256 << 20
	shownToAll  = 1 << 30
	shownStep   = 64 << 10 // bytes of an object that are not counted
	shownCost   = 3        // copies of an object: as it is read, as it is judged, as it is passed on
)

// errHeld says that there is no room now.
var errHeld = errors.New("too many objects are held for their names")

// held counts the bytes of objects in memory. Its methods may be called
// concurrently.
type held struct {
	ofUser, ofAll int // 0: heldOfUser, heldOfAll

	mu    sync.Mutex
	all   int
	users map[string]int
}

// take makes room for n bytes, or reports that there is none.
func (h *held) take(user string, n int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all+n > cmp.Or(h.ofAll, heldOfAll) || h.users[user]+n > cmp.Or(h.ofUser, heldOfUser) {
		return false
	}
	if h.users == nil {
		h.users = map[string]int{}
	}
	h.all += n
	h.users[user] += n
	return true
}

// give returns the room of n bytes.
func (h *held) give(user string, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all -= n
	if h.users[user] -= n; h.users[user] == 0 {
		delete(h.users, user)
	}
}

// holding is an object that is read into memory, and the room that it has.
type holding struct {
	held *held
	user string
	room int
	body []byte
}

// read reads all of an object of at most most bytes; room is taken as the bytes
// come, so that a length alone takes none. Its errors are errHeld and those of
// the reader; io.ErrShortBuffer says that there is more.
func (o *holding) read(r io.Reader, most int) error {
	for {
		if len(o.body) == cap(o.body) {
			// Doubling: for the time of the copy, both are there.
			more := min(max(len(o.body), heldStep), most+1-len(o.body))
			if !o.take(more) {
				return errHeld
			}
			grown := make([]byte, len(o.body), len(o.body)+more)
			copy(grown, o.body)
			o.body = grown
		}
		n, err := r.Read(o.body[len(o.body):cap(o.body)])
		o.body = o.body[:len(o.body)+n]
		switch {
		case len(o.body) > most:
			return io.ErrShortBuffer
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// take takes n bytes more, or reports that there is no room.
func (o *holding) take(n int) bool {
	if o.held != nil && !o.held.take(o.user, n) {
		return false
	}
	o.room += n
	return true
}

// drop gives the room back, once the object is not needed any more.
func (o *holding) drop() {
	if o != nil && o.held != nil && o.room > 0 {
		o.held.give(o.user, o.room)
		o.room, o.body = 0, nil
	}
}
