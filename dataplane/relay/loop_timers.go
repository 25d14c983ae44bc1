package relay

import "time"

// timers are the armed timers of one loop: a binary heap by deadline, and an
// index by timer. Only the loop's thread touches them.
type timers struct {
	base  time.Time // the deadlines' zero; monotonic
	heap  []*armed
	by    map[Timer]*armed
	spare []*armed
	seq   uint64
}

// armed is one entry. Invariant: heap[pos] is the entry itself.
type armed struct {
	timer Timer
	at    time.Duration // since base
	seq   uint64        // order of arming, among equal deadlines and between rounds
	pos   int
}

const (
	// timerStep is the resolution of a wait: deadlines that lie close
	// together cost one wake-up.
	timerStep = 10 * time.Millisecond

	// timerFar bounds a delay so that sums cannot overflow.
	timerFar = 100 * 365 * 24 * time.Hour

	// timersKeep bounds the entries that are kept for reuse.
	timersKeep = 4096
)

func newTimers() timers {
	return timers{base: time.Now(), by: make(map[Timer]*armed)}
}

// arm counts the delay from the true time of the call, not from the beginning
// of the round: a deadline is never early.
func (ts *timers) arm(t Timer, after time.Duration) {
	after = min(max(after, 0), timerFar)
	e := ts.by[t]
	if e == nil {
		e = ts.entry()
		e.timer, e.pos = t, len(ts.heap)
		ts.by[t] = e
		ts.heap = append(ts.heap, e)
	}
	ts.seq++
	e.at, e.seq = time.Since(ts.base)+after, ts.seq
	ts.down(ts.up(e.pos))
}

func (ts *timers) disarm(t Timer) {
	if e := ts.by[t]; e != nil {
		ts.remove(e)
	}
}

// runDue calls what is due at now. A timer that is armed meanwhile waits for
// the next round, even with no delay.
func (ts *timers) runDue(now time.Time) {
	limit := ts.seq
	at := now.Sub(ts.base)
	for len(ts.heap) > 0 {
		e := ts.heap[0]
		if e.at > at || e.seq > limit {
			return
		}
		t := e.timer
		ts.remove(e)
		t.Due(now)
	}
}

// wait is how long the loop may sleep: negative for ever, 0 not at all.
// Otherwise it ends on a multiple of timerStep.
func (ts *timers) wait(now time.Time) time.Duration {
	if len(ts.heap) == 0 {
		return -1
	}
	at := ts.heap[0].at
	since := now.Sub(ts.base)
	if at <= since {
		return 0
	}
	step := (at + timerStep - 1) / timerStep * timerStep
	return step - since
}

func (ts *timers) entry() *armed {
	n := len(ts.spare)
	if n == 0 {
		return new(armed)
	}
	e := ts.spare[n-1]
	ts.spare = ts.spare[:n-1]
	return e
}

func (ts *timers) remove(e *armed) {
	last := len(ts.heap) - 1
	pos := e.pos
	ts.swap(pos, last)
	ts.heap[last] = nil
	ts.heap = ts.heap[:last]
	if pos < last {
		ts.down(ts.up(pos))
	}
	delete(ts.by, e.timer)
	e.timer = nil
	if len(ts.spare) < timersKeep {
		ts.spare = append(ts.spare, e)
	}
}

func (ts *timers) less(i, j int) bool {
	a, b := ts.heap[i], ts.heap[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

func (ts *timers) swap(i, j int) {
	ts.heap[i], ts.heap[j] = ts.heap[j], ts.heap[i]
	ts.heap[i].pos, ts.heap[j].pos = i, j
}

func (ts *timers) up(i int) int {
	for i > 0 {
		parent := (i - 1) / 2
		if !ts.less(i, parent) {
			break
		}
		ts.swap(i, parent)
		i = parent
	}
	return i
}

func (ts *timers) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(ts.heap) {
			return
		}
		if right := child + 1; right < len(ts.heap) && ts.less(right, child) {
			child = right
		}
		if !ts.less(child, i) {
			return
		}
		ts.swap(i, child)
		i = child
	}
}
