package main

import (
	"math"
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

	// thriftyFloor counts as kept, and takes no memory as long as nobody touches it
	// (heapFloor): thriftyGC of it is thriftyRoom.
	thriftyFloor = thriftyRoom * 100 / thriftyGC
)

// thrift is that time. The zero value is ready.
type thrift struct {
	mu    sync.Mutex
	begun int
	usual int    // percent
	floor []byte // while it lasts; nil for none
}

// begin begins it with what is in reserve: that goes back to the system. Who
// collects less than usual anyway (GOGC), or not at all, goes on so.
func (t *thrift) begin() { t.beginOn(nil) }

// beginYoung is for a process that has just started: nobody knows what it will
// keep. The floor takes the place of addresses that were never used.
func (t *thrift) beginYoung() {
	var floor []byte
	if debug.SetMemoryLimit(-1) == math.MaxInt64 { // with GOMEMLIMIT it would count there
		floor = make([]byte, thriftyFloor)
	}
	t.beginOn(floor)
}

func (t *thrift) beginOn(floor []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun++; t.begun == 1 {
		t.usual, t.floor = debug.SetGCPercent(-1), floor
	}
	debug.FreeOSMemory()
	if t.begun == 1 {
		debug.SetGCPercent(min(t.usual, thriftyPercent(liveHeap())))
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
		t.floor = nil
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

// liveHeap is what the last collection has found in use.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	if metrics.Read(s); s[0].Value.Kind() != metrics.KindUint64 {
		return math.MaxUint64 // a later runtime that has it no more
	}
	return s[0].Value.Uint64()
}
