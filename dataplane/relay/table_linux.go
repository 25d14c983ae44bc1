package relay

import "golang.org/x/sys/unix"

// tableMost bounds the room that is made ahead: 512 KiB of the kernel's memory.
const tableMost = 64 << 10

// GrowTable makes room for the descriptors that this process may have, up to 65,536,
// before there are any. The kernel doubles the table of descriptors when it is full,
// and then waits until no other thread can be looking at the old one (fs/file.c,
// expand_fdtable): whoever has just accepted, connected or duplicated stands still for
// some ten milliseconds, and so does all that its thread has in hand. A process that
// takes thousands of connections over would go through that once for each doubling.
//
// It fails by doing nothing: then the table grows as it must.
func GrowTable() {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur == 0 {
		return
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	highest := int(min(limit.Cur, tableMost)) - 1
	if high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, highest); err == nil {
		unix.Close(high)
	}
}
