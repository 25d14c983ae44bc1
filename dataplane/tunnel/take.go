package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// watchSlice is how many parked connections a loop begins to watch before others
// have their turn. What is not watched yet can be leased all the same: each is
// looked at before it is.
const watchSlice = 64

// Taker returns the hub as a part of the new process of an upgrade. It is called
// before anything is taken, at most once. The tunnels that come have no control
// connection: they end as those of Serve do when ctx is done.
//
// The hub's loops watch nothing of what has come before Start. Presence is told
// of the agents within Start: who reports to auth what it says begins after that.
func (h *Hub) Taker(ctx context.Context) handover.Taker {
	h.adoptions.expect()
	return &taker{hub: h, ctx: ctx, came: map[ID]*arrival{}, revisions: map[string]revision{}}
}

// taker is the hub while its tunnels come.
type taker struct {
	hub *Hub
	ctx context.Context

	mu        sync.Mutex
	named     bool // TunnelHub has come
	came      map[ID]*arrival
	revisions map[string]revision
	sources   []netip.Prefix
	totals    *handoverv1.TunnelTotals
}

// arrival is one tunnel of which the parts come. What takes its time is done as
// they come: when all have, everything stands still.
type arrival struct {
	*tunnel
	size    int    // of the whole assignment
	raw     []byte // as much as has come
	names   map[resourceName]bool
	refused error // why it is not kept
	parked  map[uint64]*entry
	word    *handoverv1.TunnelWord // nil: it has ended meanwhile
	half    map[ID]admission
}

// Name implements handover.Taker.
func (k *taker) Name() string { return partName }

// Take implements handover.Taker.
func (k *taker) Take(r handover.Record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.take(r)
	if err != nil {
		return fmt.Errorf("tunnels: record of kind %d: %w", r.Kind, err)
	}
	return nil
}

var (
	errNotNamed  = errors.New("the first one does not name the gateway")
	errUnknown   = errors.New("unknown kind")
	errNoTunnel  = errors.New("of a tunnel that has not come")
	errFields    = errors.New("fields do not fit together")
	errStranger  = errors.New("another gateway's")
	errRepeated  = errors.New("twice")
	errUnwanted  = errors.New("descriptors with a record that has none")
	errNoLoops   = errors.New("no loops for parked connections")
	errMissing   = errors.New("tunnels: not all has come")
	errNotKept   = errors.New("its assignment is not whole")
	errForeigner = errors.New("an agent's id is missing")
)

// take reads one record. Descriptors are closed here unless they are parked.
func (k *taker) take(r handover.Record) error {
	kind := handoverv1.TunnelKind(r.Kind)
	if kind == handoverv1.TunnelKind_TUNNEL_KIND_PARKED {
		err := k.takeParked(r)
		if err != nil {
			closeAll(r.FDs)
		}
		return err
	}
	if len(r.FDs) > 0 {
		closeAll(r.FDs)
		return errUnwanted
	}
	if !k.named && kind != handoverv1.TunnelKind_TUNNEL_KIND_HUB {
		return errNotNamed
	}
	switch kind {
	case handoverv1.TunnelKind_TUNNEL_KIND_HUB:
		return read(r, k.takeHub)
	case handoverv1.TunnelKind_TUNNEL_KIND_REVISIONS:
		return read(r, k.takeRevisions)
	case handoverv1.TunnelKind_TUNNEL_KIND_SOURCES:
		return read(r, k.takeSources)
	case handoverv1.TunnelKind_TUNNEL_KIND_OPENED:
		return read(r, k.takeOpened)
	case handoverv1.TunnelKind_TUNNEL_KIND_ASSIGNMENT:
		return read(r, k.takeAssignment)
	case handoverv1.TunnelKind_TUNNEL_KIND_DROPPED:
		return read(r, k.takeDropped)
	case handoverv1.TunnelKind_TUNNEL_KIND_WORDS:
		return read(r, k.takeWords)
	case handoverv1.TunnelKind_TUNNEL_KIND_UNROUTED:
		return read(r, k.takeUnrouted)
	case handoverv1.TunnelKind_TUNNEL_KIND_HALF:
		return read(r, k.takeHalves)
	case handoverv1.TunnelKind_TUNNEL_KIND_TOTALS:
		return read(r, k.takeTotals)
	}
	return errUnknown
}

// read decodes a record's body for f.
func read[M any, P interface {
	*M
	proto.Message
}](r handover.Record, f func(P) error) error {
	m := P(new(M))
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r.Body, m); err != nil {
		return ErrMalformed
	}
	return f(m)
}

