package ssh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// launch is what startProcess needs to know.
type launch struct {
	account    account
	command    string // "": a login shell
	env        []string
	tty        *terminal // nil: three pipes
	grace      time.Duration
	switchUser bool // become account; otherwise it is who we are
	parent     *parent
}

// process is a program in a session and process group of its own. It is reaped
// by its own goroutine, which ends with it.
//
//	running ──exit──────────────────────────────▶ reaped (done)
//	   └─hangUp─▶ SIGHUP ──exit or grace──▶ SIGKILL ─┘
type process struct {
	os      *os.Process
	parent  *parent
	account account
	grace   time.Duration
	// stdin is the terminal's master when there is one.
	stdin, stdout, stderr *os.File
	tty                   *terminal
	own                   ownProcess // what the platform needs to watch it

	exited chan struct{}    // closed when the leader is dead, before it is reaped
	done   chan struct{}    // closed when it is reaped; state is set before
	state  *os.ProcessState // how it ended

	mu      sync.Mutex
	reaped  bool          // its id may be another's; guarded by mu
	hangup  chan struct{} // closed by the first hangUp
	hanging bool          // guarded by mu
}

// startProcess starts a program. A home directory that cannot be entered is
// told in warning, and the program starts in /.
func startProcess(l launch) (p *process, warning string, err error) {
	p, err = l.startIn(l.account.home)
	if err == nil || l.account.home == "/" {
		return p, "", err
	}
	if p, err = l.startIn("/"); err != nil {
		return nil, "", err
	}
	return p, fmt.Sprintf("Could not chdir to home directory %s", l.account.home), nil
}

func (l launch) startIn(dir string) (*process, error) {
	p := &process{
		parent: l.parent, account: l.account, grace: l.grace, tty: l.tty,
		exited: make(chan struct{}), done: make(chan struct{}), hangup: make(chan struct{}),
	}
	theirs, err := p.files(l.tty)
	if err != nil {
		return nil, err
	}
	sys := l.attributes()
	err = l.parent.bear(func() (err error) {
		sealDescriptors()
		p.os, err = os.StartProcess(l.account.shell, l.argv(), &os.ProcAttr{Dir: dir, Env: l.env, Files: theirs, Sys: sys})
		return err
	})
	if l.tty == nil {
		closeAll(theirs)
	}
	if err != nil {
		p.closeFiles()
		return nil, err
	}
	if l.tty != nil {
		l.tty.closeSlave() // only the program holds it now, so its end is seen
	}
	p.own.watch(sys)
	go p.awaitExit()
	go p.supervise()
	return p, nil
}

// argv follows sshd: a login shell has "-" before its name (login(1)), a
// command is given to the shell.
func (l launch) argv() []string {
	name := filepath.Base(l.account.shell)
	if l.command == "" {
		return []string{"-" + name}
	}
	return []string{name, "-c", l.command}
}

func (l launch) attributes() *syscall.SysProcAttr {
	sys := &syscall.SysProcAttr{Setsid: true, Setctty: l.tty != nil, Ctty: 0}
	if l.switchUser {
		sys.Credential = &syscall.Credential{Uid: l.account.uid, Gid: l.account.gid, Groups: l.account.groups}
	}
	prepareWatch(sys)
	tie(sys)
	return sys
}

// files makes what the program has as its standard files, and keeps our ends.
func (p *process) files(tty *terminal) (theirs []*os.File, err error) {
	if tty != nil {
		p.stdin = tty.master
		return []*os.File{tty.slave, tty.slave, tty.slave}, nil
	}
	var ours []*os.File
	for fd := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(theirs)
			closeAll(ours)
			return nil, err
		}
		if fd == 0 {
			r, w = w, r
		}
		ours, theirs = append(ours, r), append(theirs, w)
	}
	p.stdin, p.stdout, p.stderr = ours[0], ours[1], ours[2]
	return theirs, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// closeFiles wakes whoever reads or writes our ends. A terminal's end sends
// SIGHUP to the job in its foreground.
func (p *process) closeFiles() {
	if p.tty != nil {
		return // the channel's; hungUp closes it
	}
	closeAll([]*os.File{p.stdin, p.stdout, p.stderr})
}

// awaitExit closes exited when the leader is dead.
func (p *process) awaitExit() {
	defer close(p.exited)
	p.own.await(p)
}

