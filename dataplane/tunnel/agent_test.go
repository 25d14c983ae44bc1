package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/relay"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// counted serves nobody and counts the streams that got here.
type counted struct{ n atomic.Int64 }

func (c *counted) serve(_ context.Context, s *Stream) { c.n.Add(1) }

// TestA31_MovedFrameIsRefused: a frame on another data connection than the one
// it was made for opens nothing.
func TestA31_MovedFrameIsRefused(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		var served counted
		startAgent(t, ca, []string{g.control.Addr().String()}, func(c *AgentConfig) { c.Serve = served.serve })
		g.come(t)
		g.warm(t)
		a, b := g.lease(t, request0("tcp", "echo")).lease, g.lease(t, request0("tcp", "echo")).lease
		a.Frame, b.Frame = b.Frame, a.Frame
		for _, l := range []*Lease{a, b} {
			c := clientConn(t, l)
			wantClosed(t, c)
			c.Close()
			l.Ended()
		}
		if n := served.n.Load(); n != 0 {
			t.Errorf("%d streams were served", n)
		}
	})
}

// TestServedOnce: a second attempt of a client that was served is refused.
func TestServedOnce(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		startAgent(t, ca, []string{g.control.Addr().String()}, nil)
		g.come(t)
		g.warm(t)
		r := request0("tcp", "echo")
		first := g.lease(t, r).lease
		c := clientConn(t, first)
		ask(t, c, "hello")
		r.Attempt = 1
		again := g.lease(t, r).lease
		c2 := clientConn(t, again)
		wantClosed(t, c2)
		for _, l := range []*Lease{first, again} {
			l.Ended()
		}
		c.Close()
		c2.Close()
	})
}

// TestOutdated: an agent whose assignment a gateway takes for outdated hears of it, and
// has its tunnel with the next one. It was without one until it asked auth for its own
// reasons, half a day later.
func TestOutdated(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	ca := newAuthority(t)
	g := startGateway(t, ca, loops, nil)
	copied := byHand(t, g, agentID, assigned(2, "tcp/echo"))
	g.come(t)
	copied.close()
	assignments, outdated := make(chan []byte, 1), make(chan struct{}, 1)
	assignments <- assigned(1, "tcp/echo")
	startAgent(t, ca, []string{g.control.Addr().String()}, func(c *AgentConfig) {
		c.Assignments = assignments
		c.Outdated = func() {
			select {
			case outdated <- struct{}{}:
			default:
			}
		}
	})
	receive(t, outdated)
	assignments <- assigned(3, "tcp/echo")
	eventually(t, "the tunnel", func() bool { return g.hub.Live("tcp", "echo") })
}

// TestStreamReports: the gateway's half-open slot is freed by the first word.
func TestStreamReports(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		got := make(chan *Stream, 1)
		answer := make(chan string)
		startAgent(t, ca, []string{g.control.Addr().String()}, func(c *AgentConfig) {
			c.Serve = func(ctx context.Context, s *Stream) {
				got <- s
				switch <-answer {
				case "up":
					s.Up()
					s.Refuse("too late")
				case "refuse":
					s.Refuse("denied\n")
					s.Up()
				}
				<-answer
			}
		})
		g.come(t)
		g.warm(t)
		for _, c := range []struct{ say, counter string }{{"up", "stream_up"}, {"refuse", "stream_refused"}} {
			r := request0("tcp", "echo")
			l := g.lease(t, r).lease
			conn := clientConn(t, l)
			s := receive(t, got)
			if s.ConnectionID != r.ConnectionID || s.Kind != "tcp" || s.Name != "echo" || s.GatewayID != gatewayID || s.Client != r.Source {
				t.Errorf("stream: %+v", s)
			}
			if _, ok := s.Conn.(*net.TCPConn); !ok {
				t.Errorf("the stream's connection is a %T", s.Conn)
			}
			answer <- c.say
			eventually(t, c.counter, func() bool { return g.hub.Status().Counters[c.counter] == 1 })
			if n := g.hub.Status().HalfOpen; n != 0 {
				t.Errorf("%d half-open", n)
			}
			answer <- "end"
			wantClosed(t, conn)
			conn.Close()
			l.Ended()
		}
	})
}

// TestGatewayRestart: the agent is back by itself, at the same address. That is a
// name: a port that nobody listens at would be anybody's. How soon it is back is
// for TestBackInTime.
func TestGatewayRestart(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		var where atomic.Pointer[net.Addr] // nil: nobody is there
		listen := func() net.Listener {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			check0(t, err)
			at := l.Addr()
			where.Store(&at)
			return l
		}
		g := serveGateway(t, ca, loops, listen(), nil)
		const name = "gw.test:443"
		startAgent(t, ca, []string{name}, func(c *AgentConfig) {
			c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == name {
					at := where.Load()
					if at == nil {
						return nil, syscall.ECONNREFUSED
					}
					addr = (*at).String()
				}
				return (&net.Dialer{}).DialContext(ctx, network, addr)
			}
		})
		g.come(t)
		g.warm(t)
		running := g.lease(t, request0("tcp", "echo")).lease
		c := clientConn(t, running)
		ask(t, c, "before")
		where.Store(nil)
		g.stop()
		if got := ask(t, c, "still here"); got != "still here" {
			t.Errorf("the running stream: %q", got)
		}
		g = serveGateway(t, ca, loops, listen(), nil)
		t.Cleanup(g.stop)
		if p := g.come(t); !p.Up {
			t.Errorf("presence: %+v", p)
		}
		g.warm(t)
		c.Close()
		running.Ended()
	})
}

