package upgrade

import (
	"slices"
	"strings"
	"testing"
)

// Each step of a canary has a point. What comes of a process that stops there, is
// slow there, or fails there, is for the canary:
//
//	before it is ready   it is refused; nothing has begun
//	panic                what it had ends with it, and nothing of the old process's
//	sleep                nothing
//	error                nothing; what it does not give back it serves out
//
// and for the old process the same, but that after its panic only the canary's
// connections go on.

// canaryCase is a point, a way to come to grief there, and whether that is tried
// each time or only when all are.
type canaryCase struct {
	point, way string
	always     bool
}

// canaryTries are the connections of each case. Half of them come to the canary, by
// chance: that none does is not to happen.
const canaryTries = 24

// begins says that no canary has come to be when it fails there.
func (c canaryCase) begins() bool {
	return c.way != "sleep" && slices.Contains([]string{"canary.new.start", "canary.new.ready", "canary.old.start", "canary.old.meet"}, c.point)
}

func (c canaryCase) plan() string {
	if c.way == "sleep" {
		return c.point + "=sleep:200ms"
	}
	return c.point + "#1=" + c.way
}

// casesOf are all cases of a process's points; some are tried always.
func casesOf(t *testing.T, prefixes []string, always map[string]string) (out []canaryCase) {
	t.Helper()
	seen := map[string]bool{}
	for _, prefix := range prefixes {
		for _, point := range failpointsOf(t, prefix) {
			if seen[point] {
				continue
			}
			seen[point] = true
			for _, way := range []string{"error", "sleep", "panic"} {
				if c := (canaryCase{point, way, always[point] == way}); c.always || everyWay() {
					out = append(out, c)
				}
			}
		}
	}
	for point := range always {
		if !seen[point] {
			t.Errorf("there is no point %s", point)
		}
	}
	return out
}

// attend opens connections, and keeps those that could be opened.
func (e *echo) attend(n int) {
	for range n {
		c, err := e.dial()
		if err != nil {
			continue
		}
		if e.talk(c) != nil {
			c.Close()
			continue
		}
		g := &guest{conn: c}
		e.mu.Lock()
		e.kept = append(e.kept, g)
		e.mu.Unlock()
	}
}

// tries lets a canary be and go back, with this case in one of the processes.
func (g *tried) tries(c canaryCase) {
	g.t.Helper()
	before := g.pid()
	y := g.canary("--canary=50%", "--watch=10m")
	if c.begins() {
		<-y.done
		if y.err == nil || !strings.HasPrefix(y.stderr, "ERROR: ") || y.report.Canary != nil {
			g.t.Errorf("%+v: %v: %+v\n%s", c, y.err, y.report, y.stderr)
		}
		g.servesAs(before)
		return
	}
	var state *canaryState
	await(g.t, "a canary", func() bool {
		state = g.canaryState()
		return state != nil
	})
	g.echo.attend(canaryTries)
	await(g.t, "it has got some, or is gone", func() bool {
		now := g.canaryState()
		if now != nil {
			state = now
		}
		return now == nil || now.Passed > 0
	})
	back := g.canary("--back")
	<-back.done
	r := y.end()
	if r.Outcome != "back" || r.Canary.Passed == 0 {
		g.t.Errorf("%+v: %+v\n%s", c, r, y.stderr)
	}
	g.servesAs(before)
	g.soundAfter(c, r)
	g.echo.forget()
	await(g.t, "the canary ends with the last", func() bool { return ended(state.PID) })
}

// servesAs wants the old process, and what it had, as they were.
func (g *tried) servesAs(pid int) {
	g.t.Helper()
	if now := g.pid(); now != pid {
		g.t.Errorf("process %d serves, not %d", now, pid)
	}
	g.untouched()
}

// soundAfter compares who lives with what was said.
func (g *tried) soundAfter(c canaryCase, r canaryReport) {
	g.t.Helper()
	g.echo.mu.Lock()
	kept := len(g.echo.kept)
	g.echo.mu.Unlock()
	alive := g.echo.alive()
	switch {
	case c.way == "panic":
		if gone := kept - alive; gone > int(r.Canary.Passed) {
			g.t.Errorf("%+v: %d have ended, and the canary had got %d", c, gone, r.Canary.Passed)
		}
	case c.point == "gateway.guest.connection" && c.way == "error", c.point == "canary.old.take" && c.way == "error":
		if alive < kept-1 {
			g.t.Errorf("%+v: of %d connections %d live", c, kept, alive)
		}
	case alive != kept || r.Canary.Lost != 0:
		g.t.Errorf("%+v: of %d connections %d live: %+v", c, kept, alive, r.Canary)
	}
}

// TestCanaryPoints: the canary comes to grief at each of its steps.
func TestCanaryPoints(t *testing.T) {
	t.Parallel() // it waits more than it works
	cases := casesOf(t, []string{"canary.new.", "gateway.guest."}, map[string]string{"canary.new.start": "panic", "canary.new.ready": "error",
		"gateway.guest.connection": "panic", "canary.new.return": "panic", "canary.new.returned": "sleep", "canary.new.end": "error"})
	g := startTriedAt(t, 0)
	for _, c := range cases {
		t.Run(c.point+"="+c.way, func(t *testing.T) {
			defer g.in(t)()
			g.failing(c.plan())
			g.tries(c)
		})
	}
	g.finished()
}

// TestCanaryOldPoints: the old process fails at each of its steps, or is slow there.
// Each case has a process of its own: one canary comes to several of the points.
func TestCanaryOldPoints(t *testing.T) {
	t.Parallel() // it waits more than it works
	cases := casesOf(t, []string{"canary.old."}, map[string]string{"canary.old.start": "error", "canary.old.meet": "error", "canary.old.pass": "error", "canary.old.return": "error"})
	cases = slices.DeleteFunc(cases, func(c canaryCase) bool { return c.way == "panic" })
	for _, c := range cases {
		t.Run(c.point+"="+c.way, func(t *testing.T) {
			g := startTriedAt(t, 0, "SALLYPORT_FAILPOINTS="+c.plan())
			g.tries(c)
			g.finished()
		})
	}
}

// TestCanaryOldPanics: the old process ends at one of its steps. What the canary
// has by then goes on, and it ends with that.
func TestCanaryOldPanics(t *testing.T) {
	t.Parallel() // it waits more than it works
	cases := casesOf(t, []string{"canary.old."}, map[string]string{"canary.old.return": "panic"})
	for _, c := range slices.DeleteFunc(cases, func(c canaryCase) bool { return c.way != "panic" }) {
		t.Run(c.point, func(t *testing.T) {
			g := startTriedAt(t, 0, "SALLYPORT_FAILPOINTS="+c.plan())
			g.panics = c.point
			g.failing("") // its lines are not to stand inside the old process's
			y := g.canary("--canary=50%", "--watch=10m")
			if c.begins() {
				<-g.done
				<-y.done
				if y.err == nil {
					t.Error("the command does not say that nobody knows what came of it")
				}
				return
			}
			await(t, "a canary", func() bool { return g.canaryState() != nil })
			state := g.canaryState()
			g.echo.attend(canaryTries)
			if c.point != "canary.old.pass" {
				state = y.serving(1)
				g.canary("--back") // which waits for an answer, and ends with the test
			}
			<-g.done
			alive := g.echo.alive()
			if c.point == "canary.old.return" && alive < state.Relays {
				t.Errorf("%d connections live, and the canary had %d", alive, state.Relays)
			}
			g.echo.forget()
			await(t, "the end of the canary", func() bool { return ended(state.PID) })
		})
	}
}
