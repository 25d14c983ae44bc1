package tunnel

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// What the part writes: proto/sallyport/handover/v1/tunnel.proto. Sizes are kept
// well below a record's bound.

const (
	maxRevisions = 500      // of one record: about 64 bytes each
	maxMoved     = 2000     // sources of one record: about 20 bytes each
	maxChunk     = 64 << 10 // of an assignment
	maxDropped   = 2000     // counters of one record: about 10 bytes each, or 30 with their tunnel's
	maxUnrouted  = 512      // names of one record: at most 85 bytes each
	maxHalf      = 1000     // streams of one record: about 45 bytes each
	maxWords     = 100      // tunnels of one record: about 220 bytes each, and 18 for each tunnel that has ended before
)

func (g *giver) put(ctx context.Context, kind handoverv1.TunnelKind, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > handover.MaxBody {
		return errBody
	}
	return g.w.Send(ctx, record(kind, b, nil))
}

// sendHub sends what is no tunnel's.
func (g *giver) sendHub(ctx context.Context) error {
	h := g.hub
	if err := g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_HUB, &handoverv1.TunnelHub{GatewayId: h.cfg.GatewayID}); err != nil {
		return err
	}
	for part := range slices.Chunk(h.allRevisions(), maxRevisions) {
		if err := g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_REVISIONS, &handoverv1.TunnelRevisions{Revision: part}); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(h.strangers.known(h.cfg.Now()), maxMoved) {
		m := &handoverv1.TunnelSources{}
		for _, s := range part {
			b, _ := s.MarshalBinary() // never fails
			m.Source = append(m.Source, b)
		}
		if err := g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_SOURCES, m); err != nil {
			return err
		}
	}
	return nil
}

func (h *Hub) allRevisions() (out []*handoverv1.TunnelRevision) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for agent, r := range h.revisions {
		m := &handoverv1.TunnelRevision{AgentId: agent, Number: r.number}
		if !r.notAfter.IsZero() {
			m.NotAfter = r.notAfter.Unix()
		}
		out = append(out, m)
	}
	return out
}

// sendOpened sends tunnels that are new, or whose assignment is.
func (g *giver) sendOpened(ctx context.Context, tunnels []*tunnel) error {
	for _, t := range tunnels {
		a := t.assignment.Load()
		if g.sent[t] == a {
			continue
		}
		err := g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_OPENED, &handoverv1.TunnelOpened{
			Id: t.id[:], AgentId: t.agent, Version: t.version, Since: t.since.UnixMilli(),
			AgentKey: t.keys.agent[:], GatewayKey: t.keys.gateway[:], AssignmentSize: uint32(len(a.raw)),
		})
		if err != nil {
			return err
		}
		for part := range slices.Chunk(a.raw, maxChunk) {
			if err := g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_ASSIGNMENT, &handoverv1.TunnelAssignment{Id: t.id[:], Data: part}); err != nil {
				return err
			}
		}
		g.sent[t] = a
	}
	return nil
}

// sendWords sends what changes all the time, and what must have come by then. All
// of it stands still.
func (g *giver) sendWords(ctx context.Context, tunnels []*tunnel) error {
	totals := &handoverv1.TunnelTotals{Tunnels: uint64(len(tunnels))}
	for part := range slices.Chunk(tunnels, maxWords) {
		m := &handoverv1.TunnelWords{}
		for _, t := range part {
			w, parked := g.wordOf(t)
			m.Word = append(m.Word, w)
			totals.Parked += uint64(parked)
		}
		if err := g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_WORDS, m); err != nil {
			return err
		}
	}
	for _, t := range tunnels {
		if err := g.sendLists(ctx, t); err != nil {
			return err
		}
	}
	return g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_TOTALS, totals)
}

