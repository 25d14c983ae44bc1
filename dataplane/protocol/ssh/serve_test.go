package ssh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
)

func TestExec(t *testing.T) {
	h := newHost(t, nil)
	for _, c := range []struct {
		command, out, err string
		status            int
		signal            string
	}{
		{command: "true"},
		{command: "exit 1", status: 1},
		{command: "exit 130", status: 130},
		{command: "echo out; echo err >&2; exit 3", out: "out\n", err: "err\n", status: 3},
		{command: "kill -TERM $$", status: 128 + 15, signal: "TERM"},
		{command: "kill -KILL $$", status: 128 + 9, signal: "KILL"},
		{command: "kill -WINCH $$; echo on", out: "on\n"},
		{command: "pwd", out: h.home + "\n"},
		{command: "tty", out: "not a tty\n", status: 1},
		{command: "shopt -q login_shell; echo $?", out: "1\n"},
		{command: "ps -o pid=,sid=,pgid= -p $$ | awk '{print ($1==$2 && $2==$3)}'", out: "1\n"},
	} {
		t.Run(c.command, func(t *testing.T) {
			got := h.run(c.command)
			if got.out != c.out || got.err != c.err || got.status != c.status || got.signal != c.signal {
				t.Errorf("got %+v, want %+v", got, c)
			}
		})
	}
}

func TestShellReadsStandardInput(t *testing.T) {
	h := newHost(t, nil)
	s := h.session()
	s.Stdin = strings.NewReader("echo $0; shopt -q login_shell && echo login; exit 7\n")
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(out)
	if err != nil || string(got) != "-bash\nlogin\n" {
		t.Errorf("got %q, %v", got, err)
	}
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("ended with %v, want status 7", err)
	}
}

// TestIdentityOfProcess: as root the program runs as the login and nobody else.
func TestIdentityOfProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	leaked, err := syscall.Dup(1) // as a careless parent leaves it: open across exec
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(leaked)
	h := newHost(t, nil)
	got := h.run("id -u; id -g; id -G; grep -c . /proc/self/status >/dev/null; grep CapEff /proc/self/status")
	want := "54321\n54322\n54322 54400\nCapEff:\t0000000000000000\n"
	if got.out != want {
		t.Errorf("got %q, want %q", got.out, want)
	}
	if got := h.run("ls /proc/self/fd | wc -l"); got.out != "4\n" { // 0 1 2 and the directory
		t.Errorf("descriptors: %q", got.out)
	}
}

func TestEnvironment(t *testing.T) {
	h := newHost(t, nil)
	t.Setenv("AGENT_SECRET", "x")
	s := h.session()
	for _, kv := range [][2]string{{"LANG", "C.UTF-8"}, {"LC_ALL", "C"}, {"COLORTERM", "truecolor"}, {"TZ", "Europe/Paris"}, {"SALLY_TEST", "1"}} {
		if err := s.Setenv(kv[0], kv[1]); err != nil {
			t.Errorf("%s: %v", kv[0], err)
		}
	}
	env := map[string]string{}
	for line := range strings.Lines(runOn(t, s, "env").out) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		env[name] = value
	}
	for name, want := range map[string]string{
		"HOME": h.home, "USER": h.login, "LOGNAME": h.login, "SHELL": "/bin/bash", "MAIL": "/var/mail/" + h.login,
		"PATH": pathUser, "LANG": "C.UTF-8", "LC_ALL": "C", "COLORTERM": "truecolor", "TZ": "Europe/Paris", "SALLY_TEST": "1",
		"SSH_TELEPORT_USER": "alice", "SALLY_USER": "alice", "SSH_TELEPORT_CLUSTER_NAME": cluster, "SALLY_CLUSTER_NAME": cluster,
		"SSH_TELEPORT_HOST_UUID": h.server.HostID, "SALLY_HOST_UUID": h.server.HostID,
		"SSH_CLIENT": "127.0.0.1 45678 " + port(h.addr), "SSH_CONNECTION": "127.0.0.1 45678 127.0.0.1 " + port(h.addr),
		"AGENT_SECRET": "", "SSH_TTY": "", "TERM": "",
	} {
		if env[name] != want && !(name == "TERM" && env[name] == "dumb") { // bash sets TERM itself
			t.Errorf("%s is %q, want %q", name, env[name], want)
		}
	}
	if env["SSH_SESSION_ID"] == "" || env["SSH_SESSION_ID"] != env["SALLY_SESSION_ID"] {
		t.Errorf("session ids %q and %q", env["SSH_SESSION_ID"], env["SALLY_SESSION_ID"])
	}
}

