//go:build unix

package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// scripted is a record in a fuzzer's input: two bytes, for the kind and for how
// many descriptors come along, two for its length, and its body.
type scripted struct {
	kind        handoverv1.CanaryKind
	descriptors byte
	body        proto.Message
}

func script(t testing.TB, first byte, records ...scripted) []byte {
	all := []byte{first}
	for _, r := range records {
		body, err := proto.Marshal(r.body)
		check(t, err)
		all = append(append(all, byte(r.kind), r.descriptors, byte(len(body)>>8), byte(len(body))), body...)
	}
	return all
}

// nextScripted is the first record of an input, and what comes after it.
func nextScripted(data []byte) (kind handoverv1.CanaryKind, descriptors int, body, rest []byte) {
	n := min(int(data[2])<<8|int(data[3]), len(data)-4)
	return handoverv1.CanaryKind(data[0]), int(data[1] % 8), data[4 : 4+n : 4+n], data[4+n:]
}

// pairs are sockets whose other ends stay open.
func pairs(t *testing.T, n int) (ours, theirs []int) {
	t.Helper()
	for range n {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		check(t, unix.SetNonblock(pair[0], true))
		ours, theirs = append(ours, pair[0]), append(theirs, pair[1])
	}
	return ours, theirs
}

// arrived is what a socket has got: at least want, when all is to have come.
func arrived(t *testing.T, fd, want int, all bool) []byte {
	t.Helper()
	check(t, unix.SetNonblock(fd, !all))
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	check(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	got := make([]byte, 0, want+1)
	for len(got) < want {
		n, err := unix.Read(fd, got[len(got):cap(got)])
		if n <= 0 || err != nil {
			break
		}
		got = got[:len(got)+n]
	}
	return got
}

// FuzzGuestRecords: what two processes say to each other of connections and
// relays, one of which may be of another version. What cannot be is refused and
// no descriptor is lost; what is taken can be given on, and is taken there; and
// what a relay holds arrives, all of it and nothing else.
func FuzzGuestRecords(f *testing.F) {
	id, peer := bytes.Repeat([]byte{7}, 16), []byte{192, 0, 2, 7, 1, 2}
	relayed := &handoverv1.GatewayRelay{Id: 1, Account: "cluster:db", Peer: peer}
	f.Add(script(f, 0,
		scripted{handoverv1.CanaryKind_CANARY_KIND_RELAY, 2, &handoverv1.CanaryRelay{Relay: relayed,
			Words: &handoverv1.GatewayBusyRelay{Id: 1, PendingToA: 3, PendingToB: 2}, ToA: []byte("abc"), ToB: []byte("xy")}},
		scripted{handoverv1.CanaryKind_CANARY_KIND_RELAY, 2, &handoverv1.CanaryRelay{Relay: relayed, Words: &handoverv1.GatewayBusyRelay{Flags: 0x10805, ToA: 9}}},
		scripted{handoverv1.CanaryKind_CANARY_KIND_RELAY, 6, &handoverv1.CanaryRelay{Relay: relayed, Words: &handoverv1.GatewayBusyRelay{PipedToA: 3, PipedToB: 1}}}))
	f.Add(script(f, 1,
		scripted{handoverv1.CanaryKind_CANARY_KIND_CONNECTION, 1, &handoverv1.CanaryConnection{Counted: true, Connection: &handoverv1.GatewayConnection{
			Stage: handoverv1.GatewayStage_GATEWAY_STAGE_READING, Peer: peer, Watched: true, Lowat: 1, Buffered: true, Buffer: []byte{22, 3, 1}, Placed: true, Paid: true}}},
		scripted{handoverv1.CanaryKind_CANARY_KIND_CONNECTION, 1, &handoverv1.CanaryConnection{Connection: &handoverv1.GatewayConnection{
			Stage: handoverv1.GatewayStage_GATEWAY_STAGE_LEASING, Peer: peer, Watched: true, Lowat: 1, Account: "cluster:db", Kind: "db", Name: "orders", Connection: id, Flight: 1}}},
		scripted{handoverv1.CanaryKind_CANARY_KIND_CONNECTION, 2, &handoverv1.CanaryConnection{Connection: &handoverv1.GatewayConnection{
			Stage: handoverv1.GatewayStage_GATEWAY_STAGE_OFFERING, Peer: peer, Lowat: 1, Account: "cluster:db", Connection: id, Tunnel: id, Far: true, Head: []byte("head"), Flight: 3, Sent: 2}}},
		scripted{handoverv1.CanaryKind_CANARY_KIND_CONNECTION, 2, &handoverv1.CanaryConnection{Connection: &handoverv1.GatewayConnection{
			Stage: handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING, Peer: peer, Watched: true, Lowat: 1, Account: "shop.example.com", Server: "127.0.0.1:1", Connection: id, Far: true, Flight: 1}}},
		scripted{handoverv1.CanaryKind_CANARY_KIND_CONNECTION, 1, &handoverv1.CanaryConnection{Connection: &handoverv1.GatewayConnection{
			Stage: handoverv1.GatewayStage_GATEWAY_STAGE_LINGERING, Peer: peer, Lowat: 1, Answer: []byte("no"), Eaten: 7}}}))
	f.Add(script(f, 0, // a client of PostgreSQL whose server is connected by nobody who asks, and one whose server is to be asked
		scripted{handoverv1.CanaryKind_CANARY_KIND_CONNECTION, 2, &handoverv1.CanaryConnection{Connection: &handoverv1.GatewayConnection{
			Stage: handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING, Peer: peer, Said: 2, Watched: true, Lowat: 1, Account: dbName, Server: "127.0.0.1:1", Connection: id, Far: true, Flight: 1}}},
		scripted{handoverv1.CanaryKind_CANARY_KIND_CONNECTION, 1, &handoverv1.CanaryConnection{Connection: &handoverv1.GatewayConnection{
			Stage: handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING, Peer: peer, Said: 2, Watched: true, Lowat: 1, Account: dbName, Server: "127.0.0.1:1", Connection: id, Flight: 1, Tried: 1}}}))
	loops, others := newLoops(f, relay.NewDefault, 2), newLoops(f, relay.NewDefault, 1)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		before := descriptors()
		exchange(t, data[0], data[1:], loops, others)
		for _, l := range slices.Concat(loops, others) { // what was posted has run
			relay.Hold(l).Release()
		}
		if after := descriptors(); after > before {
			t.Fatalf("%d descriptors before, %d after", before, after)
		}
	})
}

