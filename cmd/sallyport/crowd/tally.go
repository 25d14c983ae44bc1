package crowd

import (
	"maps"
	"sync"
)

// tally is what went wrong, of all threads. It is touched only then.
type tally struct {
	mu                       sync.Mutex
	lost, corrupted, refused int            // guarded by mu, as all below
	reasons                  map[string]int // bounded: reasons name no addresses
}

type fault int

const (
	lost fault = iota
	corrupted
	refused
)

func (f fault) String() string { return [...]string{"lost", "corrupted", "refused"}[f] }

func (t *tally) add(f fault, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch f {
	case lost:
		t.lost++
	case corrupted:
		t.corrupted++
	case refused:
		t.refused++
	}
	if t.reasons == nil {
		t.reasons = map[string]int{}
	}
	t.reasons[f.String()+": "+why]++
}

func (t *tally) into(r *Report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Lost, r.Corrupted, r.Refused, r.Reasons = t.lost, t.corrupted, t.refused, maps.Clone(t.reasons)
}
