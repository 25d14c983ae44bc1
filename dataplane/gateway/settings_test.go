//go:build unix

package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// named is a backend that says its name to whoever connects, after TLS.
func named(t testing.TB, ca *authority, name string) string {
	t.Helper()
	config := ca.server(t)
	b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		c := tls.Server(conn, config)
		if _, err := c.Write([]byte(name)); err == nil {
			_, _ = io.Copy(c, c)
		}
	})
	return b.Addr().String()
}

// meets opens a connection and checks which backend it reaches.
func (r *rig) meets(ca *authority, server, want string) *tls.Conn {
	r.Helper()
	conn := tls.Client(r.dial(), ca.client(server))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		r.Fatalf("%s reaches %q, %v, not %q", server, got, err, want)
	}
	return conn
}

// setBack is a time as time.Now gives it after the clock has been set back.
func setBack(t *testing.T, at time.Time, by time.Duration) time.Time {
	t.Helper()
	back := at
	*(*uint64)(unsafe.Pointer(&back)) -= uint64(by/time.Second) << 30 // of time.Time.wall
	if back.Sub(at) != 0 || back.Unix() != at.Add(-by).Unix() {
		t.Fatalf("%v is not %v with another clock", back, at)
	}
	return back
}

func to(name string, addresses ...string) StaticRoute {
	return StaticRoute{Match: alpn.Match{SNI: []string{name}}, Upstreams: addresses}
}

// TestReload: a route that changes, one that goes and one that comes; relays
// and routes that stay are not touched.
func TestReload(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		one, two := named(t, ca, "one"), named(t, ca, "two")
		old := []StaticRoute{to("a.example.com", one), to("b.example.com", one), to("c.example.com", one)}
		r := newRig(t, loops, func(c *Config) { c.Static = old })
		running := map[string]*tls.Conn{}
		for _, name := range []string{"a.example.com", "b.example.com", "c.example.com"} {
			running[name] = r.meets(ca, name, "one")
		}
		kept := r.current.Load().static[0]

		d, err := r.Reload(t.Context(), Settings{Bounds: generous(), Static: []StaticRoute{
			to("d.example.com", two), to("c.example.com", two), to("a.example.com", one),
		}})
		check(t, err)
		if d != (Difference{Added: 1, Changed: 1, Removed: 1, Kept: 1}) {
			t.Errorf("%+v", d)
		}
		if r.current.Load().static[2] != kept {
			t.Error("a route that has not changed is another one")
		}
		r.meets(ca, "a.example.com", "one")
		r.meets(ca, "c.example.com", "two")
		r.meets(ca, "d.example.com", "two")
		want := alpn.UnrecognizedName.Record()
		if got := readAll(t, r.say(helloBytes(t, ca.client("b.example.com")))); string(got) != string(want[:]) {
			t.Errorf("a route that is gone: %v", got)
		}
		for name, conn := range running {
			_, err := conn.Write([]byte("still"))
			check(t, err)
			got := make([]byte, 5)
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != "still" {
				t.Errorf("%s, from before: %q, %v", name, got, err)
			}
		}
		results := map[string]uint64{}
		for _, route := range r.Snapshot().Routes {
			results[route.Name] = route.Results["relayed"]
		}
		if results["a.example.com"] != 2 || results["c.example.com"] != 2 || results["d.example.com"] != 1 {
			t.Errorf("counters over the reload: %v", results)
		}
		if _, there := results["b.example.com"]; there {
			t.Error("a route that is gone has counters")
		}
	})
}

