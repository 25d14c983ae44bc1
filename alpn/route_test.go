package alpn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func routed(t *testing.T, table *Table, name string, protocols ...string) Route {
	t.Helper()
	var extensions []extension
	if name != "" {
		extensions = append(extensions, sniExtension(name))
	}
	if len(protocols) > 0 {
		extensions = append(extensions, alpnExtension(protocols...))
	}
	h := &Hello{}
	if need, err := h.Parse(records(handHello(extensions...), 1<<14)); need != 0 || err != nil {
		t.Fatalf("%q: %d, %v", name, need, err)
	}
	return table.Route(h)
}

// show writes a route as the tables of these tests do.
func show(r Route) string {
	switch r.Class {
	case Refuse:
		return fmt.Sprint("alert ", r.Alert)
	case Resource:
		return r.Kind + "/" + string(r.Name)
	case App:
		return "web app/" + string(r.Name)
	case Static:
		return fmt.Sprint("static ", r.Index)
	}
	return r.Class.String()
}

// TestA62_Matrix: every protocol id times every kind of name. What a browser
// offers reaches HTTP only.
func TestA62_Matrix(t *testing.T) {
	table, err := NewTable("gw.test", []Match{{SNI: []string{"shop.example.com"}, ALPN: []string{"h2"}}})
	if err != nil {
		t.Fatal(err)
	}
	offers := []string{"", "h2", "http/1.1", "http/1.0", "postgresql", "acme-tls/1", "\x0a\x0a", "smtp",
		Auth1, Join1, Tunnel1, Gateway1, Store1, SSH1, DB1, TCP1, Desktop1, "sallyport-ssh/2"}
	const none = "alert 120"
	// What is not listed is refused with no_application_protocol.
	names := map[string]map[string]string{
		"gw.test": {"": "web", "h2": "web", "http/1.1": "web", "acme-tls/1": "acme",
			Auth1: "auth", Join1: "join", Tunnel1: "tunnel", Gateway1: "gateway", Store1: "store"},
		"x.node.gw.test": {SSH1: "node/x"},
		"x.db.gw.test":   {"": "db/x", "postgresql": "db/x", DB1: "db/x"},
		"x.kube.gw.test": {"": "kube/x", "h2": "kube/x", "http/1.1": "kube/x"},
		"x.app.gw.test":  {"h2": "app/x", "http/1.1": "app/x"},
		"x.tcp.gw.test": {"": "tcp/x", TCP1: "tcp/x", "h2": "tcp/x", "http/1.1": "tcp/x", "http/1.0": "tcp/x",
			"postgresql": "tcp/x", "acme-tls/1": "tcp/x", "\x0a\x0a": "tcp/x", "smtp": "tcp/x", "sallyport-ssh/2": "tcp/x"},
		"x.desktop.gw.test": {"": "desktop/x", Desktop1: "desktop/x", "postgresql": "desktop/x", "acme-tls/1": "desktop/x",
			"\x0a\x0a": "desktop/x", "smtp": "desktop/x", "sallyport-ssh/2": "desktop/x"},
		"x.gw.test":        {"h2": "web app/x", "http/1.1": "web app/x", "acme-tls/1": "acme"},
		"shop.example.com": {"h2": "static 0"},
	}
	names[""] = names["gw.test"]
	names["10.0.0.1"] = names["gw.test"]
	for name, want := range names {
		for _, offer := range offers {
			var protocols []string
			if offer != "" {
				protocols = []string{offer}
			}
			w, ok := want[offer]
			if !ok {
				w = none
			}
			if got := show(routed(t, table, name, protocols...)); got != w {
				t.Errorf("%q with %q: %s, want %s", name, offer, got, w)
			}
		}
	}
}

