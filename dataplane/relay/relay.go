//go:build unix

package relay

import "time"

// Relay is one running relay. All its methods belong to the loop's thread. There
// are as many as there are idle sessions: it is to stay small.
type Relay struct {
	stores *stores // and so the loop
	owner  Owner

	a, b side

	id      uint64
	idle    time.Duration
	started time.Duration // on the stores' clock
	moved   time.Duration // when a byte last moved, on it; kept only with an idle time
	passing *passing      // a reset that waits for what was sent before it
	route   uint32
	cause   Reason // of the first reset or error

	starting bool // within Start: the owner is not told yet
	over     bool // ended or taken
	shared   bool // another process has the descriptors too
	copied   bool // and nothing has happened since it was told of them
	queued   bool // it is among the stores' waiting
}

// side is one descriptor, and the bytes that were read from the other one and
// are to be written to it.
//
// Invariant: while a side holds bytes nothing is read from the other. What a
// relay holds is bounded by one scratch buffer or one pipe a direction, on top
// of what it was started with.
type side struct {
	relay *Relay
	kept  *kept // still to be written; before what is in the pipe; nil for nothing
	pipe  *pipe

	written uint64
	fd      int32

	readable    bool // since the last EAGAIN
	ending      bool // read on to the end of the stream
	readClosed  bool
	writeClosed bool
	reset       bool // nothing can be written any more; what is queued can be read

	splicing bool  // bytes towards this side go through a pipe
	small    uint8 // small moves in a row while splicing
}

// pumpBudget is what one direction may move before others have their turn: at
// most some tens of microseconds' work.
const pumpBudget = 256 << 10

// Start takes over both descriptors and whatever s holds, and moves bytes until
// the relay ends or is taken. The descriptors are non-blocking stream sockets,
// connected, with SO_RCVLOWAT 1; the loop may watch them already. What is
// queued is moved at once.
func Start(l Loop, s State, o Owner) *Relay { return StartIn(new(Relay), l, s, o) }

// StartIn is Start in the memory of a relay that is Spent.
func StartIn(r *Relay, l Loop, s State, o Owner) *Relay {
	r.become(l, s, o)
	r.starting = true
	defer func() { r.starting = false }()

	if err := r.watch(); err != nil {
		r.finish(EndedError, resetBoth)
		return r
	}
	if r.idle > 0 {
		l.Arm((*deadline)(r), r.idle)
	}
	r.pumpBoth()
	return r
}

// Over says that the relay has ended. Its owner is told of an end in Start only
// after that has returned.
func (r *Relay) Over() bool { return r.over }

// Spent says that the relay has ended and that nothing in its loop knows it any more.
// It is for the owner, who has been told of the end: where connections come and go,
// the next one takes the place of the last, and leaves nothing to collect.
func (r *Relay) Spent() bool { return r.over && !r.queued && !r.starting }

// become makes it a new relay, whatever it was.
func (r *Relay) become(l Loop, s State, o Owner) {
	*r = Relay{
		owner: o, stores: storesOf(l),
		id: s.ID, route: s.Route, idle: s.Idle, cause: EndedReset,
	}
	r.started, r.moved = r.stores.time(s.Started), r.stores.time(l.Now())
	r.a.open(r, s.A)
	r.b.open(r, s.B)
}

func (r *Relay) loop() Loop { return r.stores.loop }

func (s *side) open(r *Relay, e End) {
	*s = side{
		relay: r, fd: int32(e.FD), written: e.Written,
		readClosed: e.ReadClosed, writeClosed: e.WriteClosed, reset: e.Reset,
		readable: !e.Drained,
	}
	if !s.reset {
		s.own(e.Pending)
	}
}

// own keeps b itself.
func (s *side) own(b []byte) {
	s.kept = nil
	if len(b) > 0 {
		s.kept = &kept{bytes: b}
	}
}

// pending is still to be written; before what is in the pipe.
func (s *side) pending() []byte {
	if s.kept == nil {
		return nil
	}
	return s.kept.bytes
}

func (s *side) socket() int { return int(s.fd) }

func (r *Relay) watch() error {
	if err := r.a.watch(); err != nil {
		return err
	}
	return r.b.watch()
}

