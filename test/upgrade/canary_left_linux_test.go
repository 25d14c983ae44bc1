package upgrade

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// left is what a service says of a canary that was left.
type left struct {
	PID    int            `json:"pid"`
	Canary bool           `json:"canary"`
	Holds  map[string]int `json:"holds"`
}

// left is what status says of canaries that nobody watches.
func (s *service) left() (all []left) {
	s.t.Helper()
	var st struct{ Remnants []left }
	await(s.t, "a status", func() bool { // on a busy machine not each answer comes in time
		ctx, cancel := context.WithTimeout(context.Background(), runWait)
		defer cancel()
		out, _, err := s.command(ctx, "status")
		return err == nil && json.Unmarshal([]byte(out), &st) == nil
	})
	for _, r := range st.Remnants {
		if r.Canary {
			all = append(all, r)
		}
	}
	return all
}

// tellsOf wants this canary in the status, and no other, with connections.
func (s *service) tellsOf(pid int) {
	s.t.Helper()
	var all []left
	await(s.t, "what the canary has is in the status", func() bool {
		all = s.left()
		return len(all) > 0 && all[0].Holds["relays"] > 0
	})
	if len(all) != 1 || all[0].PID != pid {
		s.t.Errorf("left are %+v, and process %d has connections", all, pid)
	}
}

// drainSays wants a drain that finds connections with canaries.
func (s *service) drainSays() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	out, stderr, err := s.command(ctx, "drain", "--timeout=1s", "--notice=0s")
	var r struct{ Canaries int }
	if jerr := json.Unmarshal([]byte(out), &r); err == nil || jerr != nil || r.Canaries == 0 || !strings.Contains(stderr, "of canaries") {
		s.t.Errorf("drain: %v: %s\n%s", err, out, stderr)
	}
}

// stopsWith wants nothing of the service after its end.
func (s *service) stopsWith(canary int) {
	s.t.Helper()
	pid := s.pid()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	await(s.t, "the end of the service", func() bool { return ended(pid) })
	await(s.t, "the end of the canary that was left", func() bool { return ended(canary) })
}

// TestCanaryLeft: a canary hangs, and gives nothing back. Its connections go on, and
// whoever is the main process shows it, waits for it in a drain, and ends it with
// itself.
func TestCanaryLeft(t *testing.T) {
	g := startTriedAt(t, 0)
	g.failing("canary.new.return=hang")
	y := g.canary("--canary=50%", "--watch=10m")
	await(t, "a canary", func() bool { return g.canaryState() != nil || y.over() })
	g.echo.attend(canaryTries)
	c := y.serving(1)
	g.generationsSeen = append(g.generationsSeen, c.PID) // it ends with the test
	if all := g.left(); len(all) != 0 {
		t.Errorf("%+v while it is watched", all)
	}
	g.canary("--back")
	if r := y.end(); r.Outcome != "back" || r.Canary.Left == 0 {
		t.Fatalf("%+v\n%s", r, y.stderr)
	}
	g.tellsOf(c.PID)
	g.failing("")
	before := g.upgrade().FromPID
	await(t, "the end of the process that has started the canary", func() bool { return ended(before) })
	g.echo.sound()
	g.tellsOf(c.PID)
	g.drainSays()
	g.stopsWith(c.PID)
}

// TestCanaryLeftByCrash: the old process dies, and the canary goes on with what it
// has. The service that is started again shows it, and ends it with itself.
func TestCanaryLeftByCrash(t *testing.T) {
	g := startTriedAt(t, 0)
	y := g.canary("--canary=50%", "--watch=10m")
	await(t, "a canary", func() bool { return g.canaryState() != nil || y.over() })
	g.echo.attend(canaryTries)
	c := y.serving(1)
	g.generationsSeen = append(g.generationsSeen, c.PID) // it ends with the test
	if err := syscall.Kill(g.pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-g.done
	again := startService(t, filepath.Dir(g.config), "gateway", g.good)
	again.tellsOf(c.PID)
	if alive := g.echo.alive(); alive < 1 {
		t.Error("no connection has gone on")
	}
	again.drainSays()
	again.stopsWith(c.PID)
}
