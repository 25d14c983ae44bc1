package main

import (
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/windows"
	"golang.org/x/term"
)

// tryLock takes the lock of what f is, or fails at once.
func tryLock(f *os.File) error {
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
}

// ours does not know: nothing is taken for this user's.
func ours(fs.FileInfo) bool { return false }

// othersMayRead does not know: a mode says nothing about that.
func othersMayRead(fs.FileInfo) bool { return false }

// onlyOurs does nothing: what is made in a user's own directories is the user's.
func onlyOurs() (restore func()) { return func() {} }

// terminalSize is that of the terminal that in and out are.
func terminalSize(_, out *os.File) (w, h int, err error) { return term.GetSize(int(out.Fd())) }

// resizeEvery is how often the terminal's size is looked at: nothing tells.
const resizeEvery = time.Second / 4

// onResize calls f when the terminal may have another size, until stop is called.
func onResize(f func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(resizeEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

// signalNumbers are the numbers of SSH's signals, as Unix systems have them.
func signalNumbers() map[ssh.Signal]syscall.Signal {
	return map[ssh.Signal]syscall.Signal{
		ssh.SIGABRT: 6, ssh.SIGALRM: 14, ssh.SIGFPE: 8, ssh.SIGHUP: 1, ssh.SIGILL: 4, ssh.SIGINT: 2, ssh.SIGKILL: 9, ssh.SIGPIPE: 13,
		ssh.SIGQUIT: 3, ssh.SIGSEGV: 11, ssh.SIGTERM: 15, ssh.SIGUSR1: 10, ssh.SIGUSR2: 12,
	}
}
