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
