package supervise

import (
	"errors"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Line is a main process's end.
type Line struct{ file *os.File }

// Pair makes both ends. Nobody outside these two processes' successors has
// either: they are closed on exec.
func Pair() (*Keeper, *Line, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return &Keeper{file: os.NewFile(uintptr(fds[0]), "supervisor")}, OpenLine(fds[1]), nil
}

// OpenLine takes over the end that the process before has passed on.
func OpenLine(fd int) *Line { return &Line{os.NewFile(uintptr(fd), "supervisor's line")} }

// Inherited takes over the end that this process was started with.
func Inherited(fd int) (*Line, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	if kind != unix.SOCK_SEQPACKET {
		return nil, errors.New("not a supervisor's line")
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return OpenLine(fd), nil
}

// Main names the main process of a generation. It may be said twice.
func (l *Line) Main(generation uint64, pid int) error {
	return l.say(message{kindMain, generation, pid})
}

// Over says with what the main process of a generation is about to end.
func (l *Line) Over(generation uint64, code int) error {
	return l.say(message{kindOver, generation, code})
}

func (l *Line) say(m message) error {
	_, err := l.file.Write(m.encode())
	return err
}

// Crash lets the runtime say on the line when this process crashes, until Quiet.
func (l *Line) Crash() error {
	fd, err := l.Dup()
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "last words")
	err = errors.Join(debug.SetCrashOutput(f, debug.CrashOptions{}), f.Close())
	// That has made the socket wait, which is so for both descriptors of it.
	return errors.Join(err, control(l.file, func(fd int) error { return unix.SetNonblock(fd, true) }))
}

// Quiet ends Crash: who is not the main process any more keeps nothing of the line.
func Quiet() error { return debug.SetCrashOutput(nil, debug.CrashOptions{}) }

// Wait returns nil when the supervisor is gone, and an error after Close.
func (l *Line) Wait() error {
	b := make([]byte, maxMessage)
	for {
		_, err := l.file.Read(b)
		switch {
		case err == nil: // it has nothing to say
		case errors.Is(err, os.ErrClosed):
			return err
		default: // io.EOF, or the connection was reset
			return nil
		}
	}
}

// Dup returns a descriptor of its own, to be passed on.
func (l *Line) Dup() (fd int, err error) {
	fd = -1
	err = control(l.file, func(own int) error {
		fd, err = unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl", err)
	})
	return fd, err
}

// Close says nothing: whoever closes it cannot become the main process again.
func (l *Line) Close() error { return l.file.Close() }

func control(file *os.File, f func(fd int) error) error {
	c, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = c.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

var _ io.Closer = (*Line)(nil)
