package tunnel

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestFourLoops: clients on four loops take connections from one another's
// epoll sets, give up, fail and come again; every one that is served hears its
// own words, and nothing is left.
func TestFourLoops(t *testing.T) {
	onLoops(t, 4, func(t *testing.T, loops []relay.Loop) {
		before := openFiles()
		ca := newAuthority(t)
		control, err := net.Listen("tcp", "127.0.0.1:0")
		check0(t, err)
		g := serveGateway(t, ca, loops, control, func(c *HubConfig) {
			c.Log = nil
			c.Bounds = Bounds{HalfOpenSource: 1000, SourceRate: 100000, PoolFloor: 8, LeaseWait: patience}
		})
		stopOne := startAgent(t, ca, []string{control.Addr().String()}, func(c *AgentConfig) { c.Log = nil })
		stopTwo := startAgent(t, ca, []string{control.Addr().String()}, func(c *AgentConfig) { c.AgentID, c.Log = agent2ID, nil })
		g.come(t)
		g.come(t)
		var served, gaveUp atomic.Int64
		var clients sync.WaitGroup
		for n := range 8 {
			clients.Go(func() {
				rnd := rand.New(rand.NewPCG(7, uint64(n)))
				for i := range 60 {
					if g.oneClient(t, rnd, fmt.Sprintf("client %d, stream %d", n, i)) {
						served.Add(1)
					} else {
						gaveUp.Add(1)
					}
				}
			})
		}
		clients.Wait()
		if served.Load() == 0 || gaveUp.Load() == 0 {
			t.Errorf("served %d, gave up %d: the test tests nothing", served.Load(), gaveUp.Load())
		}
		eventually(t, "nothing held", func() bool {
			s := g.hub.Status()
			streams := 0
			for _, u := range s.Tunnels {
				streams += u.Streams + u.HalfOpen
			}
			return s.HalfOpen == 0 && s.Waiting == 0 && streams == 0
		})
		stopOne()
		stopTwo()
		g.stop()
		for _, l := range loops {
			check0(t, l.Close())
		}
		eventually(t, "no descriptor left", func() bool {
			runtime.GC() // the runtime closes the pipes of its splices then
			return openFiles() <= before
		})
	})
}

// oneClient asks on some loop, and either gives up at once or says its words.
func (g *gateway) oneClient(t testing.TB, rnd *rand.Rand, words string) (served bool) {
	l := g.loops[rnd.IntN(len(g.loops))]
	if rnd.IntN(4) == 0 {
		done := make(chan struct{})
		l.Post(func() {
			g.hub.Lease(l, request0("tcp", "echo"), discardWaiter{})()
			close(done)
		})
		<-done
		return false
	}
	o := <-g.ask(l, request0("tcp", "echo"))
	if o.lease == nil {
		t.Errorf("%s: %s", words, o.reason)
		return false
	}
	c := clientConn(t, o.lease)
	if got := ask(t, c, words); got != words {
		t.Errorf("%s: heard %q", words, got)
	}
	c.Close()
	o.lease.Ended()
	return true
}

// TestStrangersDoNotStopTheKnown: strangers hold all that strangers may hold,
// and a known source is served as if they were not there.
func TestStrangersDoNotStopTheKnown(t *testing.T) {
	const wait = time.Hour // of the strangers; to be behind them is to wait as long
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, func(c *HubConfig) { c.Log, c.Bounds.LeaseWait = nil, wait })
		startAgent(t, ca, []string{g.control.Addr().String()}, func(c *AgentConfig) {
			c.Log = nil
			c.Serve = func(ctx context.Context, s *Stream) {
				if s.Client.Addr().Is6() { // proves nothing, until it is cut
					defer context.AfterFunc(ctx, func() { s.Conn.Close() })()
					_, _ = io.Copy(io.Discard, s.Conn)
					return
				}
				echo(ctx, s)
			}
		})
		g.come(t)
		g.warm(t)
		known := func() {
			o := g.lease(t, request0("tcp", "echo"))
			if o.lease == nil {
				t.Fatalf("the known source: %s", o.reason)
			}
			c := clientConn(t, o.lease)
			ask(t, c, "hello")
			eventually(t, "stream-up", o.lease.Up)
			c.Close()
			o.lease.Ended()
		}
		known()
		const strangers = 400
		var giveUp []func() *Lease
		for i := range strangers {
			r := request0("tcp", "echo")
			r.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, byte(i >> 8), byte(i)}), 1)
			giveUp = append(giveUp, g.wait(loops[i%2], r))
		}
		for range 20 {
			known()
		}
		var held []*Lease
		for _, f := range giveUp {
			if l := f(); l != nil {
				held = append(held, l)
			}
		}
		if len(held) > 48 || len(held) == strangers {
			t.Errorf("%d strangers at one agent; want at most 48 of 64", len(held))
		}
		known()
		for _, l := range held {
			closeFD(l.FD)
			l.Ended()
		}
	})
}

// wait asks for a lease. giveUp takes the question back, and returns what has come
// of it: nil for nothing.
func (g *gateway) wait(l relay.Loop, r LeaseRequest) (giveUp func() *Lease) {
	w := make(waiter, 1)
	var cancel func() // of the loop's thread
	l.Post(func() { cancel = g.hub.Lease(l, r, w) })
	return func() *Lease {
		done := make(chan struct{})
		l.Post(func() { cancel(); close(done) })
		<-done
		select {
		case o := <-w:
			return o.lease
		default:
			return nil
		}
	}
}

func BenchmarkLease(b *testing.B) {
	loops, err := relay.New(1)
	check0(b, err)
	defer loops[0].Close()
	ca := newAuthority(b)
	g := startGateway(b, ca, loops, func(c *HubConfig) {
		c.Log = nil
		c.Bounds = Bounds{HalfOpenSource: 1000, SourceRate: 1e9}
	})
	startAgent(b, ca, []string{g.control.Addr().String()}, func(c *AgentConfig) { c.Log = nil })
	g.come(b)
	g.warm(b)
	b.ReportAllocs()
	for b.Loop() {
		o := <-g.ask(loops[0], request0("tcp", "echo"))
		if o.lease == nil {
			b.Fatal(o.reason)
		}
		closeFD(o.lease.FD)
		o.lease.Ended()
	}
}
