package tunnel

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/relay"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// small is a hub whose pools are easy to exhaust.
func small(floor int, wait time.Duration) func(*HubConfig) {
	return func(c *HubConfig) { c.Bounds = Bounds{PoolFloor: floor, PoolCeiling: 8, LeaseWait: wait} }
}

// TestA31_HelloGetsNothing: what is forged, replayed or of another tunnel is
// closed without a word, and is never leased.
func TestA31_HelloGetsNothing(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(1, 10*time.Millisecond))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		b := byHand(t, g, agent2ID, assigned(1, "tcp/other"))
		g.come(t)
		g.come(t)
		good, at := a.hello()
		forged := bytes.Clone(good)
		forged[HelloSize-1] ^= 1
		otherKey := AppendDataHello(nil, DataHello{Tunnel: at.Tunnel, Counter: at.Counter}, b.keys.agent)
		moved := AppendDataHello(nil, DataHello{Tunnel: b.tunnel, Counter: at.Counter}, a.keys.agent)
		unknown := AppendDataHello(nil, DataHello{Tunnel: newID(), Counter: at.Counter}, a.keys.agent)
		gatewayKey := AppendDataHello(nil, DataHello{Tunnel: at.Tunnel, Counter: at.Counter}, a.keys.gateway)
		for name, c := range map[string]struct {
			hello []byte
			want  error
		}{
			"forged": {forged, ErrForged}, "key of another agent": {otherKey, ErrForged}, "moved": {moved, ErrForged},
			"unknown tunnel": {unknown, ErrUnknownTunnel}, "key of the other direction": {gatewayKey, ErrForged},
		} {
			conn := sendHello(t, g, c.hello)
			if err := receive(t, g.parkErr); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
			wantClosed(t, conn)
		}
		if o := g.lease(t, request0("tcp", "echo")); o.reason != FailPoolEmpty {
			t.Errorf("lease: %+v", o)
		}
		sendHello(t, g, good)
		check0(t, receive(t, g.parkErr))
		replayed := sendHello(t, g, good)
		if err := receive(t, g.parkErr); !errors.Is(err, ErrReplayed) {
			t.Errorf("replayed: %v", err)
		}
		wantClosed(t, replayed)
		s := g.hub.Status()
		if s.Counters["park_forged"] != 4 || s.Counters["park_unknown_tunnel"] != 1 || s.Counters["park_replayed"] != 1 {
			t.Errorf("counters: %v", s.Counters)
		}
	})
}

// TestParkedByteCloses: an agent says nothing on a parked connection.
func TestParkedByteCloses(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(2, 10*time.Millisecond))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		talks, leaves := a.park(g), a.park(g)
		_, err := talks.Write([]byte("x"))
		check0(t, err)
		wantClosed(t, talks)
		check0(t, leaves.Close())
		eventually(t, "empty pool", func() bool { return g.hub.Status().Tunnels[0].Parked == 0 })
		b, _ := a.hello()
		behind := sendHello(t, g, append(b, 'x'))
		check0(t, receive(t, g.parkErr))
		wantClosed(t, behind)
		s := g.hub.Status()
		if s.Counters["parked_byte"] != 2 || s.Counters["parked_end"] != 1 {
			t.Errorf("counters: %v", s.Counters)
		}
	})
}

func TestColdPool(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(1, 50*time.Millisecond))
		if o := g.lease(t, request0("tcp", "echo")); o.reason != FailNoTunnel {
			t.Errorf("without a tunnel: %+v", o)
		}
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		if n := a.need(); n != 1 {
			t.Errorf("asked for %d connections at first, want 1", n)
		}
		began := time.Now()
		if o := g.lease(t, request0("tcp", "echo")); o.reason != FailPoolEmpty {
			t.Errorf("nobody comes: %+v", o)
		}
		if d := time.Since(began); d < 50*time.Millisecond {
			t.Errorf("gave up after %v", d)
		}
		if s := g.hub.Status(); s.Counters["lease_failed_"+FailPoolEmpty] != 1 || s.Waiting != 0 || s.HalfOpen != 0 {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestColdPoolServed: who waits is served by what comes, in order.
func TestColdPoolServed(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(1, patience))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		var waiters []waiter
		var ids []ID
		for i := range 3 {
			r := request0("tcp", "echo")
			waiters, ids = append(waiters, g.ask(loops[i%2], r)), append(ids, r.ConnectionID)
			eventually(t, "queue", func() bool { return g.hub.Status().Waiting == i+1 })
		}
		// Of a target of two there is no quarter to keep: strangers get all.
		var parked []*handData
		for range waiters {
			parked = append(parked, a.park(g))
		}
		for i, w := range waiters {
			o := receive(t, w)
			if o.lease == nil {
				t.Fatalf("client %d: %s", i, o.reason)
			}
			c := clientConn(t, o.lease)
			d := parked[i]
			if f := d.frame(); f.ConnectionID != ids[i] || f.Kind != "tcp" || f.Name != "echo" || f.Client != netip.MustParseAddrPort("192.0.2.1:4711") {
				t.Errorf("frame %+v", f)
			}
			c.Close()
			o.lease.Ended()
		}
	})
}

