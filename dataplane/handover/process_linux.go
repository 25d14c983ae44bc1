package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// mail carries the new process's end of the link to it. tableflip keeps a
// descriptor of whatever it carries; if that were the link's end itself, the
// link would not end with the new process, and what is under way in it would
// stay open. So a second pair goes through tableflip, with the end as the
// one message in it.
type mail struct {
	mine, theirs int

	mu     sync.Mutex // guards closed, and theirs against a close meanwhile
	closed bool
}

func newMail(l *Link) (*mail, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	m := &mail{mine: fds[0], theirs: fds[1]}
	if err := unix.Sendmsg(m.mine, []byte{0}, unix.UnixRights(l.fd), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
		m.close()
		return nil, os.NewSyscallError("sendmsg", err)
	}
	return m, nil
}

// openMail takes the end out; there is one, or the old process is gone.
func openMail(fd int) (*Link, error) {
	fds, err := letter(fd, 0)
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		closeAll(fds)
		return nil, fmt.Errorf("%d descriptors, want 1", len(fds))
	}
	return newLink(fds[0]), nil
}

// empty closes what nobody has taken out.
func (m *mail) empty() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		fds, _ := letter(m.theirs, unix.MSG_DONTWAIT)
		closeAll(fds)
	}
}

func (m *mail) close() {
	m.empty()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	closeAll([]int{m.mine, m.theirs})
}

func letter(fd, flags int) ([]int, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(253*4))
	for {
		n, oobn, got, _, err := unix.Recvmsg(fd, b, oob, flags|unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvmsg", err)
		}
		fds, err := rights(nil, oob[:oobn])
		if err == nil {
			err = whole(n, got)
		}
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		return fds, nil
	}
}

// child is the new process as the old one sees it.
type child struct {
	mail *mail
	log  *slog.Logger

	stop func()        // ends watch when no process has been started yet
	dead chan struct{} // closed when tableflip waits no more
	err  error         // why; to be read after dead
	proc *os.Process   // nil until it is known
}

// watch waits with tableflip until the process has ended, or is ready.
func (c *child) watch(ctx context.Context, flip func(context.Context) error) {
	c.err = flip(ctx)
	if c.err != nil {
		c.mail.empty() // what it has not taken out must not stay open
	}
	close(c.dead)
}

// moment is more than tableflip needs to tell that it has reaped the process.
const moment = 2 * time.Second

// know refuses a process that is not ours.
func (c *child) know(pid int) error {
	proc, err := os.FindProcess(pid) // a pidfd, where there are such
	if err != nil {
		return err
	}
	// The number is checked when the process is held: it cannot become another's.
	// waitid(2): ECHILD says that it is not a child of ours.
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		_ = proc.Release()
		if c.isDead(moment) {
			return nil // the link says what it had to say
		}
		return fmt.Errorf("process %d is not the one that was started: %w", pid, err)
	}
	c.proc = proc
	return nil
}

// look is how often it is looked for a process that has said nothing.
const look = 20 * time.Millisecond

// kill ends the process and returns when nothing of it is left.
func (c *child) kill() {
	c.stop()
	for c.proc == nil && !c.isDead(look) {
		c.search() // it may be about to start
	}
	if c.proc != nil {
		if err := c.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			c.log.Warn("handover: the new process cannot be killed", "pid", c.proc.Pid, "err", err)
		}
	}
	<-c.dead
	if c.err == nil && c.proc != nil {
		// It has told tableflip that it is ready without having been asked.
		_, _ = c.proc.Wait()
	}
}

func (c *child) isDead(within time.Duration) bool {
	select {
	case <-c.dead:
		return true
	case <-time.After(within):
		return false
	}
}

// search finds the process by what it has inherited, when it has said nothing.
func (c *child) search() {
	var mail unix.Stat_t
	if unix.Fstat(c.mail.theirs, &mail) != nil {
		return
	}
	want := fmt.Sprintf("socket:[%d]", mail.Ino)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if parentOf(stat) != os.Getpid() || !holds(pid, want) {
			continue
		}
		if c.know(pid) == nil {
			return
		}
	}
}

