package upgrade

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// canaryReport is what sallyport upgrade --canary says in the end.
type canaryReport struct {
	report
	ToVersion string `json:"to_version"`
	Canary    *canaryState
}

// canaryState is what status says while it is watched.
type canaryState struct {
	PID      int    `json:"pid"`
	Phase    string `json:"phase"`
	Passed   uint64 `json:"passed"`
	Relays   int    `json:"relays"`
	Lost     int    `json:"lost"`
	Left     int    `json:"left"`
	Old, New struct {
		Decided uint64 `json:"decided"`
		Failed  uint64 `json:"failed"`
		Timed   uint64 `json:"timed"`
	}
	Verdict struct {
		Outcome, Reason string
	}
}

// command runs sallyport with this service's data directory.
func (s *service) command(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, program(s.t, "sallyport"), append(args, "--data-dir="+s.data, "--format=json")...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// trying is a canary that a command waits for.
type trying struct {
	*service
	done   chan struct{}
	report canaryReport
	stderr string
	err    error
}

func (s *service) canary(args ...string) *trying {
	y := &trying{service: s, done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 2*runWait)
	go func() {
		defer close(y.done)
		defer cancel()
		var out string
		out, y.stderr, y.err = s.command(ctx, append([]string{"upgrade"}, args...)...)
		_ = json.Unmarshal([]byte(out), &y.report)
	}()
	s.t.Cleanup(func() { cancel(); <-y.done })
	return y
}

// state is what status says of the canary; nil for none.
func (s *service) canaryState() *canaryState {
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	out, _, err := s.command(ctx, "status")
	var st struct{ Canary *canaryState }
	if err != nil || json.Unmarshal([]byte(out), &st) != nil {
		return nil
	}
	return st.Canary
}

// serving waits until the canary has that many relays.
func (y *trying) serving(relays int) *canaryState {
	y.t.Helper()
	var c *canaryState
	await(y.t, "a canary with connections", func() bool {
		select {
		case <-y.done:
			y.t.Fatalf("it is over: %+v %v\n%s\n%s", y.report, y.err, y.stderr, lastLines(y.said(), 40))
		default:
		}
		c = y.canaryState()
		return c != nil && c.Relays >= relays
	})
	return c
}

// over says that the command has ended.
func (y *trying) over() bool {
	select {
	case <-y.done:
		return true
	default:
		return false
	}
}

// end waits for the command.
func (y *trying) end() canaryReport {
	y.t.Helper()
	<-y.done
	y.t.Logf("%+v %s", y.report, strings.TrimSpace(y.stderr))
	if y.report.Canary == nil {
		y.t.Fatalf("nothing is said of a canary: %v\n%s\n%s", y.err, y.stderr, lastLines(y.said(), 60))
	}
	if c := y.report.Canary; !ended(c.PID) && c.Left == 0 {
		y.t.Errorf("the canary, process %d, is still there", c.PID)
	}
	return y.report
}

// blamedForWaiting says that a canary has gone back for what its clients waited. Its
// test takes it that what slows one connection does not slow the next: a machine that
// stands still for a moment makes many wait, of one process or of the other.
func (y *trying) blamedForWaiting() bool {
	return y.report.Outcome == "back" && y.report.Canary.Verdict.Outcome == "worse" && strings.Contains(y.report.Canary.Verdict.Reason, "waited more than")
}

// TestCanaryGood: a program that is as good as the old one gets everything in the
// end, and nobody has noticed anything.
func TestCanaryGood(t *testing.T) {
	g := startTried(t)
	before := g.pid()
	g.echo.visits()
	var y *trying
	var r canaryReport
	for range 4 {
		y = g.canary("--canary=50%", "--watch=8s", "--force")
		await(t, "a canary", func() bool { return g.canaryState() != nil || y.over() })
		g.echo.stay(10)
		g.sound()
		if r = y.end(); !y.blamedForWaiting() {
			break
		}
		g.sound()
		g.echo.sound()
	}
	if y.err != nil || r.Outcome != "done" || r.FromPID != before || r.ToPID == r.Canary.PID {
		t.Fatalf("%v: %+v\n%s", y.err, r, lastLines(g.said(), 60))
	}
	if c := r.Canary; c.Passed == 0 || c.New.Decided == 0 || c.Old.Decided == 0 || c.New.Failed != 0 || c.Lost != 0 || c.Left != 0 || c.Verdict.Outcome == "worse" {
		t.Errorf("%+v", c)
	}
	g.generationsSeen = append(g.generationsSeen, r.FromPID)
	if now := g.pid(); now != r.ToPID {
		t.Errorf("process %d serves, not %d", now, r.ToPID)
	}
	g.sound()
	g.echo.sound()
	g.finished()
}

// TestCanaryTooLittle: what cannot be told is not called good. All of the
// canary's connections come back.
func TestCanaryTooLittle(t *testing.T) {
	g := startTried(t)
	before := g.pid()
	y := g.canary("--canary=5%", "--watch=3s") // of 60 in a second: too little to blame it, too
	r := y.end()
	if y.err == nil || r.Outcome != "back" || !strings.Contains(y.stderr, "too little traffic") || r.Canary.Verdict.Outcome != "undecided" || r.Canary.Left != 0 {
		t.Errorf("%v: %+v\n%s", y.err, r, y.stderr)
	}
	if now := g.pid(); now != before {
		t.Errorf("process %d serves, not %d", now, before)
	}
	g.sound()
	g.finished()
}

// TestCanaryBack: an operator takes it back, while it has relays that carry
// bytes.
func TestCanaryBack(t *testing.T) {
	g := startTriedAt(t, 10) // so few in a second that a machine which stands still is not held against it
	y := g.canary("--canary=50%", "--watch=10m")
	await(t, "a canary", func() bool { return g.canaryState() != nil })
	g.echo.stay(60) // half of them by chance
	y.serving(10)
	// What would change what is compared is refused, and touches nothing.
	for _, args := range [][]string{{"upgrade"}, {"reload"}, {"upgrade", "--canary=5%"}} {
		if _, stderr, err := g.command(t.Context(), args...); err == nil || !strings.Contains(stderr, "a canary is being watched") {
			t.Errorf("%v meanwhile: %v: %s", args, err, stderr)
		}
	}
	g.sound()
	back := g.canary("--back")
	if r := back.end(); back.err != nil || r.Outcome != "back" || r.Canary.Left+r.Canary.Lost != 0 {
		t.Errorf("--back: %v: %+v\n%s", back.err, r, back.stderr)
	}
	if r := y.end(); r.Outcome != "back" {
		t.Errorf("%+v", r)
	}
	g.sound()
	g.echo.sound()
	// And another one, which an operator lets finish.
	y = g.canary("--canary=50%", "--watch=10m")
	await(t, "a canary", func() bool { return g.canaryState() != nil })
	g.echo.stay(40)
	y.serving(2)
	finish := g.canary("--finish")
	if r := finish.end(); finish.err != nil || r.Outcome != "done" {
		t.Errorf("--finish: %v: %+v\n%s", finish.err, r, finish.stderr)
	}
	if r := y.end(); r.Outcome != "done" {
		t.Errorf("%+v", r)
	}
	g.generationsSeen = append(g.generationsSeen, y.report.FromPID)
	g.sound()
	g.echo.sound()
	g.finished()
}

// TestCanaryBad: a program that is worse goes back by itself, long before the end
// of the watch. The old process's connections know nothing of it.
func TestCanaryBad(t *testing.T) {
	for name, c := range map[string]struct{ points, says string }{
		"refuses": {"gateway.guest.connection=error", "failed"},
		"slow":    {"gateway.guest.connection=sleep:80ms", "first byte"},
		"silent":  {"canary.new.report#8=hang", "said nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startTriedAt(t, 0, "SALLYPORT_FAILPOINTS="+c.points)
			before := g.pid()
			g.echo.visits() // some of them meet the bad program
			y := g.canary("--canary=30%", "--watch=10m")
			r := y.end()
			if y.err == nil || r.Outcome != "back" || !strings.Contains(y.stderr, c.says) {
				t.Errorf("%v: %+v\n%s", y.err, r, y.stderr)
			}
			if now := g.pid(); now != before {
				t.Errorf("process %d serves, not %d", now, before)
			}
			g.untouched()
			g.finished()
		})
	}
}