// TestDrain: agents are told when to come back, and keep to it; what runs goes on.
func TestDrain(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		a := byHand(t, g, agent2ID, assigned(1, "tcp/other"))
		g.come(t)
		parked := a.park(g)
		startAgent(t, ca, []string{g.control.Addr().String()}, nil)
		g.come(t)
		g.warmOne(t, agentID)
		l := g.lease(t, request0("tcp", "echo")).lease
		c := clientConn(t, l)
		ask(t, c, "before")
		g.hub.Drain(300*time.Millisecond, 100*time.Millisecond)
		told := false
		for m := range a.heard {
			if d := m.GetDrain(); d != nil {
				told = d.ComeBackAfterMs >= 300 && d.ComeBackAfterMs <= 400
			}
		}
		if !told {
			t.Error("the agent was not told when to come back")
		}
		wantClosed(t, parked)
		for range 2 {
			if p := g.come(t); p.Up {
				t.Errorf("presence: %+v", p)
			}
		}
		if o := g.lease(t, request0("tcp", "echo")); o.reason != FailDraining {
			t.Errorf("a lease while draining: %+v", o)
		}
		if got := ask(t, c, "after"); got != "after" {
			t.Errorf("the running stream: %q", got)
		}
		for range 2 {
			if err := receive(t, g.ended); !errors.Is(err, errDrained) && !errors.Is(err, ErrGoodbye) {
				t.Errorf("end of the control connection: %v", err)
			}
		}
		// It comes back, to be sent away again: this gateway still drains.
		if err := receive(t, g.ended); !errors.Is(err, errDrained) {
			t.Errorf("the agent came back, and: %v", err)
		}
		c.Close()
		l.Ended()
	})
}

func (g *gateway) warmOne(t testing.TB, agent string) {
	t.Helper()
	eventually(t, "warm pool", func() bool {
		for _, s := range g.hub.Status().Tunnels {
			if s.AgentID == agent {
				return s.Parked >= s.Target
			}
		}
		return false
	})
}

// TestAssignmentChanges: a new assignment goes to every gateway at once.
func TestAssignmentChanges(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		one := startGateway(t, ca, loops, nil)
		two := startGateway(t, ca, loops, func(c *HubConfig) { c.GatewayID = "6a3d4bd6-0000-4000-8000-0000000000a2" })
		in := make(chan []byte, 1)
		in <- assigned(1, "tcp/one")
		startAgent(t, ca, []string{one.control.Addr().String(), two.control.Addr().String()}, func(c *AgentConfig) { c.Assignments = in })
		for _, g := range []*gateway{one, two} {
			g.come(t)
		}
		in <- assigned(2, "tcp/two", "node/web")
		for _, g := range []*gateway{one, two} {
			if p := g.come(t); string(p.Assignment) != "2 tcp/two node/web" || g.hub.Live("tcp", "one") || !g.hub.Live("node", agentID) {
				t.Errorf("after the change: %+v", p)
			}
		}
	})
}

// TestWelcomeNamesGateways: the agent dials what the welcome names, and makes
// one tunnel to each gateway however many addresses it has.
func TestWelcomeNamesGateways(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		two := startGateway(t, ca, loops, func(c *HubConfig) { c.GatewayID = "6a3d4bd6-0000-4000-8000-0000000000a2" })
		alias, err := net.Listen("tcp", "127.0.0.1:0")
		check0(t, err)
		one := startGateway(t, ca, loops, func(c *HubConfig) {
			c.Gateways = func() []string { return []string{two.control.Addr().String(), alias.Addr().String()} }
		})
		dialed := make(chan struct{}, 10)
		go forward(alias, one.control.Addr().String(), dialed)
		defer alias.Close()
		startAgent(t, ca, []string{one.control.Addr().String()}, nil)
		one.come(t)
		two.come(t)
		receive(t, dialed)
		if err := receive(t, one.ended); err == nil || one.hub.Status().Counters["replaced"] != 0 {
			t.Errorf("the second address: %v, %v", err, one.hub.Status().Counters)
		}
		if len(one.hub.Status().Tunnels) != 1 {
			t.Error("the first tunnel has gone")
		}
	})
}

// forward passes connections on to another address, until ln closes.
func forward(ln net.Listener, to string, dialed chan<- struct{}) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		d, err := net.Dial("tcp", to)
		if err != nil {
			c.Close()
			continue
		}
		go pipe(c, d)
		go pipe(d, c)
		dialed <- struct{}{}
	}
}