// watch takes note of what was reported before: the end of the stream may be
// queued already, and is not announced again.
func (s *side) watch() error {
	past, err := Hand(s.relay.loop(), s.socket(), s)
	if past&lasting != 0 {
		s.ending, s.readable = true, true
	}
	return err
}

// ID is State.ID.
func (r *Relay) ID() uint64 { return r.id }

// Started is State.Started.
func (r *Relay) Started() time.Time { return r.stores.at(r.started) }

// Idle is after how long without a byte the relay ends; 0 for never.
func (r *Relay) Idle() time.Duration { return r.idle }

// Written returns the bytes written to A and to B so far.
func (r *Relay) Written() (a, b uint64) { return r.a.written, r.b.written }

// Take stops the relay and gives everything back: descriptors that nobody
// watches, and each byte that was read and not yet written. The owner is not
// told. A relay that has ended gives descriptors -1.
func (r *Relay) Take() State {
	if r.over {
		return r.state()
	}
	r.leave()
	r.a.unpipe()
	r.b.unpipe()
	s := r.state()
	r.a.fd, r.b.fd = -1, -1
	return s
}

// Abort resets both connections, and tells the owner. Bytes that were not yet
// written are lost, and neither peer can take that for an orderly end.
func (r *Relay) Abort() {
	if !r.over {
		r.finish(EndedAborted, resetBoth)
	}
}

func (r *Relay) state() State {
	return State{
		ID: r.id, Route: r.route, Idle: r.idle, Started: r.Started(),
		A: r.a.end(), B: r.b.end(),
	}
}

func (s *side) end() End {
	return End{
		FD: s.socket(), Pending: s.pending(), Written: s.written,
		ReadClosed: s.readClosed, WriteClosed: s.writeClosed, Reset: s.reset,
	}
}

// unpipe takes the pipe's bytes into pending. A borrowed buffer goes with them.
func (s *side) unpipe() {
	s.own(s.pending())
	if s.pipe == nil {
		return
	}
	s.own(append(s.pending(), s.pipe.read(s.pipe.held)...))
	s.pipe.held = 0
	s.unborrow()
}

// leave takes the relay out of its loop. Functions of it that are still in the
// mailbox find it over.
func (r *Relay) leave() {
	r.over = true
	r.loop().Unwatch(r.a.socket())
	r.loop().Unwatch(r.b.socket())
	r.loop().Disarm((*deadline)(r))
}

// closing is how the descriptors are closed.
type closing bool

const (
	inOrder   closing = false
	resetBoth closing = true
)

func (r *Relay) finish(why Reason, how closing) {
	r.over = true
	r.loop().Disarm((*deadline)(r))
	r.a.close(how)
	r.b.close(how)
	if !r.starting || !r.tellLater(why) {
		r.owner.Ended(r.state(), why)
	}
}

// tellLater is apart from finish because what a function literal captures is
// allocated, whether it is made or not.
func (r *Relay) tellLater(why Reason) bool {
	return r.loop().Post(func() { r.owner.Ended(r.state(), why) })
}

func (s *side) close(how closing) {
	s.drop()
	switch {
	case s.relay.shared:
		part(s.relay.loop(), s.socket(), how)
	case how == resetBoth:
		ResetOnClose(s.socket())
		fallthrough
	default:
		Discard(s.relay.loop(), s.socket())
	}
	s.fd = -1
}

// deadline is the relay as a Timer: for idleness, and for a reset that waits.
type deadline Relay

func (d *deadline) Due(now time.Time) {
	r := (*Relay)(d)
	r.copied = false
	switch {
	case r.over:
	case r.passing != nil:
		r.hurry(now)
	default:
		r.checkIdle(now)
	}
}

// checkIdle ends a relay in which nothing has moved for the idle time. The
// timer is not moved with each byte, but looks when it is due.
func (r *Relay) checkIdle(now time.Time) {
	left := r.idle - (r.stores.time(now) - r.moved)
	if left > 0 {
		r.loop().Arm((*deadline)(r), left)
		return
	}
	how := inOrder
	if r.a.holds() || r.b.holds() {
		how = resetBoth // the transfer was cut, and must not look complete
	}
	r.finish(EndedIdle, how)
}