// TestReloadRefused: what is wrong in one place has no effect in any.
func TestReloadRefused(t *testing.T) {
	ca := newAuthority(t)
	one, two := named(t, ca, "one"), named(t, ca, "two")
	r := newRig(t, newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Static = []StaticRoute{to("a.example.com", one)} })
	before := r.current.Load()
	for name, bad := range map[string][]StaticRoute{
		"twice":       {to("a.example.com", two), to("A.example.com", two)},
		"cluster":     {to("a.example.com", two), to("x.db."+cluster, two)},
		"no name":     {to("a.example.com", two), {Upstreams: []string{two}}},
		"no upstream": {to("a.example.com", two), to("b.example.com")},
		"no port":     {to("a.example.com", two), to("b.example.com", "127.0.0.1")},
	} {
		if _, err := r.Reload(t.Context(), Settings{Static: bad, Bounds: generous()}); err == nil {
			t.Errorf("%s: taken", name)
		}
		if r.current.Load() != before {
			t.Errorf("%s: refused, with an effect", name)
		}
	}
	r.meets(ca, "a.example.com", "one")
	r.Close()
	if _, err := r.Reload(t.Context(), Settings{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a gateway that is closed: %v", err)
	}
}

// TestReloadBounds: bounds and trusted proxies hold from the next connection on.
func TestReloadBounds(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		first, second := r.dial(), r.dial()
		r.waiting(2)
		trusted := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		_, err := r.Reload(t.Context(), Settings{Bounds: Bounds{Stage: patience, WaitingSource: 2, SourceRate: 1e6}})
		check(t, err)
		closes(t, r.dial())
		r.reaches(outcomeSourceFull, 1)
		conn := r.dial()
		_, _ = conn.Write(proxyLine)
		closes(t, conn) // not trusted yet: refused, or for want of a place before it has said a word
		_, err = r.Reload(t.Context(), Settings{Bounds: generous(), TrustedProxies: trusted})
		check(t, err)
		r.say(join(proxyLine, helloBytes(t, r.ca.client("orders.db.gw.test"))))
		if got := r.tunnels.agent().request.Source.Addr().String(); got != "192.0.2.7" {
			t.Errorf("source %s", got)
		}
		first.Close()
		second.Close()
	})
}

// TestReloadByName: a name that a reload brings has its addresses before the
// first client, and one that is there already is not asked for again.
func TestReloadByName(t *testing.T) {
	ca := newAuthority(t)
	_, port, err := net.SplitHostPort(named(t, ca, "one"))
	check(t, err)
	r := newRig(t, newLoops(t, relay.NewDefault, 1), nil)
	_, err = r.Reload(t.Context(), Settings{Bounds: generous(), Static: []StaticRoute{to("a.example.com", "localhost:"+port)}})
	check(t, err)
	server := r.current.Load().servers["localhost:"+port]
	if server.size() == 0 {
		t.Error("a name without addresses after the reload")
	}
	r.meets(ca, "a.example.com", "one")
	_, err = r.Reload(t.Context(), Settings{Bounds: generous(), Static: []StaticRoute{to("b.example.com", "127.0.0.1:1", "localhost:"+port)}})
	check(t, err)
	if r.current.Load().servers["localhost:"+port] != server {
		t.Error("a server that stays is another one")
	}
	r.meets(ca, "b.example.com", "one")
}

// TestReloadMany: of 10,000 routes one changes; the others are the same objects,
// and nothing is done for them but a look.
func TestReloadMany(t *testing.T) {
	const many = 10_000
	routes := make([]StaticRoute, many)
	for i := range routes {
		routes[i] = to(fmt.Sprintf("r%d.example.com", i), fmt.Sprintf("10.0.%d.%d:443", i/250, i%250+1))
	}
	r := newRig(t, newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Static = routes })
	before := r.current.Load()
	changed := append([]StaticRoute(nil), routes...)
	changed[many/2] = to(routes[many/2].Match.SNI[0], "10.9.9.9:443")
	d, err := r.Reload(t.Context(), Settings{Static: changed, Bounds: generous()})
	check(t, err)
	if d != (Difference{Changed: 1, Kept: many - 1}) {
		t.Errorf("%+v", d)
	}
	after := r.current.Load()
	for i := range routes {
		if same := before.static[i] == after.static[i]; same == (i == many/2) {
			t.Fatalf("route %d: the same object: %v", i, same)
		}
	}
}

