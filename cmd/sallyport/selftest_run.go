package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/crowd"
)

const (
	// selftestProcessors let each of the crowd's threads run at once whenever it
	// has something to do: it keeps the time.
	selftestProcessors = 8

	selftestQuiet   = time.Second            // with load and no upgrade, to compare with
	selftestSettle  = 250 * time.Millisecond // after the old process has ended
	selftestPatient = 15 * time.Second       // for the old process to end

	// memoryEvery: reading a process's memory stops it for a moment, so that is
	// done in some of the upgrades only.
	memoryEvery = 10
)

// selftest is one run.
type selftest struct {
	cmd     *selftestUpgradeCmd
	p       *program
	size    crowd.Config
	gateway *testedGateway
	crowd   *crowd.Crowd

	gaps, quiet, control []time.Duration
	late                 time.Duration
	done                 []*upgradeSeen
	before               uint64  // memory
	peak                 float64 // of the memory, to before
}

// run starts a gateway, lets the crowd in, upgrades, and says what became of it.
func (t *selftest) run(ctx context.Context) (*selftestResult, error) {
	runtime.GOMAXPROCS(max(selftestProcessors, runtime.GOMAXPROCS(0)))
	dir, err := os.MkdirTemp("", "sallyport-selftest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if t.crowd, err = crowd.New(t.size); err != nil {
		return nil, err
	}
	defer t.crowd.Close()
	if t.gateway, err = startTested(ctx, dir, t.crowd.Servers()); err != nil {
		return nil, err
	}
	defer t.gateway.stop()
	if t.cmd.Program != "" {
		if err := t.gateway.alternate(t.cmd.Program); err != nil {
			return nil, err
		}
	}
	t.say("%d connections to process %d ...", t.size.Kept, t.gateway.pid)
	if err := t.crowd.Open(ctx, t.gateway.listen); err != nil {
		return nil, fmt.Errorf("the gateway of the self-test: %w%s", err, t.gateway.lastWords())
	}
	problem := t.upgrades(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	report, err := t.crowd.Finish(ctx)
	if err != nil {
		return nil, err
	}
	return t.result(report, problem), nil
}

// say shows progress to whoever waits.
func (t *selftest) say(format string, args ...any) {
	fmt.Fprintf(t.p.stderr, format+"\n", args...)
}

// upgrades does all of them, until one fails.
func (t *selftest) upgrades(ctx context.Context) error {
	if err := t.rest(ctx); err != nil {
		return err
	}
	for n := range t.cmd.Upgrades {
		if err := t.upgrade(ctx, n); err != nil {
			return fmt.Errorf("upgrade %d: %w", n+1, err)
		}
	}
	return nil
}

// rest measures what there is without an upgrade.
func (t *selftest) rest(ctx context.Context) error {
	if err := t.crowd.Begin(ctx); err != nil {
		return err
	}
	if err := wait(ctx, selftestQuiet); err != nil {
		return err
	}
	w := t.crowd.End()
	t.quiet = w.Gaps
	slices.Sort(t.quiet)
	if err := t.crowd.Check(ctx); err != nil {
		return err
	}
	m, err := memoryOf(t.gateway.pid)
	t.before = m.all
	return err
}

// upgrade is one, from the command until the old process has ended, every
// connection has been heard of, and what was seen is noted.
func (t *selftest) upgrade(ctx context.Context, n int) error {
	if err := t.crowd.Begin(ctx); err != nil {
		return err
	}
	seen, err := t.gateway.upgrade(ctx, n%memoryEvery == 0)
	if werr := wait(ctx, selftestSettle); err == nil {
		err = werr
	}
	w := t.crowd.End()
	t.gaps, t.control, t.late = append(t.gaps, w.Gaps...), append(t.control, w.Control...), max(t.late, w.Late)
	if err := t.crowd.Check(ctx); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	t.done = append(t.done, seen)
	if t.before > 0 {
		t.peak = max(t.peak, float64(seen.memory)/float64(t.before))
	}
	so := t.crowd.SoFar()
	t.say("upgrade %d of %d: %s, stalled %s at most, released after %s; lost %d, corrupted %d, refused %d", n+1, t.cmd.Upgrades,
		ms(milliseconds(seen.took)), ms(milliseconds(w.Longest())), ms(milliseconds(seen.released)), so.Lost, so.Corrupted, so.Refused)
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (t *selftest) result(c crowd.Report, problem error) *selftestResult {
	slices.Sort(t.gaps)
	slices.Sort(t.control)
	r := &selftestResult{
		Kept: c.Kept, Lost: c.Lost, Corrupted: c.Corrupted, Refused: c.Refused, BytesVerified: c.Verified, Reasons: c.Reasons,
		Connections: t.size.Kept, Busy: t.size.Busy, Upgrades: len(t.done), Served: c.Served, Missed: c.Missed,
		ConnectP50: milliseconds(c.Fresh.P50), ConnectP99: milliseconds(c.Fresh.P99), ConnectMax: milliseconds(c.Fresh.Max), MemoryPeak: t.peak,
		StallP50: milliseconds(quantile(t.gaps, 0.50)), StallP99: milliseconds(quantile(t.gaps, 0.99)), StallMax: milliseconds(max(quantile(t.gaps, 1), t.late)),
		QuietP99: milliseconds(quantile(t.quiet, 0.99)), QuietMax: milliseconds(quantile(t.quiet, 1)),
		ControlP99: milliseconds(quantile(t.control, 0.99)), ControlMax: milliseconds(quantile(t.control, 1)),
	}
	if r.Reasons == nil {
		r.Reasons = map[string]int{}
	}
	var speeds []float64
	for _, u := range t.done {
		r.Released, r.OldExit, r.Took = max(r.Released, milliseconds(u.released)), max(r.OldExit, milliseconds(u.exited)), max(r.Took, milliseconds(u.took))
		speeds = append(speeds, u.speed)
	}
	if slices.Sort(speeds); len(speeds) > 0 {
		r.RelaysPerSecond = speeds[len(speeds)/2]
	}
	if problem != nil {
		r.Problem = problem.Error()
	}
	return r
}

// errStayed: the old process has nothing to stay for here.
var errStayed = errors.New("the old process did not end")
