//go:build unix

package gateway

import (
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// conn is one connection from accept until it is routed. It is driven by its
// loop and holds everything that is known about the connection: descriptors,
// addresses, bytes in a buffer of its own if there are any, and a few words.
type conn struct {
	*lane
	fd    int
	since time.Time      // when it was accepted
	asked time.Time      // when a far end was asked for
	peer  netip.AddrPort // the client, as the socket or a trusted proxy tells
	local netip.AddrPort // told by a trusted proxy; else the socket's

	stage   stage
	said    preambles
	watched bool      // fd is in the loop's set
	ending  bool      // the client may send nothing more
	ended   bool      // it does not: all it sent is in buf
	shed    bool      // accepted on a reserved descriptor, to be told so
	drawn   bool      // it was decided which process serves it (trial.go)
	trial   uint8     // the trial that it counts in; 0 for none
	drawnAt time.Time // when that was
	lowat   int       // SO_RCVLOWAT of fd
	buf     []byte
	slot    slot
	around  *carriage // nil for what does not come inside a WebSocket by this process

	// From here on: the way to the far end (offer.go).
	name    string // the resource's
	kind    string
	id      [16]byte // connection id, the same for each attempt
	attempt int
	up      *upstream
	acct    *account // of the route, once there is one
	choice  choice   // of the upstream's addresses
	routed  alpn.Class
	route   uint32
	cancel  func() // of the lease that is waited for
	held    Lease  // nil for none
	other   int    // the far end's descriptor; -1 without
	head    []byte // what goes to it before the client's bytes
	flight  int    // how many of the client's bytes have been offered
	sent    int    // of head and flight
	acked   bool   // an agent's kernel has what was sent
	more    bool   // the client may have sent something behind its flight
	bye     *relay.Linger
}

// stage is where in the drawing of the package comment a connection is.
type stage uint8

const (
	reading stage = iota
	leasing
	connecting
	asking // a server whether it takes TLS (ask.go)
	offering
	lingering
	gone
)

// preambles is what has been said in clear; each may be said once.
type preambles uint8

const (
	saidProxy preambles = 1 << iota
	saidSSL
	saidGSSENC
)

// Ready implements relay.Handler for the client's descriptor.
func (c *conn) Ready(r relay.Readiness) {
	switch c.stage {
	case reading:
		c.ending = c.ending || r&(relay.Ending|relay.HungUp) != 0
		if r != relay.Writable {
			c.look()
		}
	case leasing, connecting, asking, offering:
		// What the client sends now stays queued for the far end. A connection
		// that is gone in both directions needs nobody any more.
		if r&(relay.HungUp|relay.Failed) != 0 {
			if c.stage == offering {
				relay.ResetOnClose(c.other) // who has its flight hears of it as it was
			}
			c.abandon(outcomeReset)
			return
		}
		c.ending = c.ending || r&relay.Ending != 0
		c.more = c.more || r&relay.Readable != 0
		if c.stage == offering && c.more {
			c.unanswered()
		}
	}
}

// Due implements relay.Timer: the stage has lasted too long.
func (c *conn) Due(time.Time) {
	switch c.stage {
	case reading:
		c.unheard()
	case leasing:
		c.refuse(alpn.UnrecognizedName, outcomeTimeout)
	case connecting, asking, offering:
		c.overdue()
	}
}

// look decides as far as the bytes that are there allow, and waits for the rest.
func (c *conn) look() {
	for c.stage == reading {
		b, err := c.see()
		if err != nil {
			c.abandon(whyEnded(err))
			return
		}
		need := c.decide(b)
		if need > 0 && !c.wait(len(b), need) {
			return
		}
	}
}

func whyEnded(err error) outcome {
	if errors.Is(err, io.EOF) {
		return outcomeEmpty
	}
	return outcomeReset
}

// see returns what the client has sent and nobody has consumed: the queue, at
// most viewSize of it, or the connection's own buffer.
func (c *conn) see() ([]byte, error) {
	if c.buf != nil {
		return c.buf, c.fill()
	}
	n, err := c.peek(viewSize)
	if errors.Is(err, relay.ErrAgain) {
		return nil, nil
	}
	return c.view[prefixRoom : prefixRoom+n], err
}

// peek looks at up to size bytes of the queue, in the lane's view.
func (c *conn) peek(size int) (int, error) {
	n, err := relay.Peek(c.fd, c.view[prefixRoom:prefixRoom+size])
	c.viewed, c.views = c, n
	return n, err
}

// fill reads into the connection's own buffer what has come.
func (c *conn) fill() error {
	for len(c.buf) < cap(c.buf) && !c.ended {
		n, err := relay.Read(c.fd, c.buf[len(c.buf):cap(c.buf)])
		c.buf = c.buf[:len(c.buf)+n]
		switch {
		case errors.Is(err, relay.ErrAgain):
			return nil
		case errors.Is(err, io.EOF):
			c.ended = true
		case err != nil:
			return err
		}
	}
	return nil
}

// wait arranges to be called when need bytes are there. It reports whether to
// look again at once.
func (c *conn) wait(have, need int) (again bool) {
	switch {
	case c.ended:
		c.abandon(outcomeEndedEarly)
		return false
	case !c.hold():
		return false
	case c.buf == nil && (c.ending || have == viewSize):
		// To peek cannot tell the end behind queued bytes, nor see more than
		// a view: from here on they are consumed.
		return c.own()
	}
	if !c.watched && !c.watch() {
		return false
	}
	missing := need
	if c.buf != nil {
		missing = need - have
	}
	if have == 0 {
		missing = 1 // most hellos come whole: moving the mark would cost two calls
	}
	return c.setLowat(min(missing, viewSize))
}

// hold takes a place in the crowd, and charges the source's rate: this is a
// connection that did not say at once what it wants.
func (c *conn) hold() bool {
	bound, ok := c.crowd.enter(&c.slot, c.peer.Addr(), true, c.loop.Now())
	if !ok {
		c.abandon(bound)
	}
	return ok
}

// watch begins to wait for the client. All that it may say before it is routed
// has one deadline, which no byte moves.
func (c *conn) watch() bool {
	if err := c.loop.Watch(c.fd, c); err != nil {
		c.abandon(outcomeInternal)
		return false
	}
	c.watched = true
	if c.stage == reading {
		c.loop.Arm(c, c.patience())
	}
	return true
}

// setLowat reports whether the mark has moved: what came meanwhile is then
// looked at, not waited for.
func (c *conn) setLowat(n int) (moved bool) {
	if n == c.lowat {
		return false
	}
	if err := relay.SetRcvLowat(c.fd, n); err != nil {
		c.abandon(outcomeReset)
		return false
	}
	c.lowat = n
	return true
}

// own gives the connection a buffer, of which a loop has a bounded number.
func (c *conn) own() bool {
	w := c.lane
	if w.large >= w.bounds.LargeHellos {
		c.abandon(outcomeLargeHellos)
		return false
	}
	w.large++
	if n := len(w.spare); n > 0 {
		c.buf, w.spare = w.spare[n-1], w.spare[:n-1]
	} else {
		c.buf = make([]byte, 0, alpn.MaxHello)
	}
	return c.watched || c.watch()
}

// sparesKept are the buffers that a loop keeps for reuse.
const sparesKept = 4

func (c *conn) disown() {
	if c.buf == nil {
		return
	}
	c.large--
	if len(c.spare) < sparesKept {
		c.lane.spare = append(c.lane.spare, c.buf[:0])
	}
	c.buf = nil
}

// consume takes the first n bytes away; they have been seen. What a peek has
// seen a read returns.
func (c *conn) consume(n int) bool {
	if c.buf != nil {
		c.buf = c.buf[:copy(c.buf, c.buf[n:])]
		return true
	}
	c.viewed = nil
	for n > 0 {
		got, err := relay.Read(c.fd, c.view[prefixRoom:prefixRoom+n])
		if err != nil {
			return false
		}
		n -= got
	}
	return true
}

// consumeBehind takes the first n bytes of the queue away, and as much of what
// has come behind them as there is room for, which it returns: until the next
// look. drained says that there was room for more.
func (c *conn) consumeBehind(n int) (behind []byte, drained, ok bool) {
	c.viewed = nil
	room := c.view[prefixRoom:]
	for have := 0; have < n; {
		got, err := relay.Read(c.fd, room[have:])
		if err != nil {
			return nil, false, false
		}
		have += got
		behind, drained = room[n:max(have, n)], have < len(room)
	}
	return behind, drained, true
}

// take is consume that keeps the bytes: of the view, until the next look.
func (c *conn) take(b []byte, n int) ([]byte, bool) {
	out := append(make([]byte, 0, n), b[:n]...)
	return out, c.consume(n)
}

// abandon closes without a word.
func (c *conn) abandon(why outcome) {
	if c.stage == gone {
		return
	}
	c.count(why)
	c.debug("connection closed", why, c.peer)
	if c.bye != nil {
		c.bye.Abort() // calls farewell
		return
	}
	c.leave(false)
	relay.Discard(c.loop, c.fd)
}

// answer says b to the client and closes; why is counted. When there is no
// place for one more that lingers, it is closed without an answer.
func (c *conn) answer(b []byte, why outcome) {
	if _, ok := c.crowd.enter(&c.slot, c.peer.Addr(), false, c.loop.Now()); !ok {
		c.abandon(why)
		return
	}
	c.count(why)
	c.debug("connection answered", why, c.peer)
	c.stage = lingering
	c.dropFar()
	c.disown()
	c.head, c.flight, c.sent = nil, 0, 0 // nobody gets it any more
	c.loop.Disarm(c)
	c.resetLowat()
	c.bye = relay.LingerClose(c.loop, c.fd, b, c.farewell)
}

// farewell: the lingering connection has been closed.
func (c *conn) farewell() {
	c.bye = nil
	c.leave(false)
}

// refuse answers with a TLS alert, where TLS is spoken.
func (c *conn) refuse(a alpn.Alert, why outcome) {
	if c.wordless() {
		c.abandon(why)
		return
	}
	record := a.Record()
	c.answer(record[:], why)
}

// release ends the connection here without closing it: somebody else has it
// now. Its descriptor is watched by nobody.
func (c *conn) release() (fd int) {
	c.resetLowat()
	c.leave(true)
	c.loop.Unwatch(c.fd)
	return c.fd
}

// resetLowat: whoever has the descriptor next wants to hear of each byte. It
// cannot fail on a socket on which it has been set before.
func (c *conn) resetLowat() {
	if c.lowat != 1 {
		_ = relay.SetRcvLowat(c.fd, 1)
		c.lowat = 1
	}
}

// leave forgets the connection: timer, crowd, far end, buffer. Its descriptor is
// the caller's.
func (c *conn) leave(good bool) {
	c.stage = gone
	c.dropFar()
	c.loop.Disarm(c)
	c.disown()
	if c.slot.held || c.slot.paid {
		c.crowd.leave(&c.slot, good, c.loop.Now())
	}
	delete(c.conns, c)
}
