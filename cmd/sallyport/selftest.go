package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/usage"
	"github.com/sallyport/sallyport/cmd/sallyport/crowd"
)

type selftestCmd struct {
	Upgrade selftestUpgradeCmd `cmd:"" help:"Upgrade a gateway of its own under load, and say what became of the connections."`
}

type selftestUpgradeCmd struct {
	Connections int    `name:"connections" default:"8000" help:"Connections that stay, the busy ones among them."`
	Upgrades    int    `name:"upgrades" default:"3" help:"Upgrades, one after the other."`
	Busy        int    `name:"busy" default:"200" help:"Connections that carry bytes both ways, each of which is checked."`
	Rate        int    `name:"rate" default:"2000" help:"New connections per second."`
	Program     string `name:"program" placeholder:"FILE" help:"Another sallyport to change to, and back, in turn. Without, from this one to itself."`
	JSON        bool   `name:"json" help:"Print one JSON object."`
}

// Help shows examples.
func (*selftestUpgradeCmd) Help() string {
	return usage.Examples("sallyport selftest upgrade", "sallyport selftest upgrade --connections=8000 --upgrades=100 --json",
		"sallyport selftest upgrade --program=/tmp/sallyport.new     # to that one and back, before it is installed") +
		"\n\nIt starts a gateway in a temporary directory, on the loopback interface, and touches no other. The exit code is 1 when\n" +
		"anything was lost, corrupted or refused, or an upgrade failed."
}

// selftestServer is the server name of the self-test (RFC 2606, section 2: nobody has it).
const selftestServer = "selftest.invalid"

// selftestResult is what a self-test found. Times are the worst of all upgrades,
// but for the percentiles, which are of all busy connections that keep the time
// in all upgrades.
type selftestResult struct {
	Kept      int `json:"kept"`
	Lost      int `json:"lost"`
	Corrupted int `json:"corrupted"`
	Refused   int `json:"refused"`

	StallP50 float64 `json:"stall_p50_ms"`
	StallP99 float64 `json:"stall_p99_ms"`
	StallMax float64 `json:"stall_max_ms"`

	BytesVerified   uint64  `json:"bytes_verified"`
	RelaysPerSecond float64 `json:"relays_per_second"` // the median
	Released        float64 `json:"released_ms"`
	OldExit         float64 `json:"old_exit_ms"`

	Connections int     `json:"connections"`
	Busy        int     `json:"busy"`
	Upgrades    int     `json:"upgrades"` // that were done
	Took        float64 `json:"upgrade_max_ms"`
	Served      uint64  `json:"served"` // new connections
	Missed      uint64  `json:"missed"` // that were due, and this machine did not keep up
	ConnectP50  float64 `json:"connect_p50_ms"`
	ConnectP99  float64 `json:"connect_p99_ms"`
	ConnectMax  float64 `json:"connect_max_ms"`
	MemoryPeak  float64 `json:"memory_peak"` // all generations together, to one before the first upgrade

	// What the machine adds: the same clocks with no upgrade, and past the gateway.
	QuietP99   float64 `json:"quiet_p99_ms"`
	QuietMax   float64 `json:"quiet_max_ms"`
	ControlP99 float64 `json:"control_p99_ms"`
	ControlMax float64 `json:"control_max_ms"`

	Reasons map[string]int `json:"reasons"`
	Problem string         `json:"problem,omitempty"` // what ended it early
}

// sound says that the self-test has passed.
func (r *selftestResult) sound() bool {
	return r.Problem == "" && r.Lost == 0 && r.Corrupted == 0 && r.Refused == 0 && r.Kept == r.Connections
}

