package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// handOnHouse is an agent by hand at a house: it says hello as one that follows,
// or not.
func handOnHouse(t *testing.T, h *house, id string, assignment []byte, follows bool) *handAgent {
	t.Helper()
	h.still = true
	a := byHandSaying(t, h.gateway, &tunnelv1.Hello{AgentId: id, Version: "hand", Assignment: assignment, Follows: follows})
	h.come(t)
	return a
}

// TestA143_AfterMove: what a stranger has seen of the old process's tunnels is
// worth nothing in the new one: forged, replayed and moved hellos get nothing,
// also those whose connections were leased, retired or lost before the move, or
// after their copies were sent.
func TestA143_AfterMove(t *testing.T) {
	onHouse(t, 2, func(c *HubConfig) { c.Bounds = Bounds{PoolFloor: 4, PoolCeiling: 16, LeaseWait: patience} }, func(t *testing.T, h *house) {
		a := handOnHouse(t, h, agentID, assigned(1, "tcp/echo"), true)
		b := handOnHouse(t, h, agent2ID, assigned(1, "tcp/other"), true)
		var used [][]byte
		park := func() *handData {
			used = append(used, AppendDataHello(nil, DataHello{Tunnel: a.tunnel, Counter: a.counter.Load() + 1}, a.keys.agent))
			return a.park(h.gateway)
		}
		first, lost := park(), park()
		leased := h.stream(clientRequest())
		o := receive(t, leased.answer)
		if o.lease == nil {
			t.Fatal(o.reason)
		}
		kept := park()
		h.move(t, never, func() {
			for _, d := range []*handData{first, lost} {
				d.Close()
			}
			eventually(t, "one parked", func() bool { return h.hub.Status().Parked == 1 })
			late := h.stream(clientRequest())
			park()
			if o := receive(t, late.answer); o.lease == nil {
				t.Fatal(o.reason)
			} else {
				closeFD(o.lease.FD)
			}
			late.over()
		})
		closeFD(o.lease.FD)
		leased.over()

		good, at := a.hello()
		forged := bytes.Clone(good)
		forged[HelloSize-1] ^= 1
		refused := map[string][]byte{
			"forged":      forged,
			"another key": AppendDataHello(nil, DataHello{Tunnel: at.Tunnel, Counter: at.Counter}, b.keys.agent),
			"moved":       AppendDataHello(nil, DataHello{Tunnel: b.tunnel, Counter: at.Counter}, a.keys.agent),
			"unknown":     AppendDataHello(nil, DataHello{Tunnel: newID(), Counter: at.Counter}, a.keys.agent),
		}
		for name, hello := range refused {
			conn := sendHello(t, h.gateway, hello)
			if err := receive(t, h.parkErr); !errors.Is(err, ErrForged) && !errors.Is(err, ErrUnknownTunnel) {
				t.Errorf("%s: %v", name, err)
			}
			wantClosed(t, conn)
		}
		for i, hello := range used {
			conn := sendHello(t, h.gateway, hello)
			if err := receive(t, h.parkErr); !errors.Is(err, ErrReplayed) {
				t.Errorf("hello %d again: %v", i, err)
			}
			wantClosed(t, conn)
		}
		sendHello(t, h.gateway, good) // what was on its way is taken
		check0(t, receive(t, h.parkErr))
		_ = kept
	})
}

// TestMoveServes: what was parked before serves after, and what is said while the
// tunnels are frozen is done after a thaw, and not after a leave.
func TestMoveServes(t *testing.T) {
	onHouse(t, 2, crowd, func(t *testing.T, h *house) {
		a := handOnHouse(t, h, agentID, assigned(1, "tcp/echo"), true)
		parked := []*handData{a.park(h.gateway), a.park(h.gateway), a.park(h.gateway)}
		c := h.stream(clientRequest())
		o := receive(t, c.answer)
		if o.lease == nil {
			t.Fatal(o.reason)
		}
		first := clientConn(t, o.lease)
		for _, at := range []abortAt{inCopy, afterCopy, inFreeze, afterFreeze, afterComplete} {
			h.move(t, at, nil)
		}
		a.streamUp(o.lease.ConnectionID)
		eventually(t, "stream-up after the way back", o.lease.Up)
		another := h.stream(clientRequest())
		if o := receive(t, another.answer); o.lease == nil {
			t.Fatalf("after the way back: %s", o.reason)
		} else {
			clientConn(t, o.lease).Close()
		}
		another.over()

		h.move(t, never, nil)
		if s := h.hub.Status(); len(s.Tunnels) != 1 || s.Tunnels[0].Parked != 1 || s.Tunnels[0].Streams != 1 || !s.Tunnels[0].Moved {
			t.Errorf("after the move: %+v", s.Tunnels)
		}
		last := h.stream(clientRequest())
		if o := receive(t, last.answer); o.lease == nil {
			t.Fatalf("after the move: %s", o.reason)
		} else {
			clientConn(t, o.lease).Close()
		}
		last.over()
		for _, d := range parked {
			d.frame()
		}
		first.Close()
		c.over()
	})
}

