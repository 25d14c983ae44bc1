package gateway

import (
	"context"
	"crypto/tls"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/handover/handovertest"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestMoveEndToEnd: a gateway with a real hub and a real agent moves with its
// tunnels, over the real transport, and is turned back at each step, while
// clients come and sessions go on.
func TestMoveEndToEnd(t *testing.T) {
	loops := newLoops(t, relay.NewDefault, 4)
	e := startEndToEnd(t, loops)
	current := e.cfg.Tunnels.(hub).Hub
	config := e.ca.client("orders.db.gw.test", alpn.PostgreSQL)
	open := func() *tls.Conn {
		conn, err := tls.Dial("tcp", e.addr, config)
		check(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	old := open()

	var tasks sync.WaitGroup
	stop := make(chan struct{})
	came := 0
	tasks.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			conn, err := tls.Dial("tcp", e.addr, config)
			if err != nil {
				t.Errorf("connection %d: %v", came, err)
				return
			}
			echoes(t, conn)
			conn.Close()
			came++
		}
	})

	steps := []handover.Step{handover.StepCopy, handover.StepFreeze, handover.StepComplete, handover.StepReady, handover.StepCommit}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var remnants []*Gateway
	for i := range 10 {
		loops := newLoops(t, relay.NewDefault, 1+i%4)
		next := newHub(loops)
		h := e.heir(loops, func(c *Config) {
			c.Tunnels = Through(next)
			c.Ends = tunnelEnd(e.cfg.Ends[alpn.Tunnel].TLS, next)
		})
		plan := handovertest.Plan{
			Stages: []handover.Stage{{Givers: []handover.Giver{e.Giver(), current.Giver()}}},
			Takers: []handover.Taker{h, next.Taker(ctx)},
			Died:   h.Close,
		}
		if i%2 == 0 {
			plan.Abort(t, steps[i/2])
			continue
		}
		report := plan.Move(t)
		t.Logf("copied in %v, stalled for %v", report.Copy, report.Stall)
		remnants = append(remnants, e.Gateway)
		e.Gateway, current = h.Gateway(), next
		_, err := old.Write([]byte("!"))
		check(t, err)
		expect(t, old, "!")
	}
	close(stop)
	tasks.Wait()
	if came == 0 {
		t.Error("nobody came")
	}
	t.Logf("%d connections came meanwhile", came)
	for _, g := range remnants {
		select {
		case <-g.Served():
		case <-time.After(patience):
			t.Fatal("a gateway that has moved still serves")
		}
		g.Close()
	}
	echoes(t, old)
}

// TestMoveMany prints what it costs to move idle relays.
func TestMoveMany(t *testing.T) {
	n := min(8000, descriptorLimit()/8)
	if testing.Short() {
		n = min(n, 500)
	}
	w := newWays(t, newLoops(t, relay.NewDefault, 2))
	way := w.both(t)[0]
	for range n {
		w.open(t, way.hello, way.far)
	}
	h := w.heir(newLoops(t, relay.NewDefault, 2), nil)
	old := w.Gateway
	r := handovertest.Move(t, []handover.Giver{old.Giver()}, []handover.Taker{h})
	began := time.Now()
	answered := 0
	for _, l := range h.Gateway().Loops(patience) {
		if l.Answered {
			answered += l.Relays
		}
	}
	quiet := time.Since(began)
	old.Close()
	w.Gateway = h.Gateway()
	if answered != n {
		t.Errorf("%d relays of %d", answered, n)
	}
	t.Logf("%d idle relays: copied in %v (%.0f a second), stalled for %v, then first events for %v; %d bytes in %d records",
		n, r.Copy, float64(n)/r.Copy.Seconds(), r.Stall, quiet, r.Bytes, r.Records)
}
