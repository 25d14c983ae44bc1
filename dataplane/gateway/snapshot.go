//go:build unix

package gateway

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// Snapshot is what an operator may see of a gateway.
type Snapshot struct {
	Waiting  int               // connections that are not routed yet
	Ended    int               // connections whose TLS has ended here, of clients without a certificate
	Relays   int               // that run
	ToAuth   int               // of Relays, those of the classes auth and join
	BytesIn  uint64            // to far ends, of relays that have ended: clients' bytes, and what goes before them
	BytesOut uint64            // to clients, of relays that have ended
	Outcomes map[string]uint64 // since the start, by name; all names are there
	Refusals map[string]uint64 // those of Outcomes that say that a connection came to nothing
	Routes   []RouteSnapshot   // that have had connections, by name
	Static   int               // static routes that are configured
	Servers  int               // of static routes, by their different addresses
	Down     []DownServer      // those of Servers that are not well, by address

	FirstByte Timings // from accept to the far end's first byte
	Lease     Timings // from asking for an agent's data connection to having it
	Connect   Timings // from the route to an upstream's connection
}

// RouteSnapshot is one route: a static one, by its first name and its protocols,
// or one of the cluster's own, by "cluster:" and a class or kind.
type RouteSnapshot struct {
	Name     string
	Relays   int
	BytesIn  uint64
	BytesOut uint64
	Results  map[string]uint64 // all names are there
}

// DownServer is a static routes' server to which the last connection failed, or
// whose name could not be resolved the last time. A server of several addresses is
// one. Nobody looks but clients: it stays here until one of them has come through,
// and who was never asked for it is not here.
type DownServer struct {
	Address    string    // as configured
	Failed     time.Time // the last connection; zero when that went well
	Unresolved bool
}

// Timings is a histogram.
type Timings struct {
	Count   uint64
	Sum     time.Duration
	Buckets []Bucket // cumulative, without the last, which is Count
}

// Bucket counts what took at most so long.
type Bucket struct {
	Most  time.Duration
	Count uint64
}

// Snapshot returns the counters. It may be called at any time.
func (g *Gateway) Snapshot() Snapshot {
	s := Snapshot{Outcomes: make(map[string]uint64, outcomes), Refusals: map[string]uint64{}}
	s.Waiting, s.Ended = g.crowd.size(), g.crowd.holding()
	s.FirstByte, s.Lease, s.Connect = newTimings(), newTimings(), newTimings()
	all := []*counters{&g.outside}
	for _, w := range g.lanes {
		all = append(all, &w.counts)
	}
	for _, c := range all {
		s.Relays += int(c.relays.Load())
		s.BytesIn += c.bytesIn.Load()
		s.BytesOut += c.bytesOut.Load()
		s.FirstByte.add(&c.firstByte)
		s.Lease.add(&c.lease)
		s.Connect.add(&c.connect)
		for o := range outcomes {
			s.Outcomes[o.String()] += c.outcomes[o].Load()
		}
	}
	for o := range outcomes {
		if o.refusal() {
			s.Refusals[o.String()] = s.Outcomes[o.String()]
		}
	}
	for _, class := range []alpn.Class{alpn.Auth, alpn.Join} {
		s.ToAuth += int(g.classes.other[class].relays.Load())
	}
	now := g.current.Load()
	s.Routes, s.Static, s.Servers, s.Down = g.accounts(), now.named(), len(now.servers), now.down()
	return s
}

// down are the servers that are not well, by address.
func (s *settings) down() (out []DownServer) {
	for _, at := range s.servers {
		d := DownServer{Address: at.address, Unresolved: at.lost.Load()}
		if failed := at.failed.Load(); at.down.Load() && failed != nil {
			d.Failed = *failed
		}
		if d.Unresolved || !d.Failed.IsZero() {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b DownServer) int { return cmp.Compare(a.Address, b.Address) })
	return out
}

// named is the number of static routes that have names: the silent clients' has none.
func (s *settings) named() int {
	if s.silent > 0 {
		return len(s.static) - 1
	}
	return len(s.static)
}

// accounts are those of routes that have had connections, by name. No two have
// the same.
func (g *Gateway) accounts() (out []RouteSnapshot) {
	for _, a := range g.classes.other {
		out = a.appendTo(out)
	}
	for _, a := range g.classes.resources {
		out = a.appendTo(out)
	}
	g.strays.mu.Lock()
	defer g.strays.mu.Unlock()
	for _, u := range g.current.Load().static {
		out = u.acct.appendTo(out)
	}
	for _, a := range g.strays.by {
		out = a.appendTo(out)
	}
	slices.SortFunc(out, func(a, b RouteSnapshot) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (a *account) appendTo(out []RouteSnapshot) []RouteSnapshot {
	s := RouteSnapshot{
		Name: a.name, Relays: int(a.relays.Load()), BytesIn: a.in.Load(), BytesOut: a.out.Load(), Results: make(map[string]uint64, results-1),
	}
	used := s.Relays > 0 || s.BytesIn > 0 || s.BytesOut > 0 // of relays that another process has begun
	for r := resultNone + 1; r < results; r++ {
		n := a.results[r].Load()
		s.Results[r.String()] = n
		used = used || n > 0
	}
	if !used {
		return out
	}
	return append(out, s)
}

func newTimings() Timings {
	var t Timings
	for _, most := range timingBounds() {
		t.Buckets = append(t.Buckets, Bucket{Most: most})
	}
	return t
}

func (t *Timings) add(from *timings) {
	var below uint64
	for i := range t.Buckets {
		below += from.buckets[i].Load()
		t.Buckets[i].Count += below
	}
	t.Count += below + from.buckets[timingBuckets].Load()
	t.Sum += time.Duration(from.sum.Load())
}

// LoopSnapshot is what one loop holds.
type LoopSnapshot struct {
	Answered    bool          // within the time that was given
	Delay       time.Duration // how long it took to answer
	Connections int           // not routed yet, or lingering
	Relays      int
	LargeHellos int
	Batching    relay.Batching
}

// Loops asks each loop what it holds, and waits for at most the given time. What
// a loop needs to answer is what everything else on it has to wait.
func (g *Gateway) Loops(within time.Duration) []LoopSnapshot {
	out := make([]LoopSnapshot, len(g.lanes))
	answers := make([]atomic.Pointer[LoopSnapshot], len(g.lanes))
	asked, left := time.Now(), make(chan struct{}, len(g.lanes))
	for i, w := range g.lanes {
		step := func() {
			answers[i].Store(&LoopSnapshot{
				Answered: true, Delay: time.Since(asked), Connections: len(w.conns), Relays: w.links.len(), LargeHellos: w.large,
			})
			left <- struct{}{}
		}
		if !w.loop.Post(step) {
			left <- struct{}{} // closed: it holds nothing
		}
	}
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for range g.lanes {
		select {
		case <-left:
			continue
		case <-deadline.C:
		}
		break
	}
	for i := range out {
		if a := answers[i].Load(); a != nil {
			out[i] = *a
		} else {
			out[i].Delay = time.Since(asked)
		}
		out[i].Batching = relay.BatchingOf(g.lanes[i].loop)
	}
	return out
}
