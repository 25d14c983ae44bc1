package relay

import "golang.org/x/sys/unix"

// watches are the descriptors of one loop, each in a place that its events
// name. The process's other loops have descriptors in between, so a table by
// descriptor would be mostly empty: this one is of small numbers.
type watches struct {
	places []int32        // by descriptor, one more than the place; 0 for none
	pages  []*[page]watch // that stay where they are, and need no copying to become more
	used   int32          // places that have been given out
	free   []int32        // and come back
}

// page is the places that are added at once.
const page = 128

// nowhere is no place; events of the bell come from there.
const nowhere = -1

// watch is one descriptor in the set. The generation travels with each event:
// one that was fetched before an Unwatch does not reach the descriptor's, or
// its place's, next handler.
type watch struct {
	handler Handler // nil: the place is free
	gen     uint32
	past    Readiness // of it, what lasts
	kept    Readiness // fetched while the loop was held, and not yet reported
}

func (t *watches) at(place int32) *watch { return &t.pages[place/page][place%page] }

// find is the place of a descriptor, or nowhere.
func (t *watches) find(fd int) int32 {
	if fd < 0 || fd >= len(t.places) {
		return nowhere
	}
	return t.places[fd] - 1
}

// of is who hears of an event; nil for nobody.
func (t *watches) of(ev *unix.EpollEvent) *watch {
	if ev.Fd == nowhere {
		return nil
	}
	w := t.at(ev.Fd)
	if w.handler == nil || w.gen != uint32(ev.Pad) {
		return nil
	}
	return w
}

// add gives a descriptor a place, which it did not have.
func (t *watches) add(fd int) int32 {
	if fd >= len(t.places) {
		t.places = append(t.places, make([]int32, fd+1-len(t.places))...)
	}
	place := t.used
	if n := len(t.free); n > 0 {
		place = t.free[n-1]
		t.free = t.free[:n-1]
	} else {
		if t.used++; place%page == 0 {
			t.pages = append(t.pages, new([page]watch))
		}
	}
	t.places[fd] = place + 1
	return place
}

// remove is false when the descriptor has no place.
func (t *watches) remove(fd int) bool {
	place := t.find(fd)
	if place == nowhere {
		return false
	}
	*t.at(place) = watch{}
	t.places[fd] = 0
	t.free = append(t.free, place)
	return true
}
