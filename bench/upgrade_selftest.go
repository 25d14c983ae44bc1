package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/crowd"
)

const (
	// selfTestWithin is for all samples of one self-test: a hundred upgrades take
	// two minutes and more.
	selfTestWithin = time.Hour

	// selfTestEnds is for a self-test that was interrupted: it ends its gateway.
	selfTestEnds = 30 * time.Second

	// smallCrowd is the smaller of the two crowds, all of whom are busy.
	smallCrowd = 100
)

// selfTest is one of `sallyport selftest upgrade`, with what it is held against.
type selfTest struct {
	asked      int // connections that stay
	load       crowd.Config
	upgrades   int
	stall      float64 // milliseconds, of the 99th of a hundred busy ones
	speed      float64 // relays per second; 0: too few of them to tell
	stallWorst float64 // milliseconds, of any
}

// selfTests are what users can repeat, by the program alone.
func (w *upgradeWorld) selfTests(z sizes) []comparison {
	large := crowdFor(z)
	small := crowd.Config{Name: crowdName, Kept: smallCrowd, Busy: smallCrowd, Rate: large.Rate}
	var out []comparison
	for _, s := range []selfTest{
		{asked: smallCrowd, load: small, upgrades: z.upgrades, stall: 5, stallWorst: 100},
		{asked: z.crowd, load: large, upgrades: z.upgrades, stall: 20, stallWorst: 100, speed: 50_000},
	} {
		out = append(out, w.selfTest(s, z))
	}
	return out
}

// selfTest has as many samples as a median needs and no more: each is of many
// upgrades.
func (w *upgradeWorld) selfTest(s selfTest, z sizes) comparison {
	args := s.args()
	m := comparison{pairs: min(z.pairs, leastPairs), within: selfTestWithin, Measure: Measure{
		Name: fmt.Sprintf("upgrade-selftest-%d", s.asked), Title: fmt.Sprintf("Upgrades by the self-test, %d connections", s.asked), A: "sallyport upgrade",
		Load: fmt.Sprintf("`sallyport %s`: %d connections that stay, %d of them with %d KiB/s of checked bytes each way, %d new ones a second, %d upgrades one after the other; gateways, clients and servers share all cores",
			strings.Join(args, " "), s.load.Kept, s.load.Busy, crowd.DefaultPace>>10, s.load.Rate, s.upgrades),
		Quantities: s.quantities(),
	}}
	m.a = func(ctx context.Context) (Sample, error) {
		return takeSelfTest(ctx, filepath.Join(w.bin, "sallyport"), args, m.Quantities)
	}
	return m
}

func (s selfTest) args() []string {
	return []string{"selftest", "upgrade", "--json", fmt.Sprintf("--connections=%d", s.load.Kept), fmt.Sprintf("--busy=%d", s.load.Busy),
		fmt.Sprintf("--rate=%d", s.load.Rate), fmt.Sprintf("--upgrades=%d", s.upgrades)}
}

// quantities are keyed as the self-test's JSON is.
func (s selfTest) quantities() []Quantity {
	return []Quantity{
		{Key: "upgrades", Title: "upgrades in a row", More: true, Every: true, Bar: float64(s.upgrades)},
		{Key: "kept", Title: "connections kept", More: true, Every: true, Bar: float64(s.asked)},
		{Key: "lost", Title: "lost", Every: true},
		{Key: "corrupted", Title: "corrupted", Every: true},
		{Key: "refused", Title: "new connections refused", Every: true},
		{Key: "stall_p50_ms", Title: "busy connections stood still, p50", Unit: " ms"},
		{Key: "stall_p99_ms", Title: "busy connections stood still, p99", Unit: " ms", Bar: s.stall},
		{Key: "stall_max_ms", Title: "the longest that any stood still", Unit: " ms", Every: true, Bar: s.stallWorst},
		{Key: "control_p99_ms", Title: "past the gateway meanwhile, p99", Unit: " ms", Note: true},
		{Key: "quiet_p99_ms", Title: "with no upgrade, p99", Unit: " ms", Note: true},
		{Key: "relays_per_second", Title: "connections from process to process", Unit: "/s", More: true, Bar: s.speed},
		{Key: "connect_p99_ms", Title: "new connections, p99", Unit: " ms"},
		{Key: "served", Title: "new connections served", More: true},
		{Key: "missed", Title: "new connections that the machine did not begin in time", Note: true},
		{Key: "released_ms", Title: "until the old process had released all", Unit: " ms", Every: true, Bar: 2000},
		{Key: "memory_peak", Title: "memory of both processes at the peak, to before", Unit: "×", Bar: 1.3},
	}
}

// takeSelfTest runs the program. Its exit code says whether it is content, and so
// do the figures: what it says is a sample all the same.
func takeSelfTest(ctx context.Context, program string, args []string, wants []Quantity) (Sample, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	apart(cmd)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it has a gateway to end
	cmd.WaitDelay = selfTestEnds
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	if out.Len() == 0 {
		return nil, fmt.Errorf("sallyport selftest upgrade: %w: %s", errors.Join(err, errSilent), strings.TrimSpace(said.String()))
	}
	s, err := selfTestSample(out.Bytes())
	if err != nil {
		return nil, err
	}
	for _, q := range wants {
		if _, there := s[q.Key]; !there {
			return nil, fmt.Errorf("sallyport selftest upgrade does not say %s", q.Key)
		}
	}
	return s, nil
}

// errSilent: the self-test has said nothing, whatever its exit code is.
var errSilent = errors.New("no result")

// selfTestSample keeps all figures by their own names. Reasons are for who looks.
func selfTestSample(b []byte) (Sample, error) {
	var said struct {
		Problem string         `json:"problem"`
		Reasons map[string]int `json:"reasons"`
	}
	var figures map[string]any
	if err := errors.Join(json.Unmarshal(b, &said), json.Unmarshal(b, &figures)); err != nil {
		return nil, fmt.Errorf("sallyport selftest upgrade says nothing that can be read: %w", err)
	}
	for why, times := range said.Reasons {
		fmt.Printf("  %d times %s\n", times, why)
	}
	if said.Problem != "" {
		return nil, errors.New("sallyport selftest upgrade ended early: " + said.Problem)
	}
	s := Sample{}
	for key, v := range figures {
		if n, ok := v.(float64); ok {
			s[key] = n
		}
	}
	return s, nil
}
