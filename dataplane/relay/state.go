package relay

import "time"

// State is a whole relay: what Start takes and Take gives back. All of it but
// the descriptors can be encoded. A and B are the two ends; what is read from
// one is written to the other.
type State struct {
	ID    uint64 // unique in the process; survives a hand-over
	Route uint32 // the route's index, for counters; opaque here
	A, B  End

	Idle    time.Duration // closed after this long without a byte either way; 0 never
	Started time.Time
}

// End is one side of a relay.
type End struct {
	FD int

	// Pending is what has been read from the other end and not yet been
	// written to this one. It is written before anything else. Owned by the
	// relay from Start on.
	Pending []byte

	// ReadClosed: end of stream was read from FD. WriteClosed: shutdown for
	// writing was done on FD, after all Pending was written.
	ReadClosed, WriteClosed bool

	// Reset: the peer of FD has reset the connection. What it sent before is
	// still to be delivered to the other end, and then the reset.
	Reset bool

	// Drained: all that had come was read from FD, and the loop, which watches
	// FD already, will say when there is more. It saves one look at FD. Take
	// never sets it.
	Drained bool

	Written uint64 // bytes written to FD so far
}

// Reason says why a relay ended.
type Reason uint8

const (
	EndedClosed  Reason = iota // both directions ended in order
	EndedReset                 // one side reset; the reset was passed on
	EndedIdle                  // State.Idle passed
	EndedAborted               // Abort was called
	EndedError                 // a socket error other than a reset
)

// Owner is told when a relay has ended, on the loop's thread. Both descriptors
// have been discarded by then (see Discard); in s they are -1. Ended is not called from within
// Start, unless the loop has been closed, and not after Take.
type Owner interface {
	Ended(s State, why Reason)
}
