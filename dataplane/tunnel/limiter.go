package tunnel

import (
	"sync"
	"sync/atomic"
	"time"
)

// limiter allows so many per second, and that many at once. The zero value is
// ready. A clock that is set back does not make it wait: times from time.Now are
// compared by what has passed.
type limiter struct {
	mu  sync.Mutex
	tat time.Time // theoretical arrival time
}

func (l *limiter) allow(now time.Time, perSecond int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	tat := l.after(now, time.Second/time.Duration(perSecond))
	if tat.Sub(now) > time.Second {
		return false
	}
	l.tat = tat
	return true
}

// delay counts one more, and says how long its sender is to wait before the next,
// when there is to be one each step but for so many at once.
func (l *limiter) delay(now time.Time, step time.Duration, atOnce int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tat = l.after(now, step)
	return max(l.tat.Sub(now)-time.Duration(atOnce)*step, 0)
}

func (l *limiter) after(now time.Time, step time.Duration) time.Time {
	if l.tat.Before(now) {
		return now.Add(step)
	}
	return l.tat.Add(step)
}

// counters are what operators see: words and how often.
type counters struct{ m map[string]*atomic.Uint64 }

// The words are fixed: nothing that a peer says becomes one.
func newCounters() counters {
	words := []string{
		"parked", "leased", "lease_cancelled", "stream_up", "stream_refused", "retired", "replaced", "need_lost", "pool_gateway_full",
		"park_malformed", "park_unknown_tunnel", "park_forged", "park_replayed", "park_pool_full",
		"parked_byte", "parked_end", "parked_reset", "tunnel_ended",
		"carried_tls", "carried_websocket", "carried_full", "carried_refused",
		"cancel_unknown", "cancel_rate", "cancel_slow_agent", "cancel_held", "cancel_late", "upsert_refused",
		"moved", "moved_parked", "moved_refused", "moved_used_up", "moved_lost",
		"greeting_full", "control_refused", "control_ended", "control_dead",
	}
	for _, r := range []string{
		FailNoTunnel, FailPoolEmpty, FailSourceHalfOpen, FailSourceRate, FailAgentHalfOpen,
		FailGatewayHalfOpen, FailDraining, FailAttempts, FailBadName,
	} {
		words = append(words, "lease_failed_"+r)
	}
	c := counters{m: make(map[string]*atomic.Uint64, len(words))}
	for _, w := range words {
		c.m[w] = new(atomic.Uint64)
	}
	return c
}

func (c counters) add(w string) { c.m[w].Add(1) }

func (c counters) snapshot() map[string]uint64 {
	out := make(map[string]uint64, len(c.m))
	for w, n := range c.m {
		out[w] = n.Load()
	}
	return out
}