// TestA09_EnvironmentAllowList: what a client sends never steers the loader, a
// shell's start or a library's choice of files.
func TestA09_EnvironmentAllowList(t *testing.T) {
	h := newHost(t, nil)
	s := h.session()
	for _, kv := range [][2]string{
		{"LD_PRELOAD", "/tmp/x.so"}, {"LD_LIBRARY_PATH", "/tmp"}, {"LD_AUDIT", "x"}, {"DYLD_INSERT_LIBRARIES", "x"},
		{"BASH_ENV", "/tmp/x"}, {"ENV", "/tmp/x"}, {"PATH", "/tmp"}, {"IFS", "x"}, {"SHELLOPTS", "xtrace"}, {"PS4", "x"},
		{"HOME", "/tmp"}, {"USER", "root"}, {"SHELL", "/tmp/x"}, {"PYTHONPATH", "/tmp"}, {"PERL5OPT", "-x"}, {"GCONV_PATH", "/tmp"},
		{"LOCPATH", "/tmp"}, {"MALLOC_CHECK_", "3"}, {"GLIBC_TUNABLES", "x"}, {"SSH_SESSION_ID", "x"}, {"SSH_CONNECTION", "x"},
		{"SSH_ORIGINAL_COMMAND", "x"}, {"SSH_TELEPORT_USER", "root"}, {"SALLY_USER", "root"}, {"SALLY_SESSION_ID", "x"},
		{"SALLY_CLUSTER_NAME", "x"}, {"SALLY_HOST_UUID", "x"}, {"LC_ALL", "../../../tmp/x"}, {"LANG", "/tmp/x"}, {"TZ", "/etc/shadow"},
		{"TZ", ":/etc/shadow"}, {"TZ", "../../etc/shadow"}, {"LC_X=1\nLD_PRELOAD", "x"}, {"LC_x", "1"}, {"", "x"}, {"LC_A=B", "x"},
		{"LANG", "a\x00LD_PRELOAD=x"}, {"LANG", strings.Repeat("x", maxEnvValue+1)}, {"TERM", "/tmp/x"}, {"SALLY_a", "x"}, {"lang", "C"},
		{"BASH_FUNC_ls%%", "() { :; }"}, {"LC_" + strings.Repeat("X", 100), "x"},
	} {
		if err := s.Setenv(kv[0], kv[1]); err == nil {
			t.Errorf("%q=%q accepted", kv[0], kv[1])
		}
	}
	accepted := 0
	for i := range 2 * maxEnvCount {
		if s.Setenv(fmt.Sprintf("LC_%d", i), "x") == nil {
			accepted++
		}
	}
	if accepted != maxEnvCount {
		t.Errorf("%d variables accepted, want %d", accepted, maxEnvCount)
	}
	if got := runOn(t, s, "env | grep -c -E '^(LD_|DYLD|BASH_ENV|ENV|PYTHON|PERL|LOC|GCONV)'"); got.out != "0\n" {
		t.Errorf("in the environment: %q", got.out)
	}
}

// TestBulk: 20 MB each way, bit for bit, and stderr apart.
func TestBulk(t *testing.T) {
	h := newHost(t, nil)
	data := make([]byte, 20<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; i+8 <= len(data); i += 8 {
		v := r.Uint64()
		for j := range 8 {
			data[i+j] = byte(v >> (8 * j))
		}
	}
	s := h.session()
	s.Stdin = bytes.NewReader(data)
	got := runOn(t, s, "tee >(sha256sum >&2)")
	if sha256.Sum256([]byte(got.out)) != sha256.Sum256(data) {
		t.Errorf("%d bytes came back, not the %d sent", len(got.out), len(data))
	}
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256(data)); got.err != want {
		t.Errorf("stderr %q, want %q", got.err, want)
	}
}

