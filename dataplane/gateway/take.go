//go:build unix

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// Heir is a gateway that takes over what another process has. Its loops are held
// until Start: nothing is accepted, read or written before.
type Heir struct {
	gateway *Gateway
	held    []*relay.Held // by lane
	listen  []string      // Config.Listen without names

	mu        sync.Mutex
	places    map[uint32]int // from the other's list of addresses to Config.Listen; -1: it is no more
	old       []*listener    // of addresses that are no more
	listeners int            // that have come
	relays    linksByID
	worded    int              // of relays: their words have come
	owed      map[uint64]*owed // by relay
	form      heirForm
	conns     [][]*conn   // by lane
	started   [][]*link   // relays that have something to do at once, by lane
	waiting   [][]*link   // and those that had when they were copied
	fresh     []*listener // bound, and listening after the commit
	totals    *handoverv1.GatewayTotals
	over      bool // started or closed
}

// owed is how many bytes of a relay are still to come.
type owed struct{ toA, toB int }

// Inherit is Start for a gateway that gets its sockets from another process. It
// holds the loops until the heir is started. As with Start names are looked up
// first, in a time that has a bound: those that are new in the configuration the
// other process does not know.
func Inherit(cfg Config) (*Heir, error) {
	g, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	g.resolveFirst()
	g.line()
	h := &Heir{
		gateway: g, places: map[uint32]int{}, owed: map[uint64]*owed{},
		conns: make([][]*conn, len(g.lanes)), started: make([][]*link, len(g.lanes)),
		waiting: make([][]*link, len(g.lanes)),
	}
	for _, address := range cfg.Listen {
		h.listen = append(h.listen, literal(address))
	}
	g.addrs = make([]netip.AddrPort, len(cfg.Listen))
	for _, w := range g.lanes {
		held := relay.Hold(w.loop)
		if held == nil {
			h.Close()
			return nil, fmt.Errorf("gateway: loop %d is closed", w.index)
		}
		h.held = append(h.held, held)
	}
	g.tasks.Go(g.resolve) // so that nobody has to wait for a name later
	return h, nil
}

// Gateway is what the heir becomes. Before Start its loops stand still.
func (h *Heir) Gateway() *Gateway { return h.gateway }

// Held are the loops, in the order of Config.Loops.
func (h *Heir) Held() []*relay.Held { return slices.Clone(h.held) }

// Close gives up, before Start: the other process goes on. After Start it does
// nothing.
func (h *Heir) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return
	}
	h.over = true
	for i, held := range h.held {
		w := h.gateway.lanes[i]
		held.Do(w.forsake)
	}
	for _, l := range slices.Concat(h.old, h.fresh) {
		relay.Close(l.fd)
	}
	releaseAll(h.held)
	h.gateway.Close()
}

// Name implements handover.Taker.
func (h *Heir) Name() string { return partName }

// errRecord: the other process has sent what cannot be.
var errRecord = errors.New("impossible record")

// Take implements handover.Taker.
func (h *Heir) Take(r handover.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	in := &incoming{fds: r.FDs}
	err := errRecord
	if !h.over {
		err = h.take(r, in)
	}
	if err == nil && len(in.fds) > 0 {
		err = errRecord
	}
	in.close()
	if err != nil {
		return fmt.Errorf("gateway: record of kind %d: %w", r.Kind, err)
	}
	return nil
}

// incoming are a record's descriptors that nobody has taken yet.
type incoming struct{ fds []int }

func (in *incoming) next() int {
	fd := in.fds[0]
	in.fds = in.fds[1:]
	return fd
}

func (in *incoming) close() {
	for _, fd := range in.fds {
		relay.Close(fd)
	}
}

func (h *Heir) take(r handover.Record, in *incoming) error {
	switch handoverv1.GatewayKind(r.Kind) {
	case handoverv1.GatewayKind_GATEWAY_KIND_NAMES:
		return decode(r.Body, h.takeNames)
	case handoverv1.GatewayKind_GATEWAY_KIND_SOURCES:
		return decode(r.Body, h.takeSources)
	case handoverv1.GatewayKind_GATEWAY_KIND_RELAYS:
		return h.takeRelays(r.Body, in)
	case handoverv1.GatewayKind_GATEWAY_KIND_DROPPED:
		return decode(r.Body, h.takeDropped)
	case handoverv1.GatewayKind_GATEWAY_KIND_LISTENERS:
		return decode(r.Body, func(m *handoverv1.GatewayListeners) error { return h.takeListeners(m, in) })
	case handoverv1.GatewayKind_GATEWAY_KIND_CONNECTIONS:
		return decode(r.Body, func(m *handoverv1.GatewayConnections) error { return h.takeConnections(m, in) })
	case handoverv1.GatewayKind_GATEWAY_KIND_BUSY:
		return decode(r.Body, func(m *handoverv1.GatewayBusy) error { return h.takeBusy(m, in) })
	case handoverv1.GatewayKind_GATEWAY_KIND_PENDING:
		return decode(r.Body, h.takePending)
	case handoverv1.GatewayKind_GATEWAY_KIND_WORDS:
		return decode(r.Body, h.takeWords)
	case handoverv1.GatewayKind_GATEWAY_KIND_TOTALS:
		return decode(r.Body, h.takeTotals)
	}
	return errRecord
}