// TestLabels: routes that may stand side by side are called by different names.
func TestLabels(t *testing.T) {
	seen := map[string]bool{}
	for _, ids := range [][]string{nil, {"h2"}, {"h2", "x"}, {"h2,x"}, {"h2 x"}, {"\"h2,x\""}, {"\xff"}, {"\xfe"}, {"\uFFFD"}, {`"\xff"`}} {
		label := StaticRoute{Match: alpn.Match{SNI: []string{"A.example.com", "b.example.com"}, ALPN: ids}}.label()
		if seen[label] || !utf8.ValidString(label) || !strings.HasPrefix(label, "a.example.com") {
			t.Errorf("%q is called %q", ids, label)
		}
		seen[label] = true
	}
	if !seen["a.example.com"] || !seen["a.example.com h2,x"] {
		t.Errorf("%v", seen)
	}
}

func BenchmarkReload(b *testing.B) {
	const many = 10_000
	routes := make([]StaticRoute, many)
	for i := range routes {
		routes[i] = to(fmt.Sprintf("r%d.example.com", i), fmt.Sprintf("10.0.%d.%d:443", i/250, i%250+1))
	}
	r := newRig(b, newLoops(b, relay.NewDefault, 2), func(c *Config) { c.Static = routes })
	for i := range b.N {
		routes[many/2].Upstreams = []string{fmt.Sprintf("10.9.9.9:%d", i%60000+1)}
		if _, err := r.Reload(b.Context(), Settings{Static: routes, Bounds: generous()}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestManyAddresses: five addresses that refuse do not hide the sixth.
func TestManyAddresses(t *testing.T) {
	ca := newAuthority(t)
	good := named(t, ca, "good")
	addresses := make([]string, 6)
	for i := range addresses {
		addresses[i] = "127.0.0.1:1"
	}
	addresses[5] = good
	r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) { c.Static = []StaticRoute{to("a.example.com", addresses...)} })
	for range len(addresses) {
		r.meets(ca, "a.example.com", "good").Close()
	}
}

// TestPick: addresses in turn, each once; those that rest last;
// and from the start when all were tried. It takes no memory.
func TestPick(t *testing.T) {
	u := &upstream{}
	for _, a := range []string{"10.0.0.1:1", "10.0.0.2:1", "unix:/3"} {
		s, err := newServer(a)
		check(t, err)
		u.servers = append(u.servers, s)
	}
	first := func(i int) *target {
		to, ok := u.servers[i].target(0)
		if !ok {
			t.Fatalf("server %d has no address", i)
		}
		return to
	}
	now := time.Unix(1000, 0)
	order := func(turn uint32, n int) (out string) {
		t.Helper()
		c := choice{turn: turn}
		for range n {
			to, others, ok := u.pick(&c, now)
			if !ok || !others {
				t.Fatal(to, others, ok)
			}
			if to.path != "" {
				out += to.path[1:]
			} else {
				out += string('0' + to.addr.Addr().As4()[3])
			}
		}
		return out
	}
	for turn, want := range map[uint32]string{0: "123123", 1: "231231", 2: "312312", 3: "132132"} {
		if got := order(turn, 6); got != want {
			t.Errorf("turn %d: %s, want %s", turn, got, want)
		}
	}
	first(0).rest(now)
	for turn, want := range map[uint32]string{0: "231", 1: "231", 2: "321", 3: "321"} {
		if got := order(turn, 3); got != want {
			t.Errorf("turn %d while the first rests: %s, want %s", turn, got, want)
		}
	}
	// A clock that was set back by an hour let a server rest for as long.
	began := time.Now()
	first(0).rest(began)
	if later := began.Add(restFor); !first(0).restsAt(setBack(t, began, time.Hour)) || first(0).restsAt(setBack(t, later, time.Hour)) {
		t.Error("a rest is by the clock")
	}
	first(0).rest(now)
	first(1).rest(now)
	first(2).rest(now)
	if got := order(1, 3); got != "231" {
		t.Errorf("while all rest: %s", got)
	}
	now = now.Add(restFor)
	if got := order(0, 3); got != "123" {
		t.Errorf("after their rest: %s", got)
	}
	if _, others, ok := (&upstream{servers: u.servers[:1]}).pick(new(choice), now); others || !ok {
		t.Error("one address")
	}
	if _, _, ok := (&upstream{servers: []*server{{host: "unknown"}}}).pick(new(choice), now); ok {
		t.Error("an address of a name that has none")
	}
	first(0).rest(now)
	if n := testing.AllocsPerRun(100, func() { c := choice{}; _, _, _ = u.pick(&c, now); _, _, _ = u.pick(&c, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestPickSpreads: the neighbour of a server that does not answer got its clients beside
// its own. Who did not reach it goes to each other one in turn, as who comes later.
func TestPickSpreads(t *testing.T) {
	now := time.Unix(1000, 0)
	for n := 2; n <= 6; n++ {
		for dead := range 1 << n { // all sets of them
			u := &upstream{}
			for i := range n {
				s, err := newServer(fmt.Sprintf("10.0.0.%d:1", i))
				check(t, err)
				if dead&(1<<i) != 0 {
					(*s.targets.Load())[0].rest(now)
				}
				u.servers = append(u.servers, s)
			}
			left := n - bits.OnesCount(uint(dead))
			first, second := make([]int, n), make([]int, n)
			const rounds = 60 // any number of servers up to six divides it
			for turn := range uint32(n * rounds) {
				c := choice{turn: turn}
				a, _, _ := u.pick(&c, now)
				first[a.addr.Addr().As4()[3]]++
				b, _, _ := u.pick(&c, now)
				second[b.addr.Addr().As4()[3]]++
			}
			for i := range n {
				want := 0
				switch {
				case left == 0:
					want = rounds
				case dead&(1<<i) == 0:
					want = n * rounds / left
				}
				if first[i] != want {
					t.Errorf("%d servers, %b dead: clients go to %v", n, dead, first)
					break
				}
				if dead == 0 && second[i] != rounds {
					t.Errorf("%d servers, none dead: the second choice is %v", n, second)
					break
				}
			}
		}
	}
}

// TestDeadServerRests: a server that refuses is met by the first client, and not
// by all that follow.
func TestDeadServerRests(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		good := named(t, ca, "good")
		r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to("a.example.com", "127.0.0.1:1", good)} })
		for range 20 {
			r.meets(ca, "a.example.com", "good").Close()
		}
		if n := r.count(outcomeConnectFailed); n == 0 || n > 5 {
			t.Errorf("%d of 20 clients in turn met the dead server", n)
		}
	})
}

