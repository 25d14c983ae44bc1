package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/cmd/internal/notify"
	"github.com/sallyport/sallyport/cmd/sallyport/crowd"
	"github.com/sallyport/sallyport/tools/peers"
)

// TestFitted: connections give way to the limit of descriptors, busy ones do not.
func TestFitted(t *testing.T) {
	for _, tc := range []struct {
		size  crowd.Config
		limit uint64
		kept  int // 0: an error
	}{
		{crowd.Config{Kept: 8000, Busy: 200, Rate: 2000}, 20000, 8000},
		{crowd.Config{Kept: 9000, Busy: 200, Rate: 2000}, 20000, 8700},
		{crowd.Config{Kept: 1 << 40, Busy: 1}, 1024, 360},
		{crowd.Config{Kept: 100, Busy: 100}, 1024, 100},
		{crowd.Config{Kept: 100, Busy: 100}, 800, 0},
		{crowd.Config{Kept: 1000, Busy: 10, Rate: 2000}, 1024, 0},
	} {
		got, err := fitted(tc.size, tc.limit)
		if tc.kept == 0 {
			if err == nil {
				t.Errorf("%+v with %d: %d", tc.size, tc.limit, got.Kept)
			}
			continue
		}
		if err != nil || got.Kept != tc.kept {
			t.Errorf("%+v with %d: %d, %v; want %d", tc.size, tc.limit, got.Kept, err, tc.kept)
		}
		if uint64(got.Descriptors()) > tc.limit {
			t.Errorf("%+v needs %d of %d", got, got.Descriptors(), tc.limit)
		}
	}
}

// TestSelftestResult: the worst of all upgrades, and what makes it fail.
func TestSelftestResult(t *testing.T) {
	at := time.Millisecond
	run := &selftest{size: crowd.Config{Kept: 10, Busy: 2}, peak: 1.25, late: 7 * at,
		done: []*upgradeSeen{{took: 300 * at, released: 9 * at, exited: 20 * at, speed: 100}, {took: 200 * at, released: 11 * at, exited: 15 * at, speed: 300}, {speed: 200}}}
	for i := range 100 {
		run.gaps = append(run.gaps, time.Duration(100-i)*at/10)
	}
	good := crowd.Report{Kept: 10, Served: 5, Verified: 1 << 40}
	r := run.result(good, nil)
	want := selftestResult{Kept: 10, BytesVerified: 1 << 40, RelaysPerSecond: 200, Released: 11, OldExit: 20, StallP50: 5.1, StallP99: 10, StallMax: 10,
		Connections: 10, Busy: 2, Upgrades: 3, Took: 300, Served: 5, MemoryPeak: 1.25}
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want.Reasons = map[string]int{}
	if b, _ := json.Marshal(want); !bytes.Equal(b, got) || !r.sound() {
		t.Errorf("%s\nwant %s", got, b)
	}
	for _, field := range []string{"kept", "lost", "corrupted", "refused", "stall_p50_ms", "stall_p99_ms", "stall_max_ms", "bytes_verified", "relays_per_second", "released_ms", "old_exit_ms"} {
		if !bytes.Contains(got, []byte(`"`+field+`":`)) {
			t.Errorf("there is no %s", field)
		}
	}
	for name, bad := range map[string]func(*crowd.Report){
		"lost": func(r *crowd.Report) { r.Lost = 1 }, "corrupted": func(r *crowd.Report) { r.Corrupted = 1 },
		"refused": func(r *crowd.Report) { r.Refused = 1 }, "not kept": func(r *crowd.Report) { r.Kept-- },
	} {
		c := good
		if bad(&c); run.result(c, nil).sound() {
			t.Errorf("%s, and sound", name)
		}
	}
	if r := run.result(good, errors.New("no")); r.sound() || r.Problem != "no" {
		t.Error("an upgrade failed, and all is sound")
	}
	var text strings.Builder
	if err := new(selftestUpgradeCmd).print(&text, r); err != nil || !strings.Contains(text.String(), "10 of 10 connections") {
		t.Errorf("%v\n%s", err, text.String())
	}
}

