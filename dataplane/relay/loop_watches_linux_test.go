package relay

import (
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWatches: each descriptor has a place of its own, whatever comes and goes, and
// what has come back is given out before there are more.
func TestWatches(t *testing.T) {
	const most = 3*page + 7
	var w watches
	r := rand.New(rand.NewPCG(1, 2))
	places := map[int]int32{} // by descriptor
	for range 20 * most {
		fd := r.IntN(3 * placesPage)
		if at, ok := places[fd]; ok {
			if w.find(fd) != at || w.at(at).handler != nullHandler(fd) {
				t.Fatalf("descriptor %d is not at %d", fd, at)
			}
			if !w.remove(fd) || w.remove(fd) || w.find(fd) != nowhere {
				t.Fatalf("descriptor %d is not removed once", fd)
			}
			ev := unix.EpollEvent{Fd: at, Pad: int32(w.at(at).gen)}
			if w.of(&ev) != nil {
				t.Fatal("a free place gets an event")
			}
			delete(places, fd)
		} else if len(places) < most {
			if w.find(fd) != nowhere {
				t.Fatalf("descriptor %d has a place", fd)
			}
			at := w.add(fd)
			if got := *w.at(at); got != (watch{}) {
				t.Fatalf("a new place has %v", got)
			}
			*w.at(at) = watch{handler: nullHandler(fd), gen: r.Uint32()}
			places[fd] = at
		}
	}
	if w.used > most {
		t.Errorf("%d places for at most %d descriptors", w.used, most)
	}
	if w.find(-1) != nowhere || w.find(1<<20) != nowhere {
		t.Error("a descriptor that was never there has a place")
	}
}

type nullHandler int

func (nullHandler) Ready(Readiness) {}

// TestWatchesGrow: 4,000 descriptors in a row cost what they take, and little more:
// nothing is copied to become larger.
func TestWatchesGrow(t *testing.T) {
	const descriptors = 4000
	const most = 32 * descriptors // bytes: a watch has 24, a place 4
	got := uint64(math.MaxUint64)
	for range 10 { // what others allocate meanwhile counts, too
		var before, after runtime.MemStats
		var w watches
		runtime.ReadMemStats(&before)
		for fd := range descriptors {
			w.add(fd)
		}
		runtime.ReadMemStats(&after)
		got = min(got, after.TotalAlloc-before.TotalAlloc)
	}
	if got > most {
		t.Errorf("%d bytes for %d descriptors, want %d at most", got, descriptors, most)
	}
}
