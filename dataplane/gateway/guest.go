//go:build unix

package gateway

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// A guest is a gateway that gets its connections from another process, and gives
// them back when it is asked to. One record is one connection, with all that
// there is of it: who has sent it has let go of it, and who has received it goes
// on with it at once. So nothing has to stand still, and there is no moment in
// which both processes read or write.

// StartGuest starts a gateway that listens nowhere; Config.Listen counts for
// nothing.
func StartGuest(cfg Config) (*Gateway, error) {
	cfg.Listen, cfg.guest = nil, true
	g, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	g.resolveFirst()
	g.line()
	g.Try(Trial{}) // counts what it gets
	g.tasks.Go(g.resolve)
	return g, nil
}

// nextLane is where what comes from another process goes: to each in turn.
func (g *Gateway) nextLane() *lane {
	return g.lanes[int(g.trials.turn.Add(1)%uint32(len(g.lanes)))]
}

// TakeConnection goes on with a connection that another process has sent. Its
// descriptors are this gateway's from the call on, also when it fails.
func (g *Gateway) TakeConnection(r handover.Record) error {
	in := &incoming{fds: r.FDs}
	m := &handoverv1.CanaryConnection{}
	err := proto.Unmarshal(r.Body, m)
	if image := m.GetConnection(); err == nil && (image == nil || len(in.fds) != 1+farOf(image)) {
		err = errRecord
	}
	if err != nil {
		in.close()
		return err
	}
	w := g.nextLane()
	return g.take(w, in, func() error { return w.takeConnection(m, in) })
}

func farOf(m *handoverv1.GatewayConnection) int {
	if m.Far {
		return 1
	}
	return 0
}

// take runs f on the lane's thread and waits for it. What f leaves of the
// descriptors is closed.
func (g *Gateway) take(w *lane, in *incoming, f func() error) error {
	err := errClosed
	w.on(func() { err = f() })
	in.close()
	return err
}

func (w *lane) takeConnection(m *handoverv1.CanaryConnection, in *incoming) error {
	c, err := w.connOf(m.Connection)
	if err != nil {
		return err
	}
	if err := c.adopt(m.Connection, in); err != nil {
		c.abandon(outcomeInternal)
		return err
	}
	c.drawn = true
	if m.Counted {
		if t := w.trials.now.Load(); t != nil {
			c.trial = t.number
		}
		c.drawnAt = time.Now()
	}
	if w.cfg.guest && failpoint.Hit("gateway.guest.connection") != nil {
		c.abandon(outcomeInternal)
		return nil
	}
	c.resume()
	return nil
}

// TakeRelay goes on with a relay that another process has sent. Its descriptors
// are this gateway's from the call on, also when it fails.
func (g *Gateway) TakeRelay(r handover.Record) error {
	in := &incoming{fds: r.FDs}
	m := &handoverv1.CanaryRelay{}
	err := proto.Unmarshal(r.Body, m)
	if err == nil && (len(in.fds) < 2 || m.GetRelay() == nil) {
		err = errRecord
	}
	if err != nil {
		in.close()
		return err
	}
	w := g.nextLane()
	return g.take(w, in, func() error { return w.takeRelay(m, in) })
}

func (w *lane) takeRelay(m *handoverv1.CanaryRelay, in *incoming) error {
	state := relay.State{ID: w.ids.Add(1), Idle: time.Duration(max(m.Relay.Idle, 0)), Started: time.Unix(0, m.Relay.Started)}
	ends := incoming{in.fds[:2]}
	in.fds = in.fds[2:]
	image, err := relayImage(m, in)
	if err != nil {
		ends.close()
		return err
	}
	of := relayRead{peer: m.Relay.Peer, tunnel: m.Relay.Tunnel, connection: m.Relay.Connection}
	l, err := w.inherit(of, m.Relay.Account)
	if err != nil {
		ends.close()
		closePipes(image)
		return err
	}
	state.A.FD, state.B.FD = ends.next(), ends.next()
	if l.relay, err = relay.Adopt(w.loop, state, l); err != nil {
		closePipes(image)
		if l.held != nil {
			l.held.Ended()
		}
		return err
	}
	l.relay.Restore(image)
	w.links.add(l)
	l.counts.relays.Add(1)
	l.acct.relays.Add(1)
	l.relay.Resume()
	return nil
}

