package ssh

import (
	"errors"
	"math/bits"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/timerslack"
)

// ownProcess watches a process by its pidfd (Linux 5.3), which the runtime's
// poller can wait for: an idle session holds no thread.
type ownProcess struct {
	number int // of the pidfd, from clone(2); -1 without
	file   *os.File
}

func prepareWatch(sys *syscall.SysProcAttr) {
	none := -1
	sys.PidFD = &none
}

// tie has the program hang up when this process dies: nobody else would tell
// one that has no terminal. See parent.
func tie(sys *syscall.SysProcAttr) { sys.Pdeathsig = syscall.SIGHUP }

// deliver starts children on one thread.
func deliver(births <-chan func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = timerslack.Usual() // people's programs sleep as they do elsewhere
	for birth := range births {
		birth()
	}
}

// sealDescriptors keeps from programs what this process was itself started
// with: its parent may have left descriptors open across exec. All others are
// close-on-exec already. Before Linux 5.11 there is no such call, and the error
// says so to nobody.
func sealDescriptors() {
	_ = unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
}

func (o *ownProcess) watch(sys *syscall.SysProcAttr) {
	o.number = *sys.PidFD
	if o.number < 0 || unix.SetNonblock(o.number, true) != nil {
		return
	}
	o.file = os.NewFile(uintptr(o.number), "pidfd")
}

// await returns when the process is dead. It does not reap.
func (o *ownProcess) await(p *process) {
	if o.file != nil && o.awaitPoll() == nil {
		return
	}
	for {
		err := unix.Waitid(unix.P_PID, p.os.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (o *ownProcess) awaitPoll() error {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	err = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			fault = err
			return true
		}
		return n > 0 // readable: dead (pidfd_open(2))
	})
	return errors.Join(err, fault)
}

func (o *ownProcess) close() {
	if o.file != nil {
		o.file.Close()
	} else if o.number >= 0 {
		unix.Close(o.number)
	}
}

// killAs sends a signal with the effective user id given: the kernel decides
// whom that may reach. Ids belong to threads, so the thread that takes the id
// is thrown away afterwards.
func killAs(uid uint32, pid int, sig syscall.Signal) error {
	if os.Geteuid() != 0 || uid == 0 {
		return syscall.Kill(pid, sig)
	}
	if bits.UintSize == 32 && uid > 1<<16-1 {
		return syscall.EPERM // the call has 16 bits there
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		const keep = ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			result <- errno
			return
		}
		result <- syscall.Kill(pid, sig)
	}()
	return <-result
}