// TestA62_Mixed: an offer that could be taken two ways is refused.
func TestA62_Mixed(t *testing.T) {
	table, err := NewTable("gw.test", nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, offer, want string }{
		{"gw.test", "h2,http/1.1", "web"},
		{"gw.test", "\x1a\x1a,h2,http/1.1", "web"},
		{"gw.test", "h2," + Auth1, "auth"},
		{"gw.test", Auth1 + "," + Join1, "alert 120"},
		{"gw.test", Tunnel1 + ",h2", "alert 120"},
		{"gw.test", "h2,postgresql", "alert 120"},
		{"x.node.gw.test", SSH1 + ",http/1.1", "alert 120"},
		{"x.node.gw.test", SSH1 + ",future/1", "node/x"},
		{"x.db.gw.test", "http/1.1,postgresql", "alert 120"},
		{"x.db.gw.test", DB1 + ",postgresql", "db/x"},
		{"x.db.gw.test", DB1 + "," + Tunnel1, "alert 120"},
		{"x.kube.gw.test", "h2,http/1.1", "kube/x"},
		{"x.kube.gw.test", "h2," + SSH1, "alert 120"},
		{"x.desktop.gw.test", Desktop1 + ",h2", "alert 120"},
		{"x.tcp.gw.test", TCP1 + "," + SSH1, "alert 120"},
		{"x.gw.test", "h2," + Auth1, "alert 120"},
	}
	for _, tt := range tests {
		if got := show(routed(t, table, tt.name, strings.Split(tt.offer, ",")...)); got != tt.want {
			t.Errorf("%s with %q: %s, want %s", tt.name, tt.offer, got, tt.want)
		}
	}
}

