//go:build unix

package gateway

import (
	"context"
	"errors"
	"iter"
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// partName is the part of the hand-over that this package is.
const partName = "gateway"

const (
	// copySlice relays are copied before a loop's other work has its turn: about
	// two tenths of a millisecond. They are a batch, which goes as it is.
	copySlice = relaysRecord

	// copyPasses bounds how often new relays are looked for, and copyFew are left
	// for the freeze.
	copyPasses = 8
	copyFew    = 64

	// leaveSlice relays are let go of before whoever has them now has its turn:
	// the two compete for the same cores. There are leaveSlices at most.
	leaveSlice  = 64
	leaveSlices = 64
	leavePause  = time.Millisecond

	// Relays and such in one record: within handover.MaxFDs and MaxBody. What has
	// strings of the configuration is cut by bytes, too: see fit.
	relaysRecord    = handover.MaxFDs / 2
	listenersRecord = handover.MaxFDs
	busyRecord      = handover.MaxFDs / 4
	wordsRecord     = 2500 // of up to 33 bytes
	droppedRecord   = 8000 // of up to 10 bytes
	namesRecord     = 32
	sourcesRecord   = 2000 // of up to 18 bytes
	pendingRecord   = 64 << 10
	recordBytes     = 80 << 10 // a connection has at most MaxHello, some hundred bytes and its route's label

	// resolvedMost addresses of a name are passed on.
	resolvedMost = 64
)

// Giver moves a gateway to another process: its listening sockets, its relays
// and the connections that are not routed yet. Connections whose TLS has ended
// here stay.
type Giver struct {
	gateway *Gateway

	mu         sync.Mutex // one call at a time
	turn       uint32     // the hand-over that is under way, or was the last
	copied     bool       // Copy has begun
	generation uint32     // of the records; 0 for the newest

	heldMu sync.Mutex
	held   []*relay.Held // by lane; nil while the loops run
}

// Giver is the gateway as a part of the hand-over.
func (g *Gateway) Giver() *Giver { return g.giver }

// Held are the loops of a frozen gateway, in the order of Config.Loops; nil when
// it is not frozen.
func (g *Gateway) Held() []*relay.Held {
	g.giver.heldMu.Lock()
	defer g.giver.heldMu.Unlock()
	return g.giver.held
}

// Name implements handover.Giver.
func (v *Giver) Name() string { return partName }

// Speak implements handover.Speaker.
func (v *Giver) Speak(generation uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.generation = generation
}

// wordless is the last generation in which a copied relay's words come after the
// freeze, all of them.
const wordless = 1

// errClosed: there is nothing to hand over any more.
var errClosed = errors.New("gateway is closed")

// Copy implements handover.Giver: relays in slices, while all goes on.
func (v *Giver) Copy(ctx context.Context, out handover.Writer) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.copy(ctx, out)
}

func (v *Giver) copy(ctx context.Context, out handover.Writer) error {
	if !v.copied {
		v.copied = true
		v.turn++
		v.gateway.each(func(w *lane) { w.handing, w.dropped, w.words = v.turn, nil, v.generation != wordless })
		if err := v.gateway.sendKnown(ctx, out); err != nil {
			return err
		}
	}
	last := math.MaxInt
	for range copyPasses {
		n, err := v.pass(ctx, out, last/2)
		if n == 0 || err != nil {
			return err
		}
		last = n
	}
	return nil
}