func (k *taker) takeHub(m *handoverv1.TunnelHub) error {
	if m.GetGatewayId() != k.hub.cfg.GatewayID {
		return errStranger
	}
	k.named = true
	return nil
}

func (k *taker) takeRevisions(m *handoverv1.TunnelRevisions) error {
	for _, r := range m.GetRevision() {
		v := revision{number: r.GetNumber()}
		if s := r.GetNotAfter(); s != 0 {
			v.notAfter = time.Unix(s, 0)
		}
		k.revisions[r.GetAgentId()] = v
	}
	return nil
}

func (k *taker) takeSources(m *handoverv1.TunnelSources) error {
	for _, b := range m.GetSource() {
		var p netip.Prefix
		if err := p.UnmarshalBinary(b); err != nil {
			return ErrMalformed
		}
		k.sources = append(k.sources, p)
	}
	return nil
}

func (k *taker) takeOpened(m *handoverv1.TunnelOpened) error {
	if len(m.GetId()) != idSize || len(m.GetAgentKey()) != len(Key{}) || len(m.GetGatewayKey()) != len(Key{}) || m.GetAssignmentSize() > MaxControl {
		return errFields
	}
	if m.GetAgentId() == "" {
		return errForeigner
	}
	id := ID(m.GetId())
	a := k.came[id]
	if a == nil {
		a = k.open(id, m)
		k.came[id] = a
	}
	a.size, a.raw = int(m.GetAssignmentSize()), nil
	k.judge(a)
	return nil
}

func (k *taker) open(id ID, m *handoverv1.TunnelOpened) *arrival {
	t := &tunnel{
		id: id, agent: m.GetAgentId(), version: word(m.GetVersion()), since: time.UnixMilli(m.GetSince()),
		keys: keys{agent: Key(m.GetAgentKey()), gateway: Key(m.GetGatewayKey())},
		end:  func(error) {}, up: true, pool: newPool(k.hub.bounds, k.hub.parking),
	}
	t.pool.orphan = true
	t.names.Store(&map[resourceName]bool{})
	return &arrival{tunnel: t, parked: map[uint64]*entry{}, half: map[ID]admission{}}
}

// judge checks an assignment that has come whole.
func (k *taker) judge(a *arrival) {
	if len(a.raw) != a.size {
		a.refused = errNotKept
		return
	}
	var v Assignment
	if v, a.refused = k.hub.examine(a.raw, a.agent); a.refused == nil {
		a.assignment.Store(&assignmentView{Assignment: v, raw: a.raw})
		a.names = namesOf(v.Resources, a.agent)
	}
}

func (k *taker) arrival(id []byte) (*arrival, error) {
	if len(id) != idSize {
		return nil, errFields
	}
	a := k.came[ID(id)]
	if a == nil {
		return nil, errNoTunnel
	}
	return a, nil
}

func (k *taker) takeAssignment(m *handoverv1.TunnelAssignment) error {
	a, err := k.arrival(m.GetId())
	if err != nil {
		return err
	}
	if len(a.raw)+len(m.GetData()) > a.size {
		return errFields
	}
	if a.raw = append(a.raw, m.GetData()...); len(a.raw) == a.size {
		k.judge(a)
	}
	return nil
}

// takeParked keeps what it has not refused, also when it refuses the rest: its
// caller closes all descriptors of a record that is no good, and so it takes in
// none of one.
func (k *taker) takeParked(r handover.Record) error {
	return read(r, func(m *handoverv1.TunnelParked) error {
		if len(k.hub.cfg.Loops) == 0 && len(r.FDs) > 0 {
			return errNoLoops
		}
		n := 0
		seen := map[*arrival]map[uint64]bool{}
		for _, s := range m.GetShelf() {
			a, err := k.arrival(s.GetId())
			if err != nil {
				return err
			}
			if len(s.GetSince()) != len(s.GetCounter()) {
				return errFields
			}
			n += len(s.GetCounter())
			if seen[a] == nil {
				seen[a] = map[uint64]bool{}
			}
			for _, c := range s.GetCounter() {
				if a.parked[c] != nil || seen[a][c] {
					return errRepeated
				}
				seen[a][c] = true
			}
		}
		if n != len(r.FDs) {
			return errFields
		}
		k.keep(m, r.FDs)
		return nil
	})
}

// keep parks connections. They come in the order of their age, or nearly.
func (k *taker) keep(m *handoverv1.TunnelParked, fds []int) {
	loops := k.hub.cfg.Loops
	for _, s := range m.GetShelf() {
		a := k.came[ID(s.GetId())]
		l := loops[int(s.GetLoop()&turnMask)%len(loops)]
		for i, c := range s.GetCounter() {
			e := &entry{tunnel: a.tunnel, fd: fds[0], counter: c, since: time.UnixMilli(s.GetSince()[i])}
			a.parked[c] = e
			a.pool.settle(e, l)
			fds = fds[1:]
		}
	}
}