// Run runs the self-test.
func (c *selftestUpgradeCmd) Run(p *program) error {
	if c.Connections < 1 || c.Busy < 1 || c.Busy > c.Connections || c.Rate < 0 || c.Upgrades < 1 {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "a self-test needs an upgrade, a busy connection, and no more busy ones than connections", Hint: "sallyport selftest upgrade --help"}
	}
	size := crowd.Config{Name: selftestServer, Kept: c.Connections, Busy: c.Busy, Rate: c.Rate}
	limit, err := raiseDescriptors()
	if err != nil {
		return err
	}
	if size, err = fitted(size, limit); err != nil {
		return err
	}
	if size.Kept < c.Connections {
		fmt.Fprintf(p.stderr, "%d connections instead of %d: a process may have %d descriptors here, and a connection takes two (ulimit -Hn)\n", size.Kept, c.Connections, limit)
	}
	r, err := (&selftest{cmd: c, p: p, size: size}).run(p.ctx)
	if err != nil {
		return err
	}
	if err := c.print(p.stdout, r); err != nil {
		return err
	}
	if !r.sound() {
		return fail.Exit{Code: 1}
	}
	return nil
}

// raiseDescriptors raises the limit of this process, and so of those that it
// starts, to what the system allows.
func raiseDescriptors() (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("getrlimit: %w", err)
	}
	if l.Cur < l.Max {
		// Some systems have a bound below the one that they name.
		if raised := (unix.Rlimit{Cur: l.Max, Max: l.Max}); unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
			l = raised
		}
	}
	return uint64(l.Cur), nil // FreeBSD has it signed
}

// fitted lowers the connections to what the limit of descriptors allows.
func fitted(size crowd.Config, limit uint64) (crowd.Config, error) {
	want := size.Kept
	for uint64(size.Descriptors()) > limit && size.Kept > size.Busy {
		over := uint64(size.Descriptors()) - limit
		size.Kept = max(size.Busy, size.Kept-int(min(over, uint64(want))+1)/2)
	}
	if uint64(size.Descriptors()) > limit {
		return size, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("%d busy connections need %d descriptors, and a process may have %d here", size.Busy, size.Descriptors(), limit),
			Hint: "raise the limit (ulimit -Hn), or use a lower --busy"}
	}
	return size, nil
}

func (c *selftestUpgradeCmd) print(w io.Writer, r *selftestResult) error {
	if c.JSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	say := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-12s%s\n", name, fmt.Sprintf(format, args...))
	}
	say("Kept", "%d of %s, %d of them busy, through %s", r.Kept, counted(r.Connections, "connection"), r.Busy, counted(r.Upgrades, "upgrade"))
	say("Lost", "%d", r.Lost)
	say("Corrupted", "%d", r.Corrupted)
	say("Refused", "%d of %d new connections", r.Refused, r.Served+uint64(r.Refused))
	say("Verified", "%.0f MB", float64(r.BytesVerified)/1e6)
	say("Stalled", "half at most %s, 99 of 100 at most %s, the longest %s", ms(r.StallP50), ms(r.StallP99), ms(r.StallMax))
	say("", "with no upgrade 99 of 100 at most %s, past the gateway %s", ms(r.QuietP99), ms(r.ControlP99))
	say("Connecting", "half at most %s, 99 of 100 at most %s, the longest %s", ms(r.ConnectP50), ms(r.ConnectP99), ms(r.ConnectMax))
	say("Released", "%s after the commit at the latest; the old process had ended after %s", ms(r.Released), ms(r.OldExit))
	say("Speed", "%.0f connections per second from process to process", r.RelaysPerSecond)
	say("Memory", "%.2f times that of one process, at the peak", r.MemoryPeak)
	if r.Missed > 0 {
		say("Missed", "%d new connections were due and could not be begun: this machine did not keep up", r.Missed)
	}
	for _, why := range slices.Sorted(maps.Keys(r.Reasons)) {
		say("  "+fmt.Sprint(r.Reasons[why]), "%s", why)
	}
	if r.Problem != "" {
		say("Ended early", "%s", r.Problem)
	}
	return nil
}

func ms(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.1f s", v/1000)
	}
	return fmt.Sprintf("%.1f ms", v)
}

// quantile of sorted values; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
