//go:build unix

package gateway

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

const (
	// maxAttempts is how many far ends get to see a client's first flight.
	maxAttempts = 3

	// maxAddresses of an upstream are tried for one client.
	maxAddresses = 8

	// turnMask keeps turn plus attempt positive in an int of any size.
	turnMask = 1<<30 - 1
)

// far is a connection as the handler of its far end's descriptor.
type far conn

// Ready implements relay.Handler.
func (f *far) Ready(r relay.Readiness) {
	c := (*conn)(f)
	if c.stage == connecting || c.stage == asking || c.stage == offering {
		c.progress(r)
	}
}

// toUpstream begins a connection to one of an upstream's addresses.
func (c *conn) toUpstream(u *upstream, unserved alpn.Alert) {
	if u == nil {
		c.refuseRoute(unserved)
		return
	}
	if bound, ok := c.crowd.enter(&c.slot, c.peer.Addr(), c.charged(), c.loop.Now()); !ok {
		c.abandon(bound)
		return
	}
	if c.around != nil {
		c.around.toAuth.Store(c.routed == alpn.Auth)
	}
	c.up, c.choice, c.asked = u, choice{turn: u.turns.Add(1) & turnMask}, c.loop.Now()
	c.connect()
}

// charged says whether the connection counts towards its source's rate, even if
// it has said at once what it wants. Auth's time is everybody's, so what comes
// to it counts; a static route's upstream has bounds of its own, and many people
// may reach it from one address: only the places of those who wait are bounded.
func (c *conn) charged() bool { return c.routed == alpn.Auth || c.routed == alpn.Join }

// repaid says whether the far end's first byte makes up for what the source was
// charged. Not for joining: a host joins once, and auth ends TLS with anybody
// before it can look at a token.
func (c *conn) repaid() bool { return c.routed != alpn.Join }

// tries is how many far ends see the flight: of an upstream's addresses, each
// that there is time for, up to a bound.
func (c *conn) tries() int {
	if c.up == nil {
		return maxAttempts
	}
	return min(max(c.up.size(), maxAttempts), maxAddresses)
}

// connect tries the upstream's next address. All of them together have one
// stage's time; an address has less while there are others. A near one is
// connected by the time the call returns, so what it is to get is written at once.
func (c *conn) connect() {
	for full := 0; c.attempt < c.tries(); {
		to, others, ok := c.up.pick(&c.choice, c.loop.Now())
		left := c.bounds.Stage - c.loop.Now().Sub(c.asked)
		if !ok || left <= 0 {
			break
		}
		fd, err := c.reach(to)
		if exhausted(err) && relay.Flush(c.loop) { // some are free, but for being closed
			fd, err = c.reach(to)
		}
		if exhausted(err) {
			c.turnedAway()
			return
		}
		if errors.Is(err, unix.EAGAIN) {
			c.choice.at.fail(c.loop.Now())
			if full++; full < c.up.size() {
				continue
			}
			c.queue(left)
			return
		}
		if err != nil {
			if c.choice.portless = errors.Is(err, unix.EADDRNOTAVAIL) && relay.PortsUsedUp(to.addr); !c.choice.portless {
				c.blame()
			}
			c.attempt++
			continue
		}
		limit := left
		if others && c.attempt < c.tries()-1 {
			limit = min(limit, c.bounds.Connect)
		}
		c.begin(fd, limit)
		return
	}
	c.nowhere()
}

// begin goes on with a connection to the upstream that has been begun.
func (c *conn) begin(fd int, limit time.Duration) {
	c.other, c.head, c.sent, c.stage = fd, c.up.head(c), 0, connecting
	c.choice.portless = false
	if err := c.loop.Watch(fd, (*far)(c)); err != nil {
		c.abandon(outcomeInternal)
		return
	}
	_ = relay.Tune(fd, tuning()) // a Unix socket has no such options
	if c.await(limit) {
		c.progress(0)
	}
}

// nowhere tells the client that no server of the upstream has taken it.
func (c *conn) nowhere() {
	why := outcomeNoUpstream
	switch {
	case c.choice.portless:
		why = outcomeNoPort
	case c.choice.untaken:
		why = outcomeNoPostgres
	}
	c.refuse(alpn.InternalError, why)
}

