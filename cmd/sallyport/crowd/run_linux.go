package crowd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	openAt   = 64 // connections at a time, while the crowd gathers
	doorTick = time.Millisecond
	bulkTick = 4 * time.Millisecond

	// settleWindow is how long pulses run before what they show counts.
	settleWindow = 50 * time.Millisecond
)

// Crowd is a load. Its methods are for one goroutine.
type Crowd struct {
	c       Config
	hello   []byte
	tally   tally
	door    *door
	bulks   *streams
	pulses  *streams
	loops   []*loop
	closing sync.Once

	mu     sync.Mutex
	relays map[uint64]*relay // guarded by mu: those that may be met
}

// New opens the server, so that a gateway can be told where it is.
func New(config Config) (*Crowd, error) {
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	c := &Crowd{c: config, relays: map[uint64]*relay{}}
	if c.hello, err = clientHello(config.Name); err != nil {
		return nil, err
	}
	c.door = &door{tally: &c.tally, patience: config.Patience, hello: c.hello, rate: float64(config.Rate), byID: map[uint64]*idler{}, find: c.find}
	c.bulks = c.streams(bulkPiece, config.bulkEvery())
	c.pulses = c.streams(pulsePiece, pulseEvery)
	c.pulses.pulses = true
	if err := c.start(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Crowd) streams(piece uint64, every time.Duration) *streams {
	return &streams{tally: &c.tally, patience: c.c.Patience, piece: piece, every: every, ended: make(chan struct{})}
}

// start starts the three threads.
func (c *Crowd) start() (err error) {
	if err := c.door.listen(); err != nil {
		return err
	}
	for _, l := range []struct {
		on    **loop
		every time.Duration
		tick  func(time.Time)
	}{{&c.door.on, doorTick, c.door.tick}, {&c.bulks.on, bulkTick, c.bulks.tick}, {&c.pulses.on, pulseEvery, c.pulses.tick}} {
		if *l.on, err = newLoop(l.every, l.tick); err != nil {
			return err
		}
		c.loops = append(c.loops, *l.on)
	}
	c.door.on.call(func() { err = c.door.watchDoors() })
	return err
}

// Servers are the addresses of the far end.
func (c *Crowd) Servers() []string {
	var out []string
	for _, a := range c.door.servers {
		out = append(out, a.String())
	}
	return out
}

func (c *Crowd) find(id uint64) *relay {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relays[id]
}

// Open lets the crowd in by the gateway's address: when it returns, all that
// stay are there, streams flow and new ones come.
func (c *Crowd) Open(ctx context.Context, gateway string) error {
	to, err := netip.ParseAddrPort(gateway)
	if err != nil {
		return err
	}
	if !to.Addr().Is4() {
		return fmt.Errorf("%s: only addresses of IPv4 are reached from several sources", gateway)
	}
	if err := c.gather(ctx, to); err != nil {
		return err
	}
	c.door.on.call(func() {
		c.door.to, c.door.last, c.door.running = to, time.Now(), true
	})
	return nil
}

// gather opens what stays, some at a time.
func (c *Crowd) gather(ctx context.Context, to netip.AddrPort) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	room := make(chan struct{}, openAt)
	met := func(err error) {
		if err != nil {
			stop(err)
		}
		<-room
	}
	for n := range uint64(c.c.Kept + controls) {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		id := n + 1
		switch pulses := c.c.pulses(); {
		case n < controls:
			r := newRelay(c.pulses, id)
			r.control = true
			c.openBusy(r, pulse, c.door.servers[0], met)
		case n < uint64(controls+pulses):
			c.openBusy(newRelay(c.pulses, id), pulse, to, met)
		case n < uint64(controls+c.c.Busy):
			c.openBusy(newRelay(c.bulks, id), bulk, to, met)
		default:
			c.openIdle(id, to, met)
		}
	}
	for range openAt {
		select {
		case room <- struct{}{}:
		case <-time.After(c.c.Patience):
			return fmt.Errorf("not all %d connections were served within %s", c.c.Kept, c.c.Patience)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return context.Cause(ctx)
}

// openBusy opens one busy connection on its thread.
func (c *Crowd) openBusy(r *relay, k kind, to netip.AddrPort, met func(error)) {
	c.mu.Lock()
	c.relays[r.id] = r
	c.mu.Unlock()
	on := r.of.on
	on.post(func() {
		c.dial(&call{on: on, kind: k, id: r.id, met: func(fd int, err error) {
			if err == nil {
				err = r.meet(fd)
			}
			met(err)
		}}, to)
	})
}

func (c *Crowd) openIdle(id uint64, to netip.AddrPort, met func(error)) {
	d := c.door
	d.on.post(func() {
		i := &idler{door: d, id: id, client: -1, server: -1}
		d.byID[id] = i
		c.dial(&call{on: d.on, kind: idle, id: id, met: func(fd int, err error) {
			if err == nil {
				i.client = fd
				d.idlers = append(d.idlers, i)
				err = d.on.watch(fd, unix.EPOLLIN, idleClient{i})
			}
			met(err)
		}}, to)
	})
}

// dial starts a call, on its thread.
func (c *Crowd) dial(call *call, to netip.AddrPort) {
	call.hello = append(bytes.Clone(c.hello), card(call.kind, call.id)...)
	call.start(to, int(call.id))
}

// Begin begins to measure gaps, after a moment in which the pulses get going.
func (c *Crowd) Begin(ctx context.Context) error {
	c.pulses.on.call(c.pulses.window)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settleWindow):
	}
	c.pulses.on.call(c.pulses.window)
	c.bulks.on.call(c.bulks.window)
	return nil
}

