package tunnel

import (
	"testing"

	"github.com/sallyport/sallyport/dataplane/relay"
)

func TestEcho(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		startAgent(t, ca, []string{g.control.Addr().String()}, nil)
		if p := g.come(t); !p.Up || p.AgentID != agentID || string(p.Assignment) != "1 tcp/echo" {
			t.Fatalf("presence: %+v", p)
		}
		if !g.hub.Live("tcp", "echo") || g.hub.Live("tcp", "other") {
			t.Error("Live: want tcp/echo only")
		}
		for range 20 {
			o := g.lease(t, request0("tcp", "echo"))
			if o.lease == nil {
				t.Fatalf("no lease: %s", o.reason)
			}
			c := clientConn(t, o.lease)
			if got := ask(t, c, "hello"); got != "hello" {
				t.Errorf("echo: %q", got)
			}
			eventually(t, "stream-up", o.lease.Up)
			c.Close()
			o.lease.Ended()
			o.lease.Ended()
		}
		eventually(t, "nothing held", func() bool {
			s := g.hub.Status()
			return s.HalfOpen == 0 && s.Tunnels[0].Streams == 0 && s.Tunnels[0].HalfOpen == 0
		})
	})
}
