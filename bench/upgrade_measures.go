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
	// crowdName is the server name of the clients that stay (RFC 2606, section 2).
	crowdName = "crowd.bench.test"

	upgradesEach  = 3
	betweenThem   = time.Second
	oldProcessFor = 10 * time.Second // is waited for the old processes to end

	// crowdProcessors let each of the crowd's threads run whenever it has
	// something to do: it keeps the time.
	crowdProcessors = 8
)

// crowdFor is the load: of each process two descriptors a connection.
func crowdFor(z sizes) crowd.Config {
	c := crowd.Config{Name: crowdName, Kept: z.crowd, Busy: z.crowd / 40, Rate: z.crowd / 4}
	for c.Descriptors() > files() && c.Kept > 100 {
		c.Kept, c.Busy = c.Kept-100, (c.Kept-100)/40
	}
	return c
}

func openUpgrades(ctx context.Context, r *rig) (opened, error) {
	adoptOrphans()
	w := &upgradeWorld{dir: r.dir, bin: r.bin}
	return opened{measures: slices.Concat(w.measures(r.sizes), w.selfTests(r.sizes)), peers: relayVersions(ctx), close: func() {}}, nil
}

// measures hold our upgrade against those of others.
func (w *upgradeWorld) measures(z sizes) []comparison {
	var out []comparison
	c := crowdFor(z)
	for _, peer := range []upgradeSubject{w.haproxy(), w.nginx()} {
		ours, n := w.ours(), upgradesEach
		if peer.once {
			n = 1
		}
		m := comparison{Measure: Measure{
			Name: "upgrade/" + peer.name, Title: "Upgrades under load", A: ours.title, B: peer.title, Missing: peer.missing,
			Load: fmt.Sprintf("%d connections that stay, %d of them with %d KiB/s of checked bytes each way, and %d new ones a second; upgrades, a second apart: %d; then up to %s for the old processes to end; new processes for each sample, nothing kept to a core",
				c.Kept, c.Busy, crowd.DefaultPace>>10, c.Rate, n, oldProcessFor),
			Quantities: []Quantity{
				{Key: "kept", Title: "connections kept", Unit: " %", More: true},
				{Key: "lost", Title: "lost or corrupted"},
				{Key: "refused", Title: "new connections refused"},
				{Key: "served", Title: "new connections served", Unit: "/s", More: true},
				{Key: "stall99", Title: "busy connections stood still, p99", Unit: " ms"},
				{Key: "stall", Title: "the longest", Unit: " ms"},
				{Key: "connect99", Title: "new connections, p99", Unit: " ms"},
				{Key: "left", Title: fmt.Sprintf("old processes still there after %s", oldProcessFor)},
				{Key: "gone", Title: "until the last old process had ended, or given up on", Unit: " s"},
				{Key: "memory", Title: "memory of all processes at the peak, to before", Unit: "×"},
				{Key: "after", Title: "and in the end, to before", Unit: "×"},
			},
		}}
		if m.Missing == "" {
			m.a, m.b = w.side(ours, c, n), w.side(peer, c, n)
		}
		out = append(out, m)
	}
	return out
}

func (w *upgradeWorld) side(s upgradeSubject, c crowd.Config, n int) side {
	return func(ctx context.Context) (Sample, error) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(crowdProcessors))
		return w.sample(ctx, s, c, n)
	}
}

// sample starts a subject, lets a crowd in, upgrades, and looks.
func (w *upgradeWorld) sample(ctx context.Context, s upgradeSubject, config crowd.Config, n int) (out Sample, err error) {
	c, err := crowd.New(config)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	p, err := w.place(s.name, c.Servers()[0])
	if err != nil {
		return nil, err
	}
	u, err := s.start(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	if err := c.Open(ctx, u.to); err != nil {
		return nil, fmt.Errorf("%w: %s", err, u.log())
	}
	seen, err := upgradeUnder(ctx, u, c, n)
	if err != nil {
		return nil, err
	}
	r, err := c.Finish(ctx)
	if err != nil {
		return nil, err
	}
	for why, times := range r.Reasons {
		fmt.Printf("  %s: %d times %s\n", s.name, times, why)
	}
	return seen.sample(r, config), nil
}

// upgradesSeen is what was seen of some upgrades.
type upgradesSeen struct {
	gaps                []time.Duration
	longest             time.Duration
	left                int
	gone, took          time.Duration
	before, peak, after float64 // memory
}

func upgradeUnder(ctx context.Context, u *upgradable, c *crowd.Crowd, n int) (*upgradesSeen, error) {
	began := time.Now()
	if err := pause(ctx, betweenThem); err != nil {
		return nil, err
	}
	seen := &upgradesSeen{before: memoryOfAll(u)}
	seen.peak = seen.before
	var old []int
	var last time.Time
	for range n {
		before, err := u.serving()
		if err != nil {
			return nil, err
		}
		old = append(old, before...)
		if err := c.Begin(ctx); err != nil {
			return nil, err
		}
		if err := u.replace(ctx); err != nil {
			return nil, fmt.Errorf("upgrade: %w: %s", err, u.log())
		}
		last = time.Now()
		seen.peak = max(seen.peak, memoryOfAll(u))
		if err := seen.waitForOld(ctx, old, last, betweenThem); err != nil {
			return nil, err
		}
		if err := pause(ctx, time.Until(last.Add(betweenThem))); err != nil {
			return nil, err
		}
		w := c.End()
		seen.gaps, seen.longest = append(seen.gaps, w.Gaps...), max(seen.longest, w.Longest())
		if err := c.Check(ctx); err != nil {
			return nil, err
		}
	}
	if seen.left > 0 {
		if err := seen.waitForOld(ctx, old, last, oldProcessFor); err != nil {
			return nil, err
		}
	}
	seen.after, seen.took = memoryOfAll(u), time.Since(began)
	seen.peak = max(seen.peak, seen.after)
	return seen, nil
}

// waitForOld waits for the old processes, but not for ever.
func (s *upgradesSeen) waitForOld(ctx context.Context, old []int, since time.Time, most time.Duration) error {
	for {
		left := 0
		for _, pid := range old {
			if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
				left++
			}
		}
		s.left, s.gone = left, time.Since(since)
		if left == 0 || s.gone > most {
			return nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// memoryOfAll is what all processes have together, pages that they share once.
func memoryOfAll(u *upgradable) (sum float64) {
	pids, _ := u.pids()
	for _, pid := range pids {
		m, err := memoryOf(pid)
		if err == nil { // else it has ended
			sum += m.PSS
		}
	}
	return sum
}

func (s *upgradesSeen) sample(r crowd.Report, c crowd.Config) Sample {
	slices.Sort(s.gaps)
	out := Sample{
		"kept": 100 * float64(r.Kept) / float64(c.Kept), "lost": float64(r.Lost + r.Corrupted), "refused": float64(r.Refused),
		"served": float64(r.Served) / s.took.Seconds(), "stall": inMillis(s.longest), "connect99": inMillis(r.Fresh.P99),
		"left": float64(s.left), "gone": s.gone.Seconds(),
	}
	if n := len(s.gaps); n > 0 {
		out["stall99"] = inMillis(s.gaps[min(n*99/100, n-1)])
	}
	if s.before > 0 {
		out["memory"], out["after"] = s.peak/s.before, s.after/s.before
	}
	return out
}

func inMillis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