// queuePause is between two tries where the queue was full.
const queuePause = 50 * time.Millisecond

// queue waits for room in the queue of a Unix socket. A server that is only slow to
// accept does not refuse, but nothing tells when there is room again.
func (c *conn) queue(left time.Duration) {
	c.stage = connecting
	c.await(min(left, queuePause))
}

// queued says that there was no room: no connection to the server has begun.
func (c *conn) queued() bool { return c.stage == connecting && c.other < 0 }

// tryQueue tries again whether there is room.
func (c *conn) tryQueue() {
	if c.up.gone {
		c.reroute()
		return
	}
	c.connect()
}

// reach begins a connection to a target, unless descriptors are few.
func (w *lane) reach(to *target) (fd int, err error) {
	fd, err = to.connect()
	if err == nil && w.few(fd) {
		relay.Close(fd)
		return -1, unix.EMFILE
	}
	return fd, err
}

// blame notes that the upstream's server could not be connected to.
func (c *conn) blame() {
	c.counts.add(outcomeConnectFailed)
	c.choice.at.fail(c.loop.Now())
	if c.choice.to != nil {
		c.choice.to.rest(c.loop.Now())
	}
}

// offer gives a connected far end the head and the client's first flight.
func (c *conn) offer(fd int, head []byte) {
	c.other, c.head, c.sent, c.stage = fd, head, 0, offering
	if err := c.loop.Watch(fd, (*far)(c)); err != nil {
		c.abandon(outcomeInternal)
		return
	}
	c.acked = false
	c.loop.Arm(c, min(c.bounds.Connect, c.bounds.Stage))
	c.progress(0)
}

// progress writes what is left to write, and joins when the far end's first byte
// has come.
func (c *conn) progress(r relay.Readiness) {
	connected, err := c.send()
	if err != nil && c.stage == asking {
		c.notKnown()
		return
	}
	if err != nil {
		c.tryNext(c.whySilent())
		return
	}
	if c.stage == connecting {
		if !connected {
			return
		}
		c.reached()
	}
	if c.stage == asking {
		c.hearYes()
		return
	}
	switch r &^ relay.Writable {
	case 0:
		if c.goneOn() {
			c.unanswered()
		}
		return
	case relay.Readable: // and not the end of the stream: a byte
		c.answered()
		return
	}
	c.firstByte()
}

// firstByte looks whether the far end's first byte has come, or its end, and acts on
// it. It is false when nothing has.
func (c *conn) firstByte() bool {
	var first [1]byte
	switch _, err := relay.Peek(c.other, first[:]); {
	case errors.Is(err, relay.ErrAgain):
		return false
	case err != nil:
		c.tryNext(outcomeEndedEarly)
	default:
		c.answered()
	}
	return true
}

// reached: the upstream's server is connected. One that is asked for TLS first has
// for that what is left of its time.
func (c *conn) reached() {
	c.hadFlight()
	c.choice.at.met()
	c.counts.connect.observe(c.loop.Now().Sub(c.asked))
	if c.asks() {
		c.stage = asking
		return
	}
	c.stage = offering
	c.loop.Arm(c, c.bounds.Stage)
}

// hadFlight: a static route's server that ends the connection from here on may have
// failed over what it was given, and is not given it again. Auth may just have been
// changing its process.
func (c *conn) hadFlight() { c.choice.once = c.routed == alpn.Static }

// answered joins: the far end's first byte has come.
func (c *conn) answered() {
	c.counts.firstByte.observe(c.loop.Now().Sub(c.since))
	c.learn(true)
	c.heard()
	c.join(c.repaid())
}

// goneOn says whether the client may have gone on behind its first flight, or
// ended. What came together with the flight was told while that was read, and
// is not told again; behind a flight that fills what it is seen in there may be
// more.
func (c *conn) goneOn() bool {
	if c.more || c.ending || c.ended {
		return true
	}
	return c.buf == nil && c.flight == viewSize || c.buf != nil && c.flight == cap(c.buf)
}

