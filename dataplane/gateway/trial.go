//go:build unix

package gateway

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// A trial gives a share of the new connections to another process, which is a
// gateway of its own (StartGuest). Which ones is drawn for each connection by
// itself, when its hello has been read and nothing of it was answered: so those
// that stay here and those that go differ by nothing but the process that serves
// them, and what comes of the two can be compared.
//
// Connections whose TLS ends here, those to auth and agents' own take no part.

// Trial is how a gateway shares its new connections.
type Trial struct {
	Share float64 // 0 to 1

	// Leases says that the other process can ask for agents' data connections.
	Leases bool

	// Pass sends a connection. It is called on the loops' threads and does not
	// block. When it is true the other process has the connection.
	Pass func(handover.Record) bool
}

// trials are the one that runs, and what it has counted here.
type trials struct {
	now    atomic.Pointer[trial]
	number atomic.Uint32
	turn   atomic.Uint32 // of the loops, for what comes from another process
}

type trial struct {
	Trial
	below  uint64 // draws below it are the other process's
	number uint8
	over   atomic.Bool // nothing is passed any more
	tally  tally
}

// Tally is what came of the connections of a trial, in one of its processes.
type Tally struct {
	Results   map[string]uint64 // by name; all names are there
	FirstByte []uint64          // how many, by Slot
}

// OutcomePassed names the connections in Snapshot.Outcomes that another process got.
const OutcomePassed = "passed_to_canary"

// Names of a Tally's results, besides a route's own: what came of relays.
const (
	ResultClosed = "relay_closed"
	ResultBroken = "relay_broken"
)

// TrialSlots is the number of slots of a Tally's histogram.
const TrialSlots = 4*20 + 1

// TrialSlot bounds what is counted at i: four slots for each doubling, from
// 65 us on; the last has no bound.
func TrialSlot(i int) time.Duration {
	octave, part := i/4, i%4
	return time.Duration((4 + uint64(part) + 1) << (octave + 14))
}

func slotOf(d time.Duration) int {
	u := uint64(max(d, 0)) >> 14
	if u < 4 {
		return 0
	}
	octave := bits.Len64(u) - 3
	return min(octave*4+int(u>>octave&3), TrialSlots-1)
}

type tally struct {
	results   [results]atomic.Uint64
	closed    atomic.Uint64
	broken    atomic.Uint64
	firstByte [TrialSlots]atomic.Uint64
}

// Try begins a trial. The one before ends.
func (g *Gateway) Try(t Trial) {
	now := &trial{Trial: t, below: uint64(t.Share * (1 << 32)), number: uint8(g.trials.number.Add(1)%255) + 1}
	g.trials.now.Store(now)
}

// Tried ends the sharing. What was passed stays passed, and what stayed here
// goes on being counted until the next trial. When it has returned no
// connection is passed any more.
func (g *Gateway) Tried() {
	if t := g.trials.now.Load(); t != nil {
		t.over.Store(true)
	}
	g.each(func(*lane) {}) // who has read it before is done
}

// Tally is what the trial that runs has counted here.
func (g *Gateway) Tally() Tally {
	out := Tally{Results: map[string]uint64{}, FirstByte: make([]uint64, TrialSlots)}
	t := g.trials.now.Load()
	if t == nil {
		return out
	}
	for r := resultNone + 1; r < results; r++ {
		out.Results[r.String()] = t.tally.results[r].Load()
	}
	out.Results[ResultClosed], out.Results[ResultBroken] = t.tally.closed.Load(), t.tally.broken.Load()
	for i := range out.FirstByte {
		out.FirstByte[i] = t.tally.firstByte[i].Load()
	}
	return out
}

// elsewhere draws which process serves the connection, and reports whether it is
// the other one's now.
func (c *conn) elsewhere(r alpn.Route) bool {
	t := c.trials.now.Load()
	if t == nil || t.over.Load() || t.Pass == nil || c.drawn || r.Class != alpn.Static && (r.Class != alpn.Resource || !t.Leases) {
		return false
	}
	c.drawn = true
	if uint64(rand.Uint32()) >= t.below {
		c.trial, c.drawnAt = t.number, c.loop.Now()
		return false
	}
	passed := c.connectionRecord(true)
	if !t.Pass(passed) {
		return false // it counts nowhere: it was not drawn that it stays
	}
	c.counts.add(outcomePassed)
	c.handAway()
	return true
}

// handAway forgets a connection that another process has.
func (c *conn) handAway() {
	c.forsake()
	delete(c.conns, c)
	c.blot(c)
}

// tallyOf is what a trial's connections are counted in, while it runs.
func (w *lane) tallyOf(number uint8) *tally {
	if number == 0 {
		return nil
	}
	if t := w.trials.now.Load(); t != nil && t.number == number {
		return &t.tally
	}
	return nil
}

// judge counts what came of a connection, once.
func (c *conn) judge(r result) {
	if r == resultNone {
		return
	}
	if t := c.tallyOf(c.trial); t != nil {
		t.results[r].Add(1)
	}
	c.trial = 0
}

// heard counts the time to the far end's first byte, from when it was drawn that
// the connection stays, or from when the other process's loop has had it. The way
// between the two is none of either program's doing, and ends with the trial.
func (c *conn) heard() {
	if t := c.tallyOf(c.trial); t != nil {
		t.firstByte[slotOf(c.loop.Now().Sub(c.drawnAt))].Add(1)
	}
}

// judge counts how a relay has ended.
func (l *link) judge(why relay.Reason) {
	switch t := l.tallyOf(l.trial); {
	case t == nil:
	case why == relay.EndedReset || why == relay.EndedError:
		t.broken.Add(1)
	case why == relay.EndedClosed:
		t.closed.Add(1)
	}
}
