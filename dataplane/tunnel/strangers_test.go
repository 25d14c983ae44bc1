package tunnel

import (
	"net/netip"
	"slices"
	"sync/atomic"
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

// TestA144_KnownSource: a source that somebody has proved himself from may hold more,
// as fast as it likes, and also what is kept from strangers.
func TestA144_KnownSource(t *testing.T) {
	now := time.Unix(1e9, 0)
	const known = "192.0.2.200"
	admit := func(s *strangers, from, want string) {
		t.Helper()
		if _, why := s.admit(netip.MustParseAddr(from), 0, now); why != want {
			t.Errorf("%s with %d half-open: %q, want %q", from, s.total, why, want)
		}
	}
	prove := func(s *strangers) {
		t.Helper()
		a, why := s.admit(netip.MustParseAddr(known), 0, now)
		if why != "" {
			t.Fatal(why)
		}
		s.settle(a, true, now)
	}
	s := newStrangers(Bounds{HalfOpenSource: 2, SourceRate: 1}.withDefaults())
	prove(s)
	for range 2 * trustedFactor {
		admit(s, known, "")
	}
	admit(s, known, FailSourceHalfOpen)

	s = newStrangers(Bounds{HalfOpenSource: 2, HalfOpenGateway: 8}.withDefaults())
	prove(s)
	for _, from := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"} {
		admit(s, from, "")
	}
	admit(s, "192.0.2.7", FailGatewayHalfOpen)
	admit(s, known, "")
	admit(s, known, "")
	admit(s, known, FailGatewayHalfOpen)
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
	all := &budget{most: 1000, refused: new(atomic.Uint64)}
	p := newPool(Bounds{PoolFloor: 4, PoolCeiling: 64}.withDefaults(), all)
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
	if n := p.need(); n != 4 {
		t.Fatalf("at first: need %d, want the floor", n)
	}
	come(4)
	if n := claim(20); n != 4 {
		t.Errorf("%d of 20 clients found a connection", n)
	}
	burst := p.need()
	if burst < 20 {
		t.Errorf("after 20 clients at once: need %d", burst)
	}
	if n := p.need(); n != 0 {
		t.Errorf("asked twice: %d", n)
	}
	asked := 0
	for range 2 * askTicks {
		_, lost := p.tick(now)
		asked += lost
	}
	if asked != burst {
		t.Errorf("%d given up of %d", asked, burst)
	}
	if n := p.need(); n < 4 || n > burst {
		t.Errorf("nothing came: need %d again of %d", n, burst)
	}
	come(burst)
	high := p.parked
	seconds := 0
	for p.target > p.floor || p.parked > p.floor {
		if retired, _ := p.tick(now); len(retired) > high/4 {
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
	if p.target > 2*p.floor || p.parked+p.pending != 64 {
		t.Errorf("1,000 clients at once: target %d, pending %d; want what the ceiling allows, once", p.target, p.pending)
	}
	come(p.need())
	p.tick(now)
	p.close()
	if n := all.used.Load(); n != 0 {
		t.Errorf("%d left in the budget", n)
	}
}

// TestPoolAsksInGroups: a large pool does not ask for each connection by a message
// of its own, and gives nothing up for lost that it has not asked for.
func TestPoolAsksInGroups(t *testing.T) {
	all := &budget{most: 1000, refused: new(atomic.Uint64)}
	p := newPool(Bounds{PoolFloor: 64, PoolCeiling: 256}.withDefaults(), all)
	now := time.Unix(1e9, 0)
	loop := newScriptLoop(&now)
	come := func(n int) {
		for range n {
			check0(t, p.accept(p.generation+1))
			p.park(&entry{}, loop)
		}
	}
	claim := func() bool {
		e, _ := p.claim(loop, true, true)
		if e != nil {
			p.release(&Lease{holds: true})
		}
		return e != nil
	}
	p.begin()
	if !p.asks() {
		t.Error("an empty pool does not ask")
	}
	come(p.need())
	for n := range 64 / askPart {
		if p.asks() {
			t.Fatalf("asks after %d of 64 were taken", n)
		}
		if !claim() {
			t.Fatal("nothing parked")
		}
	}
	if !p.asks() {
		t.Errorf("does not ask when a %dth is missing", askPart)
	}
	// Something is always missing from here on: what was asked for comes late,
	// and never all of what is missing was asked for.
	for second := range 4 * askTicks {
		for !p.asks() {
			claim()
		}
		asked := p.need()
		if _, lost := p.tick(now); lost != 0 {
			t.Fatalf("second %d: %d given up that are on their way", second, lost)
		}
		asked += p.need()
		claim()
		come(asked)
	}
	for claim() {
	}
	if !p.asks() {
		t.Error("does not ask while somebody waits")
	}
	p.orphan, p.unsent = true, 0
	if !p.asks() {
		t.Error("an elder pool does not have its heir asked")
	}
}

// TestPoolForgetsNothing: what was asked for and is lost is asked for again
// while others are asked for and come: their coming hid it for as long as they did.
func TestPoolForgetsNothing(t *testing.T) {
	all := &budget{most: 1000, refused: new(atomic.Uint64)}
	p := newPool(Bounds{PoolFloor: 4, PoolCeiling: 64}.withDefaults(), all)
	now := time.Unix(1e9, 0)
	loop := newScriptLoop(&now)
	p.begin()
	if n := p.need(); n != 4 {
		t.Fatalf("need %d", n)
	}
	// One of the four never comes. Each second a client takes one, and it is
	// replaced.
	come := 3
	for second := range 2 * askTicks {
		for range come {
			check0(t, p.accept(p.generation+1))
			p.park(&entry{}, loop)
		}
		p.tick(now)
		if e, _ := p.claim(loop, true, true); e == nil {
			t.Fatalf("second %d: nothing parked", second)
		}
		p.release(&Lease{holds: true})
		come = p.need()
	}
	if p.parked+come != 4 {
		t.Errorf("%d parked and %d on the way, want 4", p.parked, come)
	}
}

// TestPoolRetires: what a crowd has left behind goes the oldest first, an eighth of the
// pool a second at most, down to what is wanted and no further. No crowd makes more be
// wanted than the ceiling.
func TestPoolRetires(t *testing.T) {
	all := &budget{most: 1000, refused: new(atomic.Uint64)}
	p := newPool(Bounds{PoolFloor: 4, PoolCeiling: 64}.withDefaults(), all)
	now := time.Unix(1e9, 0)
	loop := newScriptLoop(&now)
	came := uint64(0)
	come := func(n int) {
		for range n {
			came++
			check0(t, p.accept(came))
			p.park(&entry{counter: came}, loop)
			now = now.Add(time.Millisecond)
		}
	}
	bounded := func() {
		t.Helper()
		if p.target > p.ceiling || p.short > p.ceiling || p.parked+p.pending > p.ceiling {
			t.Fatalf("%d wanted, %d missing, %d here or asked for; the ceiling is %d", p.target, p.short, p.parked+p.pending, p.ceiling)
		}
	}
	p.begin()
	for range 100 { // one after the other: each is served
		come(p.need())
		if e, _ := p.claim(loop, true, true); e == nil {
			t.Fatal("nothing is parked")
		}
		p.release(&Lease{holds: true})
	}
	p.tick(now)
	bounded()
	if p.target != p.ceiling {
		t.Errorf("%d wanted after 100 a second, want the ceiling", p.target)
	}
	for range 400 { // all at once: those who find nothing go away
		if e, _ := p.claim(loop, true, true); e != nil {
			p.release(&Lease{holds: true})
		}
		bounded()
	}
	come(p.need())
	if p.parked != p.ceiling {
		t.Fatalf("%d parked, want the ceiling", p.parked)
	}
	p.target, p.taken, p.short = p.floor, 0, 0 // nobody comes any more
	last := uint64(0)
	for p.parked > p.floor {
		before := p.parked
		retired, _ := p.tick(now)
		if want := min(before-p.floor, max(before/8, 1)); len(retired) != want || p.parked != before-want {
			t.Fatalf("%d of %d retired, want %d", len(retired), before, want)
		}
		for _, e := range retired {
			if e.counter <= last {
				t.Errorf("connection %d went after %d", e.counter, last)
			}
			last = e.counter
		}
		now = now.Add(time.Second)
	}
	if retired, _ := p.tick(now); len(retired) != 0 {
		t.Errorf("%d retired of what is wanted", len(retired))
	}
}

// TestPoolAge: a connection is retired before something on the way may have
// forgotten it, a few at a time, and replaced.
func TestPoolAge(t *testing.T) {
	all := &budget{most: 1000, refused: new(atomic.Uint64)}
	p := newPool(Bounds{PoolFloor: 16, PoolCeiling: 64, ParkedFor: time.Minute}.withDefaults(), all)
	now := time.Unix(1e9, 0)
	loop := newScriptLoop(&now)
	p.begin()
	gone := 0
	var born time.Time
	for second := range 80 {
		for range p.need() {
			check0(t, p.accept(p.generation+1))
			p.park(&entry{}, loop)
		}
		retired, _ := p.tick(now)
		if len(retired) > 2 {
			t.Fatalf("second %d: %d of 16 retired at once", second, len(retired))
		}
		for _, e := range retired {
			if born = e.since; now.Sub(born) <= time.Minute {
				t.Fatalf("retired at the age of %v", now.Sub(born))
			}
		}
		gone += len(retired)
		now = now.Add(time.Second)
	}
	if gone != 16 || p.parked+p.pending != 16 {
		t.Errorf("%d retired, %d left", gone, p.parked)
	}
}

// TestPoolsTogether: all pools have one bound, a part of which is for those
// that have next to nothing.
func TestPoolsTogether(t *testing.T) {
	all := &budget{most: 40, refused: new(atomic.Uint64)}
	b := Bounds{PoolFloor: 2, PoolCeiling: 64}.withDefaults()
	now := time.Unix(1e9, 0)
	loop := newScriptLoop(&now)
	busy := newPool(b, all)
	for range 64 {
		busy.claim(loop, true, true)
	}
	if n := busy.need(); n != 30 || all.refused.Load() == 0 {
		t.Errorf("one agent was asked for %d of 40 connections, %d refusals", n, all.refused.Load())
	}
	got := 0
	for range 10 {
		quiet := newPool(b, all)
		quiet.begin()
		got += quiet.need()
	}
	if got != 10 || all.used.Load() != 40 {
		t.Errorf("others were asked for %d, in all %d", got, all.used.Load())
	}
	busy.close()
	if n := all.used.Load(); n != 10 {
		t.Errorf("%d left when the busy one has gone", n)
	}
	if err := newPool(b, &budget{most: 0, refused: new(atomic.Uint64)}).accept(1); err != ErrPoolFull {
		t.Errorf("what nobody asked for: %v", err)
	}
}

// TestPoolsShare: when all pools together are full, those with more than their share
// give up of it to those with less, and no more than that. An agent that came when
// the others' floors, or their clients, had taken everything was left without a
// connection for good.
func TestPoolsShare(t *testing.T) {
	const most, early, late = 400, 4, 3 // a share is 42
	for name, c := range map[string]struct {
		floor, clients int // clients a second, of the first agents
	}{
		"floors":  {floor: 100},
		"clients": {floor: 4, clients: 150},
	} {
		all := &budget{most: most, refused: new(atomic.Uint64)}
		now := time.Unix(1e9, 0)
		loop := newScriptLoop(&now)
		var pools []*pool
		come := func() {
			for _, p := range pools {
				for range p.need() {
					check0(t, p.accept(p.generation+1))
					p.park(&entry{}, loop)
				}
			}
		}
		second := func() (retired int) {
			for i, p := range pools {
				for n := 0; n < c.clients && i < early; n++ {
					if e, _ := p.claim(loop, true, true); e != nil {
						p.release(&Lease{holds: true})
						p.dismiss(e)
					}
				}
				come()
				out, _ := p.tick(now)
				retired += len(out)
			}
			come()
			return retired
		}
		for range early {
			p := newPool(Bounds{PoolFloor: c.floor, PoolCeiling: 256}.withDefaults(), all)
			pools = append(pools, p)
			p.begin()
			come()
		}
		for range 60 {
			second()
		}
		if c.clients == 0 && all.used.Load() != most {
			t.Fatalf("%s: %d parked of %d", name, all.used.Load(), most)
		}
		for range late {
			p := newPool(Bounds{PoolFloor: c.floor, PoolCeiling: 256}.withDefaults(), all)
			pools = append(pools, p)
			p.begin()
			come()
		}
		seconds := 0
		for slices.ContainsFunc(pools, func(p *pool) bool { return p.parked == 0 }) && seconds < 600 {
			second()
			seconds++
		}
		if seconds > 3 {
			t.Errorf("%s: somebody had no connection for %d s", name, seconds)
		}
		for range 120 {
			second()
		}
		want := min(c.floor, all.share())
		for i, p := range pools {
			if p.parked < want {
				t.Errorf("%s: agent %d has %d, want %d at least", name, i, p.parked, want)
			}
		}
		if n := second(); c.clients == 0 && n > 0 {
			t.Errorf("%s: %d retired when all have their share", name, n)
		}
		if n := all.used.Load(); n > most {
			t.Errorf("%s: %d of %d", name, n, most)
		}
		for _, p := range pools {
			p.close()
		}
		if all.used.Load() != 0 || all.pools.Load() != 0 {
			t.Errorf("%s: %d connections, %d pools are left", name, all.used.Load(), all.pools.Load())
		}
	}
}

// TestShelfCost: taking one connection out touches its neighbours, however many
// there are: what a new connection costs does not depend on the parked ones.
func TestShelfCost(t *testing.T) {
	for _, n := range []int{4, 15_000} {
		all := &budget{most: 1 << 20, refused: new(atomic.Uint64)}
		p := newPool(Bounds{PoolFloor: 4, PoolCeiling: 1 << 20}.withDefaults(), all)
		now := time.Unix(1e9, 0)
		loop := newScriptLoop(&now)
		for range n {
			p.park(&entry{}, loop)
		}
		allocs := testing.AllocsPerRun(1000, func() {
			e, _ := p.claim(loop, true, true)
			p.release(&Lease{holds: true})
			p.park(e, loop)
		})
		if allocs > 1 { // the test's own lease
			t.Errorf("%d parked: %v allocations", n, allocs)
		}
		mid := p.shelves[0].oldest.newer
		older, newer := mid.older, mid.newer
		p.lose(mid, mid.generation)
		if older.newer != newer || newer.older != older || p.parked != n-1 || p.shelves[0].length != n-1 {
			t.Errorf("%d parked: %d are left, the neighbours are not", n, p.parked)
		}
	}
}
