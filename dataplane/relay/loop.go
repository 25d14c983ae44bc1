package relay

import "time"

// Readiness says what a descriptor is ready for.
type Readiness uint8

const (
	Readable Readiness = 1 << iota // bytes, end of stream, or a pending connection
	Writable                       // room to write, or a connect that finished
	HungUp                         // both halves closed, or reset: reading tells which
	Failed                         // a pending socket error (SO_ERROR)

	// Ending: the peer will send nothing after what is queued now. It comes
	// with Readable. A loop that cannot tell sets it whenever Readable is set.
	// Without it, and without Urgent, a handler may stop at a read that did not
	// fill its buffer.
	Ending

	// Urgent: something in the stream is marked as that. A read ends there,
	// whatever lies behind it.
	Urgent
)

// ScratchSize is the size of Loop.Scratch. Small enough for the first-level
// caches of a core, large enough for a whole TLS record.
const ScratchSize = 16 << 10

// Handler receives the events of one watched descriptor.
//
// Ready is called on the loop's own thread, never concurrently with another
// call of the same loop, and must not block. Events are edge-triggered: a
// handler reads or writes until EAGAIN. Spurious calls happen.
type Handler interface {
	Ready(r Readiness)
}

// Timer is called on the loop's thread when it is due.
type Timer interface {
	Due(now time.Time)
}

// Loop is one event loop: a thread with its own set of watched descriptors,
// timers and buffers. Watch, Unwatch, Arm, Disarm, Now and Scratch may only be
// called on the loop's own thread (from Ready, Due, or a posted function).
// Post may be called from anywhere: it is the loop's one mailbox.
//
// There are two implementations behind this interface: epoll on Linux, and a
// portable one on the runtime's poller. One suite tests both.
type Loop interface {
	// Watch adds fd, edge-triggered for reading, writing and hang-up. The
	// loop does not own fd: the handler closes it, after Unwatch. Events that
	// are already there are reported. A descriptor that this loop watches
	// already moves to the new handler. fd must be non-blocking.
	Watch(fd int, h Handler) error

	// Unwatch removes fd. No event of fd is delivered after it returns. It
	// must come before the descriptor is closed or given away. Without a
	// Watch before it does nothing.
	Unwatch(fd int)

	// Arm calls t once, at or after the given delay. An armed timer is moved.
	// The resolution is 10 ms; deadlines are not early, and timers that are
	// due together are called in the order of their deadlines. t must be
	// comparable (a pointer).
	Arm(t Timer, after time.Duration)

	// Disarm forgets t; no call follows.
	Disarm(t Timer)

	// Post runs f on the loop's thread, soon, in the order of the calls. It
	// reports false, and f is never run, when the loop has been closed; what
	// was accepted before is run.
	Post(f func()) bool

	// Now is the time at which the present round of events began.
	Now() time.Time

	// Scratch is the loop's one copy buffer (16 KiB). Its contents do not
	// survive the return to the loop.
	Scratch() []byte

	// Close stops the loop and waits for its thread. Watched descriptors stay
	// open and belong to their handlers. Not to be called on the loop's thread.
	Close() error
}
