package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/tools/peers"
)

// kin is a process as its parent's table shows it.
type kin struct {
	parent int
	state  string // a letter: proc_pid_stat(5)
}

func kinOf(pid int) (k kin, there bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return k, false
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	_, err = fmt.Sscan(f[1], &k.parent)
	k.state = f[0]
	return k, err == nil
}

// descendants are all processes below one.
func descendants(pid int) (out []int) {
	of := map[int][]int{}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		var one int
		if _, err := fmt.Sscan(filepath.Base(dir), &one); err == nil {
			if k, there := kinOf(one); there {
				of[k.parent] = append(of[k.parent], one)
			}
		}
	}
	for next := of[pid]; len(next) > 0; next = next[1:] {
		out = append(out, next[0])
		next = append(next, of[next[0]]...)
	}
	return out
}

// container runs a program as process 1 of a name space of processes.
func container(t testing.TB) func(args ...string) *exec.Cmd {
	if _, err := exec.LookPath("unshare"); err != nil {
		peers.Missing(t, "unshare")
	}
	if err := exec.Command("unshare", "--fork", "--pid", "--mount-proc", "true").Run(); err != nil {
		t.Skipf("a name space of processes cannot be made here (CAP_SYS_ADMIN): %v", err)
	}
	return func(args ...string) *exec.Cmd {
		const inside = `mount --make-rprivate / && mount -t proc proc /proc && exec "$0" "$@"`
		cmd := exec.Command("/bin/sh", append([]string{"-c", inside, program(t, "sallyport")}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
		return cmd
	}
}

// TestUpgradeContainer: as process 1 it takes leave of every orphan, also before
// the first upgrade; it passes signals on; and the container ends with the service.
func TestUpgradeContainer(t *testing.T) {
	g := startRoutesAs(t, oneRoute(newBackend(t, "one", false)), container(t))
	load := startLoad(t, g.addr, []string{"a.example.com"}, 20)
	load.more()
	init := g.cmd.Process.Pid
	orphan := func() {
		t.Helper()
		out, err := exec.Command("nsenter", fmt.Sprintf("--target=%d", init), "--pid", "--mount", "sh", "-c", "sleep 4711 >/dev/null 2>&1 & exit 0").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		pid := 0
		await(t, "process 1 gets the orphan", runWait, func() bool {
			for _, one := range descendants(init) {
				line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", one))
				if k, there := kinOf(one); there && k.parent == init && string(line) == "sleep\x004711\x00" {
					pid = one
				}
			}
			return pid > 0
		})
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "process 1 takes leave of it", runWait, func() bool { _, there := kinOf(pid); return !there })
	}
	orphan()
	if s := g.serving(); s.PID == 1 {
		t.Error("process 1 does the work, and cannot tell orphans from its own")
	}
	// In the first milliseconds of another program the system would drop what
	// stops the container (pid_namespaces(7)).
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", init)); err != nil || strings.Contains(string(line), "\x00supervise\x00") {
		t.Errorf("process 1 has become another program: %q, %v", line, err)
	}
	for range 2 {
		g.upgrade()
		load.more()
		orphan()
	}
	if err := g.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	await(t, "the upgrade by SIGUSR2", runWait, func() bool { return len(g.serving().Upgrades) == 3 })
	load.more()
	load.stop()
	await(t, "the old processes end, and are waited for", runWait, func() bool { return len(descendants(init)) == 1 })
	g.stop()
	if g.err != nil {
		t.Errorf("process 1 ended with %v", g.err)
	}
	if left := descendants(init); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestUpgradeContainerKilled: the exit code of the service is that of who works.
func TestUpgradeContainerKilled(t *testing.T) {
	g := startRoutesAs(t, oneRoute(newBackend(t, "one", false)), container(t))
	main := descendants(g.cmd.Process.Pid)
	if len(main) != 1 {
		t.Fatalf("processes %v", main)
	}
	if err := syscall.Kill(main[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-g.done
	if code := g.cmd.ProcessState.ExitCode(); code != 128+9 {
		t.Errorf("exit code %d", code)
	}
}

// manager is a service manager that a process notifies: it knows who said what.
type manager struct {
	conn *net.UnixConn
	name string

	mu   sync.Mutex
	said []string // "pid: text"
}

func startManager(t testing.TB) *manager {
	t.Helper()
	m := &manager{name: "@sallyport-e2e-" + filepath.Base(shortDir(t))}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.name, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	raw, err := m.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.listen()
	}()
	t.Cleanup(func() {
		m.conn.Close()
		<-ended
	})
	return m
}

func (m *manager) listen() {
	b, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		from := 0
		if all, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(all) > 0 {
			if cred, err := unix.ParseUnixCredentials(&all[0]); err == nil {
				from = int(cred.Pid)
			}
		}
		m.mu.Lock()
		m.said = append(m.said, fmt.Sprintf("%d: %s", from, b[:n]))
		m.mu.Unlock()
	}
}

// heard waits for what a process is to say, whose text may have more lines.
func (m *manager) heard(t testing.TB, pid int, text string) {
	t.Helper()
	want := fmt.Sprintf("%d: %s", pid, text)
	await(t, fmt.Sprintf("%q", want), runWait, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return slices.ContainsFunc(m.said, func(s string) bool { return s == want || strings.HasPrefix(s, want+"\n") })
	})
}

