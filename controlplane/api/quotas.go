package api

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	quotaSlots = 1024 // sources fall into these by a keyed hash: memory is bounded

	sourceBurst = 20
	sourceEvery = 5 * time.Second // one more event of a source
	totalBurst  = 500
	totalEvery  = 200 * time.Millisecond // one more event of all: at most 432,000 a day
)

// quotas bound how many events refused callers can make. The zero value is
// ready; all methods may be called concurrently.
type quotas struct {
	mu    sync.Mutex
	seed  maphash.Seed
	slots *[quotaSlots]quota
	total quota
	left  uint64 // events left out since the last one that was not
}

// quota is a bucket: used goes down by one in each interval.
type quota struct {
	used int64
	at   time.Time
}

func (q *quota) room(now time.Time, burst int64, every time.Duration) bool {
	if n := int64(now.Sub(q.at) / every); n > 0 {
		q.used, q.at = max(q.used-n, 0), now
	}
	return q.used < burst
}

// take says whether one more event of the source may be recorded, and then how
// many were left out before it.
func (q *quotas) take(source string, now time.Time) (ok bool, left uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.slots == nil {
		q.slots, q.seed = new([quotaSlots]quota), maphash.MakeSeed()
	}
	slot := &q.slots[maphash.String(q.seed, source)%quotaSlots]
	if !slot.room(now, sourceBurst, sourceEvery) || !q.total.room(now, totalBurst, totalEvery) {
		q.left++
		return false, 0
	}
	slot.used++
	q.total.used++
	left, q.left = q.left, 0
	return true, left
}

const (
	assignBurst = 20
	assignEvery = 10 * time.Second // one more change of what an agent announces
)

// hostQuotas bound how often each host may change what is recorded at each change.
// The zero value is ready; all methods may be called concurrently.
type hostQuotas struct {
	mu    sync.Mutex
	hosts map[string]quota // of all that have changed something
}

func (q *hostQuotas) take(host string, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	slot := q.hosts[host]
	if !slot.room(now, assignBurst, assignEvery) {
		return false
	}
	slot.used++
	if q.hosts == nil {
		q.hosts = map[string]quota{}
	}
	q.hosts[host] = slot
	return true
}

// sourceOf is the network that counts as one source: an IPv4 address, or a /64.
func sourceOf(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
