package relay

import (
	"fmt"
	"slices"
)

// Batch says whether loops put calls off that can wait until the end of their
// turn, and make them all by one (io_uring(7)).
type Batch string

const (
	// BatchAuto is what measurement says: off. See docs/io_uring.md.
	BatchAuto Batch = "auto"

	BatchOff Batch = "off"

	// BatchOn is on where the kernel allows it, else off.
	BatchOn Batch = "on"
)

// Batches are the words for it.
func Batches() []Batch { return []Batch{BatchAuto, BatchOff, BatchOn} }

// Check refuses what is no word for it; "" is BatchAuto.
func (b Batch) Check() error {
	if b == "" || slices.Contains(Batches(), b) {
		return nil
	}
	return fmt.Errorf("batch: %q is none of %q", string(b), Batches())
}

// Batching is how a loop does it, and what has come of it.
type Batching struct {
	On      bool
	Refused error  // why it is not on though it was wanted; nil when it was not
	Calls   uint64 // that were made in batches
	Made    uint64 // batches
	Failed  uint64 // calls that came to nothing, and those that the kernel did not take and were made by themselves
}

// batcher is a Loop that can put calls off.
type batcher interface {
	batching() Batching
	flush() bool
}

// BatchingOf may be called at any time.
func BatchingOf(l Loop) Batching {
	if b, ok := l.(batcher); ok {
		return b.batching()
	}
	return Batching{}
}

// Flush makes what has been put off, now: it belongs to the loop's thread. It is
// false when there was nothing.
func Flush(l Loop) bool {
	b, ok := l.(batcher)
	return ok && b.flush()
}
