package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

// gcPercent is GOGC as it is now.
func gcPercent() int {
	s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(s)
	return int(int64(s[0].Value.Uint64())) // off: all bits
}

// TestThrift: what is usual comes back with the last end, and who collects less
// already goes on so.
func TestThrift(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	for usual, want := range map[int][2]int{100: {thriftyGC, 100}, 10: {10, 10}, -1: {-1, -1}} {
		debug.SetGCPercent(usual)
		saving := new(thrift)
		saving.end()
		saving.begin()
		first := gcPercent()
		saving.begin()
		second := gcPercent()
		saving.end()
		third := gcPercent()
		saving.end()
		if after := gcPercent(); first < want[0] || first > want[1] || second != first || third != first || after != usual {
			t.Errorf("usually %d: %d, %d and %d meanwhile, want %v, and %d afterwards", usual, first, second, third, want, after)
		}
	}
}

// TestThriftYoung: a process that has just started collects nothing before there is
// thriftyRoom more, and after each collection it is told what the next one waits
// for, until the end.
func TestThriftYoung(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	for usual, want := range map[int][2]int{800: {thriftyGC, 800}, thriftyGC: {thriftyGC, thriftyGC}, 10: {10, 10}, -1: {-1, -1}} {
		debug.SetGCPercent(usual)
		saving := new(thrift)
		before := heapNow()
		saving.beginYoung()
		if usual < thriftyGC {
			if got := gcPercent(); got != usual {
				t.Errorf("usually %d: %d", usual, got)
			}
		} else if goal := heapMetric("/gc/heap/goal:bytes"); goal < before+thriftyRoom*9/10 {
			t.Errorf("usually %d: the first collection comes at %d bytes, and there were %d", usual, goal, before)
		}
		for range 2 {
			debug.SetGCPercent(usual + 1) // it is found out again after each collection
			runtime.GC()
			deadline := time.Now().Add(time.Minute)
			for ; gcPercent() == usual+1 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				runtime.GC()
			}
			if got := gcPercent(); got < want[0] || got > want[1] {
				t.Errorf("usually %d: %d after a collection, want %v", usual, got, want)
			}
		}
		saving.end()
		runtime.GC()
		if got := gcPercent(); got != usual {
			t.Errorf("usually %d: %d afterwards", usual, got)
		}
	}
}

// TestThriftyPercent: a small heap may grow by what an upgrade needs, a large one
// by little; a young one by both.
func TestThriftyPercent(t *testing.T) {
	for live, want := range map[uint64][2]int{0: {1400, 1430}, 14 << 20: {100, 130}, 140 << 20: {thriftyGC, 40}, 1 << 40: {thriftyGC, thriftyGC}, ^uint64(0): {thriftyGC, thriftyGC}} {
		if got := [2]int{thriftyPercent(live), youngPercent(live)}; got != want {
			t.Errorf("%d MiB in use: %d, want %d", live>>20, got, want)
		}
	}
	for size, want := range map[uint64]int{0: 350, 2 << 20: 400} {
		if got := firstPercent(size); got != want {
			t.Errorf("%d MiB: %d at first, want %d", size>>20, got, want)
		}
	}
	if got := firstPercent(^uint64(0)); got < 400 || got > 2000 {
		t.Errorf("when the size cannot be told: %d at first", got)
	}
	if live := liveHeap(); live == 0 || live > 1<<40 {
		t.Errorf("%d bytes are in use", live)
	}
}