// untouched wants the old process's connections as they were, and new ones to
// be served by it.
func (g *tried) untouched() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), upWait)
	defer cancel()
	if err := g.crowd.Check(ctx); err != nil {
		g.t.Fatal(err)
	}
	before := g.crowd.SoFar()
	await(g.t, "bytes", func() bool {
		now := g.crowd.SoFar()
		return now.Verified > before.Verified+1<<20 || !now.Sound()
	})
	if r := g.crowd.SoFar(); !r.Sound() {
		g.t.Fatalf("the crowd: %+v\n%s", r, lastLines(g.said(), 40))
	}
	for range 20 {
		if err := g.echo.visit(); err != nil {
			g.t.Errorf("a new connection: %v", err)
		}
	}
}

// TestCanaryKilled: whichever of the two is killed takes with it what it had, and
// nothing of the other's.
func TestCanaryKilled(t *testing.T) {
	t.Parallel() // it waits more than it works
	g := startTriedAt(t, 0)
	y := g.canary("--canary=30%", "--watch=10m")
	await(t, "a canary", func() bool { return g.canaryState() != nil })
	g.echo.stay(40)
	if err := syscall.Kill(y.serving(2).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := y.end(); r.Outcome != "back" || !strings.Contains(y.stderr, "ended by itself") || r.Canary.Lost == 0 {
		t.Errorf("%+v\n%s", r, y.stderr)
	}
	g.untouched()
	if left := g.echo.forget(); left == 0 || left == 40 {
		t.Errorf("of 40 connections %d live: those of the old process are to, and no others", left)
	}
	// The old process: what the canary has goes on, until it ends.
	y = g.canary("--canary=50%", "--watch=10m")
	await(t, "a canary", func() bool { return g.canaryState() != nil })
	g.echo.stay(40)
	c := y.serving(5)
	if err := syscall.Kill(g.pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-g.done
	if alive := g.echo.alive(); alive < 5 {
		t.Errorf("%d connections live, and the canary had %d", alive, c.Relays)
	}
	g.echo.forget()
	await(t, "the end of the canary", func() bool { return ended(c.PID) })
	<-y.done
	if y.err == nil {
		t.Error("the command does not say that nobody knows what came of it")
	}
}