// TestDeadAddressRests: when one of a name's addresses was dead the name rested as a
// whole, so that every second client met the dead one, and waited Bounds.Connect
// where it did not even refuse.
func TestDeadAddressRests(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		good, err := netip.ParseAddrPort(named(t, ca, "good"))
		check(t, err)
		name := net.JoinHostPort("nowhere.invalid", strconv.Itoa(int(good.Port())))
		r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to("a.example.com", name)} })
		server := r.current.Load().servers[name]
		dead := netip.MustParseAddr("127.0.0.2") // nobody listens at it on that port
		server.standFor([]netip.Addr{dead, good.Addr()})
		for range 10 {
			r.meets(ca, "a.example.com", "good").Close()
		}
		before, _ := server.target(0)
		server.standFor([]netip.Addr{good.Addr(), dead}) // the name is looked up again
		if after, _ := server.target(1); after != before {
			t.Error("what is known of an address went with a look-up")
		}
		for range 10 {
			r.meets(ca, "a.example.com", "good").Close()
		}
		if n := r.count(outcomeConnectFailed); n == 0 || n > 5 {
			t.Errorf("%d of 20 clients in turn met the dead address", n)
		}
	})
}

// TestServerThatEnds: a static route's server that ends its connections before its first
// byte got each client's flight three times. It gets it once; the next server gets it
// too, and one that was not reached may be tried again.
func TestServerThatEnds(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		hello, good := helloBytes(t, ca.client("a.example.com")), named(t, ca, "good")
		for name, end := range map[string]func(net.Conn) error{
			"resets": func(conn net.Conn) error { return conn.(*net.TCPConn).SetLinger(0) },
			"ends":   func(conn net.Conn) error { return conn.(*net.TCPConn).CloseWrite() },
		} {
			var hit atomic.Int32
			bad := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
				_, _ = conn.Read(make([]byte, 64<<10)) // all of it, or it would be a reset
				hit.Add(1)
				_ = end(conn)
			}).Addr().String()
			for _, others := range [][]string{nil, {"127.0.0.1:1"}, {"127.0.0.1:1", bad}} {
				servers := append([]string{bad}, others...)
				r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to("a.example.com", servers...)} })
				for range servers { // whichever is first
					before, want := hit.Load(), int32(1)
					if len(others) == 2 { // the same, twice
						want = 2
					}
					conn := r.say(hello)
					if answer := readAll(t, conn); !bytes.Equal(answer, alertOf(alpn.InternalError)) {
						t.Errorf("%s, beside %q: the answer is %x", name, others, answer)
					}
					conn.Close()
					if n := hit.Load() - before; n != want {
						t.Errorf("%s, beside %q: the flight came %d times, want %d", name, others, n, want)
					}
				}
			}
			r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to("a.example.com", bad, good)} })
			before := hit.Load()
			for range 4 {
				r.meets(ca, "a.example.com", "good").Close()
			}
			if n := hit.Load() - before; n != 2 { // every other client's first
				t.Errorf("%s: of 4 flights %d came, want 2", name, n)
			}
		}
	})
}

