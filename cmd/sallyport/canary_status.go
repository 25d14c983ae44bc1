package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/handover/verdict"
)

// canaryStatus is a canary beside the process that it is compared with.
type canaryStatus struct {
	PID     int        `json:"pid"`
	Version string     `json:"version"`
	Share   float64    `json:"share"` // of the new connections that take part
	Started time.Time  `json:"started"`
	Until   time.Time  `json:"until"`
	Phase   string     `json:"phase"`  // "watching", "coming back"
	Passed  uint64     `json:"passed"` // connections that it got
	Relays  uint64     `json:"relays"` // that it has now
	Old     sideStatus `json:"old"`
	New     sideStatus `json:"new"`

	Verdict *verdict.Verdict `json:"verdict,omitempty"` // at the end
	Lost    int              `json:"lost"`              // relays that have ended with it, when it died
	Left    int              `json:"left"`              // that did not come back, and stay with it
}

// sideStatus is what came of the connections that take part, in one process.
type sideStatus struct {
	Decided uint64            `json:"decided"` // what came of them is known
	Failed  uint64            `json:"failed"`  // that did not reach their server
	Results map[string]uint64 `json:"results"`
	Timed   uint64            `json:"timed"` // servers' first bytes
	P50MS   float64           `json:"first_byte_p50_ms"`
	P99MS   float64           `json:"first_byte_p99_ms"`
}

const (
	phaseWatching = "watching"
	phaseComing   = "coming back"
)

func (c *canary) status() *canaryStatus {
	old, last := c.gateway.Tally(), c.last.Load()
	s := &canaryStatus{
		PID: c.pid(), Version: c.version, Share: c.share, Started: c.started, Until: c.started.Add(c.watch), Phase: phaseWatching,
		Passed: c.gateway.Snapshot().Outcomes[gateway.OutcomePassed] - c.before, Relays: last.GetRelays(),
		Old: sideOf(old.Results, old.FirstByte), New: sideOf(last.GetResults(), last.GetFirstByte()),
	}
	if c.coming.Load() {
		s.Phase = phaseComing
	}
	return s
}

func sideOf(results map[string]uint64, times []uint64) sideStatus {
	sample := sampleOf(results, times)
	s := sideStatus{Decided: sample.Good + sample.Failed, Failed: sample.Failed, Results: map[string]uint64{}}
	for name, n := range results {
		s.Results[name] = n
	}
	for _, n := range sample.Times {
		s.Timed += n
	}
	if s.Timed > 0 {
		s.P50MS, s.P99MS = milliseconds(gateway.TrialSlot(verdict.Quantile(sample.Times, 0.5))), milliseconds(gateway.TrialSlot(verdict.Quantile(sample.Times, 0.99)))
	}
	return s
}

// shares are both sides in one line each.
func (s *canaryStatus) shares() (old, new string) { return s.Old.line(), s.New.line() }

func (s sideStatus) line() string {
	out := fmt.Sprintf("%s, %d failed", counted(int(s.Decided), "connection"), s.Failed)
	if broken := s.Results[gateway.ResultBroken]; broken > 0 {
		out += fmt.Sprintf(", %s ended by a reset", counted(int(broken), "relay"))
	}
	if s.Timed > 0 {
		out += fmt.Sprintf("; first byte in %.1f ms, 99%% in %.1f ms", s.P50MS, s.P99MS)
	}
	return out
}

func (s *canaryStatus) print(row func(name, format string, args ...any)) {
	row("Canary", "%s: process %d, version %s, gets %s of new connections until %s", s.Phase, s.PID, s.Version, percent(s.Share), s.Until.Local().Format(time.DateTime))
	old, new := s.shares()
	row("  it", "%s; has %s", new, counted(int(s.Relays), "relay"))
	row("  this process", "%s", old)
}

func percent(share float64) string {
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", 100*share), "0"), ".") + "%"
}

// counted is a number of things: "1 relay", "2 relays".
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