// parentOf reads the fourth field of /proc/pid/stat (proc_pid_stat(5)); the
// second is a name in parentheses that may have anything in it.
func parentOf(stat string) int {
	b, err := os.ReadFile(stat)
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	pid, _ := strconv.Atoi(fields[1])
	return pid
}

// mailFD is where tableflip puts the one file that it carries: behind the three
// standard ones and its two pipes.
const mailFD = 5

func holds(pid int, what string) bool {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, mailFD))
	return err == nil && link == what
}

// explain says how the process ended, when it did by itself. It is dead.
func (c *child) explain(err error) error {
	if c.err != nil && errors.Is(err, io.EOF) {
		return fmt.Errorf("the new process has ended: %w", c.err)
	}
	return err
}

// forget lets go of the process and of the mail; tableflip keeps an empty
// socket until the next upgrade.
func (c *child) forget() {
	c.stop()
	if c.proc != nil {
		_ = c.proc.Release()
	}
	c.mail.close()
}

// sentinel begins the name of the variable by which tableflip tells a new
// process that it is one.
const sentinel = "TABLEFLIP_HAS_PARENT_"

// Inherits says, before New, that an upgrade has started this process.
func Inherits() bool { return hasParent() && isPipe(readyFD) && isPipe(namesFD) }

func hasParent() bool {
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, sentinel) && value != "" {
			return true
		}
	}
	return false
}

// forgetParent keeps the variable from the processes that this one starts. For
// the next upgrade tableflip adds it.
func forgetParent() {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, sentinel) {
			_ = os.Unsetenv(name)
		}
	}
}

const (
	readyFD = 3 // tableflip's pipe to the parent
	namesFD = 4 // tableflip's pipe from the parent, which stays open until that exits
)

// parentPipe stands between tableflip and the pipe from the parent. tableflip
// starts no upgrade before that pipe has ended, which is when the parent exits;
// but a parent may live on as a remnant for hours. So tableflip reads from
// another pipe, which ends when we say so.
type parentPipe struct {
	once sync.Once
	from *os.File // the parent's
	to   *os.File // read by tableflip
	done chan struct{}
}

// inheritPipe is nil when no upgrade has started this process.
func inheritPipe() (*parentPipe, error) {
	if !Inherits() {
		forgetParent() // somebody's variable, if there is one, but not our parent's
		return nil, nil
	}
	// tableflip leaves both open for whatever this process starts.
	unix.CloseOnExec(readyFD)
	parent, err := own(namesFD)
	if err != nil {
		return nil, err
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		closeAll([]int{parent})
		return nil, os.NewSyscallError("pipe2", err)
	}
	err = unix.Dup3(fds[0], namesFD, unix.O_CLOEXEC)
	closeAll(fds[:1])
	if err != nil {
		closeAll([]int{parent, fds[1]})
		return nil, os.NewSyscallError("dup3", err)
	}
	_ = unix.SetNonblock(parent, true) // so that release ends the read
	p := &parentPipe{from: os.NewFile(uintptr(parent), "parent"), to: os.NewFile(uintptr(fds[1]), "tableflip"), done: make(chan struct{})}
	go p.carry()
	return p, nil
}

// carry brings the names of tableflip's files to it, whatever their form is.
func (p *parentPipe) carry() {
	defer close(p.done)
	_, _ = io.Copy(struct{ io.Writer }{p.to}, struct{ io.Reader }{p.from}) // plain reads, which Close ends
	_ = p.to.Close()
}

// release lets tableflip believe that the parent has exited.
func (p *parentPipe) release() {
	p.once.Do(func() { _ = p.from.Close() })
	<-p.done
}

func isPipe(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// program is the absolute path of what an upgrade starts.
func program(path string) (string, error) {
	if path != "" {
		return filepath.Abs(path)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	self = strings.TrimSuffix(self, " (deleted)") // proc_pid_exe(5)
	name, err := exec.LookPath(os.Args[0])
	if err != nil {
		return self, nil
	}
	if name, err = filepath.Abs(name); err != nil || !sameFile(name, "/proc/self/exe") {
		return self, nil
	}
	return name, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