// TestMovedHalfOpen: a stream is half-open in the new process until its agent says
// what became of it, by whichever tunnel, or until its time is over.
func TestMovedHalfOpen(t *testing.T) {
	onHouse(t, 2, func(c *HubConfig) { c.Bounds = Bounds{PoolFloor: 1} }, func(t *testing.T, h *house) {
		a := handOnHouse(t, h, agentID, assigned(1, "tcp/echo"), true)
		var ids []ID
		for range 4 {
			a.park(h.gateway)
			c := h.stream(clientRequest())
			o := receive(t, c.answer)
			if o.lease == nil {
				t.Fatal(o.reason)
			}
			ids = append(ids, c.request.ConnectionID)
			t.Cleanup(func() { closeFD(o.lease.FD); c.over() })
		}
		a.streamUp(ids[0])
		eventually(t, "one is up", func() bool { return h.hub.Status().HalfOpen == 3 })
		h.move(t, never, nil)
		if s := h.hub.Status(); s.HalfOpen != 3 || s.Tunnels[0].HalfOpen != 3 || s.Tunnels[0].Streams != 4 {
			t.Errorf("after the move: %+v", s)
		}
		heir := handOnHouse(t, h, agentID, assigned(1, "tcp/echo"), true)
		heir.streamUp(ids[1])
		heir.streamRefused(ids[2])
		eventually(t, "one is left", func() bool { return h.hub.Status().HalfOpen == 1 })
		h.hub.settleAdopted()
		if s := h.hub.Status(); s.HalfOpen != 0 || s.Tunnels[0].Streams != 4 {
			t.Errorf("afterwards: %+v", s)
		}
	})
}

// TestHeir: an agent's new tunnel does not end its orphan; the names are the new
// one's, and what was parked is used up or retired.
func TestHeir(t *testing.T) {
	onHouse(t, 2, func(c *HubConfig) { c.Bounds = Bounds{PoolFloor: 1, LeaseWait: 10 * time.Millisecond} }, func(t *testing.T, h *house) {
		a := handOnHouse(t, h, agentID, assigned(1, "tcp/echo", "tcp/gone"), true)
		parked := []*handData{a.park(h.gateway), a.park(h.gateway)}
		h.move(t, never, nil)
		h.come(t) // the new process says that it is up
		if !h.hub.Live("tcp", "gone") {
			t.Error("the orphan's name is not live")
		}
		heir := handOnHouse(t, h, agentID, assigned(2, "tcp/echo"), true)
		if h.hub.Live("tcp", "gone") || h.lease(t, request0("tcp", "gone")).lease != nil {
			t.Error("a name that the new assignment has not leads to what was parked before")
		}
		own := heir.park(h.gateway)
		for range 3 {
			o := h.lease(t, request0("tcp", "echo"))
			if o.lease == nil {
				t.Fatal(o.reason)
			}
			clientConn(t, o.lease).Close()
			o.lease.Ended()
		}
		own.frame()
		for _, d := range parked {
			d.frame()
		}
		h.hub.tickOrphans()
		if s := h.hub.Status(); len(s.Tunnels) != 1 || s.Counters["moved_used_up"] != 1 {
			t.Errorf("the orphan is used up: %+v, %v", s.Tunnels, s.Counters["moved_used_up"])
		}
		select {
		case p := <-h.presence:
			t.Errorf("presence: %+v; the agent never left", p)
		default:
		}
	})
}