// settle is park on a loop that is told to watch later.
func (p *pool) settle(e *entry, l relay.Loop) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shelve(e, l)
}

// takeDropped lets go of what the old process has leased, or has seen the end of.
// It may name what was never sent.
func (k *taker) takeDropped(m *handoverv1.TunnelDropped) error {
	for _, s := range m.GetShelf() {
		a, err := k.arrival(s.GetId())
		if err != nil {
			return err
		}
		for _, c := range s.GetCounter() {
			if e := a.parked[c]; e != nil && a.pool.lose(e, e.generation) {
				closeFD(e.fd)
				delete(a.parked, c)
			}
		}
	}
	return nil
}

func (k *taker) takeWords(m *handoverv1.TunnelWords) error {
	for _, w := range m.GetWord() {
		a, err := k.arrival(w.GetId())
		if err != nil {
			return err
		}
		if len(w.GetWindow()) != len(window{}.bits) || w.GetCarrier() > carriedWebSocket {
			return errFields
		}
		for _, id := range w.GetFormer() {
			if len(id) != idSize {
				return errFields
			}
		}
		a.word = w
	}
	return nil
}

func (k *taker) takeUnrouted(m *handoverv1.TunnelUnrouted) error {
	a, err := k.arrival(m.GetId())
	if err != nil {
		return err
	}
	for _, n := range m.GetName() {
		kind, name, _ := strings.Cut(n, "/")
		delete(a.names, resourceName{kind, name})
	}
	return nil
}

func (k *taker) takeHalves(m *handoverv1.TunnelHalves) error {
	a, err := k.arrival(m.GetId())
	if err != nil {
		return err
	}
	for _, h := range m.GetHalf() {
		var source netip.Prefix
		if len(h.GetConnection()) != idSize || source.UnmarshalBinary(h.GetSource()) != nil {
			return ErrMalformed
		}
		a.half[ID(h.GetConnection())] = admission{source: source, known: h.GetKnown(), paid: h.GetPaid()}
	}
	return nil
}

func (k *taker) takeTotals(m *handoverv1.TunnelTotals) error {
	k.totals = m
	return nil
}

// Complete implements handover.Taker. Afterwards the hub has the tunnels, and
// nothing has been read, written or announced. Nothing comes from a process that
// had no hub.
func (k *taker) Complete(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.named {
		if err := k.whole(); err != nil {
			return err
		}
	}
	h := k.hub
	h.mu.Lock()
	maps.Copy(h.revisions, k.revisions)
	h.mu.Unlock()
	h.strangers.recall(k.sources, h.cfg.Now())
	half, former := map[ID]moveHalf{}, map[ID]*tunnel{}
	for _, a := range k.inOrder() {
		if !k.settle(a) {
			continue
		}
		for id, adm := range a.half {
			half[id] = moveHalf{a.tunnel, adm}
		}
		for _, id := range a.former {
			former[id] = a.tunnel
		}
	}
	h.bindAll(half, former)
	return nil
}

// whole checks that everything has come that was sent, and lets go of what ended
// meanwhile.
func (k *taker) whole() error {
	if k.totals == nil {
		return errMissing
	}
	var parked uint64
	for id, a := range k.came {
		if a.word == nil {
			a.release()
			delete(k.came, id)
			continue
		}
		if len(a.raw) != a.size {
			return fmt.Errorf("tunnels: agent %s: %w", a.agent, errNotKept)
		}
		parked += uint64(len(a.parked))
	}
	if n := uint64(len(k.came)); n != k.totals.GetTunnels() || parked != k.totals.GetParked() {
		return fmt.Errorf("%w: %d of %d tunnels, %d of %d parked connections", errMissing, n, k.totals.GetTunnels(), parked, k.totals.GetParked())
	}
	return nil
}

