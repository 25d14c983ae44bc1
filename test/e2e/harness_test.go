package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
)

const (
	upWait   = 90 * time.Second // race builds on a busy machine
	runWait  = 90 * time.Second
	stopWait = 30 * time.Second // as the unit of the operator's guide says
)

var binDir = sync.OnceValues(build)

// build makes the three programs once, with the race detector when the tests
// have it.
func build() (string, error) {
	dir, err := os.MkdirTemp("", "sallyport-e2e-bin-")
	if err != nil {
		return "", err
	}
	args := []string{"build", "-buildvcs=false", "-ldflags", "-X main.version=e2e"}
	if underRace {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "-o", dir+"/", "../../cmd/sallyport", "../../cmd/sally", "../../cmd/sallyctl")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, os.Symlink("sally", filepath.Join(dir, "tsh"))
}

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := binDir(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := binDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
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

// process is a program that runs beside the test.
type process struct {
	t    testing.TB
	what string
	cmd  *exec.Cmd
	out  *printed
	done chan struct{}
	err  error
}

// tail keeps what a process prints.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// printed is a file with what a process prints, and those that it becomes.
type printed struct{ path string }

func (t *printed) String() string {
	b, err := os.ReadFile(t.path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func start(t testing.TB, name string, args ...string) *process {
	t.Helper()
	return startCommand(t, name, exec.Command(program(t, name), args...))
}

// startCommand starts a program in a way of its own; its Env is added to ours.
func startCommand(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, what: name, cmd: cmd, out: &printed{}, done: make(chan struct{})}
	// A file: the processes that an upgrade starts have it too.
	out, err := os.Create(filepath.Join(shortDir(t), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p.out.path = out.Name()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(append(os.Environ(), "GORACE=halt_on_error=1 exitcode=66"), cmd.Env...)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if strings.Contains(p.out.String(), "DATA RACE") {
			t.Errorf("%s: data race:\n%s", name, p.out)
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", name, lastLines(p.out.String(), 80))
		}
	})
	return p
}

func lastLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// stop asks, and then insists.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopWait):
		p.t.Errorf("%s did not stop within %s", p.what, stopWait)
		p.kill()
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// await polls a condition of another process until it holds.
func await(t testing.TB, what string, within time.Duration, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ready is what "demo --ready-json" writes.
type ready struct {
	Proxy      string `json:"proxy"`
	Cluster    string `json:"cluster"`
	CAPin      string `json:"ca_pin"`
	User       string `json:"user"`
	Password   string `json:"password"`
	TOTPSecret string `json:"totp_secret"`
	Resources  []struct {
		Kind   string   `json:"kind"`
		Name   string   `json:"name"`
		Logins []string `json:"logins"`
	} `json:"resources"`
}

func (r ready) name(kind string) string {
	for _, res := range r.Resources {
		if res.Kind == kind {
			return res.Name
		}
	}
	return ""
}

// demo is one running demo with a person who uses it.
type demo struct {
	*process
	ready
	data string
}

func startDemo(t testing.TB) *demo {
	t.Helper()
	return startDemoIn(t, shortDir(t))
}

// startDemoIn starts a demo in a directory that may hold one's data.
func startDemoIn(t testing.TB, dir string) *demo {
	t.Helper()
	return startDemoWith(t, dir, "postgres")
}

// startDemoWith starts a demo with some databases.
func startDemoWith(t testing.TB, dir, databases string) *demo {
	t.Helper()
	file := filepath.Join(dir, "ready.json")
	os.Remove(file)
	d := &demo{data: filepath.Join(dir, "data")}
	d.process = start(t, "sallyport", "demo", "--listen", "127.0.0.1:0", "--data", d.data, "--databases", databases, "--ready-json", file)
	await(t, "demo", upWait, func() bool {
		select {
		case <-d.done:
			t.Fatalf("the demo ended: %v\n%s", d.err, d.out)
		default:
		}
		b, err := os.ReadFile(file)
		return err == nil && json.Unmarshal(b, &d.ready) == nil
	})
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("ready file: %v, mode %v", err, info.Mode())
	}
	return d
}

// person is a user's machine: a home of its own.
type person struct {
	t     testing.TB
	home  string
	extra []string // more of the environment
}

func newPerson(t testing.TB) *person {
	return &person{t: t, home: shortDir(t)}
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

func (p *person) env() []string {
	env := []string{"HOME=" + p.home, "SALLY_HOME=" + filepath.Join(p.home, ".sally"), "PATH=" + filepath.Dir(program(p.t, "sally")) + ":" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TERM=xterm", "GORACE=halt_on_error=1 exitcode=66"}
	return append(env, p.extra...)
}

func (p *person) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if !strings.Contains(name, "/") && (name == "sally" || name == "sallyctl" || name == "tsh" || name == "sallyport") {
		name = program(p.t, name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = p.env(), p.home
	return cmd
}

// try runs a command to its end.
func (p *person) try(input, name string, args ...string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runWait)
	defer cancel()
	cmd := p.command(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		p.t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	if ctx.Err() != nil {
		p.t.Fatalf("%s %s: did not end within %s\n%s%s", name, strings.Join(args, " "), runWait, &out, &errs)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// run is try for a command that must succeed; it returns its output.
func (p *person) run(name string, args ...string) string {
	p.t.Helper()
	r := p.try("", name, args...)
	if r.code != 0 {
		p.t.Fatalf("%s %s: exit %d\n%s%s", name, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// refused runs a command that must fail with the code, and say all of wants.
func (p *person) refused(code int, wants []string, name string, args ...string) {
	p.t.Helper()
	r := p.try("", name, args...)
	if r.code != code {
		p.t.Errorf("%s %s: exit %d, want %d\n%s%s", name, strings.Join(args, " "), r.code, code, r.stdout, r.stderr)
	}
	for _, w := range wants {
		if !strings.Contains(r.stderr, w) {
			p.t.Errorf("%s %s: does not say %q:\n%s", name, strings.Join(args, " "), w, r.stderr)
		}
	}
}

// login logs in to a demo as its admin. A code works once, so each login waits
// for one that nobody has used.
func (p *person) login(d *demo, extra ...string) {
	p.t.Helper()
	p.loginAs(d.Proxy, d.CAPin, d.User, d.Password, nextCode(p.t, d.TOTPSecret), extra...)
}

func (p *person) loginAs(proxy, pin, user, password, code string, extra ...string) {
	p.t.Helper()
	file := filepath.Join(p.home, "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	args := []string{"login", "--proxy=" + proxy, "--ca-pin=" + pin, "--user=" + user, "--password-file=" + file}
	if code != "" {
		args = append(args, "--otp="+code)
	}
	p.run("sally", append(args, extra...)...)
}

var codes struct {
	sync.Mutex
	used map[string]int64
}

// nextCode returns a code of a time step that has not been used here: the
// server takes the present step and one to either side.
func nextCode(t testing.TB, secret string) string {
	t.Helper()
	codes.Lock()
	defer codes.Unlock()
	if codes.used == nil {
		codes.used = map[string]int64{}
	}
	for {
		now := time.Now().Unix() / 30
		step := max(codes.used[secret]+1, now)
		if step <= now+1 {
			codes.used[secret] = step
			code, err := totp.GenerateCode(secret, time.Unix(step*30, 0))
			if err != nil {
				t.Fatal(err)
			}
			return code
		}
		time.Sleep(time.Second) // until the clock reaches a fresh step
	}
}

// onLinux skips what reads /proc.
func onLinux(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
}