// TestServersDown: which server is not well can be seen, from the first client that
// did not reach it to the first that does.
func TestServersDown(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		good, late := named(t, ca, "good"), filepath.Join(t.TempDir(), "late.sock")
		r := newRig(t, loops, func(c *Config) {
			c.Static = []StaticRoute{to("a.example.com", "unix:"+late, good), to("b.example.com", "unix:"+late), to("c.example.com", good, "nobody.invalid:1")}
		})
		down := func() (out []string) {
			for _, d := range r.Snapshot().Down {
				out = append(out, fmt.Sprintf("%s: failed %v, unresolved %v", strings.TrimPrefix(d.Address, "unix:"+filepath.Dir(late)), !d.Failed.IsZero(), d.Unresolved))
			}
			return out
		}
		wants := func(when string, want ...string) {
			t.Helper()
			if got := down(); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		const nobody = "nobody.invalid:1: failed false, unresolved true"
		eventually(t, "the name is looked up", func() bool { return len(down()) > 0 })
		wants("at first", nobody)
		if n := r.Snapshot().Servers; n != 3 {
			t.Errorf("%d servers", n)
		}
		before := time.Now().Add(-time.Second)
		r.meets(ca, "a.example.com", "good").Close() // the turn is the other's
		r.meets(ca, "a.example.com", "good").Close()
		wants("after a client", nobody, "/late.sock: failed true, unresolved false")
		if at := r.Snapshot().Down[1].Failed; at.Before(before) || at.After(time.Now()) {
			t.Errorf("failed at %v, now it is %v", at, time.Now())
		}
		l, err := net.Listen("unix", late)
		check(t, err)
		defer l.Close()
		wants("before anybody has asked", nobody, "/late.sock: failed true, unresolved false")
		r.say(helloBytes(t, ca.client("b.example.com")))
		eventually(t, "it is well", func() bool { return len(down()) == 1 })
		wants("after all", nobody)
	})
}

