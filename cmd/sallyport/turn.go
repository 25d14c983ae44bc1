package main

import "sync"

// turn is had by one at a time of those that change what this process is: an
// upgrade or the start of a canary, and what is brief beside them: a reload, which
// is over within reloadWait, and moments at the process's begin and end. Whoever
// comes meanwhile waits for what is brief. During an upgrade he is told so, unless
// there is nobody to tell.
//
// The zero value is free.
type turn struct {
	mu    sync.Mutex
	over  chan struct{} // closed when it is had no more; nil while it is free
	brief bool          // what has it
}

// take has the turn, for something brief or not. It is false at once when that
// would be to wait for an upgrade.
func (t *turn) take(brief bool) bool {
	for {
		over, soon := t.tryTake(brief)
		if over == nil {
			return true
		}
		if !soon {
			return false
		}
		<-over
	}
}

// await has the turn for something brief, whatever there is to wait for.
func (t *turn) await() {
	for {
		over, _ := t.tryTake(true)
		if over == nil {
			return
		}
		<-over
	}
}

// tryTake has the turn when over is nil. Else over is closed when it is free, and
// soon says that something brief has it.
func (t *turn) tryTake(brief bool) (over chan struct{}, soon bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over != nil {
		return t.over, t.brief
	}
	t.over, t.brief = make(chan struct{}), brief
	return nil, false
}

// end lets go of it. Everybody who waits tries again: nobody waits behind somebody
// for whom he would not.
func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.over)
	t.over = nil
}
