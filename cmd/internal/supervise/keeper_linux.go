package supervise

import (
	"context"
	"errors"
	"io"
	"math/bits"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endWithin is how long children may take to end after the main process, before
// the supervisor ends without them.
const endWithin = 5 * time.Second

// Forwarded are the signals that are meant for the main process.
func Forwarded() []os.Signal {
	return []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGQUIT}
}

// Keeper is the supervisor.
type Keeper struct {
	file  *os.File
	state State
	main  *os.Process // nil before the first message
}

// Resume is the supervisor that another program has become: fd is its end.
func Resume(fd int, s State) (*Keeper, error) {
	if fd <= 2 || s.Main <= 0 {
		return nil, errors.New("this command is for sallyport itself")
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil { // also: is it open at all?
		return nil, os.NewSyscallError("fcntl", err)
	}
	k := &Keeper{file: os.NewFile(uintptr(fd), "supervisor"), state: s}
	k.find()
	return k, nil
}

// Main makes pid the main process.
func (k *Keeper) Main(generation uint64, pid int) {
	if k.state.heard(message{kindMain, generation, pid}) {
		k.find()
	}
}

// find opens a pidfd, so that a signal never reaches a stranger with the same id.
func (k *Keeper) find() {
	if k.main != nil {
		_ = k.main.Release()
	}
	k.main, _ = os.FindProcess(k.state.Main) // on unix this never fails
}

// Close lets go of the line: the main process ends by that.
func (k *Keeper) Close() error { return k.file.Close() }

// Duties say what Run does besides listening.
type Duties struct {
	Signals <-chan os.Signal // for the main process

	// Children delivers SIGCHLD, and says that every child is ours to reap. It
	// is nil in a process that waits for children of its own.
	Children <-chan os.Signal
}

// Run serves until no main process is left, which it reports with the exit
// code, or until ctx is done.
func (k *Keeper) Run(ctx context.Context, d Duties) (code int, over bool) {
	heard, stop := make(chan message), context.AfterFunc(ctx, k.interrupt)
	defer stop()
	reading := make(chan struct{})
	var end error
	go func() {
		defer close(reading)
		end = k.listen(heard)
	}()
	for {
		select {
		case m := <-heard:
			if k.state.heard(m) {
				k.find()
			}
		case s := <-d.Signals:
			k.Signal(s)
		case <-d.Children:
			k.reap()
		case <-reading:
			if errors.Is(end, os.ErrDeadlineExceeded) {
				_ = k.file.SetReadDeadline(time.Time{})
				k.forwardRest(d.Signals)
				return 0, false
			}
			k.rest(d.Children)
			return k.state.code(), true
		}
	}
}

// Signal passes a signal on to the main process.
func (k *Keeper) Signal(s os.Signal) {
	if k.main != nil {
		_ = k.main.Signal(s) // who has ended needs none
	}
}

func (k *Keeper) forwardRest(signals <-chan os.Signal) {
	for {
		select {
		case s := <-signals:
			k.Signal(s)
		default:
			return
		}
	}
}

func (k *Keeper) interrupt() { _ = k.file.SetReadDeadline(time.Unix(1, 0)) }

// listen passes messages on until the end of file, or the interruption. What
// was read is always delivered: Run waits for both.
func (k *Keeper) listen(heard chan<- message) error {
	b := make([]byte, maxMessage)
	for {
		n, err := k.file.Read(b)
		if err != nil {
			return err
		}
		if m, err := decode(b[:n]); err == nil {
			heard <- m
		}
	}
}

// reap takes leave of children that have ended, and reports whether any is left.
func (k *Keeper) reap() bool {
	for {
		var s unix.WaitStatus
		pid, err := unix.Wait4(-1, &s, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // ECHILD
			return false
		case pid == 0:
			return true
		default:
			k.state.ended(pid, codeOf(s))
		}
	}
}

// codeOf is the exit code as a shell tells it.
func codeOf(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// rest waits for the children that end with the main process. The main process
// has closed its line and is not always dead yet; remnants end by themselves.
func (k *Keeper) rest(children <-chan os.Signal) {
	if children == nil {
		return
	}
	timeout := time.After(endWithin)
	for k.reap() {
		select {
		case <-children:
		case <-timeout:
			return
		}
	}
}

// Become makes this process a supervisor and nothing else: argv and env are its
// own command's, to which its state is added as flags that Resume's caller
// reads. What signals delivers is passed on until the other program is there. It
// returns only when it has failed, and the process is as before, but that it
// ignores SIGHUP. Nothing else may run the keeper.
//
// Go takes the signals that end a process out of the mask when a program starts,
// whatever that was started with, so none can be kept for the new program: in the
// milliseconds until it listens SIGTERM, SIGINT and SIGQUIT end this process, and
// the main process, which sees that, ends in order. SIGHUP would do that too, and
// means something else; it is ignored meanwhile. SIGUSR2 waits: the mask is kept by
// execve(2), and what arrives behind it is pending.
func (k *Keeper) Become(program string, argv, env []string, signals <-chan os.Signal) error {
	defer k.forward(signals)()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, maskOf(append(Forwarded(), syscall.SIGCHLD)), &before); err != nil {
		return os.NewSyscallError("rt_sigprocmask", err)
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	return control(k.file, func(fd int) error {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		defer unix.CloseOnExec(fd)
		args := append(argv[:len(argv):len(argv)], "--line="+strconv.Itoa(fd), "--main="+strconv.Itoa(k.state.Main),
			"--generation="+strconv.FormatUint(k.state.Generation, 10))
		signal.Ignore(syscall.SIGHUP) // as late as can be
		return os.NewSyscallError("execve", syscall.Exec(program, args, env))
	})
}

// forward passes signals on, first what has come before, until it is stopped.
func (k *Keeper) forward(signals <-chan os.Signal) (stop func()) {
	k.forwardRest(signals)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case s := <-signals:
				k.Signal(s)
			case <-end:
				k.forwardRest(signals)
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

func maskOf(signals []os.Signal) *unix.Sigset_t {
	var set unix.Sigset_t
	for _, s := range signals {
		n := uint(s.(syscall.Signal)) - 1
		set.Val[n/bits.UintSize] |= 1 << (n % bits.UintSize)
	}
	return &set
}

// Adopt makes this process the reaper of its children's children, so that the
// successor of a successor is still below it; undo takes that back.
func Adopt() (undo func(), err error) {
	set := func(on uintptr) error {
		return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, on, 0, 0, 0))
	}
	return func() { _ = set(0) }, set(1)
}

// Listen delivers what a supervisor acts on. Stop ends it.
func Listen() (d Duties, stop func()) {
	signals, children := make(chan os.Signal, 16), make(chan os.Signal, 1)
	signal.Notify(signals, Forwarded()...)
	signal.Notify(children, syscall.SIGCHLD)
	return Duties{Signals: signals, Children: children}, func() { signal.Stop(signals); signal.Stop(children) }
}

var _ io.Closer = (*Keeper)(nil)
