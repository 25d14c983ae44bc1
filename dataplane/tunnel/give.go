package tunnel

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// partName is the hub's name in an upgrade.
const partName = "tunnels"

const (
	// copySlice is how many parked connections a loop sends before others have
	// their turn.
	copySlice = 64

	// copyRounds bounds the rounds of Copy, which ends when one of them has found
	// no more than fewLeft.
	copyRounds = 8
	fewLeft    = 64

	// copyPause is the wait for a new process that has to take something first;
	// followPause that between two looks at what has changed since the copy.
	copyPause   = time.Millisecond
	followPause = 20 * time.Millisecond

	// gatePause is the wait for goroutines that are about to change a tunnel.
	gatePause = 50 * time.Microsecond
)

// Giver returns the hub as a part of the old process of an upgrade. When Freeze
// is called, the loops that the hub's connections are on stand still, and they
// do so until Thaw or Leave; after Leave they are let go on, or closed: the
// descriptors here are closed by their threads.
func (h *Hub) Giver() handover.Giver { return &giver{hub: h} }

// giver is the hub in an upgrade. Its methods are called one at a time.
//
//	Copy ──▶ follow (a goroutine: what changes) ──▶ Freeze ──▶ Leave
//	  └──────────────────┴─────────────────────────────┴─────▶ Thaw
type giver struct {
	hub    *Hub
	w      handover.Writer
	sent   map[*tunnel]*assignmentView // with which assignment
	loops  map[relay.Loop]uint32
	frozen bool

	stop func() // ends follow; nil when it does not run
	done chan struct{}
	err  error // of follow; read after done
}

// Name implements handover.Giver.
func (g *giver) Name() string { return partName }

// Copy implements handover.Giver. Until Freeze a goroutine of its own goes on
// with what changes, so that little is left then, and what has ended here ends
// there.
func (g *giver) Copy(ctx context.Context, w handover.Writer) error {
	g.w, g.sent, g.loops = w, map[*tunnel]*assignmentView{}, map[relay.Loop]uint32{}
	if err := g.sendHub(ctx); err != nil {
		return err
	}
	for range copyRounds {
		n, err := g.round(ctx)
		if err != nil {
			return err
		}
		if n <= fewLeft {
			break
		}
	}
	fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	g.done = make(chan struct{})
	g.stop = sync.OnceFunc(func() { cancel(); <-g.done })
	go g.follow(fctx)
	return nil
}

// follow copies what changes until ctx is done.
func (g *giver) follow(ctx context.Context) {
	defer close(g.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(followPause):
		}
		if _, err := g.round(ctx); err != nil {
			if ctx.Err() == nil {
				g.err = err
			}
			return
		}
	}
}

// Freeze implements handover.Giver.
func (g *giver) Freeze(ctx context.Context, w handover.Writer) error {
	if g.stop == nil {
		return errors.New("tunnels: frozen before they were copied")
	}
	if g.stop(); g.err != nil {
		return g.err
	}
	g.w = w
	if err := g.shutGate(ctx); err != nil {
		return err
	}
	tunnels := g.hub.movable()
	for _, step := range []func(context.Context, []*tunnel) error{g.sendOpened, g.sendRest, g.sendDropped, g.sendWords} {
		if err := step(ctx, tunnels); err != nil {
			return err
		}
	}
	return nil
}

// shutGate waits until no goroutine changes a tunnel, and keeps them from it.
// Control connections go on pinging.
func (g *giver) shutGate(ctx context.Context) error {
	for !g.hub.gate.TryLock() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(gatePause):
		}
	}
	g.frozen = true
	return nil
}

// Thaw implements handover.Giver.
func (g *giver) Thaw() error {
	if g.stop != nil {
		g.stop()
	}
	all := g.hub.all()
	for _, t := range all {
		t.pool.keep()
	}
	if g.frozen {
		g.hub.gate.Unlock()
	}
	for _, t := range all {
		t.askForMore() // what was not said meanwhile
	}
	*g = giver{hub: g.hub}
	return nil
}

// Leave implements handover.Giver.
func (g *giver) Leave() {
	h := g.hub
	h.left.Store(true)
	h.draining.Store(true)
	h.abandon()
	if g.frozen {
		g.frozen = false
		h.gate.Unlock()
	}
	h.sendAway()
}

// round sends what is not there yet, and takes back what has gone. It returns how
// many parked connections it has sent.
func (g *giver) round(ctx context.Context) (n int, err error) {
	tunnels := g.hub.movable()
	if err := g.sendOpened(ctx, tunnels); err != nil {
		return 0, err
	}
	if n, err = g.sendParked(ctx, tunnels); err != nil {
		return n, err
	}
	return n, g.sendDropped(ctx, tunnels)
}

// movable are the tunnels that move: all whose agents have been welcomed.
func (h *Hub) movable() (out []*tunnel) {
	h.presence.Lock()
	defer h.presence.Unlock()
	for _, t := range h.all() {
		if t.up {
			out = append(out, t)
		}
	}
	return out
}

// sendParked sends what is parked and has not been sent, slice by slice on the
// thread of the loop that watches it: nobody closes it there meanwhile.
func (g *giver) sendParked(ctx context.Context, tunnels []*tunnel) (n int, err error) {
	byLoop := map[relay.Loop][]*tunnel{}
	for _, t := range tunnels {
		for _, l := range t.pool.freshOn() {
			byLoop[l] = append(byLoop[l], t)
		}
	}
	for l, ts := range byLoop {
		for len(ts) > 0 {
			s, err := g.sendSlice(ctx, l, ts)
			if err != nil {
				return n, err
			}
			n += s.sent
			ts = ts[s.through:]
			if !s.ok {
				if err := pause(ctx, copyPause); err != nil {
					return n, err
				}
			}
		}
	}
	return n, nil
}

