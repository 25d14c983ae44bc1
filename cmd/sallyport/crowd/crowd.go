// Package crowd is the users of a gateway, all at once: connections that stay,
// busy ones and idle ones, and new ones every moment. It has both ends of each,
// so that it knows what became of every byte.
//
//	client end ──hello, card──▶ gateway ──▶ server end
//	           ◀──── answer ───         ◀──
//
// The hello is a TLS ClientHello, by which the gateway routes; nobody speaks TLS
// behind it. The card says what the connection is for and which it is, and the
// answer proves that it has met its server. After that
//
//	fresh   the client ends, the server ends: served
//	idle    says nothing but at a check: a word each way
//	bulk    streams both ways, at a pace
//	pulse   streams of some bytes each millisecond: the clock for stalls
//
// Every byte of a stream depends on the connection, the direction and its
// position, so whatever is lost, doubled, moved or mixed up shows.
package crowd

import (
	"errors"
	"fmt"
	"time"
)

// ErrSystem says that it needs epoll.
var ErrSystem = errors.New("the self-test needs linux")

// Config is a crowd's size.
type Config struct {
	Name     string        // the server name of all hellos
	Kept     int           // connections that stay
	Busy     int           // those of them that carry streams
	Rate     int           // new connections a second
	Pace     int           // bytes a second, of each direction of a busy one; 0: DefaultPace
	Patience time.Duration // for anything that the gateway has a part in; 0: DefaultPatience
}

// What stands for 0 in a Config.
const (
	DefaultPace     = 128 << 10
	DefaultPatience = 10 * time.Second
)

const (
	maxPulses = 8 // of the busy connections: sixteen clocks, for some hundredths of a core
	controls  = 2 // pulses that do not go through the gateway

	bulkPiece  = 16 << 10
	pulsePiece = 64
	pulseEvery = time.Millisecond
	pulseRest  = 16 * time.Millisecond // between windows

	sources = 64 // client addresses: a gateway that bounds each sees many
	doors   = 4  // of the server: each has ports enough for the gateway's connections

	maxFresh = 1500 // new connections under way; beyond them nobody is let out
)

// Descriptors is how many one process has at most, the crowd's own or a
// gateway's: two for each connection, pipes for streams, and the rest.
func (c Config) Descriptors() int { return 2*c.Kept + 4*c.Busy + 2*min(c.Rate, maxFresh/2) + 300 }

func (c Config) complete() (Config, error) {
	if c.Kept < c.Busy {
		return c, fmt.Errorf("%d connections cannot have %d busy ones", c.Kept, c.Busy)
	}
	if c.Kept < 1 || c.Busy < 1 || c.Rate < 0 || c.Pace < 0 {
		return c, errors.New("a crowd has a busy connection at least")
	}
	if c.Pace == 0 {
		c.Pace = DefaultPace
	}
	if c.Patience == 0 {
		c.Patience = DefaultPatience
	}
	return c, nil
}

// pulses is how many of the busy ones are.
func (c Config) pulses() int { return min(c.Busy, maxPulses) }

// bulkEvery is how often a busy connection sends a piece.
func (c Config) bulkEvery() time.Duration {
	return time.Duration(float64(bulkPiece) / float64(c.Pace) * float64(time.Second))
}

// Report is what became of a crowd.
type Report struct {
	Kept      int // connections that stayed from Open to Finish, every byte in its place
	Lost      int // that ended, stood still, or were served and then cut
	Corrupted int // with a byte that is not the one that was sent, or somebody else's
	Refused   int // new ones that were not served

	Served   uint64 // new ones
	Missed   uint64 // new ones that were due and not begun: this machine, or the gateway, did not keep up
	Verified uint64 // bytes
	Fresh    Times  // from a new connection's first packet to its answer

	Reasons map[string]int // of everything that is not kept or served
}

// Times are those of new connections.
type Times struct{ P50, P99, Max time.Duration }

// Sound says that nothing was lost, corrupted or refused.
func (r Report) Sound() bool { return r.Lost == 0 && r.Corrupted == 0 && r.Refused == 0 }

// Window is what was seen between Begin and End.
type Window struct {
	Gaps    []time.Duration // of each pulse and direction the longest time without a byte
	Control []time.Duration // the same of those that do not go through the gateway: what this machine adds
	Late    time.Duration   // the longest that a piece of any bulk stream took
}

// Longest is the worst of all.
func (w Window) Longest() time.Duration {
	longest := w.Late
	for _, g := range w.Gaps {
		longest = max(longest, g)
	}
	return longest
}
