package ssh

import (
	"io"
	"os"
	"os/user"
	"strconv"
	"sync"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// terminal is a pseudo terminal of a login. The channel owns it.
type terminal struct {
	master *os.File // in the runtime's poller: Close wakes readers
	slave  *os.File // nil once the program has it
	name   string   // /dev/pts/7
	term   string

	mu   sync.Mutex
	size unix.Winsize // guarded by mu
}

func openTerminal(r ptyRequest, owner account) (*terminal, error) {
	opened, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	master, err := pollable(opened)
	if err != nil {
		slave.Close()
		return nil, err
	}
	t := &terminal{master: master, slave: slave, name: slave.Name(), term: r.Term}
	if err := t.prepare(r, owner); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// pollable takes f over and gives it back in the runtime's poller: package pty
// uses File.Fd, which makes the file block a thread for each read.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// ttyMode lets the group tty write, as write(1) and wall(1) need.
const ttyMode = 0o620

func (t *terminal) prepare(r ptyRequest, owner account) error {
	if os.Geteuid() == 0 {
		gid, mode := ttyGroup(owner)
		if err := t.slave.Chown(int(owner.uid), gid); err != nil {
			return err
		}
		if err := t.slave.Chmod(mode); err != nil {
			return err
		}
	}
	if err := setModes(int(t.slave.Fd()), parseModes(r.Modes)); err != nil {
		return err
	}
	_, err := t.resize(windowChange{Columns: r.Columns, Rows: r.Rows, Width: r.Width, Height: r.Height})
	return err
}

func ttyGroup(owner account) (gid int, mode os.FileMode) {
	if g, err := user.LookupGroup("tty"); err == nil {
		if gid, err := strconv.Atoi(g.Gid); err == nil {
			return gid, ttyMode
		}
	}
	return int(owner.gid), 0o600
}

// resize says whether the size is a new one.
func (t *terminal) resize(w windowChange) (changed bool, err error) {
	size := unix.Winsize{Col: dimension(w.Columns), Row: dimension(w.Rows), Xpixel: dimension(w.Width), Ypixel: dimension(w.Height)}
	t.mu.Lock()
	defer t.mu.Unlock()
	changed = size != t.size
	t.size = size
	return changed, t.control(func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size) })
}

// foreground is the process group that has the terminal, or 0.
func (t *terminal) foreground() int {
	if t == nil {
		return 0
	}
	group := 0
	err := t.control(func(fd int) (err error) {
		group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	if err != nil {
		return 0
	}
	return group
}

// readWaiting reads what waits in the terminal, also when the master's read deadline
// has passed. Without anything it returns os.ErrDeadlineExceeded, and EIO when nobody
// has the terminal open.
func (t *terminal) readWaiting(b []byte) (n int, err error) {
	err = t.control(func(fd int) (fault error) {
		n, fault = unix.Read(fd, b)
		return fault
	})
	switch {
	case err == unix.EAGAIN:
		return 0, os.ErrDeadlineExceeded
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// control runs an ioctl, or a read that does not wait, without taking the file out of
// the poller.
func (t *terminal) control(ioctl func(fd int) error) error {
	raw, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	if err := raw.Control(func(fd uintptr) { fault = ioctl(int(fd)) }); err != nil {
		return err
	}
	return fault
}

func (t *terminal) closeSlave() {
	t.slave.Close()
}

// close hangs up the line; the kernel tells the programs. It may be called
// more than once, and on nil.
func (t *terminal) close() {
	if t == nil {
		return
	}
	t.slave.Close()
	t.master.Close()
}

// sendBreak is tcsendbreak(3).
func (t *terminal) sendBreak() error {
	err := t.control(sendBreak)
	if err == syscall.ENOTTY {
		return nil
	}
	return err
}
