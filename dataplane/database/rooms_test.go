package database

import "testing"

func TestRooms(t *testing.T) {
	var none *Rooms
	for _, r := range []*Rooms{none, {}} {
		for _, size := range []int{1, roomLeast - 1, roomLeast, roomLeast + 1, 2 * roomLeast, 3 * roomLeast, roomMost, 2 * roomMost} {
			b := r.Take(size)
			if len(b) != size {
				t.Fatalf("%d bytes of %d", len(b), size)
			}
			r.Give(b)
			if b = r.Take(size); len(b) != size {
				t.Fatalf("%d bytes of %d, lent before", len(b), size)
			}
			r.Give(b[:size/2]) // whatever it is, what is taken has the size asked for
			if b = r.Take(size / 2); len(b) != size/2 {
				t.Fatalf("%d bytes of %d", len(b), size/2)
			}
		}
	}
	if got := roomLeast << (roomSizes - 1); got != roomMost {
		t.Errorf("the largest is %d", got)
	}
}

// TestRoomsHaveABound: what one user's sessions hold is bounded, what all hold too, and
// what was given back can be had again.
func TestRoomsHaveABound(t *testing.T) {
	if lentToUser > 384<<20 || lentToAll > 1<<30 {
		t.Errorf("%d bytes of a user, %d of all", lentToUser, lentToAll)
	}
	const long = 3 * BufferSize // needs a buffer of four, and has one of two before
	r := &Rooms{OfUser: 10 * BufferSize, OfAll: 14 * BufferSize}
	holds := func(user string) *Buffer {
		b := &Buffer{Rooms: r, User: user}
		fill(b, 'h', long)
		return b
	}
	full := func(b *Buffer) bool {
		for range 10 * BufferSize {
			space := b.Space()
			if len(space) == 0 {
				return true
			}
			b.Add(len(space))
			if len(b.Unpassed()) > long {
				return false
			}
		}
		return false
	}
	alice, other := holds("alice"), holds("alice")
	third := &Buffer{Rooms: r, User: "alice"}
	if !full(third) {
		t.Error("a third message of one user is held")
	}
	if got := len(third.Unpassed()); got != 2*BufferSize {
		t.Errorf("%d bytes of the third are there", got)
	}
	third.Drop()
	bob := holds("bob")
	if !full(&Buffer{Rooms: r, User: "carol"}) {
		t.Error("a fourth message is held")
	}
	alice.Pass(long)
	alice.Space() // nothing is held any more
	other.Drop()
	holds("alice").Drop()
	bob.Drop()
	alice.Drop()
	if r.all != 2*BufferSize || len(r.users) != 1 { // carol's, which nobody dropped
		t.Errorf("%d bytes are lent, to %v", r.all, r.users)
	}
}
