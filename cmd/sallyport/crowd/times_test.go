package crowd

import (
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	for us := range uint64(1 << 14) {
		b := bucket(us)
		top := above(b)
		if d := time.Duration(us) * time.Microsecond; top <= d || float64(top-time.Microsecond) > float64(d)*(1+1.0/32) {
			t.Fatalf("%s is in a bucket below %s", d, top)
		}
		if us > 0 && bucket(us-1) > b {
			t.Fatalf("buckets are not in order at %d", us)
		}
	}
	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	h.add(-time.Second) // a clock that was set
	h.add(1000 * time.Hour)
	got := h.times()
	if got.Max != 1000*time.Hour {
		t.Errorf("longest: %s", got.Max)
	}
	for _, q := range []struct {
		got, want time.Duration
	}{{got.P50, 500 * time.Millisecond}, {got.P99, 990 * time.Millisecond}} {
		if q.got < q.want || q.got > q.want+q.want/25 {
			t.Errorf("%s, want %s or a little more", q.got, q.want)
		}
	}
	if zero := (&histogram{}).times(); zero != (Times{}) {
		t.Errorf("of nothing: %v", zero)
	}
}
