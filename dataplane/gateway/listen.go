//go:build unix

package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// lane is a gateway's part on one loop. All of it belongs to the loop's thread.
type lane struct {
	*Gateway
	*settings  // replaced by Reload
	counts     counters
	index      int // among the lanes
	loop       relay.Loop
	listeners  []*listener
	conns      map[*conn]struct{} // not yet routed, or lingering
	links      links              // relays
	view       []byte             // room for a far end's prefix, then for what is peeked
	viewed     *conn              // whose queue the view shows
	views      int                // how many bytes of it
	hello      alpn.Hello         // of the connection that is looked at
	large      int                // hellos in buffers of their own
	spare      [][]byte
	blanks     []*conn
	blankLinks []*link
	reserve    reserve  // against the day when descriptors run out
	sparing    int      // from this descriptor on they do; see few
	handing    uint32   // the hand-over that is under way; 0 for none
	dropped    []uint64 // relays that were copied in it and have ended since
	words      bool     // what a relay is goes with its copy
	form       *form    // for records of relays; nil without a hand-over
}

const (
	// viewSize is what one look sees; a larger hello is read into a buffer.
	viewSize = relay.ScratchSize

	// prefixRoom fits an open frame, or a PROXY header with an SSLRequest behind it.
	prefixRoom = max(tunnel.MaxFrameSize, 64)

	// acceptBatch is accepted before others have their turn.
	acceptBatch = 64

	// drainMost bounds what a closing socket still takes: its whole queue.
	drainMost = 1 << 16

	// acceptPause is how long nothing is accepted when descriptors have run out.
	acceptPause = 50 * time.Millisecond
)

// keepAlive finds peers that are gone without a word. There is no user timeout:
// it would also end a session whose client has stopped reading for a while.
const keepAlive = 60 * time.Second

// tuning is what a listening socket has and the accepted ones inherit, and what a
// connection to an upstream has.
func tuning() relay.Tuning {
	return relay.Tuning{NoDelay: true, KeepAlive: keepAlive}
}