// TestDrainNotes: what nobody waits for does not fill the socket.
func TestDrainNotes(t *testing.T) {
	dir, err := os.MkdirTemp("", "sp") // short, for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "notify")
	notes, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notes.Close()
	g, m := &testedGateway{notes: notes}, notify.New(name)
	for range 5 {
		for range 8 { // net.unix.max_dgram_qlen is 10
			if err := m.Status("x"); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.drainNotes(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEndRest: what an upgrade has left that was cut short ends with the self-test,
// and nothing else does.
func TestEndRest(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		peers.Missing(t, "sleep")
	}
	g := &testedGateway{dir: t.TempDir()}
	of := filepath.Join(g.dir, "sallyport")
	if err := copyProgram(sleep, of); err != nil {
		t.Fatal(err)
	}
	left, other := exec.Command(of, "600"), exec.Command(sleep, "600")
	for _, cmd := range []*exec.Cmd{left, other} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	}
	g.endRest()
	if runs(left.Process.Pid) || !runs(other.Process.Pid) {
		t.Errorf("what is left runs: %v; another process: %v", runs(left.Process.Pid), runs(other.Process.Pid))
	}
}

// TestOldWatch: a process is seen to have let go of its sockets, and to have
// ended, at the moments in which it does.
func TestOldWatch(t *testing.T) {
	if os.Getenv("SALLYPORT_TEST_OLD") != "" {
		beOld()
		return
	}
	leaveOpen(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestOldWatch$")
	cmd.Env = append(os.Environ(), "SALLYPORT_TEST_OLD=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	turn := func(want string) {
		t.Helper()
		if line, err := lines.ReadString('\n'); err != nil || line != want {
			t.Fatalf("%q, %v", line, err)
		}
	}
	turn("holds\n")
	w := watchOld(cmd.Process.Pid, passedOn())
	defer w.stop()
	if what, yes := w.holds(); !yes || !strings.HasSuffix(what, " (TCP)") && !strings.HasSuffix(what, " (MPTCP)") {
		t.Errorf("a listening socket was not seen: %q, %v", what, yes)
	}
	if err := w.wait(t.Context(), time.Millisecond); !errors.Is(err, errStayed) || !strings.Contains(err.Error(), "it has descriptor ") {
		t.Errorf("it has not ended: %v", err)
	}
	w = watchOld(cmd.Process.Pid, passedOn())
	defer w.stop()
	if _, err := in.Write([]byte{'\n'}); err != nil {
		t.Fatal(err)
	}
	turn("let go\n")
	if what, yes := (&oldWatch{pid: cmd.Process.Pid}).holds(); !yes {
		t.Errorf("the sockets from outside are not there: %q", what)
	}
	if what, yes := w.holds(); yes {
		t.Errorf("it holds nothing but sockets of this machine and of what started us: %s", what)
	}
	if m, err := memoryOf(cmd.Process.Pid); err != nil || m.all < 1<<20 || m.own >= m.all {
		t.Errorf("%+v bytes, %v", m, err)
	}
	in.Close()
	if err := w.wait(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if w.released.IsZero() || w.gone.Before(w.released) {
		t.Errorf("released %s, gone %s", w.released, w.gone)
	}
	_ = cmd.Wait()
	if runs(cmd.Process.Pid) {
		t.Error("it runs")
	}
}

// TestGlance: a socket is seen wherever it is among the descriptors, though a look
// reads some twenty at a time.
func TestGlance(t *testing.T) {
	w := &oldWatch{pid: os.Getpid(), outside: passedOn()}
	for range 200 { // in front of the socket
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if what, yes := w.holds(); yes {
		t.Fatalf("there is a socket already: %s", what)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if what, yes := w.holds(); !yes {
		t.Errorf("a socket behind 200 files was not seen: %q", what)
	}
}

// TestMemorySum: what two processes have together is counted once, and a look
// during which one has ended is none.
func TestMemorySum(t *testing.T) {
	own, shares := os.Getpid(), otherThread(t)
	nobody := func(int) []int { return nil }
	alone := (&memoryWatch{pid: own, below: nobody}).sum()
	both := (&memoryWatch{pid: own, below: func(pid int) []int { return map[int][]int{own: {shares}}[pid] }}).sum()
	if !sameMemory(own, shares) {
		t.Log("this system does not say who shares memory: kcmp(2) is not to be had")
	} else if both > alone*3/2 {
		t.Errorf("%d bytes, and with one that has the same memory %d", alone, both)
	}
	if alone < 1<<20 {
		t.Errorf("%d bytes", alone)
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child := cmd.Process.Pid
	if sameMemory(own, child) {
		t.Error("another program has this one's memory")
	}
	if two := (&memoryWatch{pid: own, below: func(pid int) []int { return map[int][]int{own: {child}}[pid] }}).sum(); two == 0 {
		t.Error("nothing was counted")
	}
	ends := func(pid int) []int {
		if pid != child {
			return nil
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return []int{own}
	}
	if n := (&memoryWatch{pid: child, below: ends}).sum(); n != 0 {
		t.Errorf("%d bytes of a process that has ended meanwhile, and of another one", n)
	}
}

// TestMemoryShared: pages that a process begins to share with another one, which
// has been looked at already, are counted once.
func TestMemoryShared(t *testing.T) {
	if name := os.Getenv("SALLYPORT_TEST_SHARES"); name != "" {
		beSharer(name)
		return
	}
	const size = 16 << 20
	name := filepath.Join(t.TempDir(), "shared")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	mapped, err := touched(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	cmd := exec.Command(os.Args[0], "-test.run=^TestMemoryShared$")
	cmd.Env = append(os.Environ(), "SALLYPORT_TEST_SHARES="+name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	lines := bufio.NewReader(out)
	turn := func() {
		t.Helper()
		if line, err := lines.ReadString('\n'); err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	turn()
	own, child, told := os.Getpid(), cmd.Process.Pid, false
	w := &memoryWatch{pid: own, below: func(pid int) []int {
		if pid != own {
			return nil
		}
		if !told {
			told = true
			if _, err := in.Write([]byte{'\n'}); err != nil {
				t.Error(err)
			}
			turn()
		}
		return []int{child}
	}}
	if sum, whole := w.look(); whole {
		t.Errorf("%d bytes were counted while the child mapped %d of them", sum, size)
	}
	apart := func() (sum uint64) {
		for _, pid := range []int{own, child} {
			m, err := memoryOf(pid)
			if err != nil {
				t.Fatal(err)
			}
			sum += m.all
		}
		return sum
	}
	before := apart() // of what other tests have used the runtime gives back more and more
	sum, whole := w.look()
	if most := max(before, apart()) + size/4; !whole || sum > most {
		t.Errorf("%d bytes of %d (%v)", sum, most, whole)
	}
}

// touched is a file's memory, in which each page is there.
func touched(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
}

// beSharer maps the file when it is told, and ends when nobody is there any more.
func beSharer(name string) {
	in := bufio.NewReader(os.Stdin)
	os.Stdout.WriteString("runs\n")
	if _, err := in.ReadString('\n'); err != nil {
		os.Exit(3)
	}
	b, err := touched(name)
	if err != nil {
		os.Exit(3)
	}
	os.Stdout.WriteString("shares\n")
	_, _ = in.ReadString('\n')
	_ = unix.Munmap(b)
	os.Exit(0)
}

// otherThread is one of this process that is not its first.
func otherThread(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if id, err := strconv.Atoi(task.Name()); err == nil && id != os.Getpid() {
			return id
		}
	}
	t.Fatal("a program of Go has one thread only")
	return 0
}

// leaveOpen does what some machines that run tests do: sockets stay open for all
// that is started below.
func leaveOpen(t *testing.T) {
	t.Helper()
	for _, family := range []int{unix.AF_INET, unix.AF_VSOCK} {
		fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
		if family == unix.AF_VSOCK && errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
	}
}

// beOld listens until it is told, and ends when it is told again.
func beOld() {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		os.Exit(3)
	}
	// A listener of this machine alone is nobody's connection.
	own, err := net.Listen("unix", "@sallyport-test-old-"+l.Addr().String())
	if err != nil {
		os.Exit(3)
	}
	in := bufio.NewReader(os.Stdin)
	os.Stdout.WriteString("holds\n")
	if _, err := in.ReadString('\n'); err != nil {
		os.Exit(3)
	}
	l.Close()
	os.Stdout.WriteString("let go\n")
	_, _ = in.ReadString('\n')
	own.Close()
	os.Exit(0)
}