// moved is a relay that was taken, with the sockets' other ends.
type moved struct {
	said     *handoverv1.CanaryRelay
	theirs   []int
	faithful bool // nothing but the bytes was said of it
}

// exchange lets one guest take the records, and another all that the first can
// give.
func exchange(t *testing.T, first byte, data []byte, loops, others []relay.Loop) {
	cfg := Config{Cluster: cluster, Loops: loops, Static: []StaticRoute{to(dbName, "127.0.0.1:1")}}
	if first&1 != 0 {
		cfg.Tunnels = &lenders{}
	}
	one, err := StartGuest(cfg)
	check(t, err)
	defer one.Close()
	cfg.Loops = others
	two, err := StartGuest(cfg)
	check(t, err)
	defer two.Close()
	var relays []moved
	for len(data) >= 4 {
		kind, n, body, rest := nextScripted(data)
		data = rest
		ours, theirs := pairs(t, n)
		defer closeAllOf(theirs)
		r := handover.Record{Part: GuestPart, Kind: uint32(kind), Body: body, FDs: ours}
		if kind != handoverv1.CanaryKind_CANARY_KIND_RELAY {
			_ = one.TakeConnection(r)
			continue
		}
		m := &handoverv1.CanaryRelay{}
		if one.TakeRelay(r) == nil {
			check(t, proto.Unmarshal(body, m)) // what was taken can be read
			w := m.GetWords()
			relays = append(relays, moved{m, theirs, w.GetFlags() == 0 && w.GetPipedToA()+w.GetPipedToB() == 0 && m.GetRelay().GetIdle() <= 0})
		}
	}
	if got := one.Snapshot().Relays; got > len(relays) {
		t.Fatalf("%d relays are counted, and %d were taken", got, len(relays))
	}
	giveOn(t, one, two)
	for _, r := range relays {
		for i, want := range [][]byte{r.said.GetToA(), r.said.GetToB()} {
			got := arrived(t, r.theirs[i], len(want), r.faithful)
			if !bytes.HasPrefix(want, got) || r.faithful && len(got) != len(want) {
				t.Fatalf("%d bytes came of %d, or others", len(got), len(want))
			}
		}
	}
}

