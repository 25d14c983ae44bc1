package ssh

import (
	"math/bits"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asLogin runs f with the effective ids and groups of the account, so that the
// kernel decides what f may open, connect to or bind. Ids belong to threads, and
// so the thread that takes them is thrown away afterwards. The real and the
// saved ids stay: programs of the login may not signal us. f must do its system
// calls itself, not on goroutines of its own.
func (a account) asLogin(f func() error) error {
	own := uint32(os.Geteuid())
	if own == a.uid {
		return f()
	}
	if own != 0 || bits.UintSize == 32 { // there the calls have 16 bits
		return syscall.EPERM
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		if err := a.lower(); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// lower changes the ids of this thread alone: the library's functions change
// those of all threads (nptl(7)).
func (a account) lower() error {
	const keep = ^uintptr(0)
	groups := append([]uint32{a.gid}, a.groups...)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(a.gid), keep); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(a.uid), keep); errno != 0 {
		return errno
	}
	if uint32(unix.Geteuid()) != a.uid || uint32(unix.Getegid()) != a.gid {
		return syscall.EPERM
	}
	return nil
}

// ownSocket makes the account the owner of a socket, as if a program of its own
// had opened it: packet filters ask for that (iptables-extensions(8), owner).
func (a account) ownSocket(raw syscall.RawConn) error {
	if uint32(os.Geteuid()) == a.uid {
		return nil
	}
	var fault error
	if err := raw.Control(func(fd uintptr) { fault = unix.Fchown(int(fd), int(a.uid), int(a.gid)) }); err != nil {
		return err
	}
	return fault
}

// peerUser is who connected to a Unix socket (unix(7), SO_PEERCRED).
func peerUser(conn syscall.Conn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var fault error
	if err := raw.Control(func(fd uintptr) { cred, fault = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if fault != nil {
		return 0, fault
	}
	return cred.Uid, nil
}