// TestOrphanEnds: one whose agent does not come back is not served for ever.
func TestOrphanEnds(t *testing.T) {
	onHouse(t, 1, nil, func(t *testing.T, h *house) {
		a := handOnHouse(t, h, agentID, assigned(1, "tcp/echo"), true)
		d := a.park(h.gateway)
		h.move(t, never, nil)
		h.come(t)
		for _, o := range h.hub.allOrphans() {
			o.orphan.lost = time.Now().Add(-2 * lonelyFor)
		}
		h.hub.tickOrphans()
		if p := h.come(t); p.Up {
			t.Errorf("presence: %+v", p)
		}
		wantClosed(t, d)
		if h.hub.Live("tcp", "echo") || h.hub.tickOrphans() {
			t.Error("it is still there")
		}
	})
}

// TestMovedExpires: an assignment does not live longer by a move, and one that the
// new process does not believe is not kept.
func TestMovedExpires(t *testing.T) {
	onHouse(t, 1, nil, func(t *testing.T, h *house) {
		end := time.Now().Add(time.Hour)
		good := handOnHouse(t, h, agentID, assigned(1, "tcp/echo", "until="+stamp(end)), true)
		bad := handOnHouse(t, h, agent2ID, assigned(1, "tcp/other"), true)
		kept, closed := good.park(h.gateway), bad.park(h.gateway)
		h.change = func(c *HubConfig) {
			c.Verify = func(raw []byte, agent string) (Assignment, error) {
				if agent == agent2ID {
					return Assignment{}, errors.New("no longer signed by anybody")
				}
				return verifyAssigned(raw, agent)
			}
			c.Now = func() time.Time { return time.Now() }
		}
		h.move(t, never, nil)
		wantClosed(t, closed)
		if s := h.hub.Status(); len(s.Tunnels) != 1 || s.Counters["moved_refused"] != 1 {
			t.Errorf("kept: %+v", s.Tunnels)
		}
		h.hub.cfg.Now = func() time.Time { return end.Add(time.Second) }
		h.hub.tickOrphans()
		wantClosed(t, kept)
	})
}

// TestMovedRevision: an agent cannot show the new process an older assignment than
// it has shown the one before.
func TestMovedRevision(t *testing.T) {
	onHouse(t, 1, nil, func(t *testing.T, h *house) {
		handOnHouse(t, h, agentID, assigned(7, "tcp/echo"), true)
		h.move(t, never, nil)
		c := dialControl(t, h.gateway, h.ca.issue(t, "agent", agentID))
		defer c.Close()
		check0(t, putControl(c, &tunnelv1.Control{Message: &tunnelv1.Control_Hello{Hello: &tunnelv1.Hello{AgentId: agentID, Assignment: assigned(6, "tcp/echo")}}}, patience))
		m, err := ReadControl(c)
		check0(t, err)
		if m.GetGoodbye().GetReason() != "assignment" {
			t.Errorf("answer: %v", m)
		}
	})
}

// TestMovedNames: what the agent has deleted stays deleted, and what it has
// changed while the copy was made is what moves.
func TestMovedNames(t *testing.T) {
	onHouse(t, 1, nil, func(t *testing.T, h *house) {
		a := handOnHouse(t, h, agentID, assigned(1, "tcp/one", "tcp/two"), true)
		a.say(&tunnelv1.Control{Message: &tunnelv1.Control_Delete{Delete: &tunnelv1.Delete{Names: []string{"tcp/two"}}}})
		eventually(t, "deleted", func() bool { return !h.hub.Live("tcp", "two") })
		h.move(t, afterComplete, nil)
		h.move(t, never, func() {
			b := byHandSaying(t, h.gateway, &tunnelv1.Hello{AgentId: agent2ID, Assignment: assigned(1, "tcp/three")})
			h.come(t)
			b.say(&tunnelv1.Control{Message: &tunnelv1.Control_Upsert{Upsert: &tunnelv1.Upsert{Assignment: assigned(2, "tcp/four")}}})
			eventually(t, "upsert", func() bool { return h.hub.Live("tcp", "four") })
		})
		for name, want := range map[string]bool{"one": true, "two": false, "three": false, "four": true} {
			if h.hub.Live("tcp", name) != want {
				t.Errorf("%s: live is %v", name, !want)
			}
		}
	})
}