func closePipes(m relay.Image) {
	for _, p := range []relay.Pipe{m.A.Pipe, m.B.Pipe} {
		if p.Held > 0 {
			relay.Close(p.R)
			relay.Close(p.W)
		}
	}
}

// GiveBack sends at most so many connections and relays to the other process,
// which has them then, and says how many there were and how many are left. send
// is called on the loops' threads and does not block; false ends it for now.
// Connections that only get an answer are left, and end by themselves.
func (g *Gateway) GiveBack(most int, send func(handover.Record) bool) (given, left int) {
	var mu sync.Mutex // one loop at a time: they share what there is room for
	g.each(func(w *lane) {
		mu.Lock()
		defer mu.Unlock()
		given += w.giveBack(most-given, send)
		left += len(w.conns) + w.links.len()
	})
	return given, left
}

func (w *lane) giveBack(most int, send func(handover.Record) bool) (given int) {
	for c := range w.conns {
		if c.stage == lingering {
			continue
		}
		if given == most || !send(c.connectionRecord(false)) {
			return given
		}
		c.forsake()
		delete(w.conns, c)
		given++
	}
	for l := range w.links.all() {
		if given == most {
			return given
		}
		r := l.relayRecord()
		if r == nil {
			continue
		}
		if !send(*r) {
			return given
		}
		l.relay.Forsake()
		w.links.remove(l)
		l.acct.relays.Add(-1)
		l.counts.relays.Add(-1)
		given++
	}
	return given
}

// GuestReport is what has come of a guest's connections since the report before.
type GuestReport struct {
	Outcomes          map[string]uint64
	BytesIn, BytesOut uint64
	Relays            int // that run; for CountGuest: more, or fewer
	Waiting           int
	Routes            []RouteSnapshot // Relays: more, or fewer
}

// Since is what a guest's counters have grown by.
func (s Snapshot) Since(before Snapshot) GuestReport {
	r := GuestReport{Outcomes: grown(s.Outcomes, before.Outcomes), BytesIn: s.BytesIn - before.BytesIn, BytesOut: s.BytesOut - before.BytesOut,
		Relays: s.Relays, Waiting: s.Waiting}
	was := map[string]RouteSnapshot{}
	for _, b := range before.Routes {
		was[b.Name] = b
	}
	for _, now := range s.Routes {
		b := was[now.Name]
		d := RouteSnapshot{Name: now.Name, Relays: now.Relays - b.Relays, BytesIn: now.BytesIn - b.BytesIn, BytesOut: now.BytesOut - b.BytesOut,
			Results: grown(now.Results, b.Results)}
		if d.Relays != 0 || d.BytesIn+d.BytesOut > 0 || len(d.Results) > 0 {
			r.Routes = append(r.Routes, d)
		}
	}
	return r
}

func grown(now, before map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for name, n := range now {
		if n > before[name] {
			out[name] = n - before[name]
		}
	}
	return out
}

// CountGuest adds what a guest has counted: to whoever looks from outside both
// processes are one gateway.
func (g *Gateway) CountGuest(r GuestReport) {
	for o := range outcomes {
		g.outside.outcomes[o].Add(r.Outcomes[o.String()])
	}
	g.outside.bytesIn.Add(r.BytesIn)
	g.outside.bytesOut.Add(r.BytesOut)
	g.outside.relays.Add(int64(r.Relays))
	for _, d := range r.Routes {
		w := &lane{Gateway: g, settings: g.current.Load()}
		a, _ := w.accountOf(d.Name)
		a.in.Add(d.BytesIn)
		a.out.Add(d.BytesOut)
		a.relays.Add(int64(d.Relays))
		for res := resultNone + 1; res < results; res++ {
			a.results[res].Add(d.Results[res.String()])
		}
	}
}
