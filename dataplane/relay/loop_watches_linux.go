package relay

import "golang.org/x/sys/unix"

// watches are the descriptors of one loop, each in a place that its events
// name. The process's other loops have descriptors in between, so a table by
// descriptor would be mostly empty: this one is of small numbers.
//
// Both tables grow by pages, which stay where they are: a table that is copied to
// become larger leaves as much garbage as it is large, and that stays resident.
type watches struct {
	places []*[placesPage]int32 // by descriptor, one more than the place; 0 for none
	pages  []*[page]watch
	used   int32 // places that have been given out
	free   int32 // one more than the last that has come back; 0 for none
}

const (
	// page is the places that are added at once.
	page = 128

	// placesPage is the descriptors whose places are added at once: 2 KiB.
	placesPage = 512
)

// nowhere is no place; events of the bell come from there.
const nowhere = -1

// watch is one descriptor in the set. The generation travels with each event:
// one that was fetched before an Unwatch does not reach the descriptor's, or
// its place's, next handler.
type watch struct {
	handler Handler   // nil: the place is free
	gen     uint32    // of a free place: one more than the next free one
	past    Readiness // of it, what lasts
	kept    Readiness // fetched while the loop was held, and not yet reported
}

func (t *watches) at(place int32) *watch { return &t.pages[place/page][place%page] }

// find is the place of a descriptor, or nowhere.
func (t *watches) find(fd int) int32 {
	if fd < 0 || fd >= len(t.places)*placesPage {
		return nowhere
	}
	some := t.places[fd/placesPage]
	if some == nil {
		return nowhere
	}
	return some[fd%placesPage] - 1
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
	for fd >= len(t.places)*placesPage {
		t.places = append(t.places, nil)
	}
	some := &t.places[fd/placesPage]
	if *some == nil {
		*some = new([placesPage]int32)
	}
	place := t.free - 1
	if place != nowhere {
		w := t.at(place)
		t.free, w.gen = int32(w.gen), 0
	} else {
		place = t.used
		if t.used++; place%page == 0 {
			t.pages = append(t.pages, new([page]watch))
		}
	}
	(*some)[fd%placesPage] = place + 1
	return place
}

// remove is false when the descriptor has no place.
func (t *watches) remove(fd int) bool {
	place := t.find(fd)
	if place == nowhere {
		return false
	}
	*t.at(place) = watch{gen: uint32(t.free)}
	t.free = place + 1
	t.places[fd/placesPage][fd%placesPage] = 0
	return true
}
