package upgrade

import (
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
