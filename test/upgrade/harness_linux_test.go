package upgrade

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
	"github.com/sallyport/sallyport/test/executable"
	"github.com/sallyport/sallyport/tools/peers/port"
)

const (
	upWait   = 90 * time.Second // race builds on a busy machine
	runWait  = 90 * time.Second
	stopWait = 30 * time.Second
)

// upgrades is how many there are while clients work.
func upgrades(t testing.TB) int {
	t.Helper()
	text := os.Getenv("SALLYPORT_UPGRADES")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("SALLYPORT_UPGRADES=%q is no number of upgrades", text)
	}
	return n
}

// builds are the programs, each made once when it is first wanted.
var builds = struct {
	mu  sync.Mutex
	dir string
	err map[string]error
}{err: map[string]error{}}

// build makes a program with the race detector when the tests have it, and with
// failpoints, which do nothing until they are named.
func build(name string) (string, error) {
	builds.mu.Lock()
	defer builds.mu.Unlock()
	if builds.dir == "" {
		dir, err := os.MkdirTemp("", "sallyport-upgrade-bin-")
		if err != nil {
			return "", err
		}
		builds.dir = dir
	}
	file := filepath.Join(builds.dir, name)
	if err, done := builds.err[name]; done {
		return file, err
	}
	args := []string{"build", "-buildvcs=false", "-tags=failpoints", "-ldflags=-X main.version=test"}
	if underRace {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "-o", file, "../../cmd/"+name)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("go build: %w\n%s", err, out)
	}
	builds.err[name] = err
	return file, err
}

func TestMain(m *testing.M) {
	// What a process leaves behind when it hands over is ours to reap.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	code := m.Run()
	if builds.dir != "" {
		os.RemoveAll(builds.dir)
	}
	os.Exit(code)
}

