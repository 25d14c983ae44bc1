package database

import (
	"cmp"
	"math/bits"
	"sync"
)

// Sizes of the buffers that are lent: powers of two.
const (
	roomLeast = 64 << 10
	roomMost  = 4 << 20 // a larger one is left to the collector
	roomSizes = 7
)

// What buffers that are lent have in memory at once. While one grows both have it: the
// longest that is held of a message, 64 MiB and its header, needs 192.
const (
	lentToUser = 384 << 20
	lentToAll  = 1 << 30
)

// Rooms lends buffers for what is longer than a session's own holds: one value of
// a megabyte after the other would otherwise have as much memory cleared and
// collected several times over. What is given back is kept for no longer than
// two collections of garbage. What is lent has a bound: a message that is never sent to
// its end is held for as long as its client likes. The zero value is ready; its methods
// may be called concurrently, also on nil, which bounds nothing.
type Rooms struct {
	OfUser, OfAll int // bytes; 0: 384 MiB and 1 GiB

	sizes [roomSizes]sync.Pool

	mu    sync.Mutex
	all   int            // bytes that are lent
	users map[string]int // and of these, to whom
}

// lend returns a buffer of a size, with anything in it; nil when there is no room for
// it, or none of the user's.
func (r *Rooms) lend(user string, size int) []byte {
	if r != nil && !r.count(user, size) {
		return nil
	}
	return r.Take(size)
}

func (r *Rooms) count(user string, size int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all+size > cmp.Or(r.OfAll, lentToAll) || r.users[user]+size > cmp.Or(r.OfUser, lentToUser) {
		return false
	}
	if r.users == nil {
		r.users = map[string]int{}
	}
	r.all += size
	r.users[user] += size
	return true
}

// end takes back what was lent to the user.
func (r *Rooms) end(user string, b []byte) {
	if r == nil {
		return
	}
	r.Give(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all -= len(b)
	if r.users[user] -= len(b); r.users[user] == 0 {
		delete(r.users, user)
	}
}

// Take returns a buffer of a size, with anything in it.
func (r *Rooms) Take(size int) []byte {
	if pool := r.of(size); pool != nil {
		if b, ok := pool.Get().(*[]byte); ok {
			return *b
		}
	}
	return make([]byte, size)
}

// Give takes a buffer, which the caller uses no more.
func (r *Rooms) Give(b []byte) {
	if pool := r.of(len(b)); pool != nil {
		pool.Put(&b)
	}
}

// of is where buffers of a size are; nil when they are not kept.
func (r *Rooms) of(size int) *sync.Pool {
	if r == nil || size < roomLeast || size > roomMost || size&(size-1) != 0 {
		return nil
	}
	return &r.sizes[bits.TrailingZeros(uint(size))-bits.TrailingZeros(uint(roomLeast))]
}
