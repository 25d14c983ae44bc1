//go:build unix

package relay

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"
)

// How a running relay changes its process:
//
//	old process                            new process, its loop held
//	Share                    A, B     ──▶  Adopt (watches, reads nothing)
//	   with an Image that holds nothing ─▶ Restore
//	   (goes on)
//	loop held: Image if Changed       ──▶  Restore
//	                         commit   ──▶  Resume
//	Forsake
//
// The old relay can go on at any time before Forsake.

// Image is what a running relay consists of between two events, but for its
// descriptors. What it points to is the relay's.
type Image struct {
	ID     uint64
	A, B   Side
	Broken bool // the first reset was an error of another kind
}

// Side is one end in an Image.
type Side struct {
	Pending []byte // read from the other end and not yet written to this one
	Pipe    Pipe   // what comes behind it

	ReadClosed, WriteClosed, Reset bool // as in End

	// Readable, Ending: an event has told so, and nothing has been done about
	// it yet.
	Readable, Ending bool

	Written uint64
}

// Pipe is bytes between two sockets. Held is 0 when there is none.
type Pipe struct {
	R, W int
	Held int
}

// Holds says that bytes wait in either direction.
func (m Image) Holds() bool { return m.A.holds() || m.B.holds() }

func (s Side) holds() bool { return len(s.Pending) > 0 || s.Pipe.Held > 0 }

// Descriptors are those of the two ends; they stay the relay's.
func (r *Relay) Descriptors() (a, b int) { return r.a.socket(), r.b.socket() }

// Share notes that another process has the descriptors too, and the Image if
// that holds nothing: from now on the end of the relay is said at the sockets,
// since to close them here says nothing, and Changed says whether the Image is
// another.
func (r *Relay) Share() { r.shared, r.copied = true, true }

// Changed says that something may have happened since Share, or that the relay
// held something then. It is for a relay whose loop is held.
func (r *Relay) Changed() bool { return !r.copied || r.a.holds() || r.b.holds() }

// Image changes nothing.
func (r *Relay) Image() Image {
	return Image{ID: r.id, A: r.a.image(), B: r.b.image(), Broken: r.cause == EndedError}
}

func (s *side) image() Side {
	out := Side{
		Pending: s.pending(), ReadClosed: s.readClosed, WriteClosed: s.writeClosed, Reset: s.reset,
		Readable: s.readable && !s.readClosed, Ending: s.ending && !s.readClosed, Written: s.written,
	}
	if s.pipe != nil && s.pipe.held > 0 {
		out.Pipe = Pipe{R: s.pipe.r, W: s.pipe.w, Held: s.pipe.held}
	}
	return out
}

// Forsake closes the descriptors here and says nothing to anybody, the owner
// included: another process has the relay. Functions of it that are still in the
// mailbox find it over.
func (r *Relay) Forsake() {
	if r.over {
		return
	}
	r.leave()
	r.a.forsake()
	r.b.forsake()
}

func (s *side) forsake() {
	s.drop()
	closeFD(s.socket())
	s.fd = -1
}

// Adopt makes a relay of what another process has: s without what changes while
// it runs. It takes over both descriptors, also when it fails. l is held: the
// descriptors are watched, and nothing is read or written before Resume.
func Adopt(l Loop, s State, o Owner) (*Relay, error) {
	r := new(Relay)
	r.become(l, s, o)
	r.shared = true
	r.moved = r.stores.time(time.Now())       // that of the loop is when it was held
	r.a.readable, r.b.readable = false, false // the loop's first events say more
	if r.idle > 0 {
		l.Arm((*deadline)(r), r.idle)
	}
	for _, side := range []*side{&r.a, &r.b} {
		if err := l.Watch(side.socket(), side); err != nil {
			r.Forsake()
			return nil, err
		}
	}
	return r, nil
}

// Restore gives an adopted relay what it was when its loop stopped, or when it
// was shared and held nothing: then there may be a second one. It takes over the
// pipes and copies what is pending.
func (r *Relay) Restore(m Image) {
	r.moved = r.stores.time(time.Now())
	if m.Broken {
		r.cause = EndedError
	}
	r.a.restore(m.A)
	r.b.restore(m.B)
}

func (s *side) restore(m Side) {
	s.own(bytes.Clone(m.Pending))
	s.readClosed, s.writeClosed, s.reset = m.ReadClosed, m.WriteClosed, m.Reset
	s.readable, s.ending, s.written = m.Readable, m.Ending, m.Written
	if m.Pipe.Held > 0 {
		s.pipe = s.relay.stores.adopt(m.Pipe)
		s.splicing = true
	}
}

// Append adds to what is pending towards A, or B, of an adopted relay.
func (r *Relay) Append(toB bool, b []byte) {
	s := &r.a
	if toB {
		s = &r.b
	}
	s.own(append(s.pending(), b...))
}

// Resume lets an adopted relay go on that has something to do, whatever the
// loop's events say. It may end from within, and tells its owner.
func (r *Relay) Resume() {
	if r.over {
		return
	}
	r.pumpBoth()
}

// adopt takes a pipe in that was opened elsewhere.
func (s *stores) adopt(p Pipe) *pipe {
	s.open++
	return &pipe{r: p.R, w: p.W, held: p.Held}
}

// part ends a connection whose socket another process may still have.
func part(l Loop, fd int, how closing) {
	l.Unwatch(fd)
	if how == inOrder {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // an error means that it has ended
	} else {
		resetNow(fd)
	}
	closeFD(fd)
}
