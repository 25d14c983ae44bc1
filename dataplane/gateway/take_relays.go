//go:build unix

package gateway

import (
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// takeRelays watches relays that still run in the other process.
func (h *Heir) takeRelays(body []byte, in *incoming) error {
	lane, all, err := splitRelays(body, h.form.relays[:0])
	if err != nil {
		return err
	}
	h.form.relays = all
	if len(in.fds) != 2*len(all) {
		return errRecord
	}
	w := h.lane(lane)
	return h.on(w, func() error {
		for _, encoded := range all {
			r, err := readRelay(encoded)
			if err != nil {
				return err
			}
			if h.relays.of(r.id) != nil {
				return errRecord
			}
			l, err := w.inherit(r, h.form.name(r.account))
			if err != nil {
				return err
			}
			state := relay.State{
				ID: r.id, Idle: time.Duration(max(r.idle, 0)), Started: time.Unix(0, r.started),
				A: relay.End{FD: in.next()}, B: relay.End{FD: in.next()},
			}
			if l.relay, err = relay.Adopt(w.loop, state, l); err != nil {
				return err
			}
			w.links.add(l)
			l.counts.relays.Add(1)
			l.acct.relays.Add(1)
			h.enter(l, r)
		}
		relay.Sift(w.loop)
		return nil
	})
}

// heirForm is what records of relays are read into, again and again: there are
// thousands of relays, and little memory to spare while two processes have them.
type heirForm struct {
	relays  [][]byte
	account string // of the last relay, and often of the next
}

func (f *heirForm) name(account []byte) string {
	if string(account) != f.account {
		f.account = string(account)
	}
	return f.account
}

// Fields of GatewayRelays, and of its relays.
const (
	relaysLane  protowire.Number = 1
	relaysRelay protowire.Number = 2

	relayID         protowire.Number = 1
	relayAccount    protowire.Number = 2
	relayPeer       protowire.Number = 3
	relayStarted    protowire.Number = 4
	relayIdle       protowire.Number = 5
	relayTunnel     protowire.Number = 6
	relayConnection protowire.Number = 7
	relayWorded     protowire.Number = 8
	relayFlags      protowire.Number = 9
	relayToA        protowire.Number = 10
	relayToB        protowire.Number = 11
)

// splitRelays takes a GatewayRelays apart. The relays, which are appended to all,
// are still encoded and lie in b.
func splitRelays(b []byte, all [][]byte) (lane uint32, _ [][]byte, err error) {
	err = eachField(b, func(f field) error {
		switch {
		case f.number == relaysLane && f.kind == protowire.VarintType:
			lane = uint32(f.value)
		case f.number == relaysRelay && f.kind == protowire.BytesType:
			all = append(all, f.bytes)
		}
		return nil // one that is not known is of a later version
	})
	return lane, all, err
}

// relayRead is a GatewayRelay that lies where it has come.
type relayRead struct {
	id                                uint64
	account, peer, tunnel, connection []byte
	started, idle                     int64 // nanoseconds, as in GatewayRelay
	worded                            bool
	flags                             uint32
	toA, toB                          uint64
}

// readRelay is proto.Unmarshal without a copy of anything.
func readRelay(b []byte) (r relayRead, err error) {
	err = eachField(b, func(f field) error {
		switch f.kind {
		case protowire.VarintType:
			r.number(f)
		case protowire.BytesType:
			return r.bytes(f)
		}
		return nil
	})
	return r, err
}

func (r *relayRead) number(f field) {
	switch f.number {
	case relayID:
		r.id = f.value
	case relayStarted:
		r.started = int64(f.value)
	case relayIdle:
		r.idle = int64(f.value)
	case relayWorded:
		r.worded = protowire.DecodeBool(f.value)
	case relayFlags:
		r.flags = uint32(f.value)
	case relayToA:
		r.toA = f.value
	case relayToB:
		r.toB = f.value
	}
}

func (r *relayRead) bytes(f field) error {
	switch f.number {
	case relayAccount:
		if !utf8.Valid(f.bytes) {
			return errRecord
		}
		r.account = f.bytes
	case relayPeer:
		r.peer = f.bytes
	case relayTunnel:
		r.tunnel = f.bytes
	case relayConnection:
		r.connection = f.bytes
	}
	return nil
}

// field is one of a message. It lies in the message.
type field struct {
	number protowire.Number
	kind   protowire.Type
	value  uint64 // of a VarintType
	bytes  []byte // of a BytesType
}

// eachField calls f for each field of the message b, in order.
func eachField(b []byte, f func(field) error) error {
	for len(b) > 0 {
		var at field
		var n int
		if at.number, at.kind, n = protowire.ConsumeTag(b); n < 0 {
			return protowire.ParseError(n)
		}
		if at.number > protowire.MaxValidNumber { // which ConsumeTag lets pass
			return fmt.Errorf("a field cannot have the number %d", at.number)
		}
		b = b[n:]
		switch at.kind {
		case protowire.VarintType:
			at.value, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			at.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(at.number, at.kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(at); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// enter notes a relay that has come, and what it is, if that has come with it.
func (h *Heir) enter(l *link, r relayRead) {
	h.relays.add(l)
	if !r.worded {
		return
	}
	l.worded = true
	h.worded++
	image := imageOf(r.id, r.flags)
	image.A.Written, image.B.Written = r.toA, r.toB
	l.relay.Restore(image)
	if r.flags != 0 {
		h.waiting[l.index] = append(h.waiting[l.index], l)
	}
}

func (w *lane) inherit(r relayRead, account string) (*link, error) {
	peer, err := address(r.peer)
	if err != nil {
		return nil, err
	}
	l := &link{lane: w, from: peer.Addr(), port: peer.Port()}
	l.acct, l.routed = w.accountOf(account)
	if len(r.tunnel) > 0 {
		l.held, err = w.stream(r.tunnel, r.connection)
	}
	return l, err
}

// takeDropped lets go of relays that have ended in the other process: there
// their end was said.
func (h *Heir) takeDropped(m *handoverv1.GatewayDropped) error {
	for _, id := range m.Id {
		l := h.relays.remove(id)
		if l == nil {
			return errRecord
		}
		delete(h.owed, id)
		if l.worded {
			h.worded--
		}
		err := h.on(l.lane, func() error {
			l.relay.Forsake()
			l.links.remove(l)
			l.acct.relays.Add(-1)
			l.counts.relays.Add(-1)
			if l.held != nil {
				l.held.Ended()
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// takeWords: the loops are held, and the relays' threads with them.
func (h *Heir) takeWords(m *handoverv1.GatewayWords) error {
	if len(m.Flags) != len(m.Id) || len(m.ToA) != len(m.Id) || len(m.ToB) != len(m.Id) {
		return errRecord
	}
	for i, id := range m.Id {
		image := imageOf(id, m.Flags[i])
		image.A.Written, image.B.Written = m.ToA[i], m.ToB[i]
		l, err := h.word(id)
		if err != nil {
			return err
		}
		l.relay.Restore(image)
		if m.Flags[i] != 0 {
			h.started[l.index] = append(h.started[l.index], l)
		}
	}
	return nil
}

func (h *Heir) word(id uint64) (*link, error) {
	l := h.relays.of(id)
	if l == nil || l.final {
		return nil, errRecord
	}
	if !l.worded {
		h.worded++
	}
	l.worded, l.final = true, true
	return l, nil
}

func (h *Heir) takeBusy(m *handoverv1.GatewayBusy, in *incoming) error {
	for _, b := range m.Relay {
		l, err := h.word(b.Id)
		if err != nil {
			return err
		}
		if b.PendingToA > pendingMost || b.PendingToB > pendingMost || b.PipedToA > pipedMost || b.PipedToB > pipedMost {
			return errRecord
		}
		image := imageOf(b.Id, b.Flags)
		image.A.Written, image.B.Written = b.ToA, b.ToB
		if need := pipes(b.PipedToA) + pipes(b.PipedToB); len(in.fds) < 2*need {
			return errRecord
		}
		image.A.Pipe, image.B.Pipe = in.pipe(b.PipedToA), in.pipe(b.PipedToB)
		l.relay.Restore(image)
		if b.PendingToA+b.PendingToB > 0 {
			h.owed[b.Id] = &owed{toA: int(b.PendingToA), toB: int(b.PendingToB)}
		}
		// Those that hold bytes come before the others.
		h.started[l.index] = append(h.started[l.index], l)
	}
	return nil
}

const (
	// pendingMost is what a relay may hold in memory: a hello, a head and what
	// came behind them, or what a pipe has.
	pendingMost = 1 << 20

	// pipedMost is more than a pipe holds.
	pipedMost = 1 << 24
)

func pipes(held uint32) int {
	if held == 0 {
		return 0
	}
	return 1
}

func (in *incoming) pipe(held uint32) relay.Pipe {
	if held == 0 {
		return relay.Pipe{}
	}
	return relay.Pipe{R: in.next(), W: in.next(), Held: int(held)}
}

func (h *Heir) takePending(m *handoverv1.GatewayPending) error {
	l, o := h.relays.of(m.Id), h.owed[m.Id]
	if l == nil || o == nil {
		return errRecord
	}
	left := &o.toA
	if m.ToB {
		left = &o.toB
	}
	if len(m.Data) == 0 || len(m.Data) > *left {
		return errRecord
	}
	*left -= len(m.Data)
	l.relay.Append(m.ToB, m.Data)
	return nil
}

// strays are the accounts of routes that are no more, or not yet, but whose
// connections go on.
type strays struct {
	// mu is held while the settings are replaced, too. Invariant: no name of the
	// current settings' routes is in by, so each name has one account.
	mu sync.Mutex
	by map[string]*account
}

// stray is the account of a name that the settings of the asking loop do not
// have; those of the gateway may have it by now.
func (g *Gateway) stray(name string) *account {
	g.strays.mu.Lock()
	defer g.strays.mu.Unlock()
	if r := g.current.Load().routes[name]; r != nil {
		return r.upstream.acct
	}
	if g.strays.by == nil {
		g.strays.by = map[string]*account{}
	}
	a := g.strays.by[name]
	if a == nil {
		a = &account{name: name}
		g.strays.by[name] = a
	}
	return a
}

// replace makes next the current settings. A route that was not there goes on
// with the account of its connections that were.
func (g *Gateway) replace(next *settings) {
	g.strays.mu.Lock()
	defer g.strays.mu.Unlock()
	for name, r := range next.routes {
		// A route that stays has its account, and so no stray's.
		if a := g.strays.by[name]; a != nil {
			r.upstream.acct = a
			delete(g.strays.by, name)
		}
	}
	g.current.Store(next)
}

// accountOf finds what a connection is counted under by its name.
func (w *lane) accountOf(name string) (*account, alpn.Class) {
	if own, ok := strings.CutPrefix(name, clusterPrefix); ok {
		if a := w.classes.resources[own]; a != nil {
			return a, alpn.Resource
		}
		for i, a := range w.classes.other {
			if a.name == name {
				return a, alpn.Class(i)
			}
		}
	}
	if r := w.routes[name]; r != nil {
		return r.upstream.acct, alpn.Static
	}
	return w.stray(name), alpn.Static
}

// inheritance is a stream that another process has leased.
type inheritance struct {
	ref   tunnel.StreamRef
	ended func()
}

// Ended implements Lease.
func (s *inheritance) Ended() { s.ended() }

// Ref implements Lease.
func (s *inheritance) Ref() tunnel.StreamRef { return s.ref }

// stream takes over a leased stream.
func (g *Gateway) stream(tunnelID, connection []byte) (Lease, error) {
	s := &inheritance{ended: func() {}}
	if len(tunnelID) != len(s.ref.Tunnel) || len(connection) != len(s.ref.Connection) {
		return nil, errRecord
	}
	copy(s.ref.Tunnel[:], tunnelID)
	copy(s.ref.Connection[:], connection)
	if adopter, ok := g.cfg.Tunnels.(Adopter); ok {
		s.ended = adopter.AdoptStream(s.ref)
	}
	return s, nil
}
