//go:build unix

package relay

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Ready is called by the loop for one of the two descriptors.
func (s *side) Ready(rd Readiness) {
	r := s.relay
	if r.over {
		return
	}
	r.copied = false
	if rd&lasting != 0 {
		s.ending = true
	}
	if rd&^Writable != 0 {
		s.readable = true
	}
	if rd&Failed != 0 {
		if err := socketError(s.socket()); err != nil {
			r.fail(s, err)
		}
	}
	r.pumpBoth()
}

// polls says that poll may look: not in a relay whose copy is still all that there
// is to say of it.
func (s *side) polls() bool {
	r := s.relay
	return !r.over && !r.copied && !s.readClosed && !s.reset
}

// poll looks for bytes from s of which no event has told yet, and moves them. It
// is false when nothing has come. Otherwise timers may be armed, functions posted
// and closes put off: a round of the loop has to follow.
func (s *side) poll() bool {
	if !s.polls() {
		return false
	}
	r := s.relay
	s.readable = true
	r.pumpBoth()
	return s.readable || s.readClosed || r.over || r.stores.turn != (turn{})
}

// pumpBoth moves what can be moved, and then sees whether the relay has ended.
func (r *Relay) pumpBoth() {
	r.pump(&r.a, &r.b)
	r.pump(&r.b, &r.a)
	r.settle()
}

// resume goes on after the budget was spent.
func (r *Relay) resume() {
	r.queued, r.copied = false, false
	if !r.over {
		r.pumpBoth()
	}
}

func (r *Relay) later() {
	if !r.queued {
		r.queued = r.stores.await(r)
	}
}

// pump moves bytes in one direction until there is nothing to read, no room to
// write, or the budget is spent.
func (r *Relay) pump(from, to *side) {
	for budget := pumpBudget; ; {
		if to.reset || to.holds() && !r.flush(to) {
			return
		}
		if from.readClosed {
			r.closeWrite(from, to)
			return
		}
		if !from.readable || to.writeClosed {
			return
		}
		if budget <= 0 {
			r.later()
			return
		}
		budget -= r.move(from, to)
	}
}

// closeWrite passes the end of a stream on, after its last byte. When the other
// direction has ended too, close says the same with one call less.
func (r *Relay) closeWrite(from, to *side) {
	if from.reset || to.writeClosed {
		return
	}
	to.writeClosed = true
	if from.writeClosed {
		return
	}
	// An error means that the connection is gone: an event says how.
	_ = shutdownWrite(to.socket())
}

func (r *Relay) move(from, to *side) int {
	if to.splicing && to.borrow() {
		return r.splice(from, to)
	}
	return r.copy(from, to)
}

// copy moves through the loop's buffer. What cannot be written is kept.
func (r *Relay) copy(from, to *side) int {
	b := r.loop().Scratch()
	n, err := recv(from.socket(), b)
	if n == 0 {
		r.stopped(from, err)
		return 0
	}
	if n == len(b) {
		to.splicing = true
	} else if !from.ending {
		from.readable = false // a short read has emptied the queue
	}
	if n < len(b) && !r.starting {
		r.stores.turn.copied++
		r.stores.turn.answer = to
	}
	m, err := send(to.socket(), b[:n])
	to.wrote(m)
	switch {
	case err != nil && err != unix.EAGAIN:
		r.fail(to, err)
	case m < n:
		to.keep(b[m:n])
	}
	return n
}

// stopped sorts out a read that brought nothing: not now, the end, or a reset
// behind the last byte.
func (r *Relay) stopped(from *side, err error) {
	switch {
	case err == unix.EAGAIN:
		from.readable = false
	case err != nil:
		r.fail(from, err)
		from.readClosed = true
	default:
		from.readClosed = true
	}
}

// splicesSmall moves in a row, each smaller than the buffer, turn a direction
// back to copying.
const splicesSmall = 4

// splice moves through a borrowed pipe, which goes back as soon as it is empty.
func (r *Relay) splice(from, to *side) int {
	n, err := to.pipe.fill(from.socket())
	if n == 0 {
		to.unborrow()
		// Some kinds of socket are not for splicing. And at a mark of urgent data
		// splice(2) says that there is nothing, or that the stream has ended, while
		// recv(2) goes on behind it. Of a mark there is an event, if perhaps later.
		if err == unix.EINVAL || err == nil || err == unix.EAGAIN && from.ending {
			to.splicing = false
			return 0
		}
		r.stopped(from, err)
		return 0
	}
	to.small++
	if n >= ScratchSize {
		to.small = 0
	}
	if to.small >= splicesSmall {
		to.splicing, to.small = false, 0
	}
	to.pipe.held = n
	r.stores.turn.spliced += n
	r.flush(to)
	return n
}