// TestSnapshot: what is measured of a relay, by route and in all.
func TestSnapshot(t *testing.T) {
	ca := newAuthority(t)
	addr := named(t, ca, "one")
	r := newRig(t, newLoops(t, relay.NewDefault, 2), func(c *Config) {
		c.Static = []StaticRoute{
			to("A.example.com", addr),
			{Match: alpn.Match{SNI: []string{"a.example.com"}, ALPN: []string{"h2", "x"}}, Upstreams: []string{"127.0.0.1:1"}},
		}
	})
	conn := r.meets(ca, "a.example.com", "one")
	_, err := tls.Dial("tcp", r.addr, ca.client("a.example.com", "h2"))
	if err == nil {
		t.Error("nobody answers, and TLS is done")
	}
	client := r.say(helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL)))
	agent := r.tunnels.agent()
	agent.answers(client)

	s := r.Snapshot()
	var got []string
	for _, x := range s.Routes {
		got = append(got, fmt.Sprintf("%s: %d relays, %d relayed, %d unreachable", x.Name, x.Relays, x.Results["relayed"], x.Results["unreachable"]))
	}
	want := []string{
		"a.example.com: 1 relays, 1 relayed, 0 unreachable", "a.example.com h2,x: 0 relays, 0 relayed, 1 unreachable",
		"cluster:db: 1 relays, 1 relayed, 0 unreachable",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if s.FirstByte.Count != 2 || s.Lease.Count != 1 || s.Connect.Count != 1 || s.FirstByte.Sum <= 0 {
		t.Errorf("first byte %+v, lease %+v, connect %+v", s.FirstByte, s.Lease, s.Connect)
	}
	if s.Refusals["no_upstream"] != 1 || s.Outcomes["relayed"] != 2 || s.Static != 2 {
		t.Errorf("%+v", s)
	}
	if _, there := s.Refusals["relayed"]; there {
		t.Error("a relay is a refusal")
	}
	relays := 0
	for i, l := range r.Loops(patience) {
		if !l.Answered || l.Delay <= 0 {
			t.Errorf("loop %d: %+v", i, l)
		}
		relays += l.Relays
	}
	if relays != 2 {
		t.Errorf("%d relays on the loops", relays)
	}
	check(t, conn.Close())
	agent.Close()
	client.Close()
	eventually(t, "bytes are counted", func() bool { s = r.Snapshot(); return s.Relays == 0 })
	for _, x := range s.Routes {
		if x.Relays != 0 || x.Results["relayed"] > 0 && (x.BytesOut == 0 || x.BytesIn == 0) {
			t.Errorf("%+v", x)
		}
	}
}

// TestLoopsStuck: a loop that does not answer is told as such, in bounded time.
func TestLoopsStuck(t *testing.T) {
	loops := newLoops(t, relay.NewDefault, 2)
	r := newRig(t, loops, nil)
	release, stuck := make(chan struct{}), make(chan struct{})
	loops[0].Post(func() { close(stuck); <-release })
	<-stuck
	got := r.Loops(time.Millisecond)
	close(release)
	if got[0].Answered || got[0].Delay < time.Millisecond {
		t.Errorf("%+v", got)
	}
}

func TestTimings(t *testing.T) {
	var c timings
	for _, d := range []time.Duration{0, 100 * time.Microsecond, 101 * time.Microsecond, time.Second, 10 * time.Second, time.Hour} {
		c.observe(d)
	}
	got := newTimings()
	got.add(&c)
	count := map[time.Duration]uint64{}
	for i, b := range got.Buckets {
		count[b.Most] = b.Count
		if i > 0 && (b.Most <= got.Buckets[i-1].Most || b.Count < got.Buckets[i-1].Count) {
			t.Errorf("bucket %d: %+v after %+v", i, b, got.Buckets[i-1])
		}
	}
	if got.Count != 6 || count[100*time.Microsecond] != 2 || count[250*time.Microsecond] != 3 || count[time.Second] != 4 || count[10*time.Second] != 5 {
		t.Errorf("%+v", got)
	}
}

