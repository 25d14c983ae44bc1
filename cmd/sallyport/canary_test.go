package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/gateway"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

func TestShare(t *testing.T) {
	for text, want := range map[string]float64{"5%": 0.05, "50%": 0.5, "0.5%": 0.005} {
		if got, err := parseShare(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "5", "0.05", "0.5", "1", "0", "0%", "-1%", "51%", "NaN", "NaN%", "five", "1e-400", "%"} {
		if got, err := parseShare(text); err == nil {
			t.Errorf("%q was taken for %v", text, got)
		}
	}
}

// TestCanaryFlags: what does not go together is refused before anybody is asked.
func TestCanaryFlags(t *testing.T) {
	share, none := "5%", ""
	minute, short, zero := time.Minute, time.Millisecond, time.Duration(0)
	for name, c := range map[string]struct {
		cmd  upgradeCmd
		path string // "": none
		bad  bool
	}{
		"none":           {cmd: upgradeCmd{}},
		"watch of none":  {cmd: upgradeCmd{Watch: &minute}, bad: true}, // took over everything at once
		"canary":         {cmd: upgradeCmd{Canary: &share}, path: "/upgrade?canary=0.05&watch=10m0s"},
		"forced":         {cmd: upgradeCmd{Canary: &share, Watch: &minute, Force: true}, path: "/upgrade?canary=0.05&watch=1m0s&force=1"},
		"finish":         {cmd: upgradeCmd{Finish: true}, path: "/upgrade?finish=1"},
		"back":           {cmd: upgradeCmd{Back: true}, path: "/upgrade?back=1"},
		"both":           {cmd: upgradeCmd{Finish: true, Back: true}, bad: true},
		"begin and end":  {cmd: upgradeCmd{Canary: &share, Back: true, Watch: &minute}, bad: true},
		"force of none":  {cmd: upgradeCmd{Force: true}, bad: true},
		"short":          {cmd: upgradeCmd{Canary: &share, Watch: &short}, bad: true},
		"no time":        {cmd: upgradeCmd{Canary: &share, Watch: &zero}, bad: true}, // was 10 minutes
		"no time alone":  {cmd: upgradeCmd{Watch: &zero}, bad: true},
		"no share":       {cmd: upgradeCmd{Canary: &none}, bad: true}, // took over everything at once
		"check and this": {cmd: upgradeCmd{Canary: &share, Watch: &minute, CheckOnly: true}, bad: true},
	} {
		if path, err := c.cmd.canaryPath(); path != c.path || (err != nil) != c.bad {
			t.Errorf("%s: %q, %v", name, path, err)
		}
	}
}

// TestFollowHearsOfTheEnd: the command waited for 20 seconds when the process that
// had the canary was killed, and did not say that it was.
func TestFollowHearsOfTheEnd(t *testing.T) {
	begun := &canaryStatus{PID: 1, Version: "v2", Started: time.Now(), Until: time.Now().Add(time.Hour)}
	for name, stays := range map[string]bool{"killed": true, "stopped": false} {
		dir := t.TempDir()
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, adminSocket), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(!stays)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(nodeStatus{Canary: begun})
			l.Close()
		})}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		_, err = (&upgradeCmd{}).follow(&program{ctx: t.Context(), stdout: io.Discard}, dir, begun)
		if !errors.Is(err, sallyport.ErrUnavailable) || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("%s: %v", name, err)
		}
		srv.Close()
		<-served
	}
}

// TestSampleWords: every result of a route is on one side of the comparison, or
// is a relay's end.
func TestSampleWords(t *testing.T) {
	loops := snapshotOfNothing()
	results := map[string]uint64{}
	for _, r := range loops.Routes {
		for name := range r.Results {
			results[name] = 1
		}
	}
	s := sampleOf(results, nil)
	if s.Good+s.Failed != uint64(len(results)) {
		t.Errorf("of %v %d are good and %d failed", results, s.Good, s.Failed)
	}
	if s := sampleOf(map[string]uint64{gateway.ResultBroken: 2, gateway.ResultClosed: 3}, make([]uint64, 1000)); s.Broken != 2 || s.Closed != 3 || len(s.Times) > gateway.TrialSlots {
		t.Errorf("%+v", s)
	}
}

