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

	// spinLook: each so many times it looks for everything, else only where the
	// answer should come from. That takes less of both who asks and who answers.
	spinLook = 8

	// spinCrowded: a yield that lasts so long has let somebody else run, who
	// needs the core more. What takes less may be who answers, or an interrupt.
	spinCrowded = 50 * time.Microsecond

	// spinWake is what blocking may add to a wait: the core's way out of its
	// sleep, and the thread's.
	spinWake = 50 * time.Microsecond
)

// credit says whether to spin: it grows with each wait that was short enough
// and falls faster with each that was not. An idle loop has none.
type credit int

const (
	creditMost    credit = 8
	creditEnough  credit = 4
	creditCrowded credit = -64 // so many short waits until the next trial
)

// note takes how long the loop has waited, and whether that was blocked.
func (c *credit) note(waited time.Duration, blocked bool) {
	if blocked {
		waited -= spinWake
	}
	if waited < spinFor {
		*c = min(*c+1, creditMost)
	} else if *c > 0 {
		*c = max(*c-2, 0)
	}
}

// lull fetches the events that come soon after a round of n. An answer that it
// finds is passed on at once, and is of the next turn.
func (l *epollLoop) lull(n int, t turn) int {
	switch {
	case t.spliced >= gatherLeast && l.bulk >= gatherAfter:
		nap(gather)
		return l.look()
	case t.talked(n) && l.credit >= creditEnough:
		return l.spin(t.answer)
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

// spin looks until there is something, the time is over, or the core is wanted;
// answer is the side that is likely to send next, or nil.
func (l *epollLoop) spin(answer *side) int {
	begin := time.Now()
	if answer != nil && !answer.polls() {
		answer = nil
	}
	for looks, now := 1, begin; ; looks++ {
		if answer != nil && looks%spinLook != 0 {
			l.now = now
			if answer.poll() {
				// The event of what was found is there too: it goes now, and
				// does not end the next lull.
				l.stores.turn.polled = true
				return l.look()
			}
		} else if n := l.look(); n > 0 {
			return n
		}
		if l.mailbox.full() {
			return 0
		}
		before := time.Now()
		yield()
		now = time.Now()
		if now.Sub(before) > spinCrowded {
			l.credit = creditCrowded
			return l.look()
		}
		if now.Sub(begin) > spinFor {
			return 0
		}
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