// TestCancelMeanwhile: a cancel request for an agent that is on its way to the new
// process waits for it.
func TestCancelMeanwhile(t *testing.T) {
	onHouse(t, 1, nil, func(t *testing.T, h *house) {
		handOnHouse(t, h, agentID, assigned(1, "db/orders", "tag=77"), true)
		h.move(t, never, nil)
		if !h.hub.Cancel(77<<16|1, 42) {
			t.Fatal("not taken")
		}
		heir := byHandSaying(t, h.gateway, &tunnelv1.Hello{AgentId: agentID, Assignment: assigned(1, "db/orders", "tag=77")})
		for {
			m := receive(t, heir.heard)
			if m == nil {
				t.Fatal("the control connection has ended")
			}
			if c := m.GetPgCancel(); c != nil {
				if c.GetProcessId() != 77<<16|1 {
					t.Errorf("%v", c)
				}
				break
			}
		}
		h.hub.Cancel(77<<16|2, 42)
		for m := receive(t, heir.heard); m.GetPgCancel().GetProcessId() != 77<<16|2; m = receive(t, heir.heard) {
			if m == nil {
				t.Fatal("the control connection has ended")
			}
		}
	})
}

// TestDrainBoth: an agent that knows of upgrades is told to come first, within the
// spread; one that does not is told to go, and to come at once. Both are told
// within 2 s, and pinged until then.
func TestDrainBoth(t *testing.T) {
	onHouse(t, 1, nil, func(t *testing.T, h *house) {
		follows := handOnHouse(t, h, agentID, assigned(1, "tcp/echo"), true)
		older := handOnHouse(t, h, agent2ID, assigned(1, "tcp/other"), false)
		h.move(t, never, nil)
		told := func(a *handAgent) (d *tunnelv1.Drain, bye *tunnelv1.Goodbye) {
			for m := range a.heard {
				if m.GetDrain() != nil {
					d = m.GetDrain()
				}
				if m.GetGoodbye() != nil {
					bye = m.GetGoodbye()
				}
			}
			return d, bye
		}
		d, bye := told(follows)
		if !d.GetSuccessor() || d.GetComeBackAfterMs() > 1500 || bye.GetReason() != "drain" {
			t.Errorf("who follows: %v, %v", d, bye)
		}
		d, bye = told(older)
		if d == nil || d.GetSuccessor() || d.GetComeBackAfterMs() > 100 || bye.GetReason() != "drain" {
			t.Errorf("who does not: %v, %v", d, bye)
		}
	})
}

