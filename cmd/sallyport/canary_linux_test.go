package main

import (
	"context"
	"testing"

	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/handover"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// TestCanaryHas: what a canary had got since its last report was counted nowhere. Of
// one that hung, hundreds stayed with it and the record said 1; of one that had not
// spoken yet it said none, and the canary was killed with all of them.
func TestCanaryHas(t *testing.T) {
	mine, its, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	defer its.Close()
	c := &canary{gateway: new(gateway.Gateway), talk: handover.NewTalk(mine), gone: make(chan struct{}), returned: make(chan *handoverv1.CanaryReturned, 1)}
	c.setRoom(0)
	record, err := canaryRecord(handoverv1.CanaryKind_CANARY_KIND_CONNECTION, nil)
	if err != nil {
		t.Fatal(err)
	}
	gets := func(n int) {
		t.Helper()
		for range n {
			if !c.pass(record) {
				t.Fatal("there was room for it")
			}
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	stays := func(want int) {
		t.Helper()
		if left, all := c.comeBack(ended); left != want || all {
			t.Errorf("%d stay with it, not %d (all are back: %v)", left, want, all)
		}
	}

	gets(3)
	stays(3)
	c.count(&handoverv1.CanaryReport{Relays: 1, Waiting: 1})
	stays(2)
	gets(2)
	stays(4)
	c.room.Store(0)
	if c.pass(record) {
		t.Error("it gets more than it has descriptors for")
	}
	stays(4)
	if n := c.lost(); n != 0 {
		t.Errorf("%d were lost of one that lives", n)
	}
	close(c.gone)
	if n := c.lost(); n != 4 {
		t.Errorf("%d were lost, not 4", n)
	}
}
