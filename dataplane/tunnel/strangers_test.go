package tunnel

import (
	"net/netip"
	"testing"
	"time"
)

func TestStrangers(t *testing.T) {
	b := Bounds{HalfOpenSource: 2, HalfOpenGateway: 8, SourceRate: 4}.withDefaults()
	now := time.Unix(1e9, 0)
	addr := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	t.Run("per source", func(t *testing.T) {
		s := newStrangers(b)
		for i, c := range []struct{ addr, want string }{
			{"2001:db8::1", ""}, {"2001:db8::2", ""}, {"2001:db8::3", FailSourceHalfOpen}, // one /64
			{"2001:db8:0:1::1", ""}, {"192.0.2.1", ""}, {"::ffff:192.0.2.1", ""}, {"192.0.2.1", FailSourceHalfOpen}, {"192.0.2.2", ""},
			{"192.0.2.3", FailGatewayHalfOpen}, // six of eight: a quarter is kept
		} {
			if _, why := s.admit(addr(c.addr), 0, now); why != c.want {
				t.Errorf("%d, %s: %q, want %q", i, c.addr, why, c.want)
			}
		}
	})
	t.Run("rate", func(t *testing.T) {
		s := newStrangers(b)
		try := func(attempt int, at time.Time) string {
			a, why := s.admit(addr("192.0.2.1"), attempt, at)
			if why == "" {
				s.settle(a, false, at)
			}
			return why
		}
		for range 4 {
			if why := try(0, now); why != "" {
				t.Error(why)
			}
		}
		if why := try(0, now); why != FailSourceRate {
			t.Errorf("the fifth in a second: %q", why)
		}
		if why := try(1, now); why != "" {
			t.Errorf("a second attempt: %q", why)
		}
		if why := try(0, now.Add(250*time.Millisecond)); why != "" {
			t.Errorf("a quarter of a second later: %q", why)
		}
	})
	t.Run("who comes up pays nothing, and is known", func(t *testing.T) {
		s := newStrangers(b)
		for range 100 {
			a, why := s.admit(addr("192.0.2.1"), 0, now)
			if why != "" {
				t.Fatal(why)
			}
			s.settle(a, true, now)
		}
		for _, c := range []struct {
			at   time.Duration
			want bool
		}{{0, true}, {recentFor - 1, true}, {2 * recentFor, false}} {
			a, why := s.admit(addr("192.0.2.1"), 1, now.Add(c.at))
			if why != "" || a.known != c.want {
				t.Errorf("after %v: known %v, %q", c.at, a.known, why)
			}
			s.settle(a, false, now.Add(c.at))
		}
		if s.total != 0 || len(s.half) != 0 {
			t.Errorf("left: %d, %d", s.total, len(s.half))
		}
	})
}

// TestSourcesAreBounded: a million sources do not cost a million entries.
func TestSourcesAreBounded(t *testing.T) {
	s := newStrangers(Bounds{}.withDefaults())
	now := time.Unix(1e9, 0)
	for i := range 100_000 {
		a, why := s.admit(netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}), 0, now)
		if why != "" {
			t.Fatal(why)
		}
		s.settle(a, true, now)
	}
	for _, n := range []int{len(s.rate.now) + len(s.rate.past), len(s.recent.now) + len(s.recent.past)} {
		if n > 2*maxSources {
			t.Errorf("%d entries", n)
		}
	}
}

// TestPoolSize: fast up, slow down, and what does not come is asked for again.
func TestPoolSize(t *testing.T) {
	p := newPool(Bounds{PoolFloor: 4, PoolCeiling: 64}.withDefaults())
	now := time.Unix(1e9, 0)
	loop := newScriptLoop(&now)
	come := func(n int) {
		for range n {
			check0(t, p.accept(p.generation+1))
			p.park(&entry{}, loop)
		}
	}
	claim := func(n int) (got int) {
		for range n {
			if e, _ := p.claim(loop, true, true); e != nil {
				got++
				p.release(&Lease{holds: true})
			}
		}
		return got
	}
	p.begin()
	if n := p.need(now); n != 4 {
		t.Fatalf("at first: need %d, want the floor", n)
	}
	come(4)
	if n := claim(20); n != 4 {
		t.Errorf("%d of 20 clients found a connection", n)
	}
	burst := p.need(now)
	if burst < 20 {
		t.Errorf("after 20 clients at once: need %d", burst)
	}
	if n := p.need(now); n != 0 {
		t.Errorf("asked twice: %d", n)
	}
	now = now.Add(pendingFor + time.Second)
	p.tick(now)
	if n := p.need(now); n != burst-1 && n != burst {
		t.Errorf("nothing came: need %d again, not %d", n, burst)
	}
	come(burst)
	high := p.parked
	seconds := 0
	for p.target > p.floor {
		if retired := p.tick(now); len(retired) > high/4 {
			t.Fatalf("%d of %d retired at once", len(retired), high)
		}
		if seconds++; seconds > 600 {
			t.Fatalf("still %d", p.target)
		}
	}
	if p.parked != p.floor || seconds < 10 {
		t.Errorf("after %d s: %d parked", seconds, p.parked)
	}
	claim(1000)
	if p.target != 64 || p.parked+p.pending > 64 {
		t.Errorf("above the ceiling: target %d, pending %d", p.target, p.pending)
	}
}
