package main

import (
	"context"
	"slices"
	"syscall"
	"time"
)

// A canary that did not give back all that it had goes on with the rest, whoever is
// the main process by then. Each canary is on record from its start, among the
// remnants; the file's lock is its own, so that the record tells of it also when it
// hangs. By that the main process shows it, waits for it in a drain, and ends it:
// when its time has passed, and with the service.

// canaryGrace is what a canary has, after its time, to end by itself.
const canaryGrace = 5 * time.Second

// letGo leaves the canary what did not come back.
func (c *canary) letGo(left int) {
	now := time.Now()
	err := c.place.say(remnantReport{PID: c.pid(), Version: c.version, Since: now, Until: now.Add(c.node.drainTime()), Holds: map[string]int{"relays": left}, Canary: true})
	if err != nil {
		c.node.log.Error("sallyport status does not show what the canary has kept", "pid", c.pid(), "left", left, "error", err)
	}
	c.letLoose()
	c.forget()
	c.talk.Finish()
}

// letLoose has this process tell of the canary by its record alone, if it lives. It
// may be called twice.
func (c *canary) letLoose() {
	c.node.watched.Store(0)
	_ = c.place.file.Close() // it was only written to, and that has been answered
}

// remnants are those that nobody else tells of: old processes that have work, and
// canaries that were left.
func (n *node) remnants() []remnantReport {
	return slices.DeleteFunc(readRemnants(n.cfg.DataDir), func(r remnantReport) bool { return int64(r.PID) == n.watched.Load() })
}

// leftCanaries are those that nobody watches any more.
func (n *node) leftCanaries() []remnantReport {
	return slices.DeleteFunc(n.remnants(), func(r remnantReport) bool { return !r.Canary })
}

// keptBy is how many connections canaries have. One that has not said so has at
// least one: without any it ends.
func keptBy(canaries []remnantReport) (total int) {
	for _, r := range canaries {
		has := 0
		for _, count := range r.Holds {
			has += count
		}
		total += max(has, 1)
	}
	return total
}

// signalCanaries sends all that were left a signal.
func (n *node) signalCanaries(s syscall.Signal) {
	for _, r := range n.leftCanaries() {
		n.log.Info("a canary that was left is ended", "pid", r.PID, "signal", s.String(), "has", countsOf(r.Holds))
		n.endCanaryOf(r, s)
	}
}

func (n *node) endCanaryOf(r remnantReport, s syscall.Signal) {
	if err := r.signal(n.cfg.DataDir, s); err != nil {
		n.log.Error("a canary could not be ended: kill it", "pid", r.PID, "error", err)
	}
}

// endLateOn ends canaries whose time has passed, until ctx is done or this process
// has handed over: then it is the new one's to do.
func (n *node) endLateOn(ctx context.Context) error {
	tick := time.NewTicker(remnantRefresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.upgrades.handed:
			return nil
		case now := <-tick.C:
			n.endLate(now)
		}
	}
}

// endLate kills those that should have ended by themselves: they hang.
func (n *node) endLate(now time.Time) {
	for _, r := range n.leftCanaries() {
		if now.After(r.Until.Add(canaryGrace)) {
			n.log.Warn("the time of a canary that was left has passed, and it has not ended", "pid", r.PID, "ended", countsOf(r.Holds))
			n.endCanaryOf(r, syscall.SIGKILL)
		}
	}
}