func program(t testing.TB, name string) string {
	t.Helper()
	file, err := build(name)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// shortDir is a directory whose path leaves room for Unix sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// freePort returns an address for a program that is started soon. What takes longer
// than the port is kept is done before: the programs are built.
func freePort(t testing.TB) string {
	t.Helper()
	program(t, "sallyport")
	address, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(upWait)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, upWait)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// service is a sallyport in whatever process it is by now. Its program is a file
// of its own, which a test may replace.
type service struct {
	t               testing.TB
	config, data    string // file, and the directory that it names
	program, pidAt  string
	log             string        // a file: a pipe would end with the first process
	done            chan struct{} // the first process has ended
	generationsSeen []int
	panics          string // the point at which its first process was told to panic
	apart           []saidApart
}

// saidApart is what another process has said that was started from the program's
// file: in a file of its own, so that nobody's lines stand inside its own.
type saidApart struct {
	file, panics string
}

// startService runs a configuration. It keeps its pid in a file, so that each
// process ends for good.
func startService(t testing.TB, dir, name, config string, env ...string) *service {
	t.Helper()
	s := &service{t: t, config: write(t, filepath.Join(dir, name+".yaml"), config), data: dataDir.FindStringSubmatch(config)[1], program: filepath.Join(dir, name+"-program"),
		pidAt: filepath.Join(dir, name+".pid"), log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	s.install(program(t, "sallyport"))
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.program, "start", "--config="+s.config, "--pid-file="+s.pidAt)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.Env = append(append(os.Environ(), "GORACE=halt_on_error=1 exitcode=66"), env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		_ = cmd.Wait() // its log says how
	}()
	t.Cleanup(func() {
		s.stop()
		for _, a := range s.apart {
			text, _ := os.ReadFile(a.file) // none, if it was never started
			if err := broken(string(text), a.panics); err != nil {
				t.Errorf("%s broke in another process: %v\n%s", name, err, text)
			}
		}
		if said := s.said(); broken(said, s.panics) != nil {
			t.Errorf("%s broke: %v\n%s", name, broken(said, s.panics), said)
		} else if t.Failed() {
			t.Logf("%s said:\n%s", name, lastLines(said, 80))
		}
	})
	s.up()
	return s
}

// fatal is what the runtime, the race detector and net/http say of a fault of the
// program's own.
var fatal = regexp.MustCompile(`DATA RACE|(?m:^fatal error: .*)|panic: |panic serving `)

// broken says what is wrong with what a process has said, which was told to panic
// at a point, or at none (""). It may have been killed before it could say so, or
// in the middle of it: a process that panics has let go of its sockets before, and
// the other one may be quicker.
func broken(said, point string) error {
	all := fatal.FindAllStringIndex(said, -1)
	if len(all) == 0 {
		return nil
	}
	first := said[all[0][0]:]
	want := "panic: " + failpoint.Panic(point) + "\n"
	if point == "" || len(all) > 1 || !strings.HasPrefix(first, want) && !strings.HasPrefix(want, first) {
		line, _, _ := strings.Cut(said[all[len(all)-1][0]:], "\n")
		return fmt.Errorf("%q is in its log, in %d such lines", line, len(all))
	}
	return nil
}

// TestBroken: a panic that was meant is told from any other.
func TestBroken(t *testing.T) {
	const race, meant, other = "==================\nWARNING: DATA RACE\n", "panic: failpoint a.b was told to panic\n\ngoroutine 1 [running]:\npanic({0x1, 0x2})\n", "panic: runtime error: index out of range\n"
	for name, c := range map[string]struct {
		said, point string
		good        bool
	}{
		"nothing":              {"all is well, and failpoint a.b\n", "", true},
		"meant":                {"all is well\n" + meant, "a.b", true},
		"killed before":        {"all is well\n", "a.b", true},
		"killed meanwhile":     {"all is well\npanic: failpoint a", "a.b", true},
		"killed at once":       {"panic: ", "a.b", true},
		"none was meant":       {meant, "", false},
		"at another point":     {meant, "a.b.c", false},
		"at a later point":     {"panic: failpoint a.b.c was told to panic\n", "a.b", false},
		"twice":                {meant + meant, "a.b", false},
		"another":              {other, "", false},
		"another beside it":    {meant + other, "a.b", false},
		"another before it":    {other + meant, "a.b", false},
		"another in its place": {other, "a.b", false},
		"in a defer of it":     {"panic: failpoint a.b was told to panic\n\tpanic: runtime error\n", "a.b", false},
		"a race":               {race, "", false},
		"a race beside it":     {meant + race, "a.b", false},
		"the runtime":          {"x\nfatal error: all goroutines are asleep - deadlock!\n", "", false},
		"what a peer has said": {"the peer said: fatal error: no\n", "", true},
		"net/http":             {"http: panic serving 127.0.0.1:1: no\n", "", false},
	} {
		if err := broken(c.said, c.point); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

var dataDir = regexp.MustCompile(`(?m)^data_dir: (.+)$`)

// said is what all its processes have said.
func (s *service) said() string {
	b, _ := os.ReadFile(s.log)
	return string(b)
}

// install puts a copy of a program in place, as an installation does.
func (s *service) install(file string) {
	s.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	s.place(b, 0o700)
}

func (s *service) place(b []byte, mode os.FileMode) {
	s.t.Helper()
	next := s.program + ".next"
	if err := executable.Write(next, b, mode); err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(next, mode), os.Rename(next, s.program)); err != nil {
		s.t.Fatal(err)
	}
}

// status is what the process that serves says of itself.
type status struct {
	PID     int    `json:"pid"`
	Health  string `json:"health"`
	Gateway struct {
		Relays int `json:"relays"`
	} `json:"gateway"`
}

func (s *service) status() (st status, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	out, err := exec.CommandContext(ctx, program(s.t, "sallyport"), "status", "--data-dir="+s.data, "--format=json").Output()
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(out, &st)
}

func (s *service) pid() int {
	s.t.Helper()
	st, err := s.status()
	if err != nil {
		s.t.Fatal(err)
	}
	return st.PID
}

// up waits until the process answers.
func (s *service) up() {
	s.t.Helper()
	await(s.t, s.config, func() bool {
		select {
		case <-s.done:
			s.t.Fatalf("it ended:\n%s", s.said())
		default:
		}
		return s.healthy()
	})
}

// healthy says that the process that serves has begun all that it does.
func (s *service) healthy() bool {
	st, err := s.status()
	return err == nil && st.Health == "ok"
}

// report is what sallyport upgrade says.
type report struct {
	Outcome string  `json:"outcome"`
	FromPID int     `json:"from_pid"`
	ToPID   int     `json:"to_pid"`
	TookMS  float64 `json:"took_ms"`
	StallMS float64 `json:"stall_ms"`
	Relays  int     `json:"relays"`
	Problem string  `json:"problem"`
	Hint    string  `json:"hint"`
}

// try runs the command.
func (s *service) try() (r report, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(s.t, "sallyport"), "upgrade", "--data-dir="+s.data, "--format=json")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	_ = json.Unmarshal(out.Bytes(), &r)
	return r, errs.String(), err
}

// upgrade must succeed; it returns when the old process has gone, or holds no
// socket of the network any more.
func (s *service) upgrade() report {
	s.t.Helper()
	r, stderr, err := s.try()
	if err != nil || r.Outcome != "done" {
		s.t.Fatalf("upgrade: %v: %+v\n%s\n%s", err, r, stderr, lastLines(s.said(), 40))
	}
	s.generationsSeen = append(s.generationsSeen, r.FromPID)
	await(s.t, "the new process's health", s.healthy)
	return r
}

// ended says that a process is gone. One that waits for us is reaped.
func ended(pid int) bool {
	var w syscall.WaitStatus
	_, _ = syscall.Wait4(pid, &w, syscall.WNOHANG, nil)
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err != nil
}

func (s *service) stop() {
	st, err := s.status()
	if err != nil {
		b, _ := os.ReadFile(s.pidAt)
		st.PID, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	for _, pid := range append([]int{st.PID}, s.generationsSeen...) {
		if pid <= 0 {
			continue
		}
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			if ended(pid) || syscall.Kill(pid, sig) != nil {
				break
			}
			for deadline := time.Now().Add(stopWait); !ended(pid) && time.Now().Before(deadline); {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
}

// person is a user's machine: a home of its own.
type person struct {
	t    testing.TB
	home string
}

func newPerson(t testing.TB) *person { return &person{t: t, home: shortDir(t)} }

func (p *person) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	bin := filepath.Dir(program(p.t, "sallyport"))
	switch name {
	case "sally", "sallyctl", "sallyport":
		name = program(p.t, name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = p.home
	cmd.Env = []string{"HOME=" + p.home, "SALLY_HOME=" + filepath.Join(p.home, ".sally"), "PATH=" + bin + ":" + os.Getenv("PATH"),
		"LC_ALL=C.UTF-8", "TERM=xterm", "GORACE=halt_on_error=1 exitcode=66"}
	cmd.WaitDelay = runWait // to take what a program that has ended has written
	return cmd
}

// output runs a command to its end.
func (p *person) output(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := p.command(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, lastLines(errs.String(), 20))
	}
	return out.String(), nil
}

// run is output for what must succeed.
func (p *person) run(name string, args ...string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	out, err := p.output(ctx, "", name, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}
