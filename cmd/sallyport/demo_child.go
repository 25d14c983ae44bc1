package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/dataplane/timerslack"
)

// The demo's servers live as long as the service, not as long as the process that
// has started them: an upgrade puts another in its place. So between the two
// stands a keeper, a process of this program with nothing to do but to wait:
//
//	main process ──leash──▶ keeper ──parent──▶ server
//
// When no main process is left, however that one ended, the keeper reads the end
// of the leash and stops its server in order. When the keeper is killed the kernel
// does (tieToUs).

const (
	keeperLeash = 3 // the keeper's descriptors: the leash, and behind it the server's
	keeperStops = 5 * time.Second
)

// tied is the command as a keeper of it runs it: it ends with the leash, and with
// the exit code of the server. The server is stopped by these signals, one after
// the other, and in the end by SIGKILL. How the command is run, with its output,
// its environment and its further descriptors, is as it was.
func (l *leash) tied(cmd *exec.Cmd, stops ...syscall.Signal) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	args := []string{self, "demo-child", "--descriptors=" + strconv.Itoa(len(cmd.ExtraFiles))}
	for _, s := range stops {
		args = append(args, "--stop="+strconv.Itoa(int(s)))
	}
	if cmd.SysProcAttr != nil && cmd.SysProcAttr.Credential != nil {
		as := cmd.SysProcAttr.Credential
		args = append(args, "--uid="+strconv.Itoa(int(as.Uid)), "--gid="+strconv.Itoa(int(as.Gid)))
	}
	return &exec.Cmd{
		Path: self, Args: append(append(args, "--", cmd.Path), cmd.Args[1:]...), Env: cmd.Env, Dir: cmd.Dir,
		Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr, ExtraFiles: append([]*os.File{l.read}, cmd.ExtraFiles...),
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // Ctrl-C is the demo's to act on
	}, nil
}

// demoChildCmd is a keeper.
type demoChildCmd struct {
	Descriptors int      `name:"descriptors" help:"How many the server gets, from 3 on."`
	Stop        []int    `name:"stop" help:"Signals that stop the server."`
	UID         int      `name:"uid" default:"-1" help:"User of the server."`
	GID         int      `name:"gid" default:"-1" help:"Its group."`
	Argv        []string `arg:"" optional:"" passthrough:"partial" help:"The server, after --."`
}

// Run ends with the server.
func (c *demoChildCmd) Run(p *program) error {
	// Caught and not ignored: the server would ignore what its parent does.
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	argv := c.Argv
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 || c.Descriptors < 0 || c.Descriptors > 16 {
		return errors.New("this command is for the demo itself")
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	syscall.CloseOnExec(keeperLeash)
	for i := range c.Descriptors {
		syscall.CloseOnExec(keeperLeash + 1 + i)
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(keeperLeash+1+i), "server's"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if len(c.Stop) > 0 {
		tieToUs(cmd.SysProcAttr, syscall.Signal(c.Stop[0]))
	} else {
		tieToUs(cmd.SysProcAttr, syscall.SIGKILL)
	}
	if c.UID >= 0 && c.GID >= 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID)}
	}
	ended, started := make(chan struct{}), make(chan error, 1)
	go runTied(cmd, started, ended)
	if err := <-started; err != nil {
		return err
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = io.Copy(io.Discard, os.NewFile(keeperLeash, "leash"))
	}()
	select {
	case <-ended:
	case <-over:
		c.stop(cmd.Process, ended)
	case <-p.ctx.Done():
		c.stop(cmd.Process, ended)
	}
	return exitOf(cmd.ProcessState)
}

// runTied starts the server and waits for its end. It stays on the thread that
// has started it: the kernel takes that thread's death for ours (tieToUs).
func runTied(cmd *exec.Cmd, started chan<- error, ended chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = timerslack.Usual() // the server's sleeps are its own matter
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // the state says how
		close(ended)
	}
}

// stop returns when the server has ended.
func (c *demoChildCmd) stop(server *os.Process, ended <-chan struct{}) {
	for _, s := range append(c.Stop, int(syscall.SIGKILL)) {
		_ = server.Signal(syscall.Signal(s)) // it may have ended
		select {
		case <-ended:
			return
		case <-time.After(keeperStops):
		}
	}
	<-ended
}

// exitOf is the exit code as a shell tells it.
func exitOf(s *os.ProcessState) error {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fail.Exit{Code: 128 + int(ws.Signal())}
	}
	if s.ExitCode() != 0 {
		return fail.Exit{Code: s.ExitCode()}
	}
	return nil
}

// kept is a server's keeper, as the process sees it that has started it.
type kept struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended, and its server with it
}

// startKept starts a server that the leash ends.
func (l *leash) startKept(cmd *exec.Cmd, stops ...syscall.Signal) (*kept, error) {
	tied, err := l.tied(cmd, stops...)
	if err != nil {
		return nil, err
	}
	if err := tied.Start(); err != nil {
		return nil, err
	}
	k := &kept{cmd: tied, done: make(chan struct{})}
	go func() {
		defer close(k.done)
		_ = tied.Wait() // its log says why
	}()
	return k, nil
}

// stop ends it before the leash does.
func (k *kept) stop() {
	_ = k.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	<-k.done
}
