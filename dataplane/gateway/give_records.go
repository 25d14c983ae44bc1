//go:build unix

package gateway

import (
	"context"
	"iter"
	"slices"
	"time"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// sendKnown sends what the gateway knows of others: where names lead, and who
// has proved himself.
func (g *Gateway) sendKnown(ctx context.Context, out handover.Writer) error {
	var all []handover.Record
	for some := range cut(g.named(), namesRecord, (*server).imageSize) {
		m := &handoverv1.GatewayNames{}
		for _, s := range some {
			m.Name = append(m.Name, s.image())
		}
		all = append(all, record(handoverv1.GatewayKind_GATEWAY_KIND_NAMES, m, nil))
	}
	for some := range slices.Chunk(g.crowd.proven(time.Now()), sourcesRecord) {
		m := &handoverv1.GatewaySources{}
		for _, p := range some {
			b, _ := p.MarshalBinary() // it returns no error
			m.Source = append(m.Source, b)
		}
		all = append(all, record(handoverv1.GatewayKind_GATEWAY_KIND_SOURCES, m, nil))
	}
	return sendAll(ctx, out, all)
}

// fit is how many of all, from the first on, go into one record: most of them at
// most, and no more than recordBytes, but one.
func fit[T any](all []T, most int, size func(T) int) (n int) {
	bytes := 0
	for n < min(most, len(all)) {
		if bytes += size(all[n]); bytes > recordBytes && n > 0 {
			break
		}
		n++
	}
	return n
}

// cut is all in parts of which each fits into one record.
func cut[T any](all []T, most int, size func(T) int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for len(all) > 0 {
			n := fit(all, most, size)
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// What the fields of an image take at most, but for strings of the configuration
// and bytes of the client.
const (
	nameSize     = resolvedMost * addressSize
	addressSize  = 40 // with a zone
	listenerSize = 32
	relaySize    = 200
	connSize     = 2 << 10
)

func (s *server) imageSize() int { return nameSize + len(s.address) }

func (l *listener) imageSize() int { return listenerSize + len(l.address) }

// imageSize is also asked of a relay that has ended since it was noted: that has none.
func (l *link) imageSize() int {
	if l.place == 0 {
		return 0
	}
	return relaySize + len(l.acct.name)
}

func connImageSize(m *handoverv1.GatewayConnection) int {
	return connSize + len(m.Account) + len(m.Server) + len(m.Name) + len(m.Buffer) + len(m.Answer)
}

func (s *server) image() *handoverv1.GatewayName {
	m := &handoverv1.GatewayName{Address: s.address}
	if targets := s.targets.Load(); targets != nil {
		for _, t := range (*targets)[:min(resolvedMost, len(*targets))] {
			m.Resolved = append(m.Resolved, encoded(t.addr))
		}
	}
	return m
}

// frozen is what a lane has that was not copied, and what has changed of what
// was. The loop is held.
func (w *lane) frozen() (out []handover.Record) {
	out = w.listenersRecords(out)
	uncopied, changed := w.unsaid()
	for some := range cut(uncopied, relaysRecord, (*link).imageSize) {
		r := w.relaysRecord(some)
		r.FDs, r.Body = slices.Clone(r.FDs), slices.Clone(r.Body) // the next one has the same form
		out = append(out, r)
	}
	out = w.connectionsRecords(out)
	out = wordsRecords(out, changed)
	for some := range slices.Chunk(w.dropped, droppedRecord) {
		out = append(out, dropped(some))
	}
	return out
}

// unsaid are relays that were not copied, and those of which the copy is not all
// that there is to say. The loop is held.
func (w *lane) unsaid() (uncopied, changed []*link) {
	for l := range w.running() {
		copied := l.sent == w.handing
		if !copied {
			uncopied = append(uncopied, l)
		}
		if !w.words || copied && l.relay.Changed() || !copied && l.relay.Image().Holds() {
			changed = append(changed, l)
		}
	}
	return uncopied, changed
}

func (w *lane) listenersRecords(out []handover.Record) []handover.Record {
	for some := range cut(w.listeners, listenersRecord, (*listener).imageSize) {
		m := &handoverv1.GatewayListeners{Lane: uint32(w.index)}
		var fds []int
		for _, l := range some {
			m.Listener = append(m.Listener, &handoverv1.GatewayListener{Address: l.address, Place: uint32(l.place)})
			fds = append(fds, l.fd)
		}
		out = append(out, record(handoverv1.GatewayKind_GATEWAY_KIND_LISTENERS, m, fds))
	}
	return out
}

// relaysRecord is good until the next one.
func (w *lane) relaysRecord(links []*link) handover.Record {
	f := w.blankForm()
	m := &handoverv1.GatewayRelays{Lane: uint32(w.index), Relay: f.entries[:0]}
	fds := f.fds[:0]
	for i, l := range links {
		a, b := l.relay.Descriptors()
		fds = append(fds, a, b)
		l.image(&f.relays[i])
		m.Relay = append(m.Relay, &f.relays[i])
	}
	f.body = appended(f.body[:0], m)
	return handover.Record{Part: partName, Kind: uint32(handoverv1.GatewayKind_GATEWAY_KIND_RELAYS), Body: f.body, FDs: fds}
}

// form is what a record of relays is made of, again and again: there are
// thousands of relays, and little memory to spare while two processes have them.
type form struct {
	running [relaysRecord]*link // of a slice
	relays  [relaysRecord]handoverv1.GatewayRelay
	entries [relaysRecord]*handoverv1.GatewayRelay
	fds     [2 * relaysRecord]int
	body    []byte
}

func (w *lane) blankForm() *form {
	if w.form == nil {
		w.form = &form{}
	}
	return w.form
}

// image is the link, with its relay's Image when that holds nothing.
func (l *link) image(m *handoverv1.GatewayRelay) {
	m.Id, m.Account, m.Peer = l.relay.ID(), l.acct.name, l.appendPeer(m.Peer[:0])
	m.Started, m.Idle = l.relay.Started().UnixNano(), int64(l.relay.Idle())
	m.Tunnel, m.Connection, m.Worded, m.Flags, m.ToA, m.ToB = nil, nil, false, 0, 0, 0
	if l.held != nil {
		ref := l.held.Ref()
		m.Tunnel, m.Connection = ref.Tunnel[:], ref.Connection[:]
	}
	if is := l.relay.Image(); l.words && !is.Holds() {
		m.Worded, m.Flags, m.ToA, m.ToB = true, flagsOf(is), is.A.Written, is.B.Written
	}
}

// appendPeer is encoded, behind b.
func (l *link) appendPeer(b []byte) []byte {
	if l.from.IsValid() {
		b, _ = l.peer().AppendBinary(b) // it returns no error
	}
	return b
}

// wordsRecords begins with those that hold something.
func wordsRecords(out []handover.Record, links []*link) []handover.Record {
	words := &handoverv1.GatewayWords{}
	busy := &handoverv1.GatewayBusy{}
	var fds []int
	var pending, idle []handover.Record
	flushBusy := func() {
		if len(busy.Relay) > 0 {
			out = append(out, record(handoverv1.GatewayKind_GATEWAY_KIND_BUSY, busy, fds))
			busy, fds = &handoverv1.GatewayBusy{}, nil
		}
	}
	flushWords := func() {
		if len(words.Id) > 0 {
			idle = append(idle, record(handoverv1.GatewayKind_GATEWAY_KIND_WORDS, words, nil))
			words = &handoverv1.GatewayWords{}
		}
	}
	for _, l := range links {
		m := l.relay.Image()
		if !m.Holds() {
			words.Id, words.Flags = append(words.Id, m.ID), append(words.Flags, flagsOf(m))
			words.ToA, words.ToB = append(words.ToA, m.A.Written), append(words.ToB, m.B.Written)
			if len(words.Id) == wordsRecord {
				flushWords()
			}
			continue
		}
		busy.Relay = append(busy.Relay, busyImage(m))
		fds = appendPipe(appendPipe(fds, m.A.Pipe), m.B.Pipe)
		pending = appendPending(pending, m.ID, false, m.A.Pending)
		pending = appendPending(pending, m.ID, true, m.B.Pending)
		if len(busy.Relay) == busyRecord {
			flushBusy()
		}
	}
	flushBusy()
	flushWords()
	return append(append(out, pending...), idle...)
}

func busyImage(m relay.Image) *handoverv1.GatewayBusyRelay {
	return &handoverv1.GatewayBusyRelay{
		Id: m.ID, Flags: flagsOf(m), ToA: m.A.Written, ToB: m.B.Written,
		PipedToA: uint32(m.A.Pipe.Held), PipedToB: uint32(m.B.Pipe.Held),
		PendingToA: uint32(len(m.A.Pending)), PendingToB: uint32(len(m.B.Pending)),
	}
}

func appendPipe(fds []int, p relay.Pipe) []int {
	if p.Held == 0 {
		return fds
	}
	return append(fds, p.R, p.W)
}

func appendPending(out []handover.Record, id uint64, toB bool, b []byte) []handover.Record {
	for some := range slices.Chunk(b, pendingRecord) {
		m := &handoverv1.GatewayPending{Id: id, ToB: toB, Data: some}
		out = append(out, record(handoverv1.GatewayKind_GATEWAY_KIND_PENDING, m, nil))
	}
	return out
}

// sideB is what a flag of A is multiplied by to be B's.
const sideB = 256

func flagsOf(m relay.Image) uint32 {
	flags := sideFlags(m.A) | sideFlags(m.B)*sideB
	if m.Broken {
		flags |= uint32(handoverv1.GatewayFlag_GATEWAY_FLAG_BROKEN)
	}
	return flags
}

func sideFlags(s relay.Side) (flags uint32) {
	for _, f := range []struct {
		on   bool
		flag handoverv1.GatewayFlag
	}{
		{s.ReadClosed, handoverv1.GatewayFlag_GATEWAY_FLAG_READ_CLOSED},
		{s.WriteClosed, handoverv1.GatewayFlag_GATEWAY_FLAG_WRITE_CLOSED},
		{s.Reset, handoverv1.GatewayFlag_GATEWAY_FLAG_RESET},
		{s.Readable, handoverv1.GatewayFlag_GATEWAY_FLAG_READABLE},
		{s.Ending, handoverv1.GatewayFlag_GATEWAY_FLAG_ENDING},
	} {
		if f.on {
			flags |= uint32(f.flag)
		}
	}
	return flags
}

func imageOf(id uint64, flags uint32) relay.Image {
	return relay.Image{
		ID: id, A: sideOf(flags), B: sideOf(flags / sideB),
		Broken: flags&uint32(handoverv1.GatewayFlag_GATEWAY_FLAG_BROKEN) != 0,
	}
}

func sideOf(flags uint32) relay.Side {
	has := func(f handoverv1.GatewayFlag) bool { return flags&uint32(f) != 0 }
	return relay.Side{
		ReadClosed:  has(handoverv1.GatewayFlag_GATEWAY_FLAG_READ_CLOSED),
		WriteClosed: has(handoverv1.GatewayFlag_GATEWAY_FLAG_WRITE_CLOSED),
		Reset:       has(handoverv1.GatewayFlag_GATEWAY_FLAG_RESET),
		Readable:    has(handoverv1.GatewayFlag_GATEWAY_FLAG_READABLE),
		Ending:      has(handoverv1.GatewayFlag_GATEWAY_FLAG_ENDING),
	}
}

// connectionsRecords packs as many into a record as fit.
func (w *lane) connectionsRecords(out []handover.Record) []handover.Record {
	m := &handoverv1.GatewayConnections{Lane: uint32(w.index)}
	var fds []int
	size := 0
	flush := func() {
		if len(m.Connection) > 0 {
			out = append(out, record(handoverv1.GatewayKind_GATEWAY_KIND_CONNECTIONS, m, fds))
			m, fds, size = &handoverv1.GatewayConnections{Lane: m.Lane}, nil, 0
		}
	}
	for c := range w.conns {
		image := c.image()
		if n := connImageSize(image); size+n > recordBytes || len(fds)+2 > handover.MaxFDs {
			flush()
			size = n
		} else {
			size += n
		}
		m.Connection = append(m.Connection, image)
		fds = append(fds, c.fd)
		if image.Far {
			fds = append(fds, c.other)
		}
	}
	flush()
	return out
}

func (c *conn) image() *handoverv1.GatewayConnection {
	now := c.loop.Now()
	m := &handoverv1.GatewayConnection{
		Stage: c.stage.image(), Peer: encoded(c.peer), Local: encoded(c.local), Age: age(c.since, now), Said: uint32(c.said),
		Watched: c.watched, Ending: c.ending, Ended: c.ended, Lowat: uint32(c.lowat), Buffered: c.buf != nil, Buffer: c.buf,
		Placed: c.slot.held, Paid: c.slot.paid, Exempt: c.slot.exempt,
		Kind: c.kind, Name: c.name, Attempt: uint32(c.attempt), Turn: c.choice.turn, Tried: c.choice.tried,
		Far: c.other >= 0, Head: c.head, Flight: uint32(c.flight), Sent: uint32(c.sent), Acked: c.acked, More: c.more,
	}
	if c.unasked() { // a server is asked anew: older processes know no such stage
		m.Far, m.Head, m.Sent = false, nil, 0
	}
	if c.acct != nil {
		m.Account, m.Connection = c.acct.name, c.id[:]
	}
	if c.choice.at != nil {
		m.Server = c.choice.at.address
	}
	if c.held != nil {
		ref := c.held.Ref()
		m.Tunnel = ref.Tunnel[:]
	}
	if c.bye != nil {
		p := c.bye.Progress()
		m.Answer, m.Eaten, m.Shut = p.Answer, uint32(p.Eaten), p.Shut
	}
	return m
}

func (s stage) image() handoverv1.GatewayStage {
	return [...]handoverv1.GatewayStage{
		reading:    handoverv1.GatewayStage_GATEWAY_STAGE_READING,
		leasing:    handoverv1.GatewayStage_GATEWAY_STAGE_LEASING,
		connecting: handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING,
		asking:     handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING,
		offering:   handoverv1.GatewayStage_GATEWAY_STAGE_OFFERING,
		lingering:  handoverv1.GatewayStage_GATEWAY_STAGE_LINGERING,
		gone:       handoverv1.GatewayStage_GATEWAY_STAGE_UNSPECIFIED,
	}[s]
}