func (s *side) borrow() bool {
	s.pipe = s.relay.stores.pipe(s.relay.loop().Now())
	return s.pipe != nil
}

func (s *side) unborrow() {
	s.relay.stores.putPipe(s.pipe)
	s.pipe = nil
}

// holds says whether bytes wait to be written to s.
func (s *side) holds() bool { return s.kept != nil || s.pipe != nil }

// keep copies what could not be written out of the loop's buffer.
func (s *side) keep(b []byte) {
	s.kept = s.relay.stores.keep(b)
}

// flush writes what to holds. It reports whether nothing is left; otherwise an
// event will say when there is room, or to is broken.
func (r *Relay) flush(to *side) bool {
	for k := to.kept; k != nil && len(k.bytes) > 0; {
		n, err := send(to.socket(), k.bytes)
		if err != nil {
			return r.blocked(to, err)
		}
		k.bytes = k.bytes[n:]
		to.wrote(n)
	}
	to.unkeep()
	for to.pipe != nil {
		n, err := to.pipe.empty(to.socket(), to.pipe.held)
		if err != nil {
			return r.blocked(to, err)
		}
		to.pipe.held -= n
		to.wrote(n)
		if to.pipe.held == 0 {
			to.unborrow()
		}
	}
	return true
}

func (r *Relay) blocked(to *side, err error) bool {
	if err != unix.EAGAIN {
		r.fail(to, err)
	}
	return false
}

func (s *side) wrote(n int) {
	s.written += uint64(n)
	if s.relay.idle > 0 {
		s.relay.moved = s.relay.stores.time(s.relay.loop().Now())
	}
}

func (s *side) unkeep() {
	if s.kept != nil {
		s.relay.stores.putBack(s.kept)
		s.kept = nil
	}
}

// drop forgets what s holds.
func (s *side) drop() {
	s.unkeep()
	switch {
	case s.pipe == nil:
	case s.pipe.held == 0:
		s.unborrow()
	default:
		s.relay.stores.dropPipe(s.pipe)
		s.pipe = nil
	}
}

// fail notes that s is broken. What was meant for it has nowhere to go; what
// it sent before is still in the kernel, and is read to the end.
func (r *Relay) fail(s *side, err error) {
	if s.reset {
		return
	}
	s.reset, s.readable, s.ending = true, true, true
	s.drop()
	if r.a.reset && r.b.reset {
		return // the second follows from the first
	}
	r.cause = EndedError
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		r.cause = EndedReset
	}
}

// settle ends the relay when there is nothing left to move.
func (r *Relay) settle() {
	switch {
	case r.a.reset && r.b.reset:
		r.finish(r.cause, resetBoth)
	case r.a.reset:
		r.passReset(&r.a, &r.b)
	case r.b.reset:
		r.passReset(&r.b, &r.a)
	case r.a.writeClosed && r.b.writeClosed:
		r.finish(EndedClosed, inOrder)
	}
}

// passing is a reset on its way to the other side. It comes after the bytes
// that were sent before it, but does not wait for a peer that takes none.
type passing struct {
	acked uint64    // by the other side's peer
	since time.Time // when that last grew
	pause time.Duration
}

const (
	// resetPatience is how long the peer may take no byte at all.
	resetPatience = 2 * time.Second

	resetPauseLeast = 10 * time.Millisecond
	resetPauseMost  = 320 * time.Millisecond
)

// passReset resets other once everything that dead sent has arrived there: a
// reset takes away what the kernel has not yet got acknowledged.
func (r *Relay) passReset(dead, other *side) {
	r.pump(dead, other)
	if other.reset {
		r.finish(r.cause, resetBoth)
		return
	}
	if dead.readClosed && !other.holds() && unsent(other.socket()) == 0 {
		r.finish(r.cause, resetBoth)
		return
	}
	if r.passing != nil {
		return
	}
	r.passing = &passing{acked: other.acked(), since: r.loop().Now(), pause: resetPauseLeast}
	r.loop().Arm((*deadline)(r), r.passing.pause)
}

// hurry looks after a reset that waits. The kernel has no event for "all was
// acknowledged": this polls, ever more slowly.
func (r *Relay) hurry(now time.Time) {
	p, other := r.passing, &r.a
	if other.reset {
		other = &r.b
	}
	if acked := other.acked(); acked != p.acked {
		p.acked, p.since = acked, now
	}
	if now.Sub(p.since) >= resetPatience {
		r.finish(r.cause, resetBoth)
		return
	}
	r.settle()
	if r.over {
		return
	}
	p.pause = min(2*p.pause, resetPauseMost)
	r.loop().Arm((*deadline)(r), p.pause)
}

func (s *side) acked() uint64 {
	return s.written - min(s.written, uint64(unsent(s.socket())))
}
