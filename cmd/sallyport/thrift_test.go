package main

import (
	"runtime/debug"
	"testing"
)

// TestThrift: what is usual comes back with the last end, and who collects less
// already goes on so.
func TestThrift(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	percent := func() int {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return p
	}
	for usual, want := range map[int][2]int{100: {thriftyGC, 100}, 10: {10, 10}, -1: {-1, -1}} {
		for _, young := range []bool{true, false} {
			debug.SetGCPercent(usual)
			saving := new(thrift)
			saving.end()
			if young {
				saving.beginYoung()
			} else {
				saving.begin()
			}
			first := percent()
			saving.begin()
			second := percent()
			saving.end()
			third := percent()
			saving.end()
			if after := percent(); first < want[0] || first > want[1] || second != first || third != first || after != usual {
				t.Errorf("usually %d: %d, %d and %d meanwhile, want %v, and %d afterwards", usual, first, second, third, want, after)
			}
		}
	}
}

// TestThriftyPercent: a small heap may grow by what an upgrade needs, a large one
// by little; the floor makes a small one of every young process.
func TestThriftyPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 1400, 14 << 20: 100, thriftyFloor + 1<<20: thriftyGC, 1 << 30: thriftyGC, ^uint64(0): thriftyGC} {
		if got := thriftyPercent(live); got != want {
			t.Errorf("%d MiB in use: %d, want %d", live>>20, got, want)
		}
	}
	if live := liveHeap(); live == 0 || live > 1<<40 {
		t.Errorf("%d bytes are in use", live)
	}
}