func pipe(a, b net.Conn) {
	defer a.Close()
	defer b.Close()
	_, _ = io.Copy(a, b)
}

func TestAgentCancel(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		type cancel struct {
			pid uint32
			key string
		}
		got := make(chan cancel, 1)
		startAgent(t, ca, []string{g.control.Addr().String()}, func(c *AgentConfig) {
			c.Assignments = once(append(assigned(1, "db/orders"), []byte(" tag=7")...))
			c.Cancel = func(_ context.Context, pid uint32, key []byte) { got <- cancel{pid, string(key)} }
		})
		g.come(t)
		if !g.hub.Cancel(7<<16|1, 0x61626364) {
			t.Error("not passed on")
		}
		if c := receive(t, got); c != (cancel{7<<16 | 1, "abcd"}) {
			t.Errorf("%+v", c)
		}
	})
}

// TestGatewayMustBeOne: a host certificate that is not a gateway's makes no
// gateway, and neither does another name in the welcome.
func TestGatewayMustBeOne(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct {
		name    string
		kind    sallyport.IdentityKind
		id      string
		cluster string
	}{
		{"an agent's certificate", sallyport.KindAgent, gatewayID, testCluster},
		{"another gateway's id in the welcome", sallyport.KindGateway, agent2ID, testCluster},
		{"another cluster", sallyport.KindGateway, gatewayID, "other.test"},
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		check0(t, err)
		tc := ca.server(ca.issue(t, c.kind, c.id))
		l := &link{agent: newAgent(t.Context(), AgentConfig{
			AgentID: agentID, Cluster: c.cluster,
			TLS: func(string) (*tls.Config, error) { return ca.client(ca.issue(t, sallyport.KindAgent, agentID)), nil },
		}), addr: ln.Addr().String()}
		done := make(chan struct{})
		go func() {
			defer close(done)
			raw, err := ln.Accept()
			check0(t, err)
			conn := tls.Server(raw, tc)
			defer conn.Close()
			if _, err := ReadControl(conn); err != nil {
				return
			}
			w := &tunnelv1.Welcome{GatewayId: gatewayID, TunnelId: testID[:], PoolCeiling: 4}
			_ = putControl(conn, &tunnelv1.Control{Message: &tunnelv1.Control_Welcome{Welcome: w}}, patience)
		}()
		if err := l.run(t.Context()); err == nil || l.talk != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		receive(t, done)
		ln.Close()
	}
}

func TestDataAddress(t *testing.T) {
	control := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.7:443"))
	for said, want := range map[string]string{
		"": "192.0.2.7:443", ":8443": "192.0.2.7:8443", "gw1.test:443": "gw1.test:443", "nonsense": "192.0.2.7:443",
	} {
		if got := dataAddress(said, control.String()); got != want {
			t.Errorf("dataAddress(%q) = %q, want %q", said, got, want)
		}
	}
}

func TestServedForgets(t *testing.T) {
	s := newServed()
	for i := range 3 * maxServed {
		if !s.first(ID{byte(i), byte(i >> 8), byte(i >> 16)}) {
			t.Fatalf("id %d is new", i)
		}
	}
	if len(s.now)+len(s.past) > 2*maxServed {
		t.Errorf("%d ids are kept", len(s.now)+len(s.past))
	}
	if s.first(ID{0xff, 0xff, 2}) {
		t.Error("the newest id was forgotten")
	}
}

func TestRunAgentNeedsItsConfiguration(t *testing.T) {
	if err := RunAgent(t.Context(), AgentConfig{}); err == nil {
		t.Error("an empty configuration runs")
	}
}

// TestListedGateways: a gateway that joined later was reached by no agent that was
// there before, until the agent's next tunnel.
func TestListedGateways(t *testing.T) {
	ca := newAuthority(t)
	loops, err := relay.New(1)
	check0(t, err)
	defer loops[0].Close()
	first := startGateway(t, ca, loops, nil)
	second := startGateway(t, ca, loops, func(c *HubConfig) { c.GatewayID = "gateway-2" })
	at := func(g *gateway) string { return g.control.Addr().String() }
	var mu sync.Mutex
	listed, changed, asked := []string{at(first)}, make(chan struct{}), make(chan bool, 100)
	startAgent(t, ca, []string{at(first)}, func(c *AgentConfig) {
		c.Listed = func() ([]string, <-chan struct{}) {
			mu.Lock()
			defer mu.Unlock()
			asked <- true
			return listed, changed
		}
	})
	if p := first.come(t); !p.Up {
		t.Fatalf("%+v", p)
	}
	receive(t, asked)
	mu.Lock()
	before := changed
	listed, changed = []string{at(first), at(second)}, make(chan struct{})
	mu.Unlock()
	close(before)
	if p := second.come(t); !p.Up {
		t.Errorf("%+v", p)
	}
}