// giveOn gives all that one has to another, which must take it.
func giveOn(t *testing.T, from, to *Gateway) {
	given, left := from.GiveBack(1<<20, func(r handover.Record) bool {
		if len(r.Body) > handover.MaxBody || len(r.FDs) > handover.MaxFDs {
			t.Errorf("a record of %d bytes and %d descriptors", len(r.Body), len(r.FDs))
			return false
		}
		r.FDs = slices.Clone(r.FDs)
		for i, fd := range r.FDs {
			var err error
			if r.FDs[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				t.Error(err)
			}
		}
		take := to.TakeConnection
		if r.Kind == uint32(handoverv1.CanaryKind_CANARY_KIND_RELAY) {
			take = to.TakeRelay
		}
		if err := take(r); err != nil {
			t.Errorf("what one process gives, the other refuses: kind %d: %v", r.Kind, err)
		}
		return true
	})
	if now := from.Snapshot(); now.Relays != 0 {
		t.Errorf("%d were given and %d are left, and it counts %d relays", given, left, now.Relays)
	}
}

func closeAllOf(fds []int) {
	for _, fd := range fds {
		relay.Close(fd)
	}
}

// lenders are tunnels that grant leases, refuse them or let them wait, as their
// attempt says, and know which of them have ended.
type lenders struct {
	testing.TB
	granted map[*lent]int // how often each has ended
	waiting map[uint64]*lendersWait
	next    uint64
}

type lendersWait struct {
	w         Waiter
	loop      relay.Loop
	cancelled bool
}

// lent is a lease of theirs.
type lent struct {
	of  *lenders
	ref tunnel.StreamRef
}

func (l *lent) Ended()                { l.of.granted[l]++ }
func (l *lent) Ref() tunnel.StreamRef { return l.ref }

func (*lenders) Park(_ relay.Loop, fd int, _ []byte, _ netip.AddrPort) error {
	relay.Close(fd)
	return errNoParking
}

func (*lenders) Cancel(uint32, uint32) bool { return false }

// Lease is called on one loop only, or grants nothing.
func (l *lenders) Lease(loop relay.Loop, r tunnel.LeaseRequest, w Waiter) (cancel func()) {
	switch {
	case l.granted == nil || r.Attempt == 1:
		w.LeaseFailed("none")
	case r.Attempt == 0:
		l.grant(w)
	default:
		l.next++
		n, q := l.next, &lendersWait{w: w, loop: loop}
		l.waiting[n] = q
		return func() {
			q.cancelled = true
			delete(l.waiting, n)
		}
	}
	return func() {}
}

func (l *lenders) grant(w Waiter) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(l, err)
	relay.Close(pair[1])
	l.next++
	lease := &lent{of: l}
	lease.ref.Tunnel[0], lease.ref.Connection[0], lease.ref.Connection[1] = 1, byte(l.next), byte(l.next>>8)
	l.granted[lease] = 0
	w.Leased(Stream{FD: pair[0], Frame: []byte("frame"), Lease: lease})
}