// TestOutputBeforeExit: nothing of what a program wrote at its end is lost.
func TestOutputBeforeExit(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	for _, tty := range []bool{false, true} {
		for i := range 10 {
			s, err := c.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if tty {
				if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{ssh.OPOST: 0}); err != nil {
					t.Fatal(err)
				}
			}
			if got := runOn(t, s, "seq 1 5000; echo end"); !strings.HasSuffix(got.out, "\n5000\nend\n") || strings.Count(got.out, "\n") != 5001 {
				t.Fatalf("tty %v, round %d: %d lines, end %q", tty, i, strings.Count(got.out, "\n"), got.out[max(0, len(got.out)-20):])
			}
		}
	}
}

// TestBackgroundJobKeepsTerminal: a job that holds the terminal open does not
// hold the session.
func TestBackgroundJobKeepsTerminal(t *testing.T) {
	h := newHost(t, nil)
	s := h.session()
	if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
		t.Fatal(err)
	}
	got := runOn(t, s, `trap "" HUP; sleep 60 & echo job $!; exit 4`)
	if got.status != 4 || !strings.HasPrefix(got.out, "job ") {
		t.Errorf("got %+v", got)
	}
	killPID(t, got.out)
}

func killPID(t *testing.T, out string) {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(out, "job ")))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := os.FindProcess(pid); err == nil {
		p.Kill()
	}
}