// pass copies what has not been copied yet, and returns how much that was: 0 when
// it was little and was left, or not less than most, since it comes as fast as
// it is copied.
func (v *Giver) pass(ctx context.Context, out handover.Writer, most int) (n int, err error) {
	todo := make([][]*link, len(v.gateway.lanes))
	v.gateway.each(func(w *lane) { todo[w.index] = w.uncopied() })
	for _, links := range todo {
		n += len(links)
	}
	if n < copyFew || n >= most {
		return 0, nil
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, w := range v.gateway.lanes {
		group.Go(func() error { return w.copyAll(ctx, out, todo[i]) })
	}
	return n, group.Wait()
}

// copyAll copies in slices on the loop's thread, one in each of its rounds. Where
// there is no room it waits here, and not there.
func (w *lane) copyAll(ctx context.Context, out handover.Writer, todo []*link) error {
	t := &tour{lane: w, out: out, todo: todo, ended: make(chan error, 1)}
	t.again = t.step
	for len(t.todo) > 0 {
		if !w.loop.Post(t.again) {
			return errClosed
		}
		switch err := <-t.ended; {
		case err == nil:
		case !errors.Is(err, errFull):
			return err
		default:
			if err := pause(ctx, out); err != nil {
				return err
			}
		}
	}
	return nil
}

// tour copies relays of a lane, until none is left or there is no room.
type tour struct {
	lane  *lane
	out   handover.Writer
	todo  []*link    // the thread's, until it has ended
	ended chan error // errFull: to be begun again
	again func()
}

// errFull: the other process has to take something first.
var errFull = errors.New("no room")

// step is one slice, in one of the loop's rounds.
func (t *tour) step() {
	n := fit(t.todo, copySlice, (*link).imageSize)
	ok, err := t.lane.copySlice(t.out, t.todo[:n])
	if ok {
		t.todo = t.todo[n:]
	}
	switch {
	case err != nil:
	case !ok:
		err = errFull
	case len(t.todo) == 0:
	case t.lane.loop.Post(t.again):
		return
	default:
		err = errClosed
	}
	t.ended <- err
}

// copyPause is short beside what the other process needs for what it has.
const copyPause = time.Millisecond

// pause waits for room.
func pause(ctx context.Context, out handover.Writer) error {
	if p, ok := out.(handover.Pacer); ok {
		return p.Room(ctx)
	}
	timer := time.NewTimer(copyPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// on runs f on the loop's thread and waits. It is false when the loop is closed.
func (w *lane) on(f func()) bool {
	done := make(chan struct{})
	if !w.loop.Post(func() { defer close(done); f() }) {
		return false
	}
	<-done
	return true
}

// running are the relays that have not ended. One that ends as it begins tells its
// link later: until then there is a link, and no descriptors.
func (w *lane) running() iter.Seq[*link] {
	return func(yield func(*link) bool) {
		for l := range w.links.all() {
			if !l.relay.Over() && !yield(l) {
				return
			}
		}
	}
}

// uncopied are the relays that the hand-over has not copied.
func (w *lane) uncopied() []*link {
	n := 0
	for l := range w.running() {
		if l.sent != w.handing {
			n++
		}
	}
	out := make([]*link, 0, n) // thousands: what append leaves behind is as large
	for l := range w.running() {
		if l.sent != w.handing {
			out = append(out, l)
		}
	}
	return out
}

// copySlice sends some relays, and what has ended since the last time. ok is
// false when there was no room.
func (w *lane) copySlice(out handover.Writer, slice []*link) (ok bool, err error) {
	for len(w.dropped) > 0 {
		n := min(droppedRecord, len(w.dropped))
		if ok, err := out.TrySend(dropped(w.dropped[:n])); !ok || err != nil {
			return false, err
		}
		w.dropped = w.dropped[n:]
	}
	w.dropped = nil
	running := w.blankForm().running[:0]
	for _, l := range slice {
		if l.place != 0 && !l.relay.Over() {
			running = append(running, l)
		}
	}
	if len(running) == 0 {
		return true, nil
	}
	if ok, err := out.TrySend(w.relaysRecord(running)); !ok || err != nil {
		return false, err
	}
	for _, l := range running {
		l.sent = w.handing
		l.relay.Share()
	}
	return true, nil
}

// Freeze implements handover.Giver: the loops stop between two events, and what
// has changed is sent. Nothing is changed here, so that they can go on.
func (v *Giver) Freeze(ctx context.Context, out handover.Writer) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.copy(ctx, out); err != nil { // what has come since
		return err
	}
	if p, ok := out.(handover.Pacer); ok {
		if err := p.Taken(ctx); err != nil {
			return err
		}
	}
	sent := make([]error, len(v.gateway.lanes))
	if err := v.hold(func(i int) { sent[i] = sendAll(ctx, out, v.gateway.lanes[i].frozen()) }); err != nil {
		return err
	}
	if err := errors.Join(sent...); err != nil {
		return err
	}
	return out.Send(ctx, record(handoverv1.GatewayKind_GATEWAY_KIND_TOTALS, v.totals(), nil))
}

// totals is called while the loops are held.
func (v *Giver) totals() *handoverv1.GatewayTotals {
	t := &handoverv1.GatewayTotals{LastRelay: v.gateway.ids.Load()}
	for _, w := range v.gateway.lanes {
		for range w.running() {
			t.Relays++
		}
		t.Connections += uint64(len(w.conns))
		t.Listeners += uint64(len(w.listeners))
	}
	return t
}

// hold stops the loops. Each does at once what is to be done first: to wake
// somebody else for it would take longer.
func (v *Giver) hold(first func(place int)) error {
	held := relay.HoldAll(v.gateway.cfg.Loops, first)
	v.heldMu.Lock()
	defer v.heldMu.Unlock()
	for _, h := range held {
		if h == nil {
			releaseAll(held)
			return errClosed
		}
	}
	v.held = held
	return nil
}

func releaseAll(held []*relay.Held) {
	for _, h := range held {
		if h != nil {
			h.Release()
		}
	}
}

// letGo releases the loops. It is false when they were not held.
func (v *Giver) letGo() bool {
	v.heldMu.Lock()
	defer v.heldMu.Unlock()
	held := v.held
	v.held = nil
	releaseAll(held)
	return held != nil
}

// Thaw implements handover.Giver.
func (v *Giver) Thaw() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.copied = false
	v.letGo()
	v.gateway.each(func(w *lane) { w.handing, w.dropped, w.form = 0, nil, nil })
	return nil
}

// Leave implements handover.Giver. From here on the gateway has only the
// connections whose TLS ended here: see Served and Dismiss.
func (v *Giver) Leave() {
	v.mu.Lock()
	defer v.mu.Unlock()
	g := v.gateway
	var wg sync.WaitGroup
	for i, h := range g.Held() {
		wg.Go(func() { g.lanes[i].leave(h) })
	}
	wg.Wait()
	if !v.letGo() {
		return
	}
	g.unnamed()
	go g.awaitServed()
}

func (g *Gateway) awaitServed() {
	g.tasks.Wait()
	close(g.served)
}

// Served is closed when the gateway has been handed over and the last handler of
// an End has returned.
func (g *Gateway) Served() <-chan struct{} { return g.served }

// Serving is how many connections TLS is being ended for, or handlers run for.
func (g *Gateway) Serving() int { return int(g.serving.Load()) }

// Dismiss asks the handlers to go: their context is done. Close, which also
// waits for them, does so too.
func (g *Gateway) Dismiss() { g.stop() }

// leave is forsake without haste: the loop, which is held, has nothing else to
// do, but those who go on in the other process have.
func (w *lane) leave(h *relay.Held) {
	slice := max(leaveSlice, w.links.len()/leaveSlices+1)
	for more := true; more; {
		if !h.Do(func() { more = w.forsakeRelays(slice) }) {
			return
		}
		if more {
			time.Sleep(leavePause)
		}
	}
	h.Do(w.forsake)
}

// forsake closes what another process has now, and says nothing to anybody.
func (w *lane) forsake() {
	for _, l := range w.listeners {
		l.close()
	}
	for c := range w.conns {
		c.forsake()
	}
	w.forsakeRelays(w.links.len())
	w.listeners = nil
	clear(w.conns)
	w.handing, w.dropped, w.form = 0, nil, nil
	w.reserve.close()
}

// forsakeRelays says whether there are more.
func (w *lane) forsakeRelays(most int) (more bool) {
	for l := range w.links.all() {
		if most == 0 {
			return true
		}
		most--
		w.links.remove(l)
		l.relay.Forsake()
		l.acct.relays.Add(-1)
		l.counts.relays.Add(-1)
	}
	return false
}

// forsake takes a question for a lease back; a lease that is held is the other
// process's.
func (c *conn) forsake() {
	c.stage = gone
	c.held = nil
	c.loop.Disarm(c)
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
	c.disown()
	if c.slot.held {
		c.crowd.leave(&c.slot, false, c.loop.Now())
	}
	if c.bye != nil {
		c.bye.Forsake()
		return
	}
	c.loop.Unwatch(c.fd)
	relay.Close(c.fd)
	if c.other >= 0 {
		c.loop.Unwatch(c.other)
		relay.Close(c.other)
		c.other = -1
	}
}

func sendAll(ctx context.Context, out handover.Writer, all []handover.Record) error {
	for _, r := range all {
		if err := out.Send(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func record(kind handoverv1.GatewayKind, m proto.Message, fds []int) handover.Record {
	return handover.Record{Part: partName, Kind: uint32(kind), Body: appended(nil, m), FDs: fds}
}

func appended(b []byte, m proto.Message) []byte {
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		panic(err) // the strings are names in ASCII, and configuration in UTF-8
	}
	return b
}

func dropped(ids []uint64) handover.Record {
	return record(handoverv1.GatewayKind_GATEWAY_KIND_DROPPED, &handoverv1.GatewayDropped{Id: ids}, nil)
}

// encoded is an address in bytes; nil for none.
func encoded(a netip.AddrPort) []byte {
	if !a.Addr().IsValid() {
		return nil
	}
	b, _ := a.MarshalBinary() // it returns no error
	return b
}

// age is how long ago something was; 0 if it was not.
func age(since, now time.Time) int64 {
	if since.IsZero() {
		return 0
	}
	return int64(max(now.Sub(since), 0))
}