// tick answers one question that waits.
func (l *lenders) tick() {
	for n, q := range l.waiting {
		delete(l.waiting, n)
		l.grant(q.w)
		return
	}
}

// FuzzLender: a guest asks for agents' data connections, takes questions back and
// says what has ended, in whatever order. Each question is answered once at most,
// and each lease ends once, whatever is said.
func FuzzLender(f *testing.F) {
	source, id := encoded(netip.MustParseAddrPort("192.0.2.7:258")), bytes.Repeat([]byte{7}, 16)
	ask := func(number uint64, attempt uint32) scripted {
		return scripted{handoverv1.CanaryKind_CANARY_KIND_LEASE, 0, &handoverv1.CanaryLease{Number: number, Kind: "db", Name: "orders", Source: source, Connection: id, Attempt: attempt}}
	}
	tunnelID, first := append([]byte{1}, make([]byte, 15)...), append([]byte{1}, make([]byte, 15)...)
	ended := scripted{handoverv1.CanaryKind_CANARY_KIND_LEASE_ENDED, 0, &handoverv1.CanaryLeased{Tunnel: tunnelID, Connection: first}}
	back := scripted{handoverv1.CanaryKind_CANARY_KIND_RELAY, 0, &handoverv1.CanaryRelay{Relay: &handoverv1.GatewayRelay{Tunnel: tunnelID, Connection: first}}}
	takenBack := scripted{handoverv1.CanaryKind_CANARY_KIND_LEASE_CANCEL, 0, &handoverv1.CanaryLease{Number: 3}}
	f.Add(script(f, 0, ask(1, 0), ended, ask(2, 1), ask(3, 2), takenBack, ask(4, 2), scripted{0, 1, &handoverv1.CanaryLease{}}))
	f.Add(script(f, 0, ask(1, 0), ask(1, 2), ask(1, 2), back, ended))
	loops := newLoops(f, relay.NewDefault, 1)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		before := descriptors()
		lend(t, data[1:], loops)
		if after := descriptors(); after > before {
			t.Fatalf("%d descriptors before, %d after", before, after)
		}
	})
}

func lend(t *testing.T, data []byte, loops []relay.Loop) {
	mine, its, err := handover.Pair()
	check(t, err)
	talk, other := handover.NewTalk(mine), handover.NewTalk(its)
	defer talk.Close()
	defer other.Close()
	tunnels := &lenders{TB: t, granted: map[*lent]int{}, waiting: map[uint64]*lendersWait{}}
	l := NewLender(talk, tunnels, loops)
	asked := map[uint64]int{}
	for n := 0; len(data) >= 4 && n < 64; n++ { // what there is room for in the talk
		kind, tick, body, rest := nextScripted(data)
		data = rest
		r := handover.Record{Part: GuestPart, Kind: uint32(kind), Body: body}
		if kind == handoverv1.CanaryKind_CANARY_KIND_RELAY || kind == handoverv1.CanaryKind_CANARY_KIND_CONNECTION {
			l.Back(r)
		} else if l.Hear(r) == nil && kind == handoverv1.CanaryKind_CANARY_KIND_LEASE {
			m := &handoverv1.CanaryLease{}
			check(t, proto.Unmarshal(body, m))
			asked[m.Number]++
		}
		held := relay.Hold(loops[0]) // what was posted has run
		if tick == 1 {
			held.Do(tunnels.tick)
		}
		held.Release()
	}
	l.Close()
	relay.Hold(loops[0]).Release()
	if n := l.Held(); n != 0 {
		t.Errorf("%d leases are held after the end", n)
	}
	if n := len(tunnels.waiting); n != 0 {
		t.Errorf("%d questions still wait", n)
	}
	for lease, times := range tunnels.granted {
		if times != 1 {
			t.Errorf("a lease has ended %d times: %+v", times, lease.ref)
		}
	}
	talk.Finish()
	for {
		r, err := other.Receive()
		if errors.Is(err, io.EOF) {
			return
		}
		check(t, err)
		m := &handoverv1.CanaryLeased{}
		check(t, proto.Unmarshal(r.Body, m))
		closeAllOf(r.FDs)
		if asked[m.Number]--; asked[m.Number] < 0 {
			t.Errorf("question %d was answered and not asked, or answered twice", m.Number)
		}
	}
}