// TestCancelledLease: a connection that was on its way to a client that has
// gone is parked again.
func TestCancelledLease(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(1, patience))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		a.park(g)
		w := make(waiter, 1)
		asked := make(chan struct{})
		// The connection is with one loop, the client with the other: cancel
		// comes before the hand-over can.
		for _, l := range loops {
			l.Post(func() {
				g.hub.Lease(l, request0("tcp", "echo"), discardWaiter{})()
				asked <- struct{}{}
			})
			receive(t, asked)
		}
		eventually(t, "all back", func() bool {
			s := g.hub.Status()
			return s.HalfOpen == 0 && s.Tunnels[0].HalfOpen == 0 && s.Tunnels[0].Parked+int(s.Counters["leased"]) == 1
		})
		loops[0].Post(func() { g.hub.Lease(loops[0], request0("tcp", "nobody"), w) })
		if o := receive(t, w); o.reason != FailNoTunnel {
			t.Errorf("%+v", o)
		}
	})
}

// discardWaiter is a client that has gone when the answer comes.
type discardWaiter struct{}

func (discardWaiter) Leased(l *Lease)    { closeFD(l.FD); l.Ended() }
func (discardWaiter) LeaseFailed(string) {}

// TestSecondAttempt: the data connection dies between lease and first byte;
// the same client gets another one.
func TestSecondAttempt(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(2, patience))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		first, second := a.park(g), a.park(g)
		r := request0("tcp", "echo")
		o := g.lease(t, r)
		c := clientConn(t, o.lease)
		first.Close()
		second.Close()
		wantClosed(t, c)
		c.Close()
		o.lease.Ended()
		eventually(t, "the other one has gone", func() bool { return g.hub.Status().Parked == 0 })
		third := a.park(g)
		r.Attempt = 1
		again := g.lease(t, r)
		if again.lease == nil {
			t.Fatalf("second attempt: %s", again.reason)
		}
		c = clientConn(t, again.lease)
		if f := third.frame(); f.ConnectionID != r.ConnectionID {
			t.Errorf("the second attempt has another connection id")
		}
		c.Close()
		again.lease.Ended()
		r.Attempt = 3
		if o := g.lease(t, r); o.reason != FailAttempts {
			t.Errorf("fourth attempt: %+v", o)
		}
	})
}

// TestDeadEntryIsSkipped: a parked connection that has ended is not given to
// anybody, even if the loop has not noticed.
func TestDeadEntryIsSkipped(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(2, patience))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		good, bad := a.park(g), a.park(g)
		newest := g.hub.tunnel(a.tunnel).pool.shelves[0].newest
		w := make(waiter, 1)
		loops[0].Post(func() {
			bad.Close() // noticed by the loop only after this function
			for end := time.Now().Add(patience); peek(newest.fd) == "" && time.Now().Before(end); {
				runtime.Gosched() // the end is on its way
			}
			g.hub.Lease(loops[0], request0("tcp", "echo"), w)
		})
		o := receive(t, w)
		if o.lease == nil {
			t.Fatalf("no lease: %s", o.reason)
		}
		c := clientConn(t, o.lease)
		good.frame()
		c.Close()
		o.lease.Ended()
	})
}

// TestHalfOpen: a stream holds its slots until the agent's word or its end.
func TestHalfOpen(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, func(c *HubConfig) {
			c.Bounds = Bounds{PoolFloor: 8, PoolCeiling: 8, HalfOpenAgent: 4, LeaseWait: 20 * time.Millisecond}
		})
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		var open []*Lease
		var ids []ID
		for range 8 {
			a.park(g)
		}
		lease := func() string {
			r := request0("tcp", "echo")
			o := g.lease(t, r)
			if o.lease != nil {
				open, ids = append(open, o.lease), append(ids, r.ConnectionID)
			}
			return o.reason
		}
		for range 3 { // a quarter of the four is for sources that are known
			if why := lease(); why != "" {
				t.Fatal(why)
			}
		}
		if why := lease(); why != FailAgentHalfOpen {
			t.Errorf("a stranger got the reserved place: %q", why)
		}
		a.streamUp(ids[0])
		eventually(t, "stream-up", open[0].Up)
		if why := lease(); why != "" {
			t.Errorf("after a stream-up: %s", why)
		}
		if why := lease(); why != "" {
			t.Errorf("a known source and the reserved place: %s", why)
		}
		if why := lease(); why != FailAgentHalfOpen {
			t.Errorf("above the bound: %q", why)
		}
		a.streamRefused(ids[1])
		eventually(t, "refusal", func() bool { return g.hub.Status().HalfOpen == 3 })
		if why := lease(); why != "" {
			t.Errorf("after a refusal: %s", why)
		}
		for _, l := range open {
			closeFD(l.FD)
			l.Ended()
		}
		if s := g.hub.Status(); s.HalfOpen != 0 || s.Tunnels[0].HalfOpen != 0 || s.Tunnels[0].Streams != 0 {
			t.Errorf("left over: %+v", s)
		}
	})
}

