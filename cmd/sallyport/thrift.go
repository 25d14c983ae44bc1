package main

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"

	"github.com/sallyport/sallyport/dataplane/handover"
)

// What may be added to the heap before the next collection, while two processes
// have what one had before and will have after: to collect more often costs less
// than the memory, which a machine may not have twice.
const (
	thriftyGC = 30 // percent

	// thriftyRoom is for a small heap. An upgrade takes a second and adds less, and
	// a collection meanwhile would take a core from the connections for longer than
	// they stand still.
	thriftyRoom = 14 << 20

	// leastHeap is how large the runtime lets a heap become before its first
	// collection, for each 100 of GOGC (https://go.dev/doc/gc-guide#GOGC).
	leastHeap = 4 << 20

	// youngMost is more than a process has that has just started.
	youngMost = 64 << 20
)

// thrift is that time. The zero value is ready.
type thrift struct {
	mu    sync.Mutex
	begun int
	usual int  // percent
	young bool // until the end each collection tells when the next one is to be
}

// begin begins it with what is in reserve: that goes back to the system. Who
// collects less than usual anyway (GOGC), or not at all, goes on so.
func (t *thrift) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun++; t.begun == 1 {
		t.usual = debug.SetGCPercent(-1)
	}
	debug.FreeOSMemory()
	if t.begun == 1 {
		debug.SetGCPercent(min(t.usual, thriftyPercent(liveHeap())))
	}
}

// beginYoung is for a process that has just started. It has no garbage to speak of,
// and the first collection takes a megabyte and a half that the runtime keeps for
// itself: there is none before thriftyRoom has been added. Nobody knows what it will
// keep, so each collection tells when the next one is to be.
func (t *thrift) beginYoung() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun++; t.begun > 1 {
		return
	}
	t.usual, t.young = debug.SetGCPercent(-1), true
	first := t.usual
	if first >= thriftyGC {
		first = firstPercent(heapNow())
	}
	t.awaitCollection()
	debug.SetGCPercent(first)
}

// sentinel is nobody's: the next collection finds it. It has a pointer, and so an
// allocation of its own.
type sentinel struct{ _ *sentinel }

func (t *thrift) awaitCollection() { runtime.AddCleanup(new(sentinel), (*thrift).collected, t) }

// collected is after a collection.
func (t *thrift) collected() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.young {
		debug.SetGCPercent(min(t.usual, youngPercent(liveHeap())))
		t.awaitCollection()
	}
}

// end goes back to what is usual. There is one for each begin; without one it
// does nothing.
func (t *thrift) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun == 0 {
		return
	}
	if t.begun--; t.begun == 0 {
		debug.SetGCPercent(t.usual)
		t.young = false
	}
}

// onStep begins it in the old process once the new one has started.
func (t *thrift) onStep(s handover.Step) error {
	if s == handover.StepPrepare {
		t.begin()
	}
	return nil
}

// thriftyPercent is for a heap of which so much is in use.
func thriftyPercent(live uint64) int {
	return int(max(thriftyGC, 100*thriftyRoom/max(live, 1<<20)))
}

// firstPercent is for a heap of this size that nobody has collected yet.
func firstPercent(size uint64) int {
	return int(100 * (min(size, youngMost) + thriftyRoom) / leastHeap)
}

// youngPercent is for a heap of which so much is in use, and which grows.
func youngPercent(live uint64) int {
	return thriftyGC + int(100*thriftyRoom/max(live, 1<<20))
}

// liveHeap is what the last collection has found in use.
func liveHeap() uint64 { return heapMetric("/gc/heap/live:bytes") }

// heapNow is what has been allocated and not found unused.
func heapNow() uint64 { return heapMetric("/memory/classes/heap/objects:bytes") }

func heapMetric(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	if metrics.Read(s); s[0].Value.Kind() != metrics.KindUint64 {
		return math.MaxUint64 // a later runtime that has it no more
	}
	return s[0].Value.Uint64()
}
