package database

import (
	"math/bits"
	"sync"
)

// Sizes of the buffers that are lent: powers of two.
const (
	roomLeast = 64 << 10
	roomMost  = 4 << 20 // a larger one is left to the collector
	roomSizes = 7
)

// Rooms lends buffers for what is longer than a session's own holds: one value of
// a megabyte after the other would otherwise have as much memory cleared and
// collected several times over. What is given back is kept for no longer than
// two collections of garbage. The zero value is ready; its methods may be called
// concurrently, also on nil.
type Rooms struct{ sizes [roomSizes]sync.Pool }

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