// listen opens each address once per loop, as one SO_REUSEPORT set.
func (g *Gateway) listen() error {
	g.line()
	for place, address := range g.cfg.Listen {
		if err := g.listenAt(place, address); err != nil {
			return err
		}
	}
	errs := make(chan error, len(g.lanes))
	g.each(func(w *lane) { errs <- w.start() })
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// line makes a lane on each loop.
func (g *Gateway) line() {
	for i, l := range g.cfg.Loops {
		w := &lane{
			Gateway: g, settings: g.current.Load(), index: i, loop: l, conns: map[*conn]struct{}{},
			view: make([]byte, prefixRoom+viewSize), sparing: relay.Sparing(),
		}
		w.reserve.fill(w.sparing) // without it nothing is shed, only delayed
		g.lanes = append(g.lanes, w)
	}
}

func (g *Gateway) listenAt(place int, address string) error {
	given := address
	if err := unused(address); err != nil {
		return err
	}
	for i, w := range g.lanes {
		fd, err := relay.Listen(address)
		if err != nil {
			return err
		}
		w.listeners = append(w.listeners, &listener{lane: w, fd: fd, address: given, place: place})
		if err := relay.Tune(fd, tuning()); err != nil {
			return fmt.Errorf("listen %s: %w", address, err)
		}
		if i == 0 {
			addr := relay.LocalAddr(fd)
			g.addrs = append(g.addrs, addr)
			address = at(address, addr.Port())
		}
	}
	return nil
}

// unused fails when another process listens at the address: SO_REUSEPORT would
// let two share it in silence.
func unused(address string) error {
	network := "tcp"
	if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().Is4() {
		network = "tcp4" // for package net 0.0.0.0 is all of IPv6, too
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	return l.Close()
}

// at is the address with the port that the first socket got.
func at(address string, port uint16) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return net.JoinHostPort(host, fmt.Sprint(port))
}

func (w *lane) start() error {
	for _, l := range w.listeners {
		if err := w.loop.Watch(l.fd, l); err != nil {
			return err
		}
	}
	return nil
}

// unlisten ends the listening sockets after taking what is queued at them: also for
// an old process that has not let go of them yet, where clients would wait for
// nobody.
func (w *lane) unlisten() {
	for _, l := range w.listeners {
		l.drain()
	}
	w.listeners = nil
}

// close ends all that is on this loop.
func (w *lane) close() {
	for _, l := range w.listeners {
		l.close()
	}
	w.listeners = nil
	for c := range w.conns {
		c.abandon(outcomeClosed)
	}
	for l := range w.links.all() {
		l.relay.Abort()
	}
	w.reserve.close()
}

// listener is one listening socket on one loop.
type listener struct {
	lane    *lane
	fd      int
	address string // as configured
	place   int    // in Config.Listen
	paused  bool
	scarce  bool // the last accept found no descriptor
	queued  bool // more is in the mailbox
}

// Ready implements relay.Handler.
func (l *listener) Ready(relay.Readiness) { l.accept() }

// Due ends a pause.
func (l *listener) Due(time.Time) {
	l.paused = false
	l.lane.reserve.fill(l.lane.sparing) // before anybody else gets what is free now
	l.accept()
}

// accept takes what is queued, and only accepts: each connection looks at its
// first bytes and returns.
func (l *listener) accept() {
	for range acceptBatch {
		if l.fd < 0 || l.paused || !l.one() {
			return
		}
	}
	if !l.queued {
		l.queued = l.lane.loop.Post(func() { l.queued = false; l.accept() })
	}
}

// one accepts one connection. It is false when there is none.
func (l *listener) one() bool {
	fd, peer, err := relay.Accept(l.fd)
	switch {
	case err == nil:
		if l.lane.few(fd) {
			low, ok := l.lane.freed(fd)
			if !ok {
				l.lane.counts.add(outcomeExhausted)
				l.lane.displace(fd, peer)
				l.runOut()
				return false
			}
			fd = low
		}
		l.scarce = false
		l.lane.admit(fd, peer)
		return true
	case errors.Is(err, relay.ErrAgain):
		return false
	case exhausted(err):
		if relay.Flush(l.lane.loop) {
			return true // some were free already, but for being closed
		}
		l.lane.counts.add(outcomeExhausted)
		l.runOut()
		return false
	default:
		l.lane.counts.add(outcomeAcceptError)
		l.pause()
		return false
	}
}

// runOut: nobody is accepted for a while.
func (l *listener) runOut() {
	if l.scarce { // who waits has waited for a pause, and has said something
		l.shed()
	}
	l.scarce = true
	l.pause()
}

func (l *listener) pause() {
	l.paused = true
	l.lane.loop.Arm(l, acceptPause)
}

func (l *listener) drain() {
	l.paused = false
	for range drainMost {
		if !l.one() {
			break
		}
	}
	if l.fd >= 0 {
		_ = relay.EndListen(l.fd) // it is closed in any case
	}
	l.close()
}

func (l *listener) close() {
	if l.fd < 0 {
		return
	}
	l.lane.loop.Disarm(l)
	l.lane.loop.Unwatch(l.fd)
	relay.Close(l.fd)
	l.fd = -1
}

// admit begins a connection. Most clients have sent their first bytes by now.
func (w *lane) admit(fd int, peer netip.AddrPort) {
	w.counts.add(outcomeAccepted)
	w.begin(fd, peer).look()
}

func (w *lane) begin(fd int, peer netip.AddrPort) *conn {
	c := w.blank()
	*c = conn{lane: w, fd: fd, other: -1, peer: peer, since: w.loop.Now(), lowat: 1, slot: slot{exempt: w.trusts(peer.Addr())}}
	w.conns[c] = struct{}{}
	return c
}

// blanksKept are the structs of routed connections that a loop keeps: where
// thousands of relays idle, what brought them there would lie between them.
const blanksKept = 64

func (w *lane) blank() *conn {
	last := len(w.blanks) - 1
	if last < 0 {
		return new(conn)
	}
	c := w.blanks[last]
	w.blanks = w.blanks[:last]
	return c
}

// blot takes a connection's struct back once its descriptors are a relay's and
// no timer, lease or answer knows it any more. Until it is given out again it
// stays gone.
func (w *lane) blot(c *conn) {
	if w.viewed == c {
		w.viewed = nil
	}
	if len(w.blanks) < blanksKept {
		*c = conn{lane: w, stage: gone, fd: -1, other: -1}
		w.blanks = append(w.blanks, c)
	}
}

// blankLink and blotLink are the same for what owns a relay, with the relay. What a
// hand-over has noted of one that has ended it finds without a place, or running.
func (w *lane) blankLink() *link {
	last := len(w.blankLinks) - 1
	if last < 0 {
		return new(link)
	}
	l := w.blankLinks[last]
	w.blankLinks = w.blankLinks[:last]
	return l
}

func (w *lane) blotLink(l *link) {
	if len(w.blankLinks) < blanksKept && l.relay.Spent() {
		*l = link{lane: w, relay: l.relay}
		w.blankLinks = append(w.blankLinks, l)
	}
}

// trusts says that the address is a proxy's that may speak for others.
func (w *lane) trusts(a netip.Addr) bool {
	for _, p := range w.trusted {
		if p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

// debugs: what a log line is made of is not free.
func (w *lane) debugs() bool { return w.log.Enabled(w.ctx, slog.LevelDebug) }

func (w *lane) debug(event string, why outcome, peer netip.AddrPort) {
	if w.debugs() {
		w.log.Debug(event, "why", why, "peer", peer)
	}
}
