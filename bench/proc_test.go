package main

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
)

func TestParseStat(t *testing.T) {
	const line = "42 (a) b (c) S 7 42 42 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 12345 0 0\n"
	got, err := parseStat([]byte(line))
	want := stat{pid: 42, parent: 7, session: 42, state: 'S', comm: "a) b (c", ticks: 33, reaped: 77}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "1 x S", "x (a) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "1 (a) S 1 1"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestParseRollup(t *testing.T) {
	m, err := parseRollup([]byte("00400000-7ffc1000 ---p 00000000 00:00 0  [rollup]\nRss:     1234 kB\nPss:      567 kB\nPss_Dirty: 9 kB\n"))
	if err != nil || m.RSS != 1234*1024 || m.PSS != 567*1024 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := parseRollup(nil); err == nil {
		t.Error("nothing was read as memory")
	}
}

// TestCPUTime: the clock of a process is that of /proc/PID/stat, only finer.
func TestCPUTime(t *testing.T) {
	onLinux(t)
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(30 * time.Millisecond); time.Now().Before(until); {
	}
	after, err := cpuTime(os.Getpid())
	if err != nil || after <= before {
		t.Errorf("%s, then %s: %v", before, after, err)
	}
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseStat(b)
	if err != nil {
		t.Fatal(err)
	}
	later, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const coarse = 200 * time.Millisecond
	if ticks := time.Duration(s.ticks) * time.Second / hz; ticks < after-coarse || ticks > later+coarse {
		t.Errorf("the clock says %s, then %s; between them stat says %s", after, later, ticks)
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		peers.Missing(t, "true")
	}
	if _, err := cpuTime(gone.Process.Pid); err == nil {
		t.Error("a process that has ended has a clock")
	}
}

func TestDescendants(t *testing.T) {
	onLinux(t)
	cmd := exec.Command("sh", "-c", "read x")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		peers.Missing(t, "sh")
	}
	defer cmd.Wait()
	defer in.Close()
	below, err := descendants(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range below {
		if s.pid == cmd.Process.Pid {
			if _, err := memoryOf(s.pid); err != nil {
				t.Error(err)
			}
			return
		}
	}
	t.Errorf("process %d is not among %v", cmd.Process.Pid, below)
}

func onLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
}