// believed checks that whoever spoke was the main process at that time: systemd
// passes over what others say (NotifyAccess=main).
func (m *manager) believed(t testing.TB, first int) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	main := first
	for _, s := range m.said {
		var from, next int
		fmt.Sscan(s, &from)
		if from != main && !strings.HasSuffix(s, ": WATCHDOG=1") {
			t.Errorf("process %d is the main one, and another said %q", main, s)
		}
		if _, rest, ok := strings.Cut(s, ": MAINPID="); ok {
			if fmt.Sscan(rest, &next); from == main {
				main = next
			}
		}
	}
}

// TestUpgradeNotify: a service manager is told by the process that it believes
// which one comes next, is not left in the middle of a reload, hears from the
// main process as often as it wants to, and learns that an end is meant.
func TestUpgradeNotify(t *testing.T) {
	m := startManager(t)
	g := startRoutesAs(t, oneRoute(newBackend(t, "one", false)), func(args ...string) *exec.Cmd {
		cmd := exec.Command(program(t, "sallyport"), args...)
		cmd.Env = []string{"NOTIFY_SOCKET=" + m.name, fmt.Sprintf("WATCHDOG_USEC=%d", (3 * time.Second).Microseconds())}
		return cmd
	})
	first := g.cmd.Process.Pid
	m.heard(t, first, "READY=1")
	m.heard(t, first, "WATCHDOG=1")
	u := g.upgrade()
	t.Cleanup(func() { syscall.Kill(u.ToPID, syscall.SIGKILL) })
	m.heard(t, first, "RELOADING=1")
	m.heard(t, first, fmt.Sprintf("MAINPID=%d\nREADY=1", u.ToPID))
	m.heard(t, u.ToPID, "WATCHDOG=1")
	<-g.done
	if g.err != nil {
		t.Errorf("the first process ended with %v", g.err)
	}
	g.configure("  routs: []\n")
	g.refused(1, []string{"routs"}, "sallyport", "upgrade", "-c", g.file)
	g.configure(oneRoute(newBackend(t, "one", false)))
	third := g.upgrade()
	t.Cleanup(func() { syscall.Kill(third.ToPID, syscall.SIGKILL) })
	m.heard(t, u.ToPID, fmt.Sprintf("MAINPID=%d\nREADY=1", third.ToPID))
	if err := syscall.Kill(third.ToPID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.heard(t, third.ToPID, "STOPPING=1")
	await(t, "its end", runWait, func() bool { return !alive(third.ToPID) })
	m.believed(t, first)
}

// TestReloadNotify: a service manager is told when a reload begins and when it has
// ended, also of one that is refused: it waits for both (Type=notify-reload).
func TestReloadNotify(t *testing.T) {
	m := startManager(t)
	g := startRoutesAs(t, oneRoute(newBackend(t, "one", false)), func(args ...string) *exec.Cmd {
		cmd := exec.Command(program(t, "sallyport"), args...)
		cmd.Env = []string{"NOTIFY_SOCKET=" + m.name}
		return cmd
	})
	pid := g.cmd.Process.Pid
	m.heard(t, pid, "READY=1")
	for i, routes := range []string{oneRoute(newBackend(t, "two", false)), "  routs: []\n"} {
		g.configure(routes)
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		await(t, fmt.Sprintf("reload %d begins and ends", i), runWait, func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			n := len(m.said)
			return n == 3+2*i && strings.HasPrefix(m.said[n-2], fmt.Sprintf("%d: RELOADING=1\nMONOTONIC_USEC=", pid)) && m.said[n-1] == fmt.Sprintf("%d: READY=1", pid)
		})
	}
}

// TestUnits: systemd finds nothing wrong with the unit and the drop-in of the
// operator's guide.
func TestUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		peers.Missing(t, "systemd-analyze")
	}
	guide, err := os.ReadFile("../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(guide), "\n```ini\n")
	if len(parts) != 3 {
		t.Fatalf("%d units in the guide, want a unit and a drop-in", len(parts)-1)
	}
	dir := shortDir(t)
	for i, name := range []string{"sallyport.service", "sallyport.service.d/override.conf"} {
		text, _, _ := strings.Cut(parts[i+1], "```")
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "/usr/local/bin/sallyport", program(t, "sallyport"))), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("systemd-analyze", "verify", "sallyport.service")
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
