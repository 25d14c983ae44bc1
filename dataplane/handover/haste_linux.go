package handover

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// hasteSlice is how long a thread may run before others have their turn, a tenth
// of what is usual. Who asks for less at a time gets it sooner after he was
// woken, and not more of it (sched_setattr(2), SCHED_OTHER; kernels before 6.12
// know nothing of it).
const hasteSlice = 250 * time.Microsecond

// hasten lets this process's threads run soon after they were woken, until slow:
// while connections stand still the two processes wake each other half a dozen
// times, and on a machine with a lot to do each would wait for some milliseconds.
// It is not for longer: others wait meanwhile, and a thread that is new, or a
// process, has what the one had that made it.
func hasten() (slow func()) {
	ask(hasteSlice)
	return func() { ask(0) } // the system's own
}

// ask asks for all threads. A kernel that refuses is as slow as it is.
func ask(slice time.Duration) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		attr, err := unix.SchedGetAttr(tid, 0)
		if err != nil || attr.Policy != unix.SCHED_NORMAL {
			continue // it has ended, or somebody has thought about it
		}
		attr.Runtime = uint64(slice)
		_ = unix.SchedSetAttr(tid, attr, 0)
	}
}