// TestTakeRefuses: a record that does not fit ends the upgrade, and its
// descriptors are closed.
func TestTakeRefuses(t *testing.T) {
	id := make([]byte, idSize)
	key := make([]byte, 32)
	kind := func(k handoverv1.TunnelKind) uint32 { return uint32(k) }
	hub := mustMarshal(t, &handoverv1.TunnelHub{GatewayId: gatewayID})
	opened := mustMarshal(t, &handoverv1.TunnelOpened{Id: id, AgentId: agentID, AgentKey: key, GatewayKey: key, AssignmentSize: 3})
	for name, c := range map[string][]handover.Record{
		"unknown kind":    {{Kind: 1, Body: hub}, {Kind: 999}},
		"not named":       {{Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_OPENED), Body: opened}},
		"another gateway": {{Kind: 1, Body: mustMarshal(t, &handoverv1.TunnelHub{GatewayId: "x"})}},
		"garbage":         {{Kind: 1, Body: hub}, {Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_OPENED), Body: []byte{0xff}}},
		"short id":        {{Kind: 1, Body: hub}, {Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_OPENED), Body: mustMarshal(t, &handoverv1.TunnelOpened{Id: id[1:], AgentKey: key, GatewayKey: key, AgentId: "x"})}},
		"unwanted":        {{Kind: 1, Body: hub, FDs: []int{-1}}},
		"no such tunnel":  {{Kind: 1, Body: hub}, {Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_WORDS), Body: mustMarshal(t, &handoverv1.TunnelWords{Word: []*handoverv1.TunnelWord{{Id: id}}})}},
		"too much":        {{Kind: 1, Body: hub}, {Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_OPENED), Body: opened}, {Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_ASSIGNMENT), Body: mustMarshal(t, &handoverv1.TunnelAssignment{Id: id, Data: make([]byte, 4)})}},
		"fewer descriptors": {{Kind: 1, Body: hub}, {Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_OPENED), Body: opened},
			{Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_PARKED), FDs: []int{-1}, Body: mustMarshal(t, &handoverv1.TunnelParked{Shelf: []*handoverv1.TunnelShelf{{Id: id, Counter: []uint64{1, 2}, Since: []int64{1, 2}}}})}},
		"one counter twice": {{Kind: 1, Body: hub}, {Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_OPENED), Body: opened},
			{Kind: kind(handoverv1.TunnelKind_TUNNEL_KIND_PARKED), FDs: []int{-1, -1}, Body: mustMarshal(t, &handoverv1.TunnelParked{Shelf: []*handoverv1.TunnelShelf{{Id: id, Counter: []uint64{1, 1}, Since: []int64{1, 2}}}})}},
	} {
		k := NewHub(HubConfig{GatewayID: gatewayID, Verify: verifyAssigned}).Taker(t.Context())
		var err error
		for _, r := range c {
			if err != nil {
				t.Errorf("%s: an earlier record was refused: %v", name, err)
			}
			err = k.Take(r)
		}
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestCompleteMissing: what has not come whole is not started with.
func TestCompleteMissing(t *testing.T) {
	hub := handover.Record{Kind: 1, Body: mustMarshal(t, &handoverv1.TunnelHub{GatewayId: gatewayID})}
	totals := func(n uint64) handover.Record {
		return handover.Record{Kind: uint32(handoverv1.TunnelKind_TUNNEL_KIND_TOTALS), Body: mustMarshal(t, &handoverv1.TunnelTotals{Tunnels: n})}
	}
	for name, c := range map[string]struct {
		records []handover.Record
		ok      bool
	}{
		"nothing at all": {nil, true}, "no tunnels": {[]handover.Record{hub, totals(0)}, true},
		"no totals": {[]handover.Record{hub}, false}, "a tunnel is missing": {[]handover.Record{hub, totals(1)}, false},
	} {
		k := NewHub(HubConfig{GatewayID: gatewayID, Verify: verifyAssigned}).Taker(t.Context())
		for _, r := range c.records {
			check0(t, k.Take(r))
		}
		if err := k.Complete(t.Context()); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzTake: no record makes the new process do anything but refuse it or keep it.
func FuzzTake(f *testing.F) {
	for kind := range uint32(13) {
		f.Add(kind, []byte{}, uint8(0))
		f.Add(kind, mustMarshal(f, &handoverv1.TunnelParked{Shelf: []*handoverv1.TunnelShelf{{Id: make([]byte, idSize), Counter: []uint64{1}, Since: []int64{2}}}}), uint8(1))
	}
	f.Add(uint32(8), mustMarshal(f, &handoverv1.TunnelWords{Word: []*handoverv1.TunnelWord{{Id: make([]byte, idSize), Window: make([]uint64, 17), Highest: 9, Used: true, Target: 1 << 31}}}), uint8(0))
	f.Fuzz(func(t *testing.T, kind uint32, body []byte, fds uint8) {
		h := NewHub(HubConfig{GatewayID: gatewayID, Verify: verifyAssigned})
		k := h.Taker(t.Context())
		check0(t, k.Take(handover.Record{Kind: 1, Body: mustMarshal(t, &handoverv1.TunnelHub{GatewayId: gatewayID})}))
		key := make([]byte, 32)
		check0(t, k.Take(handover.Record{Kind: 4, Body: mustMarshal(t, &handoverv1.TunnelOpened{Id: make([]byte, idSize), AgentId: agentID, AgentKey: key, GatewayKey: key})}))
		r := handover.Record{Kind: kind, Body: body, FDs: slices.Repeat([]int{-1}, int(fds))}
		if err := k.Take(r); err == nil {
			_ = k.Take(r) // and again
		}
		_ = k.Complete(t.Context())
	})
}

func mustMarshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	check0(t, err)
	return b
}

func stamp(at time.Time) string { return fmt.Sprint(at.Unix()) }

// TestHeirFails: a new tunnel that ends before its welcome is out leaves the
// orphan as it was.
func TestHeirFails(t *testing.T) {
	onHouse(t, 1, func(c *HubConfig) { c.Bounds = Bounds{PoolFloor: 1} }, func(t *testing.T, h *house) {
		a := handOnHouse(t, h, agentID, assigned(1, "tcp/echo"), true)
		d := a.park(h.gateway)
		h.move(t, never, nil)
		h.come(t)
		for range 2 { // and one that has replaced another such
			var last *tunnel
			for range 2 {
				last = &tunnel{id: newID(), agent: agentID, pool: newPool(h.hub.bounds, h.hub.parking), talk: &talk{out: make(chan *tunnelv1.Control, outbox), wake: make(chan struct{}, 1)}, end: func(error) {}}
				last.names.Store(&map[resourceName]bool{})
				check0(t, h.hub.adopt(last, assigned(1, "tcp/echo")))
				h.hub.open(last)
			}
			h.hub.close(last)
		}
		if n := len(h.presence); n != 0 || !h.hub.Live("tcp", "echo") || len(h.hub.Present()) != 1 {
			t.Errorf("%d changes of presence; live: %v", n, h.hub.Live("tcp", "echo"))
		}
		o := h.lease(t, request0("tcp", "echo"))
		if o.lease == nil {
			t.Fatal(o.reason)
		}
		clientConn(t, o.lease).Close()
		d.frame()
		o.lease.Ended()
		heir := handOnHouse(t, h, agentID, assigned(1, "tcp/echo"), true)
		heir.park(h.gateway)
		h.hub.tickOrphans()
		if s := h.hub.Status(); len(s.Tunnels) != 1 || s.Tunnels[0].Moved {
			t.Errorf("at last: %+v", s.Tunnels)
		}
	})
}

// TestReportAgain: what an agent says of a stream while it is on its way to the new
// process is heard there, whichever control connection it was said on.
func TestReportAgain(t *testing.T) {
	onHouse(t, 2, crowd, func(t *testing.T, h *house) {
		say := make(chan func(*Stream))
		startAgent(t, h.ca, []string{h.control.Addr().String()}, func(c *AgentConfig) {
			c.Serve = func(ctx context.Context, s *Stream) {
				select {
				case f := <-say:
					f(s)
				case <-ctx.Done():
				}
			}
		})
		h.come(t)
		h.warm(t)
		for range 3 {
			c := h.stream(clientRequest())
			o := receive(t, c.answer)
			if o.lease == nil {
				t.Fatal(o.reason)
			}
			conn := clientConn(t, o.lease)
			t.Cleanup(func() { conn.Close(); c.over() })
		}
		h.move(t, never, nil)
		say <- func(s *Stream) { s.Up() }
		say <- func(s *Stream) { s.Refuse("no") }
		eventually(t, "both are heard", func() bool {
			s := h.hub.Status()
			return s.Counters["stream_up"] == 1 && s.Counters["stream_refused"] == 1 && s.HalfOpen == 1
		})
		h.move(t, never, nil)
		if n := h.hub.Status().HalfOpen; n != 1 {
			t.Errorf("%d half-open after another move, want 1", n)
		}
		say <- func(s *Stream) { s.Up() }
		eventually(t, "the last is heard", func() bool { return h.hub.Status().HalfOpen == 0 })
	})
}

// TestMoveCarried: a stream inside TLS lives on, with its bytes through the old
// process, which is not over before; what is parked inside TLS is made anew.
func TestMoveCarried(t *testing.T) {
	onHouse(t, 2, func(c *HubConfig) { c.DataAddress, c.Bounds = "", Bounds{LeaseWait: patience} }, func(t *testing.T, h *house) {
		startAgent(t, h.ca, []string{h.control.Addr().String()}, func(c *AgentConfig) { c.Carriers = []Carrier{CarrierTLS} })
		h.come(t)
		h.warm(t)
		c := h.stream(clientRequest())
		o := receive(t, c.answer)
		if o.lease == nil {
			t.Fatal(o.reason)
		}
		conn := clientConn(t, o.lease)
		ask(t, conn, "before")
		old := h.hub
		h.move(t, never, nil)
		ask(t, conn, "after")
		eventually(t, "only the stream is left", func() bool { return old.Remaining() == Remaining{Carried: 1} })
		h.visit(t, "another client")
		if isOver(t, old) {
			t.Error("the old process is over while it carries a stream")
		}
		conn.Close()
		c.over()
		eventually(t, "the old process is over", func() bool { return isOver(t, old) })
	})
}

func isOver(t *testing.T, h *Hub) bool {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return h.Wait(ctx) == nil
}
