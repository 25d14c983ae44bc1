package main

import (
	"context"
	"time"
)

const (
	clockGlance = 5 * time.Second
	clockJump   = 2 * time.Second // more than any adjustment in small steps makes of clockGlance
)

// watchClock says that the host's clock was set, or that the host stood still. Waits
// do not depend on that clock; certificates, locks that end and one-time codes do,
// and what is refused then names hosts and people who have done nothing.
func (n *node) watchClock(ctx context.Context) error {
	tick := time.NewTicker(clockGlance)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		now := time.Now()
		if by := jumped(last.Round(0), now.Round(0), now.Sub(last)); by != 0 {
			n.log.Warn("the clock of this host was set, or the host stood still", "by", by, "now", now.UTC().Format(time.RFC3339),
				"hint", "certificates and one-time codes need clocks that agree")
		}
		last = now
	}
}

// jumped is by how much a clock went on more, or less, than the time that has passed;
// zero for what is no jump. Both times are the clock's only.
func jumped(before, now time.Time, passed time.Duration) time.Duration {
	by := now.Sub(before) - passed
	if by.Abs() < clockJump {
		return 0
	}
	return by.Round(100 * time.Millisecond)
}
