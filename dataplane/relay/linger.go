//go:build unix

package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// Linger is a connection that gets an answer and is then closed so that the
// answer arrives. A close with unread input makes the kernel send a reset, and
// a reset takes the answer away from the peer: so what has come is consumed,
// the answer written, the stream ended, and the peer's end awaited for a while.
//
//	consume ──▶ answer ──▶ shutdown ──▶ consume until its end, or the deadline ──▶ close
//
// Its methods belong to the loop's thread.
type Linger struct {
	loop   Loop
	fd     int
	answer []byte
	closed func()

	eaten int  // bytes consumed so far
	shut  bool // the answer and the end of the stream are out
	over  bool
}

const (
	// lingerTime is how long a peer has to take the answer and to end.
	lingerTime = 2 * time.Second

	// lingerMost bounds what is consumed from a peer that goes on sending.
	lingerMost = 1 << 20

	// lingerStep is consumed before others have their turn.
	lingerStep = 128 << 10
)

// LingerClose takes over fd, which the loop may watch already, and keeps
// answer. It calls closed, if not nil, on the loop's thread once fd is discarded,
// but not from within LingerClose, unless the loop has been closed.
func LingerClose(l Loop, fd int, answer []byte, closed func()) *Linger {
	return LingerFrom(l, fd, Lingering{Answer: answer}, closed)
}

// Lingering is how far a connection has come.
type Lingering struct {
	Answer []byte // the rest of it
	Eaten  int    // bytes consumed so far
	Shut   bool   // the answer and the end of the stream are out
}

// Progress changes nothing.
func (g *Linger) Progress() Lingering {
	return Lingering{Answer: g.answer, Eaten: g.eaten, Shut: g.shut}
}

// LingerFrom is LingerClose that goes on where another process has stopped.
func LingerFrom(l Loop, fd int, from Lingering, closed func()) *Linger {
	g := &Linger{loop: l, fd: fd, answer: from.Answer, eaten: from.Eaten, shut: from.Shut, closed: closed}
	first := g.step
	if err := l.Watch(fd, g); err != nil {
		first = g.Abort
	}
	l.Arm(g, lingerTime)
	if !l.Post(first) { // the loop is ending: nothing will come of it
		g.finish()
	}
	return g
}

// Abort closes now.
func (g *Linger) Abort() {
	if !g.over {
		g.finish()
	}
}

// Forsake closes the descriptor here without a word: another process goes on
// with the connection.
func (g *Linger) Forsake() {
	if g.over {
		return
	}
	g.over = true
	g.loop.Disarm(g)
	g.loop.Unwatch(g.fd)
	closeFD(g.fd)
	g.fd = -1
}

// Ready implements Handler.
func (g *Linger) Ready(Readiness) { g.step() }

// Due implements Timer: the peer had its time.
func (g *Linger) Due(time.Time) { g.Abort() }

func (g *Linger) step() {
	if g.over {
		return
	}
	ended, ok := g.consume()
	if !ok || !g.tell() || ended && g.shut {
		g.finish()
	}
}

// consume reads and forgets what is queued. ok is false when the connection is
// broken, or the peer has sent more than anybody listens to.
func (g *Linger) consume() (ended, ok bool) {
	b := g.loop.Scratch()
	for round := 0; round < lingerStep; {
		n, err := recv(g.fd, b)
		switch {
		case err == unix.EAGAIN:
			return false, true
		case err != nil:
			return false, false
		case n == 0:
			return true, true
		}
		round += n
		g.eaten += n
		if g.eaten > lingerMost {
			return false, false
		}
	}
	return false, g.loop.Post(g.step)
}

// tell writes the answer, and ends the stream behind it. It is false when the
// connection is broken.
func (g *Linger) tell() bool {
	for len(g.answer) > 0 {
		n, err := send(g.fd, g.answer)
		if err == unix.EAGAIN {
			return true
		}
		if err != nil {
			return false
		}
		g.answer = g.answer[n:]
	}
	if g.shut {
		return true
	}
	g.shut = true
	return shutdownWrite(g.fd) == nil
}

func (g *Linger) finish() {
	g.over = true
	g.loop.Disarm(g)
	Discard(g.loop, g.fd)
	g.fd = -1
	if g.closed != nil {
		g.closed()
	}
}