// TestReloadTakesStraysUp: a route that came back while connections of its name
// were counted without it got a second account of the same name, and no metrics
// could be had any more.
func TestReloadTakesStraysUp(t *testing.T) {
	ca := newAuthority(t)
	one := named(t, ca, "one")
	r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) { c.Static = []StaticRoute{to("b.example.com", one)} })
	guest := GuestReport{Routes: []RouteSnapshot{{Name: "a.example.com", BytesIn: 3, Results: map[string]uint64{"relayed": 1}}}}
	r.CountGuest(guest)
	old := &lane{Gateway: r.Gateway, settings: r.current.Load()} // a loop that has not heard of the reload yet
	_, err := r.Reload(t.Context(), Settings{Bounds: generous(), Static: []StaticRoute{to("a.example.com", one), to("b.example.com", one)}})
	check(t, err)
	r.meets(ca, "a.example.com", "one")
	r.CountGuest(guest)
	late, _ := old.accountOf("a.example.com")
	late.add(outcomeRelayed)
	seen := map[string]RouteSnapshot{}
	for _, s := range r.Snapshot().Routes {
		if _, twice := seen[s.Name]; twice {
			t.Errorf("two accounts of %s", s.Name)
		}
		seen[s.Name] = s
	}
	if a := seen["a.example.com"]; a.Results["relayed"] != 4 || a.BytesIn != 6 {
		t.Errorf("%+v", a)
	}
}

// TestStartByName: the first clients of a route by name were refused, because nobody
// had looked the name up.
func TestStartByName(t *testing.T) {
	ca := newAuthority(t)
	_, port, err := net.SplitHostPort(named(t, ca, "one"))
	check(t, err)
	cfg := Config{Loops: newLoops(t, relay.NewDefault, 1), Static: []StaticRoute{to("a.example.com", "localhost:"+port)}, Bounds: generous()}
	g, err := StartGuest(cfg)
	check(t, err)
	defer g.Close()
	r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) { c.Static = cfg.Static })
	for name, g := range map[string]*Gateway{"a guest": g, "a gateway": r.Gateway} {
		if g.current.Load().servers["localhost:"+port].size() == 0 {
			t.Errorf("%s serves, and has no address", name)
		}
	}
	r.meets(ca, "a.example.com", "one")
}

// TestUpstreamKeepAlive: a server that was gone without a word was never found out.
func TestUpstreamKeepAlive(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer silent.Close()
	r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) { c.Static = []StaticRoute{to("a.example.com", silent.Addr().String())} })
	r.say(helloBytes(t, r.ca.client("a.example.com")))
	on := 0
	eventually(t, "the server is connected", func() (there bool) {
		r.lanes[0].on(func() {
			for c := range r.lanes[0].conns {
				if c.stage == offering {
					there = true
					on, err = unix.GetsockoptInt(c.other, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
				}
			}
		})
		return there
	})
	if err != nil || on == 0 {
		t.Errorf("keep-alive: %d, %v", on, err)
	}
}

// TestStaticCounts: the place of silent clients counted as a static route, and a
// connection without a descriptor for its server was in no result of its route.
func TestStaticCounts(t *testing.T) {
	ca := newAuthority(t)
	r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) {
		c.Static = []StaticRoute{to("a.example.com", named(t, ca, "one"))}
		c.Silent = &SilentRoute{After: time.Minute, Upstreams: []string{"127.0.0.1:1"}}
	})
	if n := r.Snapshot().Static; n != 1 {
		t.Errorf("%d static routes", n)
	}
	refused := func() uint64 {
		for _, s := range r.Snapshot().Routes {
			if s.Name == "a.example.com" {
				return s.Results[resultRefused.String()]
			}
		}
		return 0
	}
	for i, shed := range []bool{true, false} {
		client := r.dial()
		r.waiting(1)
		r.lanes[0].on(func() {
			for c := range r.lanes[0].conns {
				if c.stage == reading {
					c.shed = shed
				}
			}
		})
		if !shed {
			r.lanes[0].on(func() {
				for c := range r.lanes[0].conns {
					if c.stage == reading {
						c.acct = c.static[0].acct
						c.turnedAway()
					}
				}
			})
		}
		_, err := client.Write(helloBytes(t, ca.client("a.example.com")))
		check(t, err)
		eventually(t, "it counts", func() bool { return refused() == uint64(i+1) })
		client.Close()
		r.waiting(0) // or it would be taken for the next one
	}
}
