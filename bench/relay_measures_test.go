package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bench/flow"
)

func TestSamples(t *testing.T) {
	z := sizes{window: time.Second}
	r := flow.Result{Seconds: 2, Units: 4e9, CPU: map[string]time.Duration{"gateway": time.Second, "agent": 3 * time.Second}}
	if s := bulkTask(flow.Up, 4, z).sample(r); s["rate"] != 2 || s["cpu"] != 1 || s["gateway_cpu"] != 0.25 || s["agent_cpu"] != 0.75 {
		t.Errorf("bulk: %v", s)
	}
	r = flow.Result{Seconds: 2, Units: 1000, Failed: 4, CPU: map[string]time.Duration{"relay": 100 * time.Millisecond}, Latencies: flow.Latencies{P50: 5, P90: 6, P99: 7}}
	if s := connectTask(z).sample(r); s["rate"] != 500 || s["cpu"] != 100 || s["failed"] != 2 || s["p50"] != 5 || s["p99"] != 7 {
		t.Errorf("connect: %v", s)
	}
	if _, split := connectTask(z).sample(r)["relay_cpu"]; split {
		t.Error("one process is told twice")
	}
	r.Missed = 10
	if s := pingTask(64, 1000, z).sample(r); s["missed"] != 5 || s["p90"] != 6 {
		t.Errorf("ping: %v", s)
	}
	r.Grown = map[string]flow.Footprint{"gateway": {RSS: 3000, FDs: 2000}, "agent": {RSS: 1000, Pipes: 500}}
	if s := idleTask(1000, z).sample(r); s["rss"] != 4 || s["fds"] != 2 || s["pipes"] != 0.5 {
		t.Errorf("idle: %v", s)
	}
}

// TestRelayBarsAreOfMeasures: a bar whose measure was renamed would be lost in
// silence.
func TestRelayBarsAreOfMeasures(t *testing.T) {
	w := &relayWorld{}
	have := map[string]bool{}
	for _, m := range w.relayMeasures(sizesFor(options{})) {
		for _, q := range m.Quantities {
			have[m.Name+" "+q.Key] = true
		}
	}
	for bar := range relayBars {
		if !have[bar] {
			t.Errorf("no measure %s", bar)
		}
	}
}

func TestCompareNamesTheMissing(t *testing.T) {
	w := &relayWorld{}
	z := sizesFor(options{})
	c := w.compare("relay-", connectTask(z), w.ours(), subject{name: "sslh", missing: "sslh-select"}, z)
	if c.Missing != "sslh-select" || c.a != nil {
		t.Errorf("%+v", c.Measure)
	}
	c = w.compare("relay-", idleTask(3000, z), w.ours(), subject{name: "sslh", most: 400}, z)
	if c.open != nil || !strings.Contains(c.Load, "400 here, on both sides") {
		t.Errorf("load %q", c.Load)
	}
}

// TestOpenBothClosesTheFirst when the second does not start.
func TestOpenBothClosesTheFirst(t *testing.T) {
	stopped := false
	a := &contender{subject: subject{name: "a", start: func(context.Context) (*running, error) { return &running{also: func() { stopped = true }}, nil }}}
	b := &contender{subject: subject{name: "b", start: func(ctx context.Context) (*running, error) { return nil, context.Canceled }}}
	if _, err := openBoth(t.Context(), a, b); err == nil || !strings.HasPrefix(err.Error(), "b: ") || !stopped {
		t.Errorf("%v; the first stopped: %v", err, stopped)
	}
}

func TestGroupWanted(t *testing.T) {
	g := group{prefixes: []string{"relay-", "copy"}}
	for only, want := range map[string]bool{"": true, "relay-up-4/nginx": true, "rel": true, "ssh": false, "ssh,copy/out": true, "cop": true} {
		if g.wanted(only) != want {
			t.Errorf("-only %q: %v", only, !want)
		}
	}
}

func TestParseTimes(t *testing.T) {
	const text = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 4 5 6 7 8 100 100\ncpu1 0 0 0 50 0 0 0 0 0 0\nintr 5\n"
	for name, want := range map[string][2]float64{"cpu": {54, 72}, "cpu0": {27, 36}, "cpu1": {0, 50}, "cpu2": {0, 0}} {
		if busy, whole := parseTimes([]byte(text), name); busy != want[0] || whole != want[1] {
			t.Errorf("%s: %v of %v, want %v", name, busy, whole, want)
		}
	}
}
