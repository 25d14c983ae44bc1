package main

import (
	"runtime"
	"runtime/metrics"
	"testing"
)

// TestHeapFloor: the next collection is at least a floor away from the heap
// that is kept.
func TestHeapFloor(t *testing.T) {
	if gogc := read(t, "/gc/gogc:percent"); gogc != 100 {
		t.Skipf("GOGC is %d, not 100", gogc)
	}
	f := newHeapFloor()
	defer f.release()
	runtime.GC()
	if goal := read(t, "/gc/heap/goal:bytes"); goal < 2*heapFloorSize {
		t.Errorf("the goal is %d bytes, less than twice the floor", goal)
	}
}

func read(t *testing.T, name string) uint64 {
	t.Helper()
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		t.Fatalf("no metric %s", name)
	}
	return s[0].Value.Uint64()
}
