package tunnel

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// The faults of a network between agent and gateway: a middlebox loses, delays
// and cuts what passes it. Each runs on every carrier.

func onCarriers(t *testing.T, f func(t *testing.T, loops []relay.Loop, lets string)) {
	for _, lets := range []string{"all", "tls", "http"} {
		t.Run(lets, func(t *testing.T) {
			loops := make([]relay.Loop, 2)
			for i := range loops {
				l, err := relay.NewDefault()
				check0(t, err)
				loops[i] = l
				t.Cleanup(func() { l.Close() })
			}
			f(t, loops, lets)
		})
	}
}

func quick(c *HubConfig) {
	c.Bounds.PingInterval, c.Bounds.DeadAfter = 200*time.Millisecond, 2*time.Second
}

// TestF13_NothingPasses: the path swallows everything, without a reset. The
// gateway takes the agent for dead and opens nothing towards it any more; the
// agent comes again when the path is back.
func TestF13_NothingPasses(t *testing.T) {
	onCarriers(t, func(t *testing.T, loops []relay.Loop, lets string) {
		g, m := carriedWorld(t, loops, lets, false, quick)
		m.lost.Store(true)
		eventually(t, "dead", func() bool { return !g.hub.Live("tcp", "echo") })
		for range 3 {
			if o := g.lease(t, request0("tcp", "echo")); o.lease != nil || o.reason != FailNoTunnel {
				t.Errorf("towards a dead agent: %+v", o)
			}
		}
		if s := g.hub.Status(); s.Parked != 0 || s.HalfOpen != 0 {
			t.Errorf("of a dead agent: %d parked, %d half-open", s.Parked, s.HalfOpen)
		}
		g.hub.bounds.DeadAfter = patience // of the next tunnel: nothing is lost any more, however busy the machine
		m.cutNow()
		m.lost.Store(false)
		eventually(t, "back", func() bool { return g.hub.Live("tcp", "echo") && g.hub.Status().Parked >= 4 })
		conform(t, g)
		eventually(t, "nothing of the old tunnel", func() bool {
			s := g.hub.Status()
			return lets == "all" || s.Carried <= s.Parked+s.Tunnels[0].Streams
		})
	})
}

// TestF13_Cut: all connections are reset at once; the streams of that moment
// end, and the next ones work.
func TestF13_Cut(t *testing.T) {
	onCarriers(t, func(t *testing.T, loops []relay.Loop, lets string) {
		g, m := carriedWorld(t, loops, lets, false, nil)
		o := g.lease(t, request0("tcp", "echo"))
		if o.lease == nil {
			t.Fatal(o.reason)
		}
		c := clientConn(t, o.lease)
		ask(t, c, "before")
		before := g.hub.Status().Tunnels[0].Since
		m.cutNow()
		wantClosed(t, c)
		c.Close()
		o.lease.Ended()
		eventually(t, "back", func() bool { // by another tunnel: of the old one's, some may not have been seen to be cut yet
			s := g.hub.Status().Tunnels
			return len(s) == 1 && s[0].Since.After(before) && s[0].Parked >= 4
		})
		conform(t, g)
	})
}

// TestF15_LastWords: what an agent says before it closes arrives, on a slow
// path too, and so does the end; the client's own half stays open until then.
func TestF15_LastWords(t *testing.T) {
	words := bytes.Repeat([]byte("last words, "), 20_000)
	onCarriers(t, func(t *testing.T, loops []relay.Loop, lets string) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, func(c *HubConfig) { c.DataAddress, c.Loops, c.Bounds.LeaseWait = "", loops, patience })
		m, addr := startMiddlebox(t, onePort(t, g), lets, nil)
		startAgent(t, ca, []string{addr}, func(c *AgentConfig) {
			c.Serve = func(ctx context.Context, s *Stream) {
				defer context.AfterFunc(ctx, func() { s.Conn.Close() })()
				s.Up()
				if _, err := io.ReadFull(s.Conn, make([]byte, 4)); err == nil {
					_, _ = s.Conn.Write(words)
				}
			}
		})
		g.come(t)
		g.warm(t)
		m.delay.Store(int64(time.Millisecond))
		for range 3 {
			o := g.lease(t, request0("tcp", "echo"))
			if o.lease == nil {
				t.Fatal(o.reason)
			}
			c := clientConn(t, o.lease)
			_, err := c.Write([]byte("talk"))
			check0(t, err)
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, words) {
				t.Errorf("%d bytes of %d, %v", len(got), len(words), err)
			}
			c.Close()
			o.lease.Ended()
		}
		m.delay.Store(0)
	})
}

// TestF18_StuckStream: a client that does not read holds up nobody else on the
// same tunnel, and what its agent can say into the path is bounded.
func TestF18_StuckStream(t *testing.T) {
	const most = 64 << 20 // what the kernels' socket buffers on the way may take together; the agent would say more
	onCarriers(t, func(t *testing.T, loops []relay.Loop, lets string) {
		var said atomic.Int64
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, func(c *HubConfig) {
			c.DataAddress, c.Loops, c.Bounds = "", loops, Bounds{LeaseWait: patience, HalfOpenSource: 1000, SourceRate: 100000}
		})
		_, addr := startMiddlebox(t, onePort(t, g), lets, nil)
		startAgent(t, ca, []string{addr}, func(c *AgentConfig) {
			c.Assignments = once(assigned(1, "tcp/echo", "tcp/flood"))
			c.Serve = func(ctx context.Context, s *Stream) {
				if s.Name != "flood" {
					echoHalf(ctx, s)
					return
				}
				defer context.AfterFunc(ctx, func() { s.Conn.Close() })()
				flood(s.Conn, &said, 2*most)
			}
		})
		g.come(t)
		g.warm(t)
		o := g.lease(t, request0("tcp", "flood"))
		if o.lease == nil {
			t.Fatal(o.reason)
		}
		c := clientConn(t, o.lease)
		last, same := int64(-1), 0
		eventually(t, "stuck", func() bool {
			now := said.Load()
			if now == last && now > 0 {
				same++
			} else {
				last, same = now, 0
			}
			return same > 50
		})
		conform(t, g)
		if n := said.Load(); n > most {
			t.Errorf("%d bytes went into a stream that nobody reads", n)
		}
		c.Close()
		o.lease.Ended()
		eventually(t, "ended", func() bool { return g.hub.Status().Carried <= g.hub.Status().Parked+1 })
	})
}

func flood(c net.Conn, said *atomic.Int64, most int64) {
	b := make([]byte, 64<<10)
	for said.Load() < most {
		n, err := c.Write(b)
		said.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// TestDelay: on a path with a delay the pool fills, and who waits is served.
func TestDelay(t *testing.T) {
	onCarriers(t, func(t *testing.T, loops []relay.Loop, lets string) {
		g, m := carriedWorld(t, loops, lets, false, nil)
		m.delay.Store(int64(20 * time.Millisecond))
		var clients sync.WaitGroup
		for range 12 {
			clients.Go(func() {
				o := <-g.ask(g.loops[0], request0("tcp", "echo"))
				if o.lease == nil {
					t.Errorf("no lease: %s", o.reason)
					return
				}
				c := clientConn(t, o.lease)
				if got := ask(t, c, "hello"); got != "hello" {
					t.Errorf("echo: %q", got)
				}
				c.Close()
				o.lease.Ended()
			})
		}
		clients.Wait()
		m.delay.Store(0)
		if w := g.hub.Status().Waits; w.Count != 12 || w.Within[len(w.Within)-1].Count > 12 {
			t.Errorf("waits: %+v, of 12", w)
		}
	})
}
