package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/test/executable"
)

// upgraded is what sallyport upgrade and sallyport status say of an upgrade.
type upgraded struct {
	Outcome string `json:"outcome"`
	By      string `json:"by"`
	FromPID int    `json:"from_pid"`
	ToPID   int    `json:"to_pid"`
	Relays  int    `json:"relays"`
}

type serving struct {
	PID      int        `json:"pid"`
	Health   string     `json:"health"`
	Upgrades []upgraded `json:"upgrades"`
	Gateway  struct {
		Relays int `json:"relays"`
	} `json:"gateway"`
}

func (g *routesGateway) serving() (s serving) {
	g.t.Helper()
	if err := json.Unmarshal([]byte(g.run("sallyport", "status", "-c", g.file, "-f", "json")), &s); err != nil {
		g.t.Fatal(err)
	}
	return s
}

func (g *routesGateway) upgrade() (u upgraded) {
	g.t.Helper()
	if err := json.Unmarshal([]byte(g.run("sallyport", "upgrade", "-c", g.file, "-f", "json")), &u); err != nil {
		g.t.Fatal(err)
	}
	if u.Outcome != "done" || u.ToPID == u.FromPID || u.ToPID == 0 {
		g.t.Fatalf("%+v", u)
	}
	g.awaitHealth()
	return u
}

// visitors connect one after the other, and are all served.
type visitors struct {
	served atomic.Int64
	failed atomic.Pointer[error]
	stop   chan struct{}
	ended  chan struct{}
}

func (g *routesGateway) visitors(name string) *visitors {
	v := &visitors{stop: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(v.ended)
		for {
			select {
			case <-v.stop:
				return
			default:
			}
			m, err := meet(g.addr, name, "")
			if err == nil {
				err = errors.Join(m.echo("hello"), m.Close())
			}
			if err != nil {
				v.failed.CompareAndSwap(nil, &err)
				return
			}
			v.served.Add(1)
		}
	}()
	return v
}

// end reports how many were served.
func (v *visitors) end(t testing.TB) int64 {
	t.Helper()
	close(v.stop)
	<-v.ended
	if err := v.failed.Load(); err != nil {
		t.Errorf("after %d: %v", v.served.Load(), *err)
	}
	return v.served.Load()
}

// alive says that a process runs, and is not only waited for.
func alive(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil
}

func oneRoute(b *backend) string {
	return fmt.Sprintf("  routes: [{names: [a.example.com], to: [%q]}]\n", b.addr)
}