// TestCanarySettled: what is said while a good canary's connections come back counts,
// and whoever comes too late for that is told so.
func TestCanarySettled(t *testing.T) {
	good := decision{finish: true, by: "watch"}
	for name, tt := range map[string]struct {
		said []canaryOrder
		want decision
	}{
		"nothing":      {nil, good},
		"to go back":   {[]canaryOrder{{by: "ann"}}, decision{by: "ann"}},
		"to go on":     {[]canaryOrder{{finish: true, by: "ann"}}, good},
		"a second one": {[]canaryOrder{{finish: true, by: "ann"}, {by: "bob"}}, good},
	} {
		c := &canary{orders: make(chan canaryOrder, 1)}
		for i, o := range tt.said {
			if c.tell(o) != (i == 0) {
				t.Errorf("%s: order %d", name, i)
			}
		}
		if got := c.settle(good); got != tt.want {
			t.Errorf("%s: %+v", name, got)
		}
		if c.tell(canaryOrder{by: "eve"}) {
			t.Errorf("%s: an order is taken that nobody will hear", name)
		}
	}
}

// TestCanaryHangs: one that does not answer when it is to give back what it has is not
// good, also when it had nothing at the last look.
func TestCanaryHangs(t *testing.T) {
	good := decision{finish: true, by: "watch"}
	c := &canary{gone: make(chan struct{}), returned: make(chan *handoverv1.CanaryReturned, 1)}
	if d := c.blame(good, true); !d.finish {
		t.Errorf("all came back: %+v", d)
	}
	if d := c.blame(good, false); d.finish || d.problem == "" {
		t.Errorf("it did not say so: %+v", d)
	}
}

// TestCanarySilence: a canary has its time to speak, from the last that was heard.
func TestCanarySilence(t *testing.T) {
	const most = int(canarySilence / canaryTick)
	var s silence
	for _, heard := range []int64{1, 2} {
		if s.lasts(heard) {
			t.Error("it has just spoken")
		}
		for i := range most {
			if s.lasts(heard) {
				t.Errorf("too long after %d ticks", i+1)
			}
		}
	}
	if !s.lasts(2) {
		t.Error("one tick more is not too long")
	}
}

func TestCanaryLines(t *testing.T) {
	now := time.Now()
	s := &canaryStatus{PID: 7, Version: "v2", Share: 0.05, Started: now, Until: now.Add(time.Minute), Phase: phaseWatching, Relays: 1,
		Old: sideOf(map[string]uint64{"relayed": 19}, nil), New: sideOf(map[string]uint64{"relayed": 1, gateway.ResultBroken: 1}, []uint64{1})}
	var out strings.Builder
	s.print(func(name, format string, args ...any) { out.WriteString(name + " " + format + "\n") })
	old, new := s.shares()
	if !strings.HasPrefix(old, "19 connections, 0 failed") || !strings.HasPrefix(new, "1 connection, 0 failed, 1 relay ended by a reset; first byte in") {
		t.Errorf("%s; %s", old, new)
	}
	if percent(0.05) != "5%" || percent(0.005) != "0.5%" || percent(0.5) != "50%" {
		t.Error(percent(0.05), percent(0.005), percent(0.5))
	}
	r := upgradeReport{Time: now, Outcome: upgradeBack, FromVersion: "v1", ToVersion: "v2", By: "local-admin:0", Canary: s}
	if line := r.line(); !strings.Contains(line, "the canary went BACK: by local-admin:0") {
		t.Error(line)
	}
}

func TestNouns(t *testing.T) {
	for many, one := range map[string]string{"sessions": "session", "web connections": "web connection", "connections whose TLS ends here": "connection whose TLS ends here"} {
		if got := nounOf(1, many); got != one {
			t.Errorf("1 %s", got)
		}
		if got := nounOf(2, many); got != many {
			t.Errorf("2 %s", got)
		}
	}
}
