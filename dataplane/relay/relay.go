//go:build unix

package relay

import "time"

// Relay is one running relay. All its methods belong to the loop's thread.
type Relay struct {
	loop   Loop
	owner  Owner
	stores *stores

	id      uint64
	route   uint32
	idle    time.Duration
	started time.Time

	a, b    side
	moved   time.Time // when a byte last moved; kept only with an idle time
	passing *passing  // a reset that waits for what was sent before it
	cause   Reason    // of the first reset or error

	starting bool // within Start: the owner is not told yet
	over     bool // ended or taken
	queued   bool // resume is in the mailbox
	again    func()
}

// side is one descriptor, and the bytes that were read from the other one and
// are to be written to it.
//
// Invariant: while a side holds bytes nothing is read from the other. What a
// relay holds is bounded by one scratch buffer or one pipe a direction, on top
// of what it was started with.
type side struct {
	relay *Relay
	fd    int

	pending []byte  // still to be written; before what is in the pipe
	buffer  *buffer // the store's, when pending lies in it
	pipe    *pipe

	readable    bool // since the last EAGAIN
	ending      bool // read on to the end of the stream
	readClosed  bool
	writeClosed bool
	reset       bool // nothing can be written any more; what is queued can be read

	splicing bool  // bytes towards this side go through a pipe
	small    uint8 // small moves in a row while splicing

	written uint64
}

// pumpBudget is what one direction may move before others have their turn: at
// most some tens of microseconds' work.
const pumpBudget = 256 << 10

// Start takes over both descriptors and whatever s holds, and moves bytes until
// the relay ends or is taken. The descriptors are non-blocking stream sockets,
// connected, with SO_RCVLOWAT 1; the loop may watch them already. What is
// queued is moved at once.
func Start(l Loop, s State, o Owner) *Relay {
	r := &Relay{
		loop: l, owner: o, stores: storesOf(l),
		id: s.ID, route: s.Route, idle: s.Idle, started: s.Started,
		moved: l.Now(), cause: EndedReset,
	}
	r.a.open(r, s.A)
	r.b.open(r, s.B)
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

func (s *side) open(r *Relay, e End) {
	*s = side{
		relay: r, fd: e.FD, pending: e.Pending, written: e.Written,
		readClosed: e.ReadClosed, writeClosed: e.WriteClosed, reset: e.Reset,
		readable: !e.Drained,
	}
	if s.reset {
		s.pending = nil
	}
}

func (r *Relay) watch() error {
	if err := r.a.watch(); err != nil {
		return err
	}
	return r.b.watch()
}

// watch takes note of what was reported before: the end of the stream may be
// queued already, and is not announced again.
func (s *side) watch() error {
	past, err := Hand(s.relay.loop, s.fd, s)
	if past&lasting != 0 {
		s.ending, s.readable = true, true
	}
	return err
}

// ID is State.ID.
func (r *Relay) ID() uint64 { return r.id }

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
		ID: r.id, Route: r.route, Idle: r.idle, Started: r.started,
		A: r.a.end(), B: r.b.end(),
	}
}

func (s *side) end() End {
	return End{
		FD: s.fd, Pending: s.pending, Written: s.written,
		ReadClosed: s.readClosed, WriteClosed: s.writeClosed, Reset: s.reset,
	}
}

// unpipe takes the pipe's bytes into pending. A borrowed buffer goes with them.
func (s *side) unpipe() {
	s.buffer = nil
	if s.pipe == nil {
		return
	}
	s.pending = append(s.pending, s.pipe.read(s.pipe.held)...)
	s.pipe.held = 0
	s.unborrow()
}

// leave takes the relay out of its loop. Functions of it that are still in the
// mailbox find it over.
func (r *Relay) leave() {
	r.over = true
	r.loop.Unwatch(r.a.fd)
	r.loop.Unwatch(r.b.fd)
	r.loop.Disarm((*deadline)(r))
}

// closing is how the descriptors are closed.
type closing bool

const (
	inOrder   closing = false
	resetBoth closing = true
)

func (r *Relay) finish(why Reason, how closing) {
	r.over = true
	r.loop.Disarm((*deadline)(r))
	r.a.close(how)
	r.b.close(how)
	if !r.starting || !r.tellLater(why) {
		r.owner.Ended(r.state(), why)
	}
}

// tellLater is apart from finish because what a function literal captures is
// allocated, whether it is made or not.
func (r *Relay) tellLater(why Reason) bool {
	return r.loop.Post(func() { r.owner.Ended(r.state(), why) })
}

func (s *side) close(how closing) {
	s.drop()
	if how == resetBoth {
		setReset(s.fd)
	}
	Discard(s.relay.loop, s.fd)
	s.fd = -1
}

// deadline is the relay as a Timer: for idleness, and for a reset that waits.
type deadline Relay

func (d *deadline) Due(now time.Time) {
	r := (*Relay)(d)
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
	left := r.idle - now.Sub(r.moved)
	if left > 0 {
		r.loop.Arm((*deadline)(r), left)
		return
	}
	how := inOrder
	if r.a.holds() || r.b.holds() {
		how = resetBoth // the transfer was cut, and must not look complete
	}
	r.finish(EndedIdle, how)
}
