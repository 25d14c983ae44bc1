package upgrade

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/crowd"
)

// tried is a gateway under load that is to be upgraded, and must not be.
type tried struct {
	*service
	crowd *crowd.Crowd
	good  string // its configuration
	echo  *echo  // another route
}

const crowdName = "crowd.example.com"

func startTried(t testing.TB, env ...string) *tried {
	t.Helper()
	return startTriedAt(t, 60, env...)
}

// startTriedAt has that many new connections a second.
func startTriedAt(t testing.TB, rate int, env ...string) *tried {
	t.Helper()
	c, err := crowd.New(crowd.Config{Name: crowdName, Kept: 150, Busy: 24, Rate: rate, Pace: 64 << 10, Patience: runWait})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	dir, at, e := shortDir(t), freePort(t), startEcho(t)
	good := fmt.Sprintf(`version: 1
roles: [gateway]
data_dir: %s/data
gateway:
  listen: [%q]
  routes:
    - {names: [%s], to: ["%s"]}
    - {names: [%s], to: [%q]}
`, dir, at, crowdName, strings.Join(c.Servers(), `", "`), echoName, e.server.Addr())
	e.gateway = at
	g := &tried{service: startService(t, dir, "gateway", good, env...), crowd: c, good: good, echo: e}
	ctx, cancel := context.WithTimeout(t.Context(), upWait)
	defer cancel()
	if err := c.Open(ctx, at); err != nil {
		t.Fatal(err)
	}
	return g
}

// wrapped puts a program in place that does something at its start, when it is to
// take over; it answers the questions before as the real one does.
func (g *tried) wrapped(script string) {
	g.t.Helper()
	g.place(fmt.Appendf(nil, "#!/bin/sh\ncase \"$*\" in\nversion*|*--check*) exec %[1]s \"$@\";;\nesac\n%[2]s\nexec %[1]s \"$@\"\n", program(g.t, "sallyport"), script), 0o700)
}

// failing puts a program in place that fails at a point when it is to take over, or
// to be a canary; "" fails nowhere. What it says is kept apart.
func (g *tried) failing(plan string) {
	g.t.Helper()
	point, way, _ := strings.Cut(plan, "=")
	point, _, _ = strings.Cut(point, "#")
	a := saidApart{file: fmt.Sprintf("%s.%d", g.log, len(g.apart))}
	if way == "panic" {
		a.panics = point
	}
	g.apart = append(g.apart, a)
	g.wrapped(fmt.Sprintf("SALLYPORT_FAILPOINTS='%s'\nexport SALLYPORT_FAILPOINTS\nexec 2>>'%s'", plan, a.file))
}

// refused wants an upgrade that fails, with words, and a process that serves on
// as if nothing had been.
func (g *tried) refused(words ...string) {
	g.t.Helper()
	before := g.pid()
	began := time.Now()
	r, stderr, err := g.try()
	if err == nil || r.Outcome == "done" {
		g.t.Fatalf("it was upgraded: %+v", r)
	}
	for _, w := range words {
		if !strings.Contains(stderr, w) {
			g.t.Errorf("it does not say %q:\n%s", w, stderr)
		}
	}
	if !strings.HasPrefix(stderr, "ERROR: ") || !strings.Contains(stderr, "\nhint: ") {
		g.t.Errorf("a person is not told what and what next:\n%s", stderr)
	}
	g.t.Logf("after %s: %s", time.Since(began).Round(10*time.Millisecond), strings.TrimSpace(stderr))
	if after := g.pid(); after != before {
		g.t.Errorf("process %d served before, %d after", before, after)
	}
	g.sound()
}

// sound wants the whole crowd as it was, and new ones to come in.
func (g *tried) sound() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), upWait)
	defer cancel()
	if err := g.crowd.Check(ctx); err != nil {
		g.t.Fatal(err)
	}
	before := g.crowd.SoFar()
	await(g.t, "new connections and bytes", func() bool {
		now := g.crowd.SoFar()
		return now.Served > before.Served+5 && now.Verified > before.Verified+1<<20 || !now.Sound()
	})
	if r := g.crowd.SoFar(); !r.Sound() {
		g.t.Fatalf("the crowd: %+v\n%s", r, lastLines(g.said(), 40))
	}
}

// finished wants every byte that was ever sent.
func (g *tried) finished() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), upWait)
	defer cancel()
	r, err := g.crowd.Finish(ctx)
	if err != nil || !r.Sound() || r.Kept != 150 {
		g.t.Errorf("in the end: %+v, %v", r, err)
	}
	g.t.Logf("%d connections kept, %d new ones served, %d MiB verified", r.Kept, r.Served, r.Verified>>20)
}

