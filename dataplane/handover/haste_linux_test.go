package handover

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHaste: this thread and the first ask for short slices, and do so no more
// afterwards.
func TestHaste(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	slice := func(tid int) time.Duration {
		attr, err := unix.SchedGetAttr(tid, 0)
		if err != nil {
			t.Skip("sched_getattr(2):", err)
		}
		if attr.Policy != unix.SCHED_NORMAL {
			t.Skip("the test runs with a policy of its own (sched(7))")
		}
		return time.Duration(attr.Runtime)
	}
	hasten()() // a test before this one may have left some, which a timer ends
	usual := slice(0)
	if usual == 0 {
		t.Skip("the kernel knows no slices (6.12 does)")
	}
	const tries = 100 // that timer may come in between
	var mine, first time.Duration
	for i := 0; i < tries && (mine != hasteSlice || first != hasteSlice); i++ {
		slow := hasten()
		mine, first = slice(0), slice(os.Getpid())
		slow()
	}
	if after := slice(0); mine != hasteSlice || first != hasteSlice || after != usual {
		t.Errorf("%v and %v during the haste, %v before and %v after it", mine, first, usual, after)
	}
}