// TestProvenIsTold: of whom an agent has let in the source is told, and of nobody else.
func TestProvenIsTold(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		proven := make(chan netip.Addr, 8)
		g := startGateway(t, newAuthority(t), loops, func(c *HubConfig) { c.Proven = func(from netip.Addr) { proven <- from } })
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		for range 8 {
			a.park(g)
		}
		for i, from := range []string{"198.51.100.7:1", "192.0.2.1:2"} {
			r := request0("tcp", "echo")
			r.Source = netip.MustParseAddrPort(from)
			o := g.lease(t, r)
			defer closeFD(o.lease.FD)
			defer o.lease.Ended()
			if i == 0 {
				a.streamRefused(r.ConnectionID)
			} else {
				a.streamUp(r.ConnectionID)
			}
		}
		if got := <-proven; got != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("%v has proved himself", got)
		}
	})
}

// TestReservedQuarter: strangers do not empty a pool.
func TestReservedQuarter(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(8, 10*time.Millisecond))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		for range 8 {
			a.park(g)
		}
		known := request0("tcp", "echo")
		o := g.lease(t, known)
		a.streamUp(known.ConnectionID)
		eventually(t, "stream-up", o.lease.Up)
		leases := []*Lease{o.lease}
		for i := range 9 {
			r := request0("tcp", "echo")
			r.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 1)
			o := g.lease(t, r)
			if want := i < 5; (o.lease != nil) != want { // 7 parked, 2 kept
				t.Errorf("stranger %d: %+v", i, o)
			}
			if o.lease != nil {
				leases = append(leases, o.lease)
			}
		}
		for range 2 {
			o := g.lease(t, request0("tcp", "echo"))
			if o.lease == nil {
				t.Fatalf("the known source: %s", o.reason)
			}
			leases = append(leases, o.lease)
		}
		for _, l := range leases {
			closeFD(l.FD)
			l.Ended()
		}
	})
}

// TestBalance: agents with the same name share its streams.
func TestBalance(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, nil)
		for _, id := range []string{agentID, agent2ID} {
			a := byHand(t, g, id, assigned(1, "tcp/echo"))
			g.come(t)
			for range 4 {
				a.park(g)
			}
		}
		count := map[string]int{}
		var all []*Lease
		for range 6 {
			o := g.lease(t, request0("tcp", "echo"))
			if o.lease == nil {
				t.Fatal(o.reason)
			}
			count[o.lease.AgentID]++
			all = append(all, o.lease)
		}
		if count[agentID] != 3 || count[agent2ID] != 3 {
			t.Errorf("streams: %v", count)
		}
		for _, l := range all {
			closeFD(l.FD)
			l.Ended()
		}
	})
}

// TestReplaced: an agent that comes again takes its own place; nothing of the
// old tunnel is leased.
func TestReplaced(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(1, patience))
		old := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		parked := old.park(g)
		now := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		if p := g.come(t); !p.Up {
			t.Errorf("presence: %+v; the agent never left", p)
		}
		wantClosed(t, parked)
		late, _ := old.hello()
		sendHello(t, g, late)
		if err := receive(t, g.parkErr); !errors.Is(err, ErrUnknownTunnel) {
			t.Errorf("a data connection of the old tunnel: %v", err)
		}
		d := now.park(g)
		o := g.lease(t, request0("tcp", "echo"))
		if o.lease == nil {
			t.Fatal(o.reason)
		}
		c := clientConn(t, o.lease)
		d.frame()
		c.Close()
		o.lease.Ended()
	})
}

func TestRetire(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(2, patience))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		first, second := a.park(g), a.park(g)
		a.say(&tunnelv1.Control{Message: &tunnelv1.Control_Retire{Retire: &tunnelv1.Retire{Counters: []uint64{first.at.Counter, 77}}}})
		wantClosed(t, first)
		o := g.lease(t, request0("tcp", "echo"))
		c := clientConn(t, o.lease)
		second.frame()
		c.Close()
		o.lease.Ended()
	})
}

// TestPoolFull: an agent does not park more than it was allowed.
func TestPoolFull(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g := startGateway(t, newAuthority(t), loops, small(1, patience))
		a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
		g.come(t)
		refused := 0
		for range 10 {
			b, _ := a.hello()
			sendHello(t, g, b)
			if errors.Is(receive(t, g.parkErr), ErrPoolFull) {
				refused++
			}
		}
		if s := g.hub.Status(); refused != int(s.Counters["park_pool_full"]) || s.Tunnels[0].Parked > 8 {
			t.Errorf("refused %d: %+v", refused, s)
		}
	})
}