// supervise owns the end of the process.
func (p *process) supervise() {
	defer close(p.done)
	select {
	case <-p.exited:
	case <-p.hangup:
		p.kill()
		<-p.exited
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	if p.state == nil {
		// It is dead: this does not block. An error leaves no state, which
		// exitMessage takes for a failure.
		p.state, _ = p.os.Wait()
	}
	p.parent.buried()
	p.own.close()
}

// kill ends the process group, and the job in the terminal's foreground, in
// the two steps that programs know. The leader is not reaped before, so its
// number cannot be another's.
func (p *process) kill() {
	job := p.tty.foreground()
	_ = syscall.Kill(-p.os.Pid, syscall.SIGHUP) // an error means that nobody is there
	p.tty.close()                               // SIGHUP to the job (tty_ioctl(4))
	late, cancel := context.WithTimeout(context.Background(), p.grace)
	defer cancel()
	select {
	case <-p.exited:
	case <-late.Done():
	}
	_ = syscall.Kill(-p.os.Pid, syscall.SIGKILL)
	if job > 0 && job != p.os.Pid {
		p.killJob(job, late.Done())
	}
}

// jobPoll is how often a job that got SIGHUP is looked at.
const jobPoll = 10 * time.Millisecond

// killJob gives the foreground job what is left of the grace: an editor saves
// its file.
func (p *process) killJob(job int, late <-chan struct{}) {
	tick := time.NewTicker(jobPoll)
	defer tick.Stop()
	for inSession(job, p.os.Pid) {
		select {
		case <-tick.C:
		case <-late:
			_ = syscall.Kill(-job, syscall.SIGKILL)
			return
		}
	}
}

// inSession says whether a process group lives that is one of a session. Its leader
// may be gone before the others, as the first program of a pipeline is: while one of
// them lives, the number is no other group's.
func inSession(group, session int) bool {
	sid, err := unix.Getsid(group)
	if errors.Is(err, unix.ESRCH) {
		return syscall.Kill(-group, 0) == nil
	}
	return err == nil && sid == session
}

// hangUp ends the program, if it still runs, and our ends of its files. It
// returns when it is reaped. It is idempotent.
func (p *process) hangUp() {
	p.mu.Lock()
	if !p.hanging {
		p.hanging = true
		close(p.hangup)
	}
	p.mu.Unlock()
	p.closeFiles()
	<-p.done
	p.tty.close()
}

func (p *process) isDone() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal sends to the process group, with the rights of the account, as sshd
// does: a program that runs as somebody else is not reached.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return killAs(p.account.uid, -p.os.Pid, sig)
}

// catchIgnored has programs start with SIGHUP and SIGINT at their defaults. When
// this process was started with them ignored, as by nohup(1) or by a shell's &,
// they would stay so across exec (execve(2)): no Ctrl-C in any session. One that
// is caught does not, and nothing else comes of it. Go catches all others that
// matter by itself.
func catchIgnored() {
	nobody := make(chan os.Signal, 1)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(sig) {
			signal.Notify(nobody, sig)
		}
	}
}

// signals of RFC 4254 section 6.10.
var signals = []struct {
	name   string
	number syscall.Signal
}{
	{"ABRT", syscall.SIGABRT}, {"ALRM", syscall.SIGALRM}, {"FPE", syscall.SIGFPE}, {"HUP", syscall.SIGHUP},
	{"ILL", syscall.SIGILL}, {"INT", syscall.SIGINT}, {"KILL", syscall.SIGKILL}, {"PIPE", syscall.SIGPIPE},
	{"QUIT", syscall.SIGQUIT}, {"SEGV", syscall.SIGSEGV}, {"TERM", syscall.SIGTERM},
	{"USR1", syscall.SIGUSR1}, {"USR2", syscall.SIGUSR2},
}

func signalNamed(name string) (syscall.Signal, bool) {
	for _, s := range signals {
		if s.name == name {
			return s.number, true
		}
	}
	return 0, false
}

func signalName(number syscall.Signal) string {
	for _, s := range signals {
		if s.number == number {
			return s.name
		}
	}
	return "SIG@openssh.com" // as sshd says of those the RFC does not name
}

// exitMessage is the channel request about how a program ended (RFC 4254
// section 6.10).
func exitMessage(state *os.ProcessState) (name string, payload []byte) {
	if state == nil {
		return "exit-status", ssh.Marshal(exitStatus{Status: 255})
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return "exit-status", ssh.Marshal(exitStatus{Status: uint32(state.ExitCode())})
	}
	return "exit-signal", ssh.Marshal(exitSignal{Name: signalName(ws.Signal()), CoreDumped: ws.CoreDump()})
}