func TestRouteNames(t *testing.T) {
	table, err := NewTable("GW.Test", nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, want string }{
		{"GW.TEST", "web"},
		{"Grafana.gw.test", "web app/grafana"},
		{"db.app.gw.test", "app/db"},
		{"other.test", "alert 112"},
		{"xgw.test", "alert 112"},
		{"test", "alert 112"},
		{"gw.test.evil.test", "alert 112"},
		{"a.b.app.gw.test", "alert 112"},
		{"a.nope.gw.test", "alert 112"},
		{"_x.app.gw.test", "alert 112"},
		{"_x.gw.test", "alert 112"},
		{"auth.gw.test", "alert 112"},
		{"api.gw.test", "alert 112"},
		{"www.gw.test", "alert 112"},
		{"node.gw.test", "alert 112"},
		{"app.gw.test", "alert 112"},
	}
	for _, tt := range tests {
		if got := show(routed(t, table, tt.name, "h2")); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestRouteStatic(t *testing.T) {
	table, err := NewTable("gw.test", []Match{
		0: {SNI: []string{"*.example.com"}},
		1: {SNI: []string{"a.example.com"}, ALPN: []string{"h2"}},
		2: {SNI: []string{"A.Example.com"}, ALPN: []string{"http/1.1", "smtp"}},
		3: {SNI: []string{"b.example.com"}},
		4: {SNI: []string{"b.example.com"}, ALPN: []string{"h2"}},
		5: {SNI: []string{"*"}, ALPN: []string{"h2"}},
		6: {SNI: []string{"shop.gw.test"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, offer, want string }{
		{"x.example.com", "", "static 0"},
		{"x.y.example.com", "h2", "static 5"},
		{"example.com", "h2", "static 5"},
		{"a.example.com", "h2", "static 1"},
		{"a.example.com", "http/1.1,h2", "static 2"},
		{"a.example.com", "h2,http/1.1", "static 1"},
		{"a.example.com", "", "alert 120"}, // not the wildcard
		{"a.example.com", "imap", "alert 120"},
		{"b.example.com", "h2", "static 4"},
		{"b.example.com", "imap", "static 3"},
		{"other.test", "h2", "static 5"},
		{"other.test", "imap", "alert 120"},
		{"shop.gw.test", "", "static 6"},
		{"nope.node.gw.test", SSH1, "node/nope"},
		{"", "h2", "web"},
	}
	for _, tt := range tests {
		var protocols []string
		if tt.offer != "" {
			protocols = strings.Split(tt.offer, ",")
		}
		if got := show(routed(t, table, tt.name, protocols...)); got != tt.want {
			t.Errorf("%s with %q: %s, want %s", tt.name, tt.offer, got, tt.want)
		}
	}
}

func TestRouteStaticAlone(t *testing.T) {
	table, err := NewTable("", []Match{{SNI: []string{"*"}}, {SNI: []string{"a.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"": "static 0", "10.0.0.1": "static 0", "b.test": "static 0", "a.test": "static 1"} {
		if got := show(routed(t, table, name, "h2")); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	empty, err := NewTable("", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "a.test", "10.0.0.1"} {
		if got := show(routed(t, empty, name, "h2")); got != "alert 112" {
			t.Errorf("%q without any route: %s", name, got)
		}
	}
}

// TestRouteClusterUnderWildcard: a wildcard for the names beside the cluster
// took the cluster's own name too, and with it the API and every tunnel.
func TestRouteClusterUnderWildcard(t *testing.T) {
	table, err := NewTable("gw.example.com", []Match{{SNI: []string{"*.example.com"}}, {SNI: []string{"*.com", "*"}}})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, offer, want string }{
		{"gw.example.com", "h2", "web"},
		{"GW.example.com", Tunnel1, "tunnel"},
		{"gw.example.com", Auth1, "auth"},
		{"gw.example.com", "imap", "alert 120"},
		{"shop.example.com", "h2", "static 0"},
		{"example.com", "h2", "static 1"},
		{"grafana.gw.example.com", "h2", "web app/grafana"},
		{"www.gw.example.com", "h2", "alert 112"},
		{"other.test", "h2", "static 1"},
	}
	for _, tt := range tests {
		if got := show(routed(t, table, tt.name, tt.offer)); got != tt.want {
			t.Errorf("%s with %q: %s, want %s", tt.name, tt.offer, got, tt.want)
		}
	}
}

// TestA34_Conflicts: rules that could both claim a hello refuse to start.
func TestA34_Conflicts(t *testing.T) {
	tests := []struct {
		cluster string
		static  []Match
		want    string
	}{
		{"gw.test.", nil, "not a host name"},
		{"10.0.0.1", nil, "not a host name"},
		{"gw.test", []Match{{}}, "no server name"},
		{"gw.test", []Match{{SNI: []string{"gw.test"}}}, "belongs to the cluster"},
		{"gw.test", []Match{{SNI: []string{"*.gw.test"}}}, "belongs to the cluster"},
		{"gw.test", []Match{{SNI: []string{"*.db.gw.test"}}}, "belongs to the cluster"},
		{"gw.test", []Match{{SNI: []string{"*.shop.gw.test"}}}, "belongs to the cluster"},
		{"gw.test", []Match{{SNI: []string{"orders.db.gw.test"}}}, "belongs to the cluster"},
		{"gw.test", []Match{{SNI: []string{"www.gw.test"}}}, "belongs to the cluster"},
		{"gw.test", []Match{{SNI: []string{"a.test."}}}, "not a host name"},
		{"gw.test", []Match{{SNI: []string{"a.*.test"}}}, "not a host name"},
		{"gw.test", []Match{{SNI: []string{"10.0.0.1"}}}, "not a host name"},
		{"gw.test", []Match{{SNI: []string{"a.test"}}, {SNI: []string{"A.test"}}}, "route 0 has it too"},
		{"gw.test", []Match{{SNI: []string{"*"}}, {SNI: []string{"*"}}}, "route 0 has it too"},
		{"gw.test", []Match{{SNI: []string{"a.test"}, ALPN: []string{""}}}, "1 to 255 bytes"},
		{"gw.test", []Match{{SNI: []string{"a.test"}, ALPN: []string{"h2", strings.Repeat("a", 256)}}}, "1 to 255 bytes"},
		{"gw.test", []Match{{SNI: []string{"*.a.test"}, ALPN: []string{"h2"}}, {SNI: []string{"*.a.test"}, ALPN: []string{"x", "h2"}}}, "route 0 has it too"},
	}
	for _, tt := range tests {
		_, err := NewTable(tt.cluster, tt.static)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q %v: %v, want %q", tt.cluster, tt.static, err, tt.want)
		}
	}
}

// TestA33_Reused: nothing of the hello before is in the one that is read now: a
// gateway reads all clients' with one Hello.
func TestA33_Reused(t *testing.T) {
	table, err := NewTable("gw.test", nil)
	if err != nil {
		t.Fatal(err)
	}
	hellos := [][]byte{
		records(handHello(sniExtension("orders.db.gw.test"), alpnExtension("sallyport-db/1")), 1<<14),
		records(handHello(sniExtension("gw.test"), alpnExtension("sallyport-tunnel/1")), 1<<14),
		records(handHello(sniExtension("gw.test")), 1<<14),
		records(handHello(sniExtension("127.0.0.1")), 1<<14),
		records(handHello(alpnExtension("h2")), 1<<14),
		records(handHello(), 100),
	}
	for i, first := range hellos {
		for j, second := range hellos {
			var used, fresh Hello
			for _, read := range []struct {
				h *Hello
				b []byte
			}{{&used, first}, {&used, second}, {&fresh, second}} {
				if need, err := read.h.Parse(read.b); need != 0 || err != nil {
					t.Fatal(need, err)
				}
			}
			if got, want := show(table.Route(&used)), show(table.Route(&fresh)); got != want || !same(&used, &fresh) {
				t.Errorf("hello %d after %d: %s, want %s", j, i, got, want)
			}
		}
	}
}

// TestRouteRepeats: a route that says a thing twice conflicts with nobody.
func TestRouteRepeats(t *testing.T) {
	table, err := NewTable("", []Match{
		{SNI: []string{"a.test", "A.test"}, ALPN: []string{"h2", "h2"}},
		{SNI: []string{"a.test", "a.test"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := show(routed(t, table, "a.test", "h2")) + ", " + show(routed(t, table, "a.test")); got != "static 0, static 1" {
		t.Error(got)
	}
}

// manyRoutes are n routes: half exact, half wildcards, all with two ids, and a
// default; and n more for ids of one name.
func manyRoutes(n int) []Match {
	static := make([]Match, 0, 2*n+1)
	for i := range n {
		sni := fmt.Sprintf("n%d.example.com", i)
		if i%2 == 1 {
			sni = "*." + sni
		}
		static = append(static, Match{SNI: []string{sni}, ALPN: []string{"h2", "http/1.1"}})
	}
	for i := range n {
		static = append(static, Match{SNI: []string{"ids.example.com"}, ALPN: []string{fmt.Sprint("id/", i)}})
	}
	return append(static, Match{SNI: []string{"*"}})
}

// manyHellos are what finds and what does not find something among manyRoutes.
func manyHellos(t testing.TB, n int) map[string]*Hello {
	t.Helper()
	last := (n - 1) / 2 * 2
	hellos := map[string]*Hello{}
	for what, b := range map[string][]byte{
		"exact":         hello(t, fmt.Sprintf("n%d.example.com", last), "h2"),
		"exact, second": hello(t, fmt.Sprintf("n%d.example.com", last), "other", "http/1.1"),
		"exact, none":   hello(t, fmt.Sprintf("n%d.example.com", last), "other"),
		"wildcard":      hello(t, fmt.Sprintf("x.n%d.example.com", last+1), "h2"),
		"default":       hello(t, "other.example.com", "h2"),
		"one of ids":    hello(t, "ids.example.com", fmt.Sprint("id/", n-1)),
		"none of ids":   hello(t, "ids.example.com", "id/x", "id/y"),
		"cluster":       hello(t, "orders.db.gw.test", "postgresql"),
	} {
		hellos[what] = &Hello{}
		if need, err := hellos[what].Parse(b); need != 0 || err != nil {
			t.Fatal(need, err)
		}
	}
	return hellos
}

// TestRouteProbes: with 100,000 routes a search takes the steps that it takes
// with 10, and allocates nothing.
func TestRouteProbes(t *testing.T) {
	want := map[string]struct {
		probes int
		route  string
	}{
		"exact":         {2, "static"},
		"exact, second": {3, "static"},
		"exact, none":   {2, "alert 120"},
		"wildcard":      {3, "static"},
		"default":       {3, "static"},
		"one of ids":    {2, "static"},
		"none of ids":   {3, "alert 120"},
		"cluster":       {2, "db/orders"},
	}
	for _, n := range []int{5, 50_000} {
		table, err := NewTable("gw.test", manyRoutes(n))
		if err != nil {
			t.Fatal(err)
		}
		for what, h := range manyHellos(t, n) {
			s := search{table: table, hello: h}
			got := s.route()
			if w := want[what]; s.probes != w.probes || !strings.HasPrefix(show(got), w.route) {
				t.Errorf("%d routes, %s: %d probes to %s, want %d to %s", n, what, s.probes, show(got), w.probes, w.route)
			}
			if allocs := testing.AllocsPerRun(10, func() { table.Route(h) }); allocs != 0 {
				t.Errorf("%d routes, %s: %v allocations", n, what, allocs)
			}
		}
	}
}

// TestTableCost: a table costs a few allocations for each name and id, so that
// a reload of 10,000 routes is nothing to notice.
func TestTableCost(t *testing.T) {
	const n = 10_000
	static := manyRoutes(n)
	allocs := testing.AllocsPerRun(1, func() {
		if _, err := NewTable("gw.test", static); err != nil {
			t.Fatal(err)
		}
	})
	if names, ids := 2.0*n+1, 3.0*n; allocs > 2*names+ids {
		t.Errorf("%v allocations for %v names and %v ids", allocs, names, ids)
	}
}

func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		table, err := NewTable("gw.test", manyRoutes(n))
		if err != nil {
			b.Fatal(err)
		}
		for what, h := range manyHellos(b, n) {
			b.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(what, ", ", "-"), n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					table.Route(h)
				}
			})
		}
	}
}

// BenchmarkRouteSpread asks for another name each time, so that a large table
// does not sit in the cache.
func BenchmarkRouteSpread(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		table, err := NewTable("", manyRoutes(n))
		if err != nil {
			b.Fatal(err)
		}
		hellos := make([]Hello, 1024)
		for i := range hellos {
			if _, err := hellos[i].Parse(hello(b, fmt.Sprintf("n%d.example.com", i*7919%n/2*2), "h2")); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				table.Route(&hellos[i%len(hellos)])
			}
		})
	}
}

func BenchmarkNewTable(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		static := manyRoutes(n)
		b.Run(fmt.Sprint(len(static)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := NewTable("gw.test", static); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestMatchErrors: all faults are found at once, each with its place.
func TestMatchErrors(t *testing.T) {
	_, err := NewTable("gw.test", []Match{
		{SNI: []string{"a.test", "b..test"}}, {}, {SNI: []string{"c.test", "a.test"}}, {SNI: []string{"x.db.gw.test"}},
		{SNI: []string{"d.test"}, ALPN: []string{"h2", ""}},
	})
	var faults MatchErrors
	if !errors.As(err, &faults) {
		t.Fatalf("%T %v", err, err)
	}
	var got []string
	for _, f := range faults {
		got = append(got, fmt.Sprint(f.Route, ".", f.Name, " ", f.ALPN, " ", f.Fact))
	}
	want := []string{
		`0.1 false server name "b..test": not a host name`, "1.0 false no server name to match",
		`2.1 false server name "a.test": any protocol: route 0 has it too`, `3.0 false server name "x.db.gw.test": belongs to the cluster`,
		`4.1 true protocol "": an id has 1 to 255 bytes`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestNames(t *testing.T) {
	for _, kind := range kinds {
		full := ServerName(kind, "x-1", "gw.test")
		if k, n, ok := ParseName(full, "gw.test"); k != kind || n != "x-1" || !ok {
			t.Errorf("ParseName(%q) = %q, %q, %v", full, k, n, ok)
		}
		if !Reserved(kind) {
			t.Errorf("%q is not reserved", kind)
		}
	}
	for _, bad := range []string{"", "gw.test", "db.gw.test", "x.gw.test", ".db.gw.test", "x.y.db.gw.test", "x.db.gw.tes", "x.db.xgw.test", "X.db.gw.test"} {
		if k, n, ok := ParseName(bad, "gw.test"); ok || k != "" {
			t.Errorf("ParseName(%q) = %q, %q", bad, k, n)
		}
	}
	for label, want := range map[string]bool{"a": true, "a-b": true, "0": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "a.b": false, "A": false, "a_b": false, strings.Repeat("a", 64): false, "ä": false} {
		if ValidLabel(label) != want {
			t.Errorf("ValidLabel(%q) = %v", label, !want)
		}
	}
}

func TestAlertRecord(t *testing.T) {
	if got := UnrecognizedName.Record(); got != [7]byte{21, 3, 3, 0, 2, 2, 112} {
		t.Errorf("%v", got)
	}
	if got := NoApplicationProtocol.Record(); got != [7]byte{21, 3, 3, 0, 2, 2, 120} {
		t.Errorf("%v", got)
	}
}

// FuzzNormalName: what passes is lower-case LDH in labels, and is a fixed point.
func FuzzNormalName(f *testing.F) {
	for _, s := range []string{"a.gw.test", "A.b", "a..b", "1.2.3.4", "::1", "xn--a", "a-.b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := NormalName(s)
		if !ok {
			return
		}
		if !strings.EqualFold(name, s) || strings.ToLower(s) != name {
			t.Fatalf("%q became %q", s, name)
		}
		for _, label := range strings.Split(name, ".") {
			if !ValidLabel(strings.ReplaceAll(label, "_", "a")) {
				t.Fatalf("%q has the label %q", name, label)
			}
		}
		if again, ok := NormalName(name); !ok || again != name {
			t.Fatalf("%q is not stable: %q", name, again)
		}
	})
}
