package upgrade

import (
	"context"
	"strings"
	"syscall"
	"testing"
)

// TestCanaryBreaksComingBack: a canary that was good until its connections were to
// come back, and breaks then, is no program for the rest. It was upgraded to.
func TestCanaryBreaksComingBack(t *testing.T) {
	t.Parallel() // it waits more than it works
	for way, want := range map[string]string{"panic": "ended by itself", "hang": "did not give all its connections back"} {
		t.Run(way, func(t *testing.T) {
			g := startTriedAt(t, 0)
			before := g.pid()
			g.failing("canary.new.return=" + way)
			y := g.canary("--canary=50%", "--watch=10m")
			await(t, "a canary", func() bool { return g.canaryState() != nil })
			g.echo.attend(canaryTries)
			state := y.serving(1)
			finish := g.canary("--finish")
			r := y.end()
			<-finish.done
			if r.Outcome != "back" || !strings.Contains(r.Problem, want) || finish.err == nil || !strings.Contains(finish.stderr, want) {
				t.Errorf("%+v\n%v: %s", r, finish.err, finish.stderr)
			}
			g.servesAs(before)
			if way == "hang" { // as the hint says
				if r.Canary.Left == 0 {
					t.Errorf("%+v", r.Canary)
				}
				_ = syscall.Kill(state.PID, syscall.SIGKILL)
			}
			await(t, "the end of the canary", func() bool { return ended(state.PID) })
		})
	}
}

// TestCanaryBackComingBack: --back counts also while a canary's connections come back
// to be upgraded; it was heard, and nothing came of it.
func TestCanaryBackComingBack(t *testing.T) {
	t.Parallel() // it waits more than it works
	g := startTriedAt(t, 0)
	before := g.pid()
	g.failing("canary.new.returned#1=sleep:8s")
	y := g.canary("--canary=50%", "--watch=10m")
	await(t, "a canary", func() bool { return g.canaryState() != nil })
	g.echo.attend(canaryTries)
	y.serving(1)
	g.canary("--finish")
	await(t, "its connections come back", func() bool { s := g.canaryState(); return s != nil && s.Phase == "coming back" })
	g.canary("--back")
	if r := y.end(); r.Outcome != "back" || r.Canary.Left+r.Canary.Lost > 0 {
		t.Errorf("%+v", r)
	}
	g.servesAs(before)
}

// TestEndAtCommit: who wants the service to end, and asks the old process when the
// work is just another's, is heard. Only a process that stays in the other's place
// passed it on, and the service went on for ever.
func TestEndAtCommit(t *testing.T) {
	t.Parallel() // it waits more than it works
	g := startTriedAt(t, 0, "SALLYPORT_FAILPOINTS=handover.old.leave=sleep:5s")
	old := g.pid()
	told := make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	t.Cleanup(func() { cancel(); <-told })
	go func() {
		defer close(told)
		_, _, _ = g.command(ctx, "upgrade") // nothing is asked but the process's log
	}()
	await(t, "the commit", func() bool { return strings.Contains(g.said(), "sallyport has taken over") })
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		t.Fatalf("process %d has ended before it was asked to: %v", old, err)
	}
	<-g.done
	await(t, "the end of the new process", func() bool { _, err := g.status(); return err != nil })
}

// TestDrainGateway: what a drain of a gateway waits for: people in the jump server,
// who were passed over; and not the way of an agent to auth, for which it waited for
// ever.
func TestDrainGateway(t *testing.T) {
	needPeers(t)
	c := startCluster(t, "")
	cs := newClients(t)
	c.jumper(cs)
	cs.goOn()
	if out, stderr, err := c.gw.command(t.Context(), "drain", "--timeout=1s", "--notice=0s"); err == nil || !strings.Contains(stderr, "1 jump connection") {
		t.Fatalf("%v\n%s\n%s", err, out, stderr)
	}
	cs.goOn()
	cs.end()
	if out, stderr, err := c.gw.command(t.Context(), "drain", "--timeout=1m", "--notice=0s"); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, stderr)
	}
}