func (g *giver) wordOf(t *tunnel) (w *handoverv1.TunnelWord, parked int) {
	w = &handoverv1.TunnelWord{Id: t.id[:], Carrier: uint32(t.carrier.Load()), Elder: t.heir.Load() != nil}
	g.hub.presence.Lock()
	defer g.hub.presence.Unlock()
	for _, id := range t.former {
		w.Former = append(w.Former, id[:])
	}
	if t.orphan != nil {
		w.Lost = t.orphan.lost.UnixMilli()
		if w.Elder {
			w.Until = t.orphan.until.UnixMilli()
		}
	}
	p := t.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	w.Used, w.Highest, w.Target = p.seen.any, p.seen.highest, uint32(p.target)
	w.Window = slices.Clone(p.seen.bits[:])
	return w, p.copies
}

// sendLists sends a tunnel's names that its agent has deleted, and its half-open
// streams.
func (g *giver) sendLists(ctx context.Context, t *tunnel) error {
	for part := range slices.Chunk(t.unrouted(), maxUnrouted) {
		if err := g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_UNROUTED, &handoverv1.TunnelUnrouted{Id: t.id[:], Name: part}); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(t.pool.halfOpen(), maxHalf) {
		if err := g.put(ctx, handoverv1.TunnelKind_TUNNEL_KIND_HALF, &handoverv1.TunnelHalves{Id: t.id[:], Half: part}); err != nil {
			return err
		}
	}
	return nil
}

// unrouted are the names of the assignment that do not lead here. An elder's are
// its heir's.
func (t *tunnel) unrouted() (out []string) {
	if t.heir.Load() != nil {
		return nil
	}
	names := *t.names.Load()
	for n := range namesOf(t.assignment.Load().Resources, t.agent) {
		if !names[n] {
			out = append(out, n.kind+"/"+n.name)
		}
	}
	return out
}

func (p *pool) halfOpen() (out []*handoverv1.TunnelHalf) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, l := range p.half {
		source, _ := l.admission.source.MarshalBinary() // never fails
		out = append(out, &handoverv1.TunnelHalf{Connection: id[:], Source: source, Known: l.admission.known, Paid: l.admission.paid})
	}
	return out
}

// shelfBatch gathers parked connections, by tunnel and loop, for one record.
type shelfBatch struct {
	shelves  []*handoverv1.TunnelShelf
	of       *tunnel
	fds      []int
	counters int
}

func (b *shelfBatch) add(e *entry, loop uint32) {
	s := b.shelf(e.tunnel, loop)
	s.Counter = append(s.Counter, e.counter)
	s.Since = append(s.Since, e.since.UnixMilli())
	b.fds = append(b.fds, e.fd)
}

func (b *shelfBatch) drop(t *tunnel, counter uint64) {
	s := b.shelf(t, 0)
	s.Counter = append(s.Counter, counter)
	b.counters++
}

func (b *shelfBatch) shelf(t *tunnel, loop uint32) *handoverv1.TunnelShelf {
	if n := len(b.shelves); n > 0 && b.of == t && b.shelves[n-1].Loop == loop {
		return b.shelves[n-1]
	}
	b.of = t
	s := &handoverv1.TunnelShelf{Id: t.id[:], Loop: loop}
	b.shelves = append(b.shelves, s)
	return s
}

func (b *shelfBatch) record() (handover.Record, error) {
	body, err := proto.Marshal(&handoverv1.TunnelParked{Shelf: b.shelves})
	return record(handoverv1.TunnelKind_TUNNEL_KIND_PARKED, body, b.fds), err
}

// send sends what has been added, and empties the batch.
func (b *shelfBatch) send(ctx context.Context, w handover.Writer) error {
	if len(b.shelves) == 0 {
		return nil
	}
	r, err := b.record()
	*b = shelfBatch{}
	if err != nil {
		return err
	}
	return w.Send(ctx, r)
}

// sendDrop is send for what was dropped.
func (b *shelfBatch) sendDrop(ctx context.Context, w handover.Writer) error {
	if len(b.shelves) == 0 {
		return nil
	}
	body, err := proto.Marshal(&handoverv1.TunnelDropped{Shelf: b.shelves})
	*b = shelfBatch{}
	if err != nil {
		return err
	}
	return w.Send(ctx, record(handoverv1.TunnelKind_TUNNEL_KIND_DROPPED, body, nil))
}

// milli reads a time that was written as Unix milliseconds.
func milli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