// TestRefusedUpgrades: what is wrong with a new program is found before anything
// is touched, and said.
func TestRefusedUpgrades(t *testing.T) {
	g := startTried(t)
	real := program(t, "sallyport")
	g.place([]byte("#!/bin/sh\nexit 3\n"), 0o700)
	g.refused("does not answer")
	g.place([]byte("#!/bin/sh\nkill -SEGV $$\n"), 0o700)
	g.refused("does not answer")
	g.place([]byte("not a program"), 0o600)
	g.refused("permission denied")
	g.place([]byte{0x7f, 'E', 'L', 'F', 1, 2, 3}, 0o700)
	g.refused("cannot be run")
	if err := os.Remove(g.program); err != nil {
		t.Fatal(err)
	}
	g.refused("no such file")
	const (
		older = `{"version":"0.1","go":"x","handover":{"oldest":0,"newest":0}}`
		newer = `{"version":"9.9","go":"x","handover":{"oldest":90,"newest":99}}`
		check = `"data_dir":"/d","roles":["gateway"]`
	)
	says := func(version, check string) []byte {
		return fmt.Appendf(nil, "#!/bin/sh\ncase \"$*\" in version*) echo '%s'; exit 0;; *--check*) echo '{%s}'; exit 0;; esac\nexec %s \"$@\"\n", version, check, real)
	}
	g.place(says(older, check), 0o700)
	g.refused("0.1", "generations")
	g.place(says(newer, check), 0o700)
	g.refused("9.9", "generations")
	g.place(says("", check+`,"program":`+newer), 0o700)
	g.refused("9.9", "generations")
	g.install(real)
	write(t, g.config, strings.Replace(g.good, "listen:", "lisen:", 1))
	g.refused("lisen", "configuration")
	write(t, g.config, strings.Replace(g.good, "/data", "/elsewhere", 1))
	g.refused("data_dir has changed")
	write(t, g.config, g.good)

	// And after all that one that is right.
	r := g.upgrade()
	await(t, "the old process ends", func() bool { return ended(r.FromPID) })
	g.sound()
	g.finished()
}

// TestF10_BrokenStarts: a new process that comes to grief once it has been started.
func TestF10_BrokenStarts(t *testing.T) {
	g := startTried(t)
	for _, tc := range []struct{ name, script string }{
		{"exits", "exit 1"},
		{"is killed", "kill -KILL $$"},
		{"says things and exits", "echo fatal: something >&2; exit 2"},
		{"exits well", "exit 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			defer g.in(t)()
			g.wrapped(tc.script)
			g.refused("no upgrade: ")
		})
	}
	t.Run("cannot listen for its own", func(t *testing.T) {
		defer g.in(t)()
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		write(t, g.config, g.good+fmt.Sprintf("metrics: {listen: %q}\n", l.Addr()))
		g.install(program(t, "sallyport"))
		g.refused("no upgrade: ")
		write(t, g.config, g.good)
	})
	t.Run("hangs", func(t *testing.T) {
		defer g.in(t)()
		g.wrapped("exec sleep 600")
		g.refused("no upgrade: ")
	})
	g.install(program(t, "sallyport"))
	r := g.upgrade()
	await(t, "the old process ends", func() bool { return ended(r.FromPID) })
	g.sound()
	g.finished()
}

// in makes the gateway speak in a subtest.
func (g *tried) in(t testing.TB) func() {
	outer := g.t
	g.t, g.service.t = t, t
	return func() { g.t, g.service.t = outer, outer }
}

// everyWay says that each failpoint is tried in every way.
func everyWay() bool { return os.Getenv("SALLYPORT_UPGRADE_FAILURES") == "all" }

// failpointsOf are the names of points that the sources have.
func failpointsOf(t testing.TB, prefix string) []string {
	t.Helper()
	var out []string
	for _, dir := range []string{"../../dataplane", "../../cmd/sallyport"} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			for _, part := range strings.Split(string(b), `"`+prefix)[1:] {
				if name, _, ok := strings.Cut(part, `"`); ok && !strings.ContainsAny(name, " \n") {
					out = append(out, prefix+name)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// oldPoints are where the old process may stop an upgrade.
var oldPoints = [...]string{"check", "start", "hello", "prepare", "copy", "freeze", "complete", "ready", "commit"}

// TestOldFails: the old process stops the upgrade at each of its steps, one
// after the other, and serves on; what comes after all that succeeds.
func TestOldFails(t *testing.T) {
	var plan []string
	for _, step := range oldPoints {
		plan = append(plan, "handover.old."+step+"#1=error")
	}
	g := startTried(t, "SALLYPORT_FAILPOINTS="+strings.Join(plan, ";"))
	for _, step := range oldPoints {
		t.Run(step, func(t *testing.T) {
			defer g.in(t)()
			g.refused("failpoint handover.old."+step, "no upgrade: ")
		})
	}
	r := g.upgrade()
	await(t, "the old process ends", func() bool { return ended(r.FromPID) })
	g.sound()
	g.finished()
}

// afterCommit are points at which the new process has everything.
var afterCommit = map[string]bool{"handover.new.committed": true, "handover.new.started": true, "handover.new.decided": true}

// TestNewFails: the new process comes to grief at each of its points before the
// commit. The old one serves on.
func TestNewFails(t *testing.T) {
	points := failpointsOf(t, "handover.new.")
	if len(points) < 8 {
		t.Fatalf("only %d points are known: %q", len(points), points)
	}
	g := startTried(t)
	ways := []string{"kill"}
	if everyWay() {
		ways = []string{"kill", "error", "panic", "exit", "hang"}
	}
	for _, point := range points {
		if afterCommit[point] {
			continue
		}
		for _, way := range ways {
			t.Run(point+"="+way, func(t *testing.T) {
				defer g.in(t)()
				g.failing(point + "=" + way)
				g.refused("no upgrade: ")
			})
		}
	}
	g.install(program(t, "sallyport"))
	r := g.upgrade()
	await(t, "the old process ends", func() bool { return ended(r.FromPID) })
	g.sound()
	g.finished()
}

// TestSlow: a new process that takes its time at every point is waited for.
func TestSlow(t *testing.T) {
	var plan []string
	for _, point := range failpointsOf(t, "handover.new.") {
		plan = append(plan, point+"#1=sleep:200ms")
	}
	g := startTried(t, "SALLYPORT_FAILPOINTS="+strings.Join(plan, ";"))
	for range 2 {
		r := g.upgrade()
		await(t, "the old process ends", func() bool { return ended(r.FromPID) })
		g.sound()
	}
	g.finished()
}