// End returns what was seen since Begin.
func (c *Crowd) End() Window {
	var w, b Window
	c.pulses.on.call(func() { w = c.pulses.measured() })
	c.bulks.on.call(func() { b = c.bulks.measured() })
	w.Late = b.Late
	return w
}

// Check asks every idle connection for a word each way, and returns when each
// has answered or is counted as lost.
func (c *Crowd) Check(ctx context.Context) error {
	done := make(chan struct{})
	if !c.door.on.post(func() { c.door.check(done) }) {
		return errClosed
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errClosed = errors.New("the crowd has gone")

// SoFar is what has become of the crowd until now. What has not failed is kept.
func (c *Crowd) SoFar() Report {
	r := Report{Kept: c.c.Kept}
	for _, s := range []*streams{c.bulks, c.pulses} {
		s.on.call(func() {
			r.Kept -= s.count()
			r.Verified += s.verified
		})
	}
	d := c.door
	d.on.call(func() {
		for _, i := range d.idlers {
			if i.over {
				r.Kept--
			}
		}
		r.Served, r.Missed, r.Fresh = d.served, d.missed, d.times.times()
		r.Verified += d.verified
	})
	c.tally.into(&r)
	return r
}

// Finish checks all idle connections once more, ends the streams behind their
// last byte, waits for new connections under way, and says what became of all.
func (c *Crowd) Finish(ctx context.Context) (Report, error) {
	c.door.on.call(func() { c.door.running = false })
	if err := c.Check(ctx); err != nil {
		return c.SoFar(), err
	}
	for _, s := range []*streams{c.bulks, c.pulses} {
		s.on.call(s.finish)
	}
	for _, s := range []*streams{c.bulks, c.pulses} {
		select {
		case <-s.ended: // patience is the streams' own
		case <-ctx.Done():
			return c.SoFar(), ctx.Err()
		}
	}
	if err := c.emptied(ctx); err != nil {
		return c.SoFar(), err
	}
	return c.SoFar(), nil
}

// emptied waits until no new connection is under way.
func (c *Crowd) emptied(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		left := 0
		c.door.on.call(func() { left = c.door.underWay })
		if left == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends everything, at once.
func (c *Crowd) Close() {
	c.closing.Do(func() {
		c.door.shut()
		for _, s := range []*streams{c.bulks, c.pulses} {
			if s.on != nil {
				s.on.call(s.cut)
			}
		}
		for _, l := range c.loops {
			l.end()
		}
	})
}