// slice is what came of one turn on a loop.
type slice struct {
	through int // tunnels of which nothing is left
	sent    int
	ok      bool // else the new process has to take something first
	err     error
}

// sendSlice has its turn on l. When the loop stands still, because Freeze has
// come, it does nothing any more when it goes on.
func (g *giver) sendSlice(ctx context.Context, l relay.Loop, ts []*tunnel) (slice, error) {
	out := make(chan slice, 1)
	var turn sync.Mutex // held while the turn lasts, and when it is over
	if !l.Post(func() {
		if turn.TryLock() {
			out <- g.slice(l, ts)
		}
	}) {
		return slice{}, errors.New("tunnels: a loop has been closed")
	}
	select {
	case s := <-out:
		return s, s.err
	case <-ctx.Done():
		if turn.TryLock() {
			return slice{}, ctx.Err() // it has not begun
		}
		<-out
		return slice{}, ctx.Err()
	}
}

// slice runs on l's thread.
func (g *giver) slice(l relay.Loop, ts []*tunnel) (s slice) {
	var b shelfBatch
	var all []*entry
	for _, t := range ts {
		es := t.pool.mark(l, copySlice-len(all))
		for _, e := range es {
			b.add(e, g.loopNumber(l))
		}
		all = append(all, es...)
		if len(all) == copySlice {
			break
		}
		s.through++
	}
	if len(all) == 0 {
		s.ok = true
		return s
	}
	r, err := b.record()
	if err == nil {
		s.ok, err = g.w.TrySend(r)
	}
	if s.err = err; !s.ok {
		unmark(all)
		s.through = 0
		return s
	}
	s.sent = len(all)
	return s
}

// loopNumber is called by one goroutine at a time: by round, or for it.
func (g *giver) loopNumber(l relay.Loop) uint32 {
	n, ok := g.loops[l]
	if !ok {
		n = uint32(len(g.loops))
		g.loops[l] = n
	}
	return n
}

// sendRest sends what is parked and has not been sent, and what was on the way to
// a client: the client has got nothing of it. The loops stand still.
func (g *giver) sendRest(ctx context.Context, tunnels []*tunnel) error {
	var b shelfBatch
	for _, t := range tunnels {
		for _, e := range t.pool.markRest() {
			b.add(e, g.loopNumber(e.loop))
			if len(b.fds) < handover.MaxFDs {
				continue
			}
			if err := b.send(ctx, g.w); err != nil {
				return err
			}
		}
	}
	return b.send(ctx, g.w)
}

// sendDropped takes back what was sent and has left. It looks at ended tunnels,
// too.
func (g *giver) sendDropped(ctx context.Context, _ []*tunnel) error {
	var b shelfBatch
	for t := range g.sent {
		for _, c := range t.pool.takeDropped() {
			b.drop(t, c)
			if b.counters < maxDropped {
				continue
			}
			if err := b.sendDrop(ctx, g.w); err != nil {
				return err
			}
		}
	}
	return b.sendDrop(ctx, g.w)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// freshOn are the loops with entries that are still to be copied.
func (p *pool) freshOn() (out []relay.Loop) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.shelves {
		if p.shelves[i].fresh > 0 {
			out = append(out, p.shelves[i].loop)
		}
	}
	return out
}

// mark returns at most n entries that l watches and that are still to be copied,
// the oldest first, and counts them as copied.
func (p *pool) mark(l relay.Loop, n int) (out []*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelf(l)
	for e := s.oldest; e != nil && s.fresh > 0 && len(out) < n; e = e.newer {
		if e.moves() {
			p.copy(e)
			s.fresh--
			out = append(out, e)
		}
	}
	return out
}

func (p *pool) copy(e *entry) {
	e.copied, e.shared = true, true
	p.copies++
}

// unmark takes a mark back: nothing was sent.
func unmark(entries []*entry) {
	for _, e := range entries {
		e.tunnel.pool.unmark(e)
	}
}

func (p *pool) unmark(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !e.copied {
		return // it has left: that it is dropped does no harm
	}
	e.copied = false
	p.copies--
	if e.state == entryParked {
		p.shelf(e.loop).fresh++
	}
}

// markRest is mark for all loops, and for what is on the way.
func (p *pool) markRest() (out []*entry) {
	p.mu.Lock()
	loops := make([]relay.Loop, 0, len(p.shelves))
	for i := range p.shelves {
		loops = append(loops, p.shelves[i].loop)
	}
	for e := p.inFlight.oldest; e != nil; e = e.newer {
		if e.moves() {
			p.copy(e)
			out = append(out, e)
		}
	}
	p.mu.Unlock()
	for _, l := range loops {
		out = append(out, p.mark(l, p.ceiling+p.parkedNow())...)
	}
	return out
}

func (p *pool) parkedNow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.parked
}

// takeDropped returns what was sent and has left since the last call.
func (p *pool) takeDropped() (out []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out, p.dropped = p.dropped, nil
	return out
}

// keep makes all entries this process's own again: there is no other.
func (p *pool) keep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.copies, p.dropped = 0, nil
	for i := range p.shelves {
		s := &p.shelves[i]
		s.fresh = 0
		for e := s.oldest; e != nil; e = e.newer {
			e.copied, e.shared = false, false
			if e.moves() {
				s.fresh++
			}
		}
	}
	for e := p.inFlight.oldest; e != nil; e = e.newer {
		e.copied, e.shared = false, false
	}
}

// record makes a record of the part.
func record(kind handoverv1.TunnelKind, body []byte, fds []int) handover.Record {
	return handover.Record{Part: partName, Kind: uint32(kind), Body: body, FDs: fds}
}

var errBody = fmt.Errorf("tunnels: a record of more than %d bytes", handover.MaxBody)
