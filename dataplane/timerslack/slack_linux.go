package timerslack

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// usual is what the system gives a process.
	usual = 50 * time.Microsecond

	// wide is the slack of this program: the monitor looks some two thousand times
	// a second at most, instead of fourteen thousand.
	wide = 500 * time.Microsecond
)

// begun tells the program that it has been started anew.
const begun = "SALLYPORT_SLACK"

// Widen gives the process wide slack: it starts the program anew, with the same
// arguments and environment and under the same id, and returns there. It is for
// the beginning of main, where nothing is lost by that, signals included. Where
// somebody has chosen a slack for the process (TimerSlackNSec= of systemd.exec(5)),
// or the system refuses, nothing changes: the error says why, and the process is
// slower than it could be.
func Widen() error {
	if _, there := os.LookupEnv(begun); there {
		return os.Unsetenv(begun)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if slack() != usual {
		return nil
	}
	path, err := os.Executable()
	if err != nil {
		return err
	}
	if err := set(wide); err != nil {
		return err
	}
	err = syscall.Exec(path, os.Args, append(os.Environ(), begun+"=1"))
	return errors.Join(os.NewSyscallError("execve", err), set(usual))
}

// Usual gives the calling thread what the system gives a process, if this one has
// wide slack. The goroutine stays on the thread (runtime.LockOSThread): programs that it
// starts have the slack too.
func Usual() error {
	if slack() != wide {
		return nil
	}
	return set(usual)
}

// slack is the calling thread's.
func slack() time.Duration {
	n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0
	}
	return time.Duration(n)
}

func set(d time.Duration) error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d), 0, 0, 0))
}
