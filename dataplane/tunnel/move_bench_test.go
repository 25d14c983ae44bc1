package tunnel

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// sink takes records and keeps them, with as many descriptors that are none.
type sink struct{ records []handover.Record }

func (s *sink) Send(_ context.Context, r handover.Record) error {
	_, err := s.TrySend(r)
	return err
}

func (s *sink) TrySend(r handover.Record) (bool, error) {
	fds := make([]int, len(r.FDs))
	for i := range fds {
		fds[i] = -1
	}
	r.FDs = fds
	s.records = append(s.records, r)
	return true, nil
}

// BenchmarkMove: 60 tunnels with 250 parked connections each, of which 60 come
// and 60 go between copy and freeze. The transport is not in it.
func BenchmarkMove(b *testing.B) {
	loops, err := relay.New(2)
	check0(b, err)
	defer loops[0].Close()
	defer loops[1].Close()
	cfg := HubConfig{GatewayID: gatewayID, Verify: verifyAssigned, Loops: loops, Bounds: Bounds{PoolCeiling: 400}}
	h := NewHub(cfg)
	var all []*tunnel
	for n := range 60 {
		t := &tunnel{id: newID(), agent: agentID + string(rune('a'+n)), pool: newPool(h.bounds, h.parking), talk: &talk{out: make(chan *tunnelv1.Control, outbox), wake: make(chan struct{}, 1)}, end: func(error) {}}
		t.names.Store(&map[resourceName]bool{})
		check0(b, h.adopt(t, assigned(1, "tcp/echo")))
		h.open(t)
		h.announce(t)
		all = append(all, t)
	}
	counter := uint64(0)
	park := func(t *tunnel) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0) // has no other end that would cost a descriptor
		check0(b, err)
		check0(b, unix.SetNonblock(fd, true))
		counter++
		l := loops[counter%2]
		done := make(chan error)
		l.Post(func() { done <- h.shelve(l, &entry{tunnel: t, fd: fd, counter: counter}) })
		check0(b, <-done)
	}
	for _, t := range all {
		for range 250 {
			park(t)
		}
	}
	var copying, frozen, completing time.Duration
	for b.Loop() {
		g := h.Giver()
		s := &sink{}
		began := time.Now()
		check0(b, g.Copy(b.Context(), s))
		copying += time.Since(began)
		for _, t := range all {
			h.retire(t, []uint64{t.pool.shelves[0].oldest.counter})
			park(t)
		}
		held := []*relay.Held{relay.Hold(loops[0]), relay.Hold(loops[1])}
		began = time.Now()
		check0(b, g.Freeze(b.Context(), s))
		frozen += time.Since(began)
		k := NewHub(cfg).Taker(b.Context())
		for _, r := range s.records {
			check0(b, k.Take(r))
		}
		began = time.Now()
		check0(b, k.Complete(b.Context()))
		completing += time.Since(began)
		check0(b, g.Thaw())
		held[0].Release()
		held[1].Release()
	}
	for name, d := range map[string]time.Duration{"copy": copying, "freeze": frozen, "complete": completing} {
		b.ReportMetric(float64(d.Microseconds())/float64(b.N), name+"-µs/op")
	}
	for _, t := range all {
		h.close(t)
	}
}
