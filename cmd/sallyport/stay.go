package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"time"
)

// errHanded ends the roles of a process that has handed over and has nothing
// left to do.
var errHanded = errors.New("handed over")

const (
	stayTick      = 100 * time.Millisecond
	remnantsEnd   = 5 * time.Second // for old processes, when the service ends
	forwardedMost = 16
)

// holds is what this process has that cannot move, by what it is.
func (n *node) holds() map[string]int {
	out := map[string]int{}
	add := func(what string, count int) {
		if count > 0 {
			out[what] = count
		}
	}
	if g := n.shownGateway.Load(); g != nil {
		for what, count := range g.holds() {
			add(what, count)
		}
	}
	if a := n.shownAgent.Load(); a != nil {
		for what, count := range a.holds() {
			add(what, count)
		}
	}
	return out
}

// idle says that nothing is left.
func (n *node) idle(held map[string]int) bool {
	return len(held) == 0 && (n.gateway == nil || n.gateway.idle())
}

// afterwards waits until the work is another process's, and then for what is
// left of it. Its error ends the roles.
func (n *node) afterwards(ctx context.Context) error {
	select {
	case <-n.upgrades.handed:
	case <-ctx.Done():
		return nil
	}
	n.upgrades.caller.Wait()
	n.stopAdmin()
	n.serveOut(ctx)
	return errHanded
}

// serveOut waits for what is left, and says meanwhile what that is. It returns
// when nothing is, when its time has passed, or with the service.
func (n *node) serveOut(ctx context.Context) {
	left := n.holds()
	if n.idle(left) {
		return
	}
	since := time.Now()
	report := remnantReport{PID: os.Getpid(), Version: version, Since: since, Until: since.Add(n.drainTime()), Holds: left}
	r, err := openRemnant(n.cfg.DataDir, report)
	if err != nil {
		n.log.Warn("sallyport status will not show this process", "error", err)
	}
	n.remnant = r
	n.log.Info("this process stays for what could not move", "holds", strings.Join(n.holding(), ", "), "until", report.Until)
	leashed := make(chan struct{})
	go func() {
		defer close(leashed)
		n.keeping.leash.wait()
	}()
	limit := time.NewTimer(time.Until(report.Until))
	defer limit.Stop()
	tick, refresh := time.NewTicker(stayTick), time.NewTicker(remnantRefresh)
	defer tick.Stop()
	defer refresh.Stop()
	for !n.idle(left) {
		select {
		case <-tick.C:
			left = n.holds()
		case <-refresh.C:
			if report.Holds = left; r != nil {
				n.tell(r.say(report))
			}
		case <-leashed:
			n.log.Info("the service ends, and this process with it", "ended", strings.Join(n.holding(), ", "))
			return
		case <-limit.C:
			n.log.Warn("the time for what could not move has passed", "ended", strings.Join(n.holding(), ", "))
			if a := n.shownAgent.Load(); a != nil {
				a.goodbye()
				a.awaitEnd(ctx)
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

// drainTime is how long this process may stay.
func (n *node) drainTime() time.Duration {
	if c := n.reloads.now.Load(); c != nil {
		return c.Upgrade.drain()
	}
	return n.cfg.Upgrade.drain()
}

// leaveRemnants takes this process off the list, when its roles have ended: until then
// its sessions' events may be on their way.
func (n *node) leaveRemnants() {
	if n.remnant != nil {
		n.tell(n.remnant.close(n.cfg.DataDir))
	}
}

// shutPort lets nobody begin here what would be cut in a moment: a balancer, or the
// next start, has him. What runs goes on.
func (n *node) shutPort() {
	if g := n.shownGateway.Load(); g != nil && !n.upgrades.isHanded() {
		g.shutPort()
	}
}

// endRemnants ends the old processes with the service, and canaries that were left,
// and waits for them: who started it kills what is left of the former, and this
// process canaries, of which nobody else knows. The roles of this process still
// serve: the ends of the others' sessions go to its audit spools.
func (n *node) endRemnants() {
	if n.upgrades.isHanded() {
		return
	}
	left := n.leftCanaries
	if n.keeping.leash != nil {
		n.tell(n.keeping.leash.drop())
		left = n.remnants
	}
	n.signalCanaries(syscall.SIGTERM)
	if endWithin(remnantsEnd, left) {
		return
	}
	n.signalCanaries(syscall.SIGKILL)
	if !endWithin(remnantsEnd, n.leftCanaries) {
		n.log.Error("canaries were killed, and have not ended", "left", len(n.leftCanaries()))
	}
}

// endWithin waits until none of them is left, and says whether that came.
func endWithin(limit time.Duration, left func() []remnantReport) bool {
	for deadline := time.Now().Add(limit); len(left()) > 0; time.Sleep(stayTick) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}