func TestTerminal(t *testing.T) {
	h := newHost(t, nil)
	s := h.session()
	if err := s.RequestPty("xterm-256color", 24, 80, ssh.TerminalModes{ssh.ECHO: 0, ssh.VINTR: 7, ssh.ONLCR: 0, ssh.TTY_OP_ISPEED: 38400}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s.Stdout = &out
	if err := s.Start(`stty size; echo $TERM $SSH_TTY; stat -c '%U %a %u' $SSH_TTY; tty; stty -a | grep -o -E -- '-?echo |intr = [^;]*|-?onlcr'; read x; stty size; echo $x`); err != nil {
		t.Fatal(err)
	}
	if err := s.WindowChange(40, 132); err != nil {
		t.Fatal(err)
	}
	// What is typed is another stream, which may overtake it.
	eventually(t, "the resize event", func() bool { return len(h.gate.named("resize")) == 1 })
	if _, err := io.WriteString(in, "typed\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 10 {
		t.Fatalf("got %q", lines)
	}
	name := strings.TrimPrefix(lines[1], "xterm-256color ")
	owner := fmt.Sprintf(" %d", os.Getuid())
	if os.Getuid() == 0 { // otherwise the mode is what devpts is mounted with
		owner = " 620 54321"
	}
	if lines[3] != name || !strings.HasPrefix(name, "/dev/pts/") || !strings.HasSuffix(lines[2], owner) {
		t.Errorf("terminal %q, owner and mode %q", lines[3], lines[2])
	}
	if lines[4] != "intr = ^G" || lines[5] != "-onlcr" || lines[6] != "-echo " {
		t.Errorf("modes %q", lines[4:7])
	}
	if lines[7] != "40 132" || lines[8] != "typed" {
		t.Errorf("after the change: %q", lines[7:])
	}
	if e := h.gate.named("resize")[0]; e.Code != "T2002I" || e.Fields["size"] != "132:40" {
		t.Errorf("resize event %+v", e)
	}
}

func TestSignals(t *testing.T) {
	taken := make(chan os.Signal, 1) // a process started with SIGHUP ignored would pass that on
	signal.Notify(taken, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(taken) })
	h := newHost(t, nil)
	for _, name := range []ssh.Signal{ssh.SIGHUP, ssh.SIGINT, ssh.SIGTERM, ssh.SIGKILL, ssh.SIGUSR1, ssh.SIGUSR2, ssh.SIGQUIT, ssh.SIGALRM} {
		t.Run(string(name), func(t *testing.T) {
			s := h.session()
			out, err := s.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start("ulimit -c 0; exec sh -c 'echo ready; exec sleep 60'"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the signal to be taken", func() bool { return s.Signal(name) == nil })
			var exit *ssh.ExitError
			if err := s.Wait(); !errors.As(err, &exit) || exit.Signal() != string(name) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestDisconnectEndsProcess: the group dies with the connection, also when it
// ignores SIGHUP, and the jobs of an interactive shell with it.
func TestDisconnectEndsProcess(t *testing.T) {
	for name, script := range map[string]string{
		"plain":        `sleep 61 & echo $$ $!; wait`,
		"ignores HUP":  `trap "" HUP; sleep 61 & echo $$ $!; wait`,
		"reads input":  `echo $$ $$; cat`,
		"writes a lot": `echo $$ $$; yes`,

		// With a terminal the job in its foreground has a process group of its own.
		"a job's leader ends": `[ ! -t 0 ] || set -m; trap "" HUP; true | sh -c 'echo $PPID $$; exec sleep 61'; :`,
		"a job ignores HUP":   `[ ! -t 0 ] || set -m; trap "" HUP; sh -c 'echo $PPID $$; exec sleep 61'; :`,
	} {
		for _, tty := range []bool{false, true} {
			t.Run(fmt.Sprint(name, tty), func(t *testing.T) {
				h := newHost(t, nil)
				c := h.dial()
				s, err := c.NewSession()
				if err != nil {
					t.Fatal(err)
				}
				if tty {
					if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
						t.Fatal(err)
					}
				}
				out, err := s.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Start(script); err != nil {
					t.Fatal(err)
				}
				var leader, child int
				if _, err := fmt.Fscan(out, &leader, &child); err != nil {
					t.Fatal(err)
				}
				c.Close()
				waitFor(t, "Serve to return", func() { <-h.errs })
				if _, err := os.Stat("/proc/" + strconv.Itoa(leader)); err == nil {
					t.Error("the leader was not reaped")
				}
				eventually(t, "the child to die of its SIGKILL", func() bool { return !alive(child) })
			})
		}
	}
}

// TestClosedChannelEndsProcess: the same for one channel of several.
func TestClosedChannelEndsProcess(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("echo $$; exec sleep 60"); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	s.Close()
	eventually(t, "the process to end", func() bool { return !alive(pid) })
	next, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if got := runOn(t, next, "echo on"); got.out != "on\n" {
		t.Errorf("the connection is gone: %+v", got)
	}
}

func TestParallelSessions(t *testing.T) {
	h := newHost(t, func(h *host) { h.server.MaxChannels = 50 })
	c := h.dial()
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			s, err := c.NewSession()
			if err != nil {
				t.Error(err)
				return
			}
			s.Stdin = strings.NewReader(strings.Repeat(strconv.Itoa(i)+"\n", 1000))
			got := runOn(t, s, "uniq; echo e >&2; exit "+strconv.Itoa(i))
			if got.out != strconv.Itoa(i)+"\n" || got.err != "e\n" || got.status != i {
				t.Errorf("session %d: %+v", i, got)
			}
		})
	}
	all.Wait()
}

// TestChannelsAreBounded: a session above max_sessions left no trace in the audit log.
func TestChannelsAreBounded(t *testing.T) {
	h := newHost(t, func(h *host) { h.server.MaxChannels = 3 })
	c := h.dial()
	for range 3 {
		if _, err := c.NewSession(); err != nil {
			t.Fatal(err)
		}
	}
	var refused *ssh.OpenChannelError
	if _, err := c.NewSession(); !errors.As(err, &refused) || refused.Reason != ssh.ResourceShortage {
		t.Errorf("the fourth session: %v", err)
	}
	limited := newHost(t, func(h *host) { h.gate.opts.MaxSessions = 1 })
	c = limited.dial()
	if _, err := c.NewSession(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.NewSession(); !errors.As(err, &refused) || refused.Reason != ssh.ResourceShortage {
		t.Errorf("above the role's max_sessions: %v", err)
	}
	if e := limited.gate.named("session.rejected"); len(e) != 1 || e[0].Code != "T1006W" || e[0].Fields["reason"] != "max_sessions limit reached" || e[0].Fields["max"] != int64(1) {
		t.Errorf("above the role's max_sessions: audited %+v", e)
	}
	if e := h.gate.named("session.rejected"); len(e) != 0 {
		t.Errorf("the host's own bound is audited as a role's: %+v", e)
	}
}

// TestEndOfSession: a lock is told on the terminal and cuts what runs: nothing
// waits for the time that a client has which does not read, or for the program.
func TestEndOfSession(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	h := newHost(t, func(h *host) { h.gate.ctx = ctx })
	c := h.dial()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	s.Stderr = &errs
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("echo $$; exec sleep 600"); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	cancel(sallyport.Denied("user alice is locked: incident 7", "ask your administrator"))
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.Signal() != "TERM" || exit.Msg() != "user alice is locked: incident 7" {
		t.Errorf("the session ended with %v", err)
	}
	waitFor(t, "Serve to return", func() { <-h.errs })
	if took := time.Since(started); took >= unhurried {
		t.Errorf("took %v", took)
	}
	if !strings.Contains(errs.String(), "ERROR: user alice is locked: incident 7\r\nhint: ask your administrator\r\n") {
		t.Errorf("told %q", errs.String())
	}
	if alive(pid) {
		t.Error("the program lives")
	}
	if e := h.gate.named("client.disconnect"); len(e) != 1 || e[0].Code != "T3006I" || e[0].Fields["reason"] != "user alice is locked: incident 7" {
		t.Errorf("events %+v", e)
	}
}

// TestEndOfSessionDeafClient: nor does a client that reads nothing delay it: the
// end comes within a second, and the time that programs get. A busy machine may
// make one try longer.
func TestEndOfSessionDeafClient(t *testing.T) {
	const tries = 10
	var took time.Duration
	for range tries {
		var most time.Duration
		if took, most = deafClientEnds(t); took <= most {
			return
		}
	}
	t.Errorf("took %v at last, %d times too long", took, tries)
}

func deafClientEnds(t *testing.T) (took, most time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	h := newHost(t, func(h *host) { h.gate.ctx, h.server.tell = ctx, 0 })
	s := h.session()
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("yes >&2 & exec yes"); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	cancel(sallyport.Denied("expired", ""))
	waitFor(t, "Serve to return", func() { <-h.errs })
	return time.Since(started), time.Second + h.server.KillGrace
}

// TestIdleTimeout: a session in which nothing moves ends. One that a busy machine
// has not begun by then is tried again with more time.
func TestIdleTimeout(t *testing.T) {
	for limit := 200 * time.Millisecond; !idleEnds(t, limit); limit *= 2 {
		if limit > deadline {
			t.Fatal("no session begins")
		}
	}
}

// idleEnds says whether the session had begun when it was ended.
func idleEnds(t *testing.T, limit time.Duration) (begun bool) {
	t.Helper()
	h := newHost(t, func(h *host) { h.gate.opts.ClientIdleTimeout = limit })
	s, err := h.dial().NewSession()
	if err != nil {
		return false
	}
	var errs bytes.Buffer
	s.Stderr = &errs
	if err := s.Start("sleep 600"); err != nil {
		return false
	}
	waitFor(t, "the idle session to end", func() { _ = s.Wait() })
	if !strings.Contains(errs.String(), fmt.Sprintf("idle for %v", limit)) {
		t.Errorf("told %q", errs.String())
	}
	waitFor(t, "Serve to return", func() { <-h.errs })
	if e := h.gate.named("client.disconnect"); len(e) != 1 || e[0].Fields["reason"] != fmt.Sprintf("the session was idle for %v", limit) {
		t.Errorf("events %+v", e)
	}
	return true
}

// TestDeadClient: who answers no question is hung up on.
func TestDeadClient(t *testing.T) {
	h := newHost(t, func(h *host) { h.server.KeepAlive = 20 * time.Millisecond })
	raw := h.rawLogin()
	defer raw.Close()
	waitFor(t, "the server to hang up", func() { <-h.errs })
	if e := h.gate.named("client.disconnect"); len(e) != 1 || e[0].Fields["reason"] != "the client stopped answering" {
		t.Errorf("events %+v", e)
	}
}

// TestEvents: they name the node as listings do, not the machine, which may be called
// otherwise.
func TestEvents(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	for _, command := range []string{"true", "exit 9", "kill -9 $$"} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		runOn(t, s, command)
	}
	c.Close()
	waitFor(t, "Serve to return", func() { <-h.errs })
	if e := h.gate.named("session.start"); len(e) != 1 || e[0].Code != "T2000I" || e[0].Login != h.login || e[0].ServerID != h.server.HostID ||
		e[0].Fields["server_hostname"] != "Web 1" || e[0].Fields["proto"] != "ssh" {
		t.Errorf("start: %+v", e)
	}
	want := []struct{ code, command, exit string }{{"T3002I", "true", "0"}, {"T3002E", "exit 9", "9"}, {"T3002E", "kill -9 $$", "137"}}
	got := h.gate.named("exec")
	if len(got) != len(want) {
		t.Fatalf("%d exec events", len(got))
	}
	for i, w := range want {
		e := got[i]
		if e.Code != w.code || e.Fields["command"] != w.command || e.Fields["exitCode"] != w.exit || *e.Success != (w.exit == "0") ||
			e.Fields["server_hostname"] != "Web 1" {
			t.Errorf("exec: %+v", e)
		}
	}
	if h.gate.ended != 1 || h.gate.fields["server_hostname"] != "Web 1" || h.gate.fields["interactive"] != false || h.gate.fields["proto"] != "ssh" ||
		h.gate.fields["session_recording"] != "off" || h.gate.fields["enhanced_recording"] != false ||
		h.gate.fields["session_start"] == nil || h.gate.fields["session_stop"] == nil || h.gate.fields["server_id"] != nil { // every event has it: twice is fields.server_id
		t.Errorf("end %d: %+v", h.gate.ended, h.gate.fields)
	}
}

// TestLongCommand: the event of a command that is not in it to the byte says so,
// and says which command it was: behind the first 16 KiB anything could hide.
func TestLongCommand(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	fill := strings.Repeat(" ", maxCommand)
	for i, command := range []string{"true" + fill[4:], "true " + fill[5:] + ";exit 7", "true\nexit 7"} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		runOn(t, s, command)
		eventually(t, "the event", func() bool { return len(h.gate.named("exec")) == i+1 })
		f := h.gate.named("exec")[i].Fields
		var size, hash, cut any // none when the event has all
		if i > 0 {
			size, hash = int64(len(command)), fmt.Sprintf("%x", sha256.Sum256([]byte(command)))
		}
		if len(command) > maxCommand {
			cut = true
		}
		want := strings.ReplaceAll(command[:min(len(command), maxCommand)], "\n", "?")
		if f["command"] != want || f["command_size"] != size || f["command_sha256"] != hash || f["command_truncated"] != cut {
			t.Errorf("command %d: %v, %v, %v, want %v, %v, %v", i, f["command_size"], f["command_sha256"], f["command_truncated"], size, hash, cut)
		}
	}
}

func TestHomeless(t *testing.T) {
	h := newHost(t, func(h *host) { h.login = "homeless" })
	if got := h.run("pwd"); got.out != "/\n" || got.err != "Could not chdir to home directory /nonexistent\r\n" {
		t.Errorf("got %+v", got)
	}
}

// TestNoThreadPerSession: idle sessions hold no thread of ours.
func TestNoThreadPerSession(t *testing.T) {
	h := newHost(t, func(h *host) { h.server.MaxChannels = 100 })
	c := h.dial()
	threads := func() int {
		list, err := filepath.Glob("/proc/self/task/*")
		if err != nil || len(list) == 0 {
			t.Skip("no /proc")
		}
		return len(list)
	}
	before := threads()
	for range 60 {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Shell(); err != nil {
			t.Fatal(err)
		}
	}
	if after := threads(); after > before+30 {
		t.Errorf("%d threads with 60 sessions, %d before", after, before)
	}
}