// told is a client that waits for a lease.
type told struct {
	stream *Stream
	times  int
	over   bool // taken back
	late   bool // told after that
}

func (w *told) Leased(s Stream) {
	w.times, w.late, w.stream = w.times+1, w.late || w.over, &s
}

func (w *told) LeaseFailed(string) { w.times, w.late = w.times+1, w.late || w.over }

// FuzzBorrower: the process with the tunnels answers, what was asked and what was
// not. A client is told once at most and never after it has gone, and a stream
// that nobody wants is given back.
func FuzzBorrower(f *testing.F) {
	id := bytes.Repeat([]byte{7}, 16)
	leased := func(number uint64) scripted {
		return scripted{handoverv1.CanaryKind_CANARY_KIND_LEASED, 1, &handoverv1.CanaryLeased{Number: number, Tunnel: id, Connection: id, Frame: []byte("frame")}}
	}
	f.Add(script(f, 4, leased(1), leased(2), leased(2), leased(9), scripted{handoverv1.CanaryKind_CANARY_KIND_LEASE_FAILED, 0, &handoverv1.CanaryLeased{Number: 4, Reason: "none"}}))
	f.Add(script(f, 6, scripted{handoverv1.CanaryKind_CANARY_KIND_LEASED, 2, &handoverv1.CanaryLeased{Number: 1, Tunnel: id, Connection: id}}, leased(1), leased(3)))
	loops := newLoops(f, relay.NewDefault, 1)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		before := descriptors()
		borrow(t, data[0], data[1:], loops[0])
		if after := descriptors(); after > before {
			t.Fatalf("%d descriptors before, %d after", before, after)
		}
	})
}

// borrow asks eight questions; each bit of gone takes one of them back.
func borrow(t *testing.T, gone byte, data []byte, loop relay.Loop) {
	mine, its, err := handover.Pair()
	check(t, err)
	talk, other := handover.NewTalk(mine), handover.NewTalk(its)
	defer talk.Close()
	defer other.Close()
	b := NewBorrower(talk)
	var waiters [8]told
	held := relay.Hold(loop)
	held.Do(func() {
		for i := range waiters {
			cancel := b.Lease(loop, tunnel.LeaseRequest{Kind: "db", Name: "orders", Source: netip.MustParseAddrPort("192.0.2.7:1")}, &waiters[i])
			if gone>>i&1 != 0 {
				waiters[i].over = true
				cancel()
			}
		}
	})
	held.Release()
	streams := 0
	for n := 0; len(data) >= 4 && n < 64; n++ {
		kind, descriptors, body, rest := nextScripted(data)
		data = rest
		err := b.Answer(handover.Record{Part: GuestPart, Kind: uint32(kind), Body: body, FDs: sockets(t, descriptors)})
		if err == nil && kind == handoverv1.CanaryKind_CANARY_KIND_LEASED {
			streams++
		}
		relay.Hold(loop).Release()
	}
	for i := range waiters {
		w := &waiters[i]
		if w.times > 1 || w.late {
			t.Errorf("client %d was told %d times, or after it had gone: %v", i+1, w.times, w.late)
		}
		if w.stream != nil {
			relay.Close(w.stream.FD)
			w.stream.Lease.Ended()
		}
	}
	b.Flush()
	talk.Finish()
	for {
		r, err := other.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		check(t, err)
		if handoverv1.CanaryKind(r.Kind) == handoverv1.CanaryKind_CANARY_KIND_LEASE_ENDED {
			streams--
		}
	}
	if streams != 0 {
		t.Errorf("%d streams more were lent than given back", streams)
	}
}