// TestUpgrade: connections go on through upgrades by command and by signal, the
// first process keeps its number, and the service ends with it.
func TestUpgrade(t *testing.T) {
	g := startRoutes(t, oneRoute(newBackend(t, "one", false)))
	first := g.cmd.Process.Pid
	load := startLoad(t, g.addr, []string{"a.example.com"}, 50)
	load.more()
	v := g.visitors("a.example.com")

	if out := g.run("sallyport", "upgrade", "-c", g.file, "--check-only"); !strings.Contains(out, "can take over") {
		t.Errorf("%q", out)
	}
	pids := []int{first}
	for range 2 {
		u := g.upgrade()
		if u.FromPID != pids[len(pids)-1] || u.Relays < 50 {
			t.Errorf("%+v after %v", u, pids)
		}
		pids = append(pids, u.ToPID)
		load.more()
	}
	if err := g.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	await(t, "the upgrade by SIGUSR2", runWait, func() bool { return g.serving().PID != pids[2] })
	g.awaitHealth()
	load.more()
	s := g.serving()
	pids = append(pids, s.PID)
	if len(s.Upgrades) != 3 || s.Upgrades[2].By != "SIGUSR2" || s.Upgrades[2].ToPID != s.PID || s.Gateway.Relays < 50 || s.Health != "ok" {
		t.Errorf("%+v", s)
	}
	await(t, "the old processes to end", runWait, func() bool { return !alive(pids[1]) && !alive(pids[2]) })
	load.more()
	if n := v.end(t); n == 0 {
		t.Error("nobody connected meanwhile")
	}

	// The configuration on disk has a fault: nothing happens.
	g.configure("  routs: []\n")
	g.refused(1, []string{"the new program refuses the configuration", "routs"}, "sallyport", "upgrade", "-c", g.file)
	if now := g.serving().PID; now != s.PID {
		t.Errorf("process %d serves, not %d", now, s.PID)
	}
	load.more()
	load.stop()

	select {
	case <-g.done:
		t.Fatalf("the first process has ended: %v", g.err)
	default:
	}
	g.stop()
	if g.err != nil {
		t.Errorf("the first process ended with %v", g.err)
	}
	if alive(s.PID) {
		t.Error("the service has ended, and its process runs")
	}
	if _, err := os.Stat(filepath.Join(g.home, "data", "admin.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestUpgradeSupervisor: the process that works and the one that is watched die
// together, however that begins.
func TestUpgradeSupervisor(t *testing.T) {
	b := newBackend(t, "one", false)
	g := startRoutes(t, oneRoute(b))
	if err := syscall.Kill(g.upgrade().ToPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-g.done
	var exit *exec.ExitError
	if !errors.As(g.err, &exit) || exit.ExitCode() != 128+9 {
		t.Errorf("the main process was killed; the first ended with %v", g.err)
	}

	g = startRoutes(t, oneRoute(b))
	now := g.upgrade().ToPID
	g.kill()
	await(t, "the main process to end with its supervisor", runWait, func() bool { return !alive(now) })
}

// TestUpgradePIDFile: without a supervisor the first process ends, and the file
// names the one that serves.
func TestUpgradePIDFile(t *testing.T) {
	b := newBackend(t, "one", false)
	file := filepath.Join(shortDir(t), "pid")
	g := startRoutesWith(t, oneRoute(b), "--pid-file="+file)
	load := startLoad(t, g.addr, []string{"a.example.com"}, 8)
	u := g.upgrade()
	<-g.done
	if g.err != nil {
		t.Errorf("the first process ended with %v", g.err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != fmt.Sprintf("%d\n", u.ToPID) {
		t.Errorf("%q, %v; process %d serves", text, err, u.ToPID)
	}
	load.more()
	load.stop()
	if err := syscall.Kill(u.ToPID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await(t, "the new process to end", runWait, func() bool { return !alive(u.ToPID) })
}

// TestUpgradeBrokenLater: what lies at the program's path after an upgrade is nothing
// that runs. The first process became it once, whatever it was, and the service ended.
func TestUpgradeBrokenLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sallyport")
	place := func(path, text string) {
		t.Helper()
		if err := executable.Write(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(program(t, "sallyport"))
	if err != nil {
		t.Fatal(err)
	}
	place(path, string(good))
	g := startRoutesAs(t, oneRoute(newBackend(t, "one", false)), func(args ...string) *exec.Cmd { return exec.Command(path, args...) })
	first := g.cmd.Process.Pid

	// The new program has hardly begun when a broken one takes its place.
	broken, next := path+".broken", path+".next"
	place(broken, "#!/bin/sh\nexit 1\n")
	place(next, fmt.Sprintf("#!/bin/sh\ncase \"$*\" in version*|*--check*) ;; *) mv '%s' '%s';; esac\nexec '%s' \"$@\"\n", broken, path, program(t, "sallyport")))
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	u := g.upgrade()
	await(t, "the first process is a supervisor and nothing else", runWait, func() bool {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", first))
		return strings.Contains(string(line), "\x00supervise\x00") || !alive(u.ToPID)
	})
	await(t, "its name", runWait, func() bool {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", first))
		return string(name) == "sallyport\n" || !alive(u.ToPID)
	})
	if s := g.serving(); s.PID != u.ToPID || s.Health != "ok" {
		t.Errorf("%+v", s)
	}
	g.expect("a.example.com", "one -")
	g.stop()
	await(t, "the end of what it stood for", runWait, func() bool { return !alive(u.ToPID) })
}
