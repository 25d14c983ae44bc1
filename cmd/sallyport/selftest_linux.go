package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// adoptOrphans makes this process the parent of what its children leave behind:
// of each generation after the first (PR_SET_CHILD_SUBREAPER of prctl(2)). A
// kernel that does not know it leaves them to process 1, which is no loss.
func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// socketProtocol names the protocol of the socket behind a path in /proc/PID/fd,
// as the kernel does in /proc/net/protocols: "TCP", "TCPv6", "UNIX-STREAM", and so on.
// The kernel's tables of sockets (/proc/PID/net/...) are no substitute: a socket may
// be of another network namespace, and a reading may miss an entry.
func socketProtocol(path string) (string, error) {
	const attribute = "system.sockprotoname"
	var name [64]byte // the kernel's are at most 32 with the zero at the end
	n, err := unix.Getxattr(path, attribute, name[:])
	if err != nil {
		return "", &os.PathError{Op: "getxattr " + attribute, Path: path, Err: err}
	}
	return unix.ByteSliceToString(name[:n]), nil
}

// sameMemory says that two processes have one memory. A kernel without kcmp(2)
// does not know, and then they count as two.
func sameMemory(a, b int) bool {
	const memory = 1 // KCMP_VM
	differ, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), memory, 0, 0, 0)
	return errno == 0 && differ == 0
}
