package crowd

import (
	"math/bits"
	"time"
)

// histogram counts durations in microseconds, to one part in 32. It does not
// grow: the thread that counts also keeps the time.
type histogram struct {
	counts [27 << steps]uint64
	n      uint64
	max    time.Duration
}

const steps = 5 // bits of each power of two

func (h *histogram) add(d time.Duration) {
	h.n++
	h.max = max(h.max, d)
	h.counts[min(bucket(uint64(max(d, 0)/time.Microsecond)), len(h.counts)-1)]++
}

// bucket is exact below 32 µs; above, the leading bits say which.
func bucket(us uint64) int {
	if us < 1<<steps {
		return int(us)
	}
	shift := bits.Len64(us) - steps - 1
	return shift<<steps + int(us>>shift)
}

// above is the least value that is in no bucket up to b.
func above(b int) time.Duration {
	if b < 1<<steps {
		return time.Duration(b+1) * time.Microsecond
	}
	shift := b>>steps - 1
	return time.Duration(uint64(b-shift<<steps+1)<<shift) * time.Microsecond
}

// quantile is at most one part in 32 too large.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.n))
	for b, seen := 0, uint64(0); b < len(h.counts); b++ {
		if seen += h.counts[b]; seen > rank {
			return min(above(b), h.max)
		}
	}
	return h.max
}

func (h *histogram) times() Times {
	return Times{P50: h.quantile(0.50), P99: h.quantile(0.99), Max: h.max}
}