// unanswered joins without the far end's first byte when the client has gone on
// behind its first flight, or has ended. The servers of a static route may wait
// for that; behind a hello to an agent or to auth there is nothing to wait for.
func (c *conn) unanswered() {
	if c.routed != alpn.Static || c.sent < len(c.head)+c.flight {
		return
	}
	kept := c.flight
	if c.buf != nil {
		kept = 0
	}
	if c.ending || c.ended || relay.Queued(c.fd) > kept {
		c.join(false)
	}
}

// overdue: the far end has not answered in time. A static route's server that
// has got the whole flight may take longer than that. An agent has the whole
// stage, but its kernel acknowledges within a round trip: a data connection that
// something on the way has forgotten does not, and costs its client not more
// than Connect.
func (c *conn) overdue() {
	if c.queued() {
		c.tryQueue()
		return
	}
	if c.stage == offering && c.up == nil && !c.acked && c.bounds.Connect < c.bounds.Stage && relay.Unacknowledged(c.other) == 0 {
		c.acked = true
		c.loop.Arm(c, c.bounds.Stage-c.bounds.Connect)
		return
	}
	if c.stage == offering && c.routed == alpn.Static && c.sent == len(c.head)+c.flight {
		c.join(false)
		return
	}
	if c.stage == asking {
		c.notTaken()
		return
	}
	c.tryNext(outcomeTimeout)
}

// whySilent says why a far end takes nothing.
func (c *conn) whySilent() outcome {
	if c.stage == connecting {
		return outcomeNoUpstream
	}
	return outcomeReset
}

// send writes head and flight from where it stopped. In the kernel's queue or
// in the connection's buffer, the flight stays where it is. While the far end
// is not connected yet there is no room; where there is nothing to write it must
// be asked.
func (c *conn) send() (connected bool, err error) {
	total := len(c.head) + c.offered()
	if total == 0 && c.stage == connecting {
		if connected, err = relay.Connected(c.other); err != nil {
			c.blame()
		}
		return connected, err
	}
	for c.sent < total {
		b, err := c.outgoing()
		if err != nil {
			return false, err
		}
		n, err := relay.Write(c.other, b)
		if errors.Is(err, relay.ErrAgain) || c.stage == connecting && errors.Is(err, unix.ENOTCONN) {
			break
		}
		if err != nil {
			if c.stage == connecting {
				c.blame()
			}
			return false, err
		}
		c.sent += n
	}
	return c.sent > 0, nil
}

// outgoing is what is still to be written: head and flight side by side in the
// loop's view, so that both go out at once.
func (c *conn) outgoing() ([]byte, error) {
	if c.buf != nil {
		if c.sent < len(c.head) {
			return c.head[c.sent:], nil
		}
		return c.buf[c.sent-len(c.head) : c.flight], nil
	}
	start, flight := prefixRoom-len(c.head), c.offered()
	copy(c.view[start:], c.head)
	if flight > 0 && (c.viewed != c || c.views < flight) {
		n, err := c.peek(flight)
		if err != nil {
			return nil, err
		}
		if n < flight {
			return nil, errShort
		}
	}
	return c.view[start+c.sent : prefixRoom+flight], nil
}

// errShort: a peek has returned less than an earlier one did.
var errShort = errors.New("queued bytes are gone")

// tryNext gives the first flight to another far end, with the same connection
// id, or gives up: the client learns no more than that there is nothing.
func (c *conn) tryNext(why outcome) {
	if c.stage == connecting && why == outcomeTimeout {
		c.blame()
	}
	if c.stage == offering {
		c.learn(false)
	}
	c.dropFar()
	c.attempt++
	switch {
	case c.up != nil && c.attempt >= c.tries():
		c.nowhere()
	case c.attempt >= c.tries():
		c.refuse(alpn.UnrecognizedName, why)
	case c.up != nil && c.up.gone:
		c.reroute()
	case c.up != nil:
		c.connect()
	default:
		c.counts.add(outcomeLeaseAgain)
		c.lease()
	}
}

// dropFar closes the far end, or takes back the question for one.
func (c *conn) dropFar() {
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
	if c.other >= 0 {
		relay.Discard(c.loop, c.other)
		c.other = -1
	}
	if c.held != nil {
		c.held.Ended()
		c.held = nil
	}
}