func decode[M any, P interface {
	*M
	proto.Message
}](body []byte, f func(P) error) error {
	m := P(new(M))
	if err := proto.Unmarshal(body, m); err != nil {
		return err
	}
	return f(m)
}

// lane is where what was on the other process's lane goes: the same one, or with
// fewer loops one of them.
func (h *Heir) lane(i uint32) *lane {
	return h.gateway.lanes[int(i%uint32(len(h.gateway.lanes)))]
}

// on runs f in place of the lane's thread.
func (h *Heir) on(w *lane, f func() error) (err error) {
	if !h.held[w.index].Do(func() { err = f() }) {
		return errClosed
	}
	return err
}

// takeNames: what the other process knows does until this one has looked itself.
func (h *Heir) takeNames(m *handoverv1.GatewayNames) error {
	servers := h.gateway.current.Load().servers
	for _, n := range m.Name {
		s := servers[n.Address]
		if a := h.gateway.auth; s == nil && a != nil && a.servers[0].address == n.Address {
			s = a.servers[0]
		}
		targets := make([]*target, 0, len(n.Resolved))
		for _, b := range n.Resolved {
			a, err := address(b)
			if err != nil {
				return err
			}
			targets = append(targets, &target{addr: a})
		}
		if s != nil && s.host != "" && len(targets) > 0 {
			s.targets.CompareAndSwap(nil, &targets)
		}
	}
	return nil
}

func (h *Heir) takeSources(m *handoverv1.GatewaySources) error {
	sources := make([]netip.Prefix, len(m.Source))
	for i, b := range m.Source {
		if err := sources[i].UnmarshalBinary(b); err != nil || sources[i] != sourceOf(sources[i].Addr()) {
			return errRecord
		}
	}
	w := h.gateway.lanes[0]
	h.gateway.crowd.remember(sources, w.loop.Now())
	return nil
}

func (h *Heir) takeTotals(m *handoverv1.GatewayTotals) error {
	if h.totals != nil {
		return errRecord
	}
	h.totals = m
	h.gateway.ids.Store(m.LastRelay)
	return nil
}

// address decodes one; empty is the zero value.
func address(b []byte) (a netip.AddrPort, err error) {
	if len(b) == 0 {
		return a, nil
	}
	if err := a.UnmarshalBinary(b); err != nil || !a.Addr().IsValid() {
		return a, errRecord
	}
	return a, nil
}

// Complete implements handover.Taker: all has come, and what is new can be
// opened.
func (h *Heir) Complete(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.totals
	switch {
	case t == nil:
		return errors.New("gateway: the totals have not come")
	case t.Relays != uint64(h.relays.len()):
		return fmt.Errorf("gateway: %d relays have come, not %d", h.relays.len(), t.Relays)
	case h.worded != h.relays.len():
		return fmt.Errorf("gateway: of %d relays the words have not come", h.relays.len()-h.worded)
	case t.Listeners != uint64(h.listeners):
		return fmt.Errorf("gateway: %d listening sockets have come, not %d", h.listeners, t.Listeners)
	}
	conns := 0
	for _, some := range h.conns {
		conns += len(some)
	}
	if t.Connections != uint64(conns) {
		return fmt.Errorf("gateway: %d connections have come, not %d", conns, t.Connections)
	}
	for id, o := range h.owed {
		if o.toA != 0 || o.toB != 0 {
			return fmt.Errorf("gateway: relay %d: %d bytes have not come", id, o.toA+o.toB)
		}
	}
	return h.bind()
}

// Start implements handover.Taker: relays that hold something go on first, then
// connections on their way, then all that has happened meanwhile.
func (h *Heir) Start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return
	}
	h.over = true
	var wg sync.WaitGroup
	for i, w := range h.gateway.lanes {
		wg.Add(1)
		if !h.held[i].Begin(func() { defer wg.Done(); h.begin(w) }) {
			wg.Done()
		}
	}
	wg.Wait()
	h.gateway.reportLimit()
	h.relays, h.owed, h.conns, h.started, h.waiting = linksByID{}, nil, nil, nil, nil
}

// begin is on the lane's thread.
func (h *Heir) begin(w *lane) {
	for _, some := range [][]*link{h.started[w.index], h.waiting[w.index]} {
		for _, l := range some {
			l.relay.Resume()
		}
	}
	for _, c := range h.conns[w.index] {
		c.resume()
	}
	for _, l := range h.fresh {
		if l.lane == w {
			l.begin()
		}
	}
	for _, l := range h.old {
		if l.lane == w {
			w.loop.Post(l.retire)
		}
	}
}