// inOrder are the tunnels, each agent's own before its elders, the newest of those
// first.
func (k *taker) inOrder() []*arrival {
	return slices.SortedFunc(maps.Values(k.came), func(a, b *arrival) int {
		if ea, eb := a.word.GetElder(), b.word.GetElder(); ea != eb {
			return cmp.Compare(truth(ea), truth(eb))
		}
		return b.since.Compare(a.since)
	})
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// settle makes an arrival a tunnel of the hub. One whose assignment is no good to
// this process is let go of: its agent comes by itself, and hears why.
func (k *taker) settle(a *arrival) bool {
	h := k.hub
	if a.refused == nil && h.expired(a.assignment.Load().Assignment) {
		a.refused = fmt.Errorf("%w: expired", errAssignment)
	}
	if a.refused != nil {
		h.counters.add("moved_refused")
		h.cfg.Log.Warn("a tunnel of the process before is not kept", "agent", a.agent, "err", a.refused)
		a.release()
		return false
	}
	t := a.tunnel
	t.carrier.Store(int32(a.word.GetCarrier()))
	t.orphan = &orphan{lost: cmp.Or(milli(a.word.GetLost()), h.cfg.Now()), until: milli(a.word.GetUntil())}
	for _, id := range a.word.GetFormer() {
		t.remember(ID(id))
	}
	w := &t.pool.seen
	w.any, w.highest = a.word.GetUsed(), a.word.GetHighest()
	copy(w.bits[:], a.word.GetWindow())
	t.pool.target = min(int(a.word.GetTarget()), h.bounds.PoolCeiling)
	k.enter(a)
	h.counters.add("moved")
	h.counters.m["moved_parked"].Add(uint64(len(a.parked)))
	a.parked = nil
	return true
}

// enter makes a tunnel its agent's, or an elder of that one.
func (k *taker) enter(a *arrival) {
	h, t := k.hub, a.tunnel
	h.presence.Lock()
	defer h.presence.Unlock()
	heir := h.agentOf(t.agent)
	if heir != nil {
		t.pool.join(heir.pool.share)
	}
	h.mu.Lock()
	h.tunnels[t.id], h.orphans[t] = t, true
	if heir == nil {
		h.agents[t.agent] = t
	}
	h.mu.Unlock()
	if heir != nil {
		heir.setElders(append(slices.Clone(heir.older()), t))
		h.inherit(heir)
		return
	}
	h.setNames(t, a.names)
	h.setTag(t, t.assignment.Load().PgCancelTag)
}

// join makes a pool one of those of an agent.
func (p *pool) join(s *share) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.share = s
	s.spare.Add(int64(p.parked))
}

// Start implements handover.Taker.
func (k *taker) Start() {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.hub
	for l, entries := range h.unwatched() {
		h.watchAll(l, entries)
	}
	h.announceMoved()
	time.AfterFunc(h.adoptedFor, h.settleAdopted)
	h.watchOrphans(k.ctx)
}

// unwatched are the parked connections of all orphans, by loop.
func (h *Hub) unwatched() map[relay.Loop][]*entry {
	out := map[relay.Loop][]*entry{}
	for _, t := range h.allOrphans() {
		t.pool.mu.Lock()
		for i := range t.pool.shelves {
			s := &t.pool.shelves[i]
			all := out[s.loop]
			for e := s.oldest; e != nil; e = e.newer {
				all = append(all, e)
			}
			out[s.loop] = all
		}
		t.pool.mu.Unlock()
	}
	return out
}

// watchAll watches what has moved, in turns.
func (h *Hub) watchAll(l relay.Loop, entries []*entry) {
	l.Post(func() { // when it is closed its connections are found by their leases
		n := min(len(entries), watchSlice)
		for _, e := range entries[:n] {
			h.watch(l, e)
		}
		if n < len(entries) {
			h.watchAll(l, entries[n:])
		}
	})
}

// watch begins to watch an entry that is still parked. Who has claimed it
// meanwhile unwatches it behind this function, on this thread.
func (h *Hub) watch(l relay.Loop, e *entry) {
	generation, ok := e.tunnel.pool.parkedOn(l, e)
	if !ok {
		return
	}
	w := &watcher{hub: h, entry: e, generation: generation}
	if err := l.Watch(e.fd, w); err != nil && e.tunnel.pool.lose(e, generation) {
		e.close()
	}
}

// parkedOn says whether an entry is parked, and the loop's.
func (p *pool) parkedOn(l relay.Loop, e *entry) (generation uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return e.generation, e.state == entryParked && e.loop == l
}

// announceMoved says which agents are up: those that were before.
func (h *Hub) announceMoved() {
	h.presence.Lock()
	defer h.presence.Unlock()
	for _, t := range h.allOrphans() {
		if h.current(t) {
			h.cfg.Log.Info("agent up", "agent", t.agent, "revision", t.assignment.Load().Revision, "moved", true)
			h.cfg.Presence(t.presence(true))
		}
	}
}

// release closes what is parked; the old process has let go of it, too, or will.
func (a *arrival) release() {
	parked, _ := a.pool.close()
	for _, e := range parked {
		closeFD(e.fd)
	}
	a.parked = nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		closeFD(fd)
	}
}
