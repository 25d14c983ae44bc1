package relay

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A lull is the moment in which a loop has nothing to do. What it does best
// depends on what it has just done:
//
//	bytes in bulk   a short sleep, in which more of them gather: to wake for
//	                each segment costs more than to move it
//	small messages  to look again and again for a while, if that has paid lately:
//	                the answer comes sooner than a thread is put to sleep and woken
//	anything else   to block at once
const (
	// gather is the sleep. It is about as long as one move of a full pipe: to
	// others on the loop it is one more stream.
	gather = 50 * time.Microsecond

	// gatherLeast spliced in one round, and gatherAfter since the last message,
	// are bulk: whoever waits for an answer does not wait for this.
	gatherLeast = 32 << 10
	gatherAfter = 1 << 20

	// spinFor is how long a loop looks for an answer.
	spinFor = 50 * time.Microsecond

	// spinCrowded: a yield that lasts so long has let somebody else run, who
	// needs the core more.
	spinCrowded = 10 * time.Microsecond
)

// credit says whether to spin: it grows with each wait that was short enough
// and falls faster with each that was not. An idle loop has none.
type credit int

const (
	creditMost    credit = 8
	creditEnough  credit = 4
	creditCrowded credit = -64 // so many short waits until the next trial
)

func (c *credit) note(waited time.Duration) {
	if waited < spinFor {
		*c = min(*c+1, creditMost)
	} else if *c > 0 {
		*c = max(*c-2, 0)
	}
}

// lull fetches the events that come soon after a round of n.
func (l *epollLoop) lull(n int, t turn) int {
	switch {
	case t.spliced >= gatherLeast && l.bulk >= gatherAfter:
		nap(gather)
		return l.look()
	case t.talked(n) && l.credit >= creditEnough:
		return l.spin()
	}
	return 0
}

// take returns what the last round has done, and begins the next.
func (l *epollLoop) take() turn {
	t := l.stores.turn
	l.stores.turn = turn{}
	l.bulk += t.spliced
	if t.copied > 0 {
		l.bulk = 0
	}
	return t
}

// talked says that a round of n events was about messages, not connections:
// those come and go at their own pace.
func (t turn) talked(n int) bool { return t.copied > 0 && n <= 2*t.copied }

// spin looks until there is something, the time is over, or the core is wanted.
func (l *epollLoop) spin() int {
	begin := time.Now()
	for last := begin; ; {
		if n := l.look(); n > 0 {
			return n
		}
		yield()
		now := time.Now()
		if now.Sub(last) > spinCrowded {
			l.credit = creditCrowded
			return l.look()
		}
		if now.Sub(begin) > spinFor {
			return 0
		}
		last = now
	}
}

// nap does not tell the scheduler: it is shorter than what that would cost.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}

func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// sharpen makes the thread's short sleeps as short as they say. The system's
// default adds 50 microseconds.
func sharpen() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) }
