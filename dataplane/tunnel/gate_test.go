package tunnel

import (
	"context"
	"crypto/tls"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// runGated runs an agent's process; its streams begin with its name.
func runGated(t *testing.T, ca *authority, g *gateway, name string, gate *Gate) (done chan error, stop context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cert := ca.issue(t, sallyport.KindAgent, agentID)
	cfg := AgentConfig{
		AgentID: agentID, Cluster: testCluster, Version: name, Gateways: []string{g.control.Addr().String()}, Log: testLog(t),
		TLS:         func(string) (*tls.Config, error) { return ca.client(cert), nil },
		Assignments: once(assigned(1, "tcp/echo")), Gate: gate,
		Serve: func(ctx context.Context, s *Stream) {
			if _, err := s.Conn.Write([]byte(name)); err != nil {
				t.Error(err)
			}
			echo(ctx, s)
		},
	}
	done = make(chan error, 1)
	go func() { done <- RunAgent(ctx, cfg) }()
	t.Cleanup(cancel)
	return done, cancel
}

// stream opens one and says which process serves it.
func (g *gateway) stream(t *testing.T) (by string, end func(), talk func(text string) string) {
	t.Helper()
	l := g.lease(t, request0("tcp", "echo")).lease
	if l == nil {
		t.Fatal("no lease")
	}
	c := clientConn(t, l)
	name := make([]byte, 3)
	_, err := c.Read(name)
	check0(t, err)
	return string(name), func() { c.Close(); l.Ended() }, func(text string) string { return ask(t, c, text) }
}

// TestGateLeave is an agent's upgrade: nothing is refused, streams that run go
// on, new ones are the new process's once it has its tunnel, and the old one
// ends with its last stream.
func TestGateLeave(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		var gate Gate
		done, _ := runGated(t, ca, g, "old", &gate)
		g.come(t)
		g.warm(t)
		by, endFirst, talk := g.stream(t)
		if by != "old" {
			t.Fatalf("served by %q", by)
		}
		gate.Hold()
		for _, step := range []func(){func() {}, gate.Leave} {
			step()
			by, end, _ := g.stream(t)
			if by != "old" {
				t.Errorf("served by %q before the new process is there", by)
			}
			end()
		}
		next, stop := runGated(t, ca, g, "new", new(Gate))
		receive(t, g.ended) // the old tunnel's
		g.warm(t)
		eventually(t, "the new process's tunnel", func() bool {
			s := g.hub.Status().Tunnels
			return len(s) == 1 && s[0].Version == "new" && s[0].Parked > 0
		})
		by, end, _ := g.stream(t)
		if by != "new" {
			t.Errorf("a new stream is served by %q", by)
		}
		end()
		if got := talk("still"); got != "still" {
			t.Errorf("the old stream says %q", got)
		}
		select {
		case err := <-done:
			t.Fatalf("the old process ended with a stream open: %v", err)
		default:
		}
		endFirst()
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
		if n := len(g.ended); n > 0 || len(g.hub.Status().Tunnels) != 1 {
			t.Errorf("%d more tunnels ended", n)
		}
		stop()
		receive(t, next)
	})
}

// TestGateDrain: an agent that drains says goodbye at once, gets no more streams,
// and ends with its last.
func TestGateDrain(t *testing.T) {
	onLoops(t, 2, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		var gate Gate
		done, _ := runGated(t, ca, g, "old", &gate)
		g.come(t)
		g.warm(t)
		_, end, talk := g.stream(t)
		gate.Drain()
		receive(t, g.ended)
		if w := g.lease(t, request0("tcp", "echo")); w.lease != nil {
			t.Error("a stream was leased to an agent that has said goodbye")
		}
		select {
		case err := <-done:
			t.Fatalf("it has ended with a stream: %v", err)
		default:
		}
		if got := talk("still here"); got != "still here" {
			t.Errorf("the stream says %q", got)
		}
		end()
		check0(t, receive(t, done))
	})
}

// TestGateHeld: nothing is dialed while the gate is held; the way back dials.
func TestGateHeld(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		var gate Gate
		gate.Hold()
		gate.Hold()
		done, stop := runGated(t, ca, g, "old", &gate)
		if open, cancel := gate.while(t.Context()); open.Err() == nil {
			eventually(t, "a dial is cancelled", func() bool { return open.Err() != nil })
			cancel()
		} else {
			cancel()
		}
		select {
		case <-g.presence:
			t.Fatal("dialed behind a gate that is held")
		default:
		}
		gate.Resume()
		g.come(t)
		gate.Resume()
		if open, cancel := gate.while(t.Context()); open.Err() != nil {
			t.Error("not open after Resume")
		} else {
			cancel()
		}
		stop()
		receive(t, done)
	})
}

// TestGateLeftBefore: a process that leaves before it has a tunnel ends.
func TestGateLeftBefore(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, nil)
		var gate Gate
		gate.Hold()
		done, _ := runGated(t, ca, g, "old", &gate)
		gate.Leave()
		gate.Resume()
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
		if gate.pass(t.Context()) {
			t.Error("a gate that was left is open")
		}
	})
}
