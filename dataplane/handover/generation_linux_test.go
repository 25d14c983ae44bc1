package handover_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/test/leak"
)

// The test binary is also the program that is upgraded: with toyDir in its
// environment it serves an echo and takes orders at a socket of its own there.
const (
	toyDir   = "HANDOVER_TOY"
	toyFault = "HANDOVER_TOY_FAULT" // of the new process
	toyOld   = "HANDOVER_TOY_OLD"   // step at which the old process dies
	toyTime  = "HANDOVER_TOY_TIME"  // of an upgrade
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(toyDir); dir != "" {
		if err := generation(dir); err != nil {
			fmt.Fprintln(os.Stderr, os.Getpid(), err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	before := openFDs()
	code := leak.Code(m.Run())
	// The runtime's poller and the like take a few.
	if after := openFDs(); code == 0 && after > before+6 {
		fmt.Fprintf(os.Stderr, "descriptors left behind: %d before, %d after\n", before, after)
		code = 1
	}
	os.Exit(code)
}

// order is what a test tells a process, and answer what it says.
type order struct {
	Do  string            // upgrade, twice, look, tidy, exit
	Env map[string]string // during an upgrade
}

type answer struct {
	Report handover.Report
	Err    string

	Env     []string // variables of tableflip
	FDs     int
	Leaking []string // descriptors that a program would inherit
	Early   []string // that one would have inherited at the start
	Port    int
}

// generation is one process from its start to its end.
func generation(dir string) error {
	ctx := context.Background()
	if err := os.WriteFile(filepath.Join(dir, "newest"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	misbehave("start")
	timeout, _ := time.ParseDuration(os.Getenv(toyTime))
	program := handover.Program{Version: strconv.Itoa(os.Getpid())}
	if os.Getenv(toyFault) == "generation" {
		program.Oldest, program.Newest = 7, 9
	}
	u, err := handover.New(handover.Config{Program: program, Timeout: timeout, Step: dieAt(os.Getenv(toyOld)), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	early := leaking()
	misbehave("hello")
	heir, err := u.Inherited(ctx)
	if err != nil {
		return err
	}
	misbehave("prepare")
	e := newEcho()
	port := 0
	if heir == nil {
		port = e.listen()
		e.start()
	} else if err := takeOver(ctx, heir, e); err != nil {
		return err
	}
	_ = os.Unsetenv(toyFault)
	return obey(ctx, dir, u, e, answer{Port: port, Early: early})
}

func takeOver(ctx context.Context, heir *handover.Heir, e *echo) error {
	if os.Getenv(toyFault) == "refuse" {
		heir.Refuse(errors.New("the configuration: line 7 is wrong"))
		return errors.New("refused")
	}
	return heir.Take(ctx, &faulty{e})
}

// faulty misbehaves where it is told to.
type faulty struct{ *echo }

func (f *faulty) Take(r handover.Record) error {
	if r.Kind == kindListen {
		misbehave("take")
	}
	return f.echo.Take(r)
}

func (f *faulty) Complete(ctx context.Context) error {
	misbehave("complete")
	if os.Getenv(toyFault) == "complete=error" {
		return errors.New("no room on the disk")
	}
	return f.echo.Complete(ctx)
}

// misbehave does at a place what the environment says: place=what.
func misbehave(place string) {
	at, what, _ := strings.Cut(os.Getenv(toyFault), "=")
	if at != place {
		return
	}
	switch what {
	case "exit":
		os.Exit(0)
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		hang()
	case "hang":
		hang()
	case "close": // the socket, and goes on
		eachSocket(func(fd int) { _ = unix.Close(fd) })
		hang()
	case "garbage":
		eachSocket(func(fd int) {
			_ = unix.Sendmsg(fd, []byte("\xff\xff garbage"), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		hang()
	case "descriptors": // more than anybody wants
		eachSocket(func(fd int) {
			_ = unix.Sendmsg(fd, []byte{0x18, 1}, unix.UnixRights(make([]int, 253)...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		hang()
	}
}

func hang() { time.Sleep(1 << 62) }

// eachSocket finds the sockets of the hand-over.
func eachSocket(f func(fd int)) {
	for fd := 3; fd < 256; fd++ {
		if typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && typ == unix.SOCK_SEQPACKET {
			f(fd)
		}
	}
}

func dieAt(step string) func(handover.Step) error {
	return func(s handover.Step) error {
		if string(s) == step {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			hang()
		}
		return nil
	}
}

// obey serves orders until one is to exit.
func obey(ctx context.Context, dir string, u *handover.Upgrader, e *echo, always answer) error {
	ln, err := net.Listen("unix", filepath.Join(dir, strconv.Itoa(os.Getpid())))
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		var o order
		if err := json.NewDecoder(c).Decode(&o); err != nil {
			_ = c.Close() // somebody looked whether we are there
			continue
		}
		if o.Do == "exit" {
			_ = c.Close()
			return nil
		}
		a := do(ctx, u, e, o)
		a.Port, a.Early = always.Port, always.Early
		_ = json.NewEncoder(c).Encode(a)
		_ = c.Close()
	}
}

func do(ctx context.Context, u *handover.Upgrader, e *echo, o order) (a answer) {
	if o.Do == "upgrade" {
		for k, v := range o.Env {
			_ = os.Setenv(k, v)
		}
		report, err := u.Upgrade(ctx, []handover.Stage{{Givers: []handover.Giver{e}}})
		for k := range o.Env {
			_ = os.Unsetenv(k)
		}
		a.Report = report
		if err != nil {
			a.Err = err.Error()
		}
	}
	if o.Do == "tidy" { // what tableflip leaves to the garbage collector
		runtime.GC()
	}
	if o.Do == "twice" {
		a.Report, _ = u.Upgrade(ctx, []handover.Stage{{Givers: []handover.Giver{&impatient{echo: e, u: u, err: &a.Err}}}})
	}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "TABLEFLIP") {
			a.Env = append(a.Env, v)
		}
	}
	a.FDs, a.Leaking = openFDs(), leaking()
	return a
}

// impatient asks for another upgrade during one.
type impatient struct {
	*echo
	u   *handover.Upgrader
	err *string
}

func (i *impatient) Copy(ctx context.Context, w handover.Writer) error {
	if _, err := i.u.Upgrade(ctx, nil); err != nil {
		*i.err = err.Error()
	}
	return i.echo.Copy(ctx, w)
}

// leaking are the descriptors beside the standard ones that a program started
// by this process would have.
func leaking() (all []string) {
	for fd := 3; fd < 1024; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			all = append(all, fmt.Sprintf("%d %s", fd, name))
		}
	}
	return all
}

// toy is a family of such processes.
type toy struct {
	t    testing.TB
	dir  string
	pid  int // the one that serves
	addr string
	all  []int
}

// startToy starts the first of the family.
func startToy(t testing.TB, program string, env ...string) *toy {
	t.Helper()
	y := &toy{t: t, dir: t.TempDir()}
	cmd := exec.Command(program, "-test.run=^$")
	cmd.Env = append(append(os.Environ(), toyDir+"="+y.dir), env...)
	said, err := os.Create(filepath.Join(y.dir, "said"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = said, said
	err = cmd.Start()
	_ = said.Close()
	if err != nil {
		t.Fatal(err)
	}
	reaped := make(chan struct{})
	go func() { _ = cmd.Wait(); close(reaped) }()
	t.Cleanup(func() { y.cleanup(); <-reaped })
	y.pid = cmd.Process.Pid
	y.all = append(y.all, y.pid)
	y.addr = fmt.Sprintf("127.0.0.1:%d", y.ask(y.pid, order{Do: "look"}).Port)
	return y
}

// cleanup ends every process of the family that is still there; each has told
// its number to the test or left it in a file.
func (y *toy) cleanup() {
	if said := y.said(); y.t.Failed() {
		y.t.Logf("the processes said:\n%s", said)
	}
	for _, pid := range append(y.all, y.newest()) {
		if y.isOurs(pid) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		y.gone(pid)
	}
}

// said is what the family has written to its standard output and error.
func (y *toy) said() string {
	b, _ := os.ReadFile(filepath.Join(y.dir, "said"))
	return string(b)
}

// isOurs says that a process of the family runs. Of one that is becoming another
// program there is no environment to be read for a moment; of one that has ended
// and that nobody has taken leave of there is none any more, as there is no program.
func (y *toy) isOurs(pid int) bool {
	for ; ; time.Sleep(time.Millisecond) {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return false
		}
		if len(env) > 0 {
			return strings.Contains(string(env), toyDir+"="+y.dir)
		}
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
			return false
		}
	}
}

// newest is the number of the process that was started last.
func (y *toy) newest() int {
	b, _ := os.ReadFile(filepath.Join(y.dir, "newest"))
	pid, _ := strconv.Atoi(string(b))
	return pid
}

// gone waits until a process has ended.
func (y *toy) gone(pid int) {
	y.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if err == unix.EINTR { // the runtime's own signals
			continue
		}
		if n != 1 {
			y.t.Errorf("process %d does not end: %v", pid, err)
		}
		return
	}
}

// ask tells one process to do something and waits for its answer.
func (y *toy) ask(pid int, o order) (a answer) {
	y.t.Helper()
	if err := y.try(pid, o, &a); err != nil {
		y.t.Fatalf("process %d: %s: %v", pid, o.Do, err)
	}
	return a
}

func (y *toy) try(pid int, o order, a *answer) error {
	var c net.Conn
	var err error
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if c, err = net.Dial("unix", filepath.Join(y.dir, strconv.Itoa(pid))); err == nil {
			break
		}
		if time.Now().After(end) || !y.isOurs(pid) {
			return err
		}
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if err := json.NewEncoder(c).Encode(o); err != nil {
		return err
	}
	return json.NewDecoder(bufio.NewReader(c)).Decode(a)
}

// upgrade moves on to a new process, or not.
func (y *toy) upgrade(env map[string]string) answer {
	y.t.Helper()
	a := y.ask(y.pid, order{Do: "upgrade", Env: env})
	if a.Report.Committed {
		y.pid = a.Report.PID
		y.all = append(y.all, y.pid)
	}
	return a
}