// join makes the relay, and consumes the flight here: no other far end will get
// it. What was not written of it yet goes along. good is what the source has
// shown itself to be.
func (c *conn) join(good bool) {
	rest, drained, ok := c.unsent()
	if !ok {
		c.abandon(outcomeReset)
		return
	}
	l := c.blankLink()
	*l = link{lane: c.lane, relay: l.relay, from: c.peer.Addr(), port: c.peer.Port(), held: c.held, acct: c.acct, routed: c.routed, trial: c.trial}
	c.judge(outcomeRelayed.result())
	state := relay.State{
		ID: c.ids.Add(1), Route: c.route, Idle: c.idle, Started: c.loop.Now(),
		A: relay.End{FD: c.fd, Drained: drained && c.watched},
		B: relay.End{FD: c.other, Pending: rest, Written: uint64(c.sent)},
	}
	c.held, c.other = nil, -1 // the relay's now
	c.resetLowat()
	c.stage = gone
	c.loop.Disarm(c)
	c.disown()
	if c.slot.held {
		c.crowd.leave(&c.slot, good, c.loop.Now())
	}
	delete(c.conns, c)
	c.blot(c)
	l.start(state)
}

// unsent consumes the flight, and what has come behind it, and returns what the
// far end has not got of all that and the head. drained says that there was no
// more.
func (c *conn) unsent() (rest []byte, drained, ok bool) {
	if total := len(c.head) + c.flight; c.sent < total {
		b, err := c.outgoing()
		if err != nil {
			return nil, false, false
		}
		rest = append(rest, b...)
		if c.buf != nil && c.sent < len(c.head) {
			rest = append(rest, c.buf[:c.flight]...)
		}
	}
	if c.buf != nil {
		return rest, false, c.consume(c.flight)
	}
	behind, drained, ok := c.consumeBehind(c.flight)
	return append(rest, behind...), drained, ok
}

// link is a running relay's owner. There are as many as there are idle sessions:
// it is to stay small.
type link struct {
	*lane
	relay  *relay.Relay
	from   netip.Addr // the client's; its port is apart, since a netip.AddrPort has six bytes that are for nothing
	held   Lease      // nil for none
	acct   *account
	place  uint32 // in the lane's links, one more than its number there; 0 for none
	sent   uint32 // the last hand-over that it was copied in
	port   uint16
	routed alpn.Class
	trial  uint8 // that it counts in; 0 for none

	// Of an heir: what it is has been said, and that it is so when the other
	// process stops.
	worded, final bool
}

func (l *link) peer() netip.AddrPort { return netip.AddrPortFrom(l.from, l.port) }

func (l *link) start(s relay.State) {
	l.counts.add(outcomeRelayed)
	l.counts.relays.Add(1)
	l.acct.add(outcomeRelayed)
	l.acct.relays.Add(1)
	l.links.add(l)
	if l.relay == nil {
		l.relay = new(relay.Relay)
	}
	relay.StartIn(l.relay, l.loop, s, l)
}

// forget takes the link out. A process that it was copied to is told later.
func (l *link) forget(id uint64) {
	l.links.remove(l)
	if l.handing != 0 && l.sent == l.handing {
		l.dropped = append(l.dropped, id)
	}
}

// Ended implements relay.Owner.
func (l *link) Ended(s relay.State, why relay.Reason) {
	l.forget(s.ID)
	l.judge(why)
	// The parts before the whole: who sees no relay any more sees none of a route.
	l.acct.relays.Add(-1)
	l.acct.out.Add(s.A.Written)
	l.acct.in.Add(s.B.Written)
	l.counts.relays.Add(-1)
	l.counts.bytesOut.Add(s.A.Written)
	l.counts.bytesIn.Add(s.B.Written)
	if l.held != nil {
		l.held.Ended()
	}
	if l.debugs() {
		l.log.Debug("relay ended", "peer", l.peer(), "class", l.routed, "why", why, "in", s.B.Written, "out", s.A.Written,
			"lasted", time.Since(s.Started).Round(time.Millisecond))
	}
	l.blotLink(l)
}
