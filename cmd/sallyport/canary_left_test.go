package main

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// recorded is a process that is on record: it says what it hears.
type recorded struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.Writer
	out    *bufio.Reader
	report remnantReport
}

// record starts one. Its record has its lock, as a canary's has, or that of a
// process that has died.
func record(t *testing.T, dataDir string, r remnantReport, dead bool) *recorded {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(dataDir, remnantsDir)
	check(os.MkdirAll(dir, 0o700))
	f, err := os.CreateTemp(dir, ".new-*")
	check(err)
	p := &recorded{t: t, cmd: exec.Command("cat")}
	if !dead {
		check(lockNow(f, unix.LOCK_EX))
		p.cmd.ExtraFiles = []*os.File{f}
	}
	in, err := p.cmd.StdinPipe()
	check(err)
	out, err := p.cmd.StdoutPipe()
	check(err)
	p.in, p.out = in, bufio.NewReader(out)
	check(p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		_ = p.cmd.Wait()
	})
	r.PID = p.cmd.Process.Pid
	p.report = r
	check((&remnantFile{f}).say(r))
	check(os.Rename(f.Name(), remnantPath(dir, r.PID)))
	check(f.Close())
	return p
}

// lives says that it was not told to end: it hears on.
func (p *recorded) lives() bool {
	_, err := io.WriteString(p.in, "still there?\n")
	line, rerr := p.out.ReadString('\n')
	return err == nil && rerr == nil && line == "still there?\n"
}

// endedBy wants its end by that signal.
func (p *recorded) endedBy(s syscall.Signal) {
	p.t.Helper()
	_, _ = io.Copy(io.Discard, p.out) // until it ends
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != s {
		p.t.Errorf("it has ended with %v, and not by %v", err, s)
	}
}

func quietNode(dataDir string) *node {
	return newNode(&config{DataDir: dataDir}, slog.New(slog.DiscardHandler))
}

// TestCanarySignal: a signal reaches the canary of a record, and neither a stranger
// who has its number now nor a process that is none.
func TestCanarySignal(t *testing.T) {
	dir := t.TempDir()
	canary := record(t, dir, remnantReport{Canary: true}, false)
	stranger := record(t, dir, remnantReport{Canary: true}, true)
	old := record(t, dir, remnantReport{}, false)
	for _, p := range []*recorded{canary, stranger, old} {
		if err := p.report.signal(dir, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	canary.endedBy(syscall.SIGTERM)
	if !stranger.lives() {
		t.Error("a stranger got the signal")
	}
	if !old.lives() {
		t.Error("an old process got the signal")
	}
	if err := canary.report.signal(dir, syscall.SIGTERM); err != nil {
		t.Errorf("one that is gone: %v", err)
	}
	for _, pid := range []int{0, 1, -1, os.Getpid()} {
		if err := (remnantReport{PID: pid, Canary: true}).signal(dir, syscall.SIGTERM); err == nil {
			t.Errorf("process %d is no canary", pid)
		}
	}
	if got := readRemnants(dir); len(got) != 1 || got[0].PID != old.report.PID {
		t.Errorf("on record are %+v", got)
	}
}

// TestCanaryLate: a canary that was left and has not ended in its time is killed;
// one that has time, or is watched, is not.
func TestCanaryLate(t *testing.T) {
	dir := t.TempDir()
	n := quietNode(dir)
	until := time.Now()
	late := record(t, dir, remnantReport{Canary: true, Until: until}, false)
	early := record(t, dir, remnantReport{Canary: true, Until: until.Add(time.Hour)}, false)
	old := record(t, dir, remnantReport{Until: until}, false)
	n.endLate(until.Add(canaryGrace))
	if !late.lives() {
		t.Fatal("it is killed while it may end by itself")
	}
	n.watched.Store(int64(late.report.PID))
	n.endLate(until.Add(canaryGrace + time.Second))
	if !late.lives() {
		t.Fatal("it is killed while it is watched")
	}
	n.watched.Store(0)
	n.endLate(until.Add(canaryGrace + time.Second))
	late.endedBy(syscall.SIGKILL)
	if !early.lives() || !old.lives() {
		t.Error("others are killed")
	}
}

// TestCanaryLeftIsTold: what did not come back from a canary is in the status, and a
// drain waits for it; of one that is watched others tell.
func TestCanaryLeftIsTold(t *testing.T) {
	dir := t.TempDir()
	n := quietNode(dir)
	three := record(t, dir, remnantReport{Version: "v2", Canary: true, Holds: map[string]int{"relays": 3}}, false)
	record(t, dir, remnantReport{Canary: true}, false) // hangs, and has not said what it has
	record(t, dir, remnantReport{Holds: map[string]int{"sessions": 2}}, false)
	var left drainReport
	if !n.leftIn(&left) || left.Canaries != 4 || !strings.Contains(left.rest(), "4 connections of canaries are") {
		t.Errorf("%+v: %s", left, left.rest())
	}
	var out strings.Builder
	if err := (&nodeStatus{Remnants: n.remnants()}).print(&out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Count(got, "Canary left ") != 2 || !strings.Contains(got, "version v2, on its own for ") || !strings.Contains(got, "has 3 relays,") ||
		strings.Count(got, "Old process ") != 1 {
		t.Error(got)
	}
	n.watched.Store(int64(three.report.PID))
	if !n.leftIn(&left) || left.Canaries != 1 || len(n.remnants()) != 2 {
		t.Errorf("%+v, %+v", left, n.remnants())
	}
}

// TestStopEndsLeftCanaries: the service's end ends them too, also of a process that
// was never upgraded itself.
func TestStopEndsLeftCanaries(t *testing.T) {
	dir := t.TempDir()
	n := quietNode(dir)
	canary := record(t, dir, remnantReport{Canary: true}, false)
	old := record(t, dir, remnantReport{}, false)
	n.endRemnants()
	canary.endedBy(syscall.SIGTERM)
	if !old.lives() {
		t.Error("an old process, which ends by itself, got a signal")
	}
}

// TestCanaryLeftIsCountedOnce: what a canary still says once it is on its own adds to
// what has been, and to nothing that is.
func TestCanaryLeftIsCountedOnce(t *testing.T) {
	loops, err := relay.New(1)
	if err != nil {
		t.Fatal(err)
	}
	defer loops[0].Close()
	g, err := gateway.StartGuest(gateway.Config{Cluster: "gw.test", Loops: loops})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c := &canary{gateway: g, relays: map[string]int{}}
	said := &handoverv1.CanaryReport{Relays: 5, BytesIn: 7, Routes: []*handoverv1.CanaryRoute{{Name: "shop.example.com", Relays: 5}}}
	wants := func(relays int, in uint64) {
		t.Helper()
		s, routes := g.Snapshot(), 0
		for _, r := range s.Routes {
			routes += r.Relays
		}
		if s.Relays != relays || routes != relays || s.BytesIn != in {
			t.Errorf("%d relays, %d of routes, %d bytes; want %d relays and %d bytes", s.Relays, routes, s.BytesIn, relays, in)
		}
	}
	c.count(said)
	wants(5, 7)
	c.forget()
	wants(0, 7)
	c.count(said)
	wants(0, 14)
	c.forget()
	wants(0, 14)
}
