package fuzz

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/alpn"
)

// The words that routes and hellos of FuzzRoutes are made of: few, so that they
// meet.
var (
	clusters = []string{"", "gw.test", "localhost", "a.gw.test"}
	patterns = []string{
		"a.test", "A.test", "b.test", "*.test", "*.a.test", "x.a.test", "y.x.a.test", "*.x.a.test", "*",
		"gw.test", "x.gw.test", "*.gw.test", "www.gw.test", "x.db.gw.test", "*.db.gw.test", "x.y.gw.test", "a.gw.test",
		"localhost", "*.localhost", "x.localhost", "test", "a.test.", "10.0.0.1", "*.*.test", "", "*.", "a*.test", "_x.a.test",
	}
	names = []string{
		"", "10.0.0.1", "a.test", "B.TEST", "c.test", "x.a.test", "z.a.test", "y.x.a.test", "z.x.a.test", "z.y.x.a.test", "test", "other",
		"gw.test", "x.gw.test", "www.gw.test", "db.gw.test", "x.db.gw.test", "_x.db.gw.test", "x.node.gw.test", "x.kube.gw.test",
		"x.tcp.gw.test", "x.app.gw.test", "x.desktop.gw.test", "x.y.gw.test", "x.y.db.gw.test", "a.gw.test", "x.a.gw.test", "x.db.a.gw.test",
		"localhost", "x.localhost", "x.db.localhost", "xgw.test", "gw.test.a.test", "_x.a.test", "_x.gw.test",
	}
	offerable = []string{
		"h2", "http/1.1", "http/1.0", "postgresql", "acme-tls/1", "smtp", "\x0a\x0a", "sallyport-ssh/2",
		alpn.Auth1, alpn.Join1, alpn.Tunnel1, alpn.Gateway1, alpn.Store1, alpn.SSH1, alpn.DB1, alpn.TCP1, alpn.Desktop1,
	}
)

// twinTable finds routes by walking all of them.
type twinTable struct {
	cluster string
	static  []alpn.Match
}

// owned says that a pattern is the cluster's: its name, or anything below it
// that is reserved, a wildcard, or ends with the label of a kind.
func (t twinTable) owned(pattern string) bool {
	name := strings.TrimPrefix(pattern, "*.")
	if t.cluster == "" || name != t.cluster && !strings.HasSuffix(name, "."+t.cluster) {
		return false
	}
	if name == t.cluster {
		return true
	}
	labels := strings.Split(strings.TrimSuffix(name, "."+t.cluster), ".")
	kind := len(labels) == 2 && slices.Contains(kinds, labels[1]) && alpn.ValidLabel(labels[0])
	return kind || strings.HasPrefix(pattern, "*.") || len(labels) == 1 && slices.Contains(reserved, labels[0])
}

var (
	kinds    = []string{"node", "db", "kube", "tcp", "app", "desktop"}
	reserved = append([]string{"auth", "api", "www"}, kinds...)
)

// legal says that the routes may stand side by side.
func (t twinTable) legal() bool {
	for i, r := range t.static {
		for _, sni := range r.SNI {
			_, ok := alpn.NormalName(strings.TrimPrefix(sni, "*."))
			if sni != "*" && (!ok || t.owned(strings.ToLower(sni))) {
				return false
			}
			for _, other := range t.static[:i] {
				if t.clash(other, r, sni) {
					return false
				}
			}
		}
	}
	return true
}

func (twinTable) clash(a, b alpn.Match, sni string) bool {
	has := func(s string) bool { return strings.EqualFold(s, sni) }
	shared := func(id string) bool { return slices.Contains(b.ALPN, id) }
	return slices.ContainsFunc(a.SNI, has) && (slices.ContainsFunc(a.ALPN, shared) || len(a.ALPN)+len(b.ALPN) == 0)
}

// route is DESIGN's order: exact, the cluster's name, wildcard, below the
// cluster, default.
func (t twinTable) route(name string, offers []string) string {
	name = strings.ToLower(name)
	if name == "10.0.0.1" {
		name = ""
	}
	if name == "" && t.cluster != "" {
		return clusterRoute(offers)
	}
	label, above, _ := strings.Cut(name, ".")
	if got := t.scan(name, offers); name != "" && got != "" {
		return got
	}
	if name != "" && name == t.cluster {
		return clusterRoute(offers)
	}
	if got := t.scan("*."+above, offers); label != "" && above != "" && got != "" {
		return got
	}
	if rest, ok := strings.CutSuffix(name, "."+t.cluster); ok && t.cluster != "" {
		return belowRoute(strings.Split(rest, "."), offers)
	}
	if got := t.scan("*", offers); got != "" {
		return got
	}
	return "alert 112"
}

// scan looks at every route that has the pattern; "" when none has.
func (t twinTable) scan(pattern string, offers []string) string {
	any, found := -1, false
	best, at := len(offers), -1
	for i, r := range t.static {
		if !slices.ContainsFunc(r.SNI, func(s string) bool { return strings.EqualFold(s, pattern) }) {
			continue
		}
		found = true
		if len(r.ALPN) == 0 {
			any = i
		}
		for _, id := range r.ALPN {
			if place := slices.Index(offers, id); place >= 0 && place < best {
				best, at = place, i
			}
		}
	}
	switch {
	case at >= 0:
		return fmt.Sprint("static ", at)
	case any >= 0:
		return fmt.Sprint("static ", any)
	case found:
		return "alert 120"
	}
	return ""
}

// meaning sorts what is offered: the ids that the table of protocols names, each
// once, in the order of offerable. Others say nothing.
func meaning(offers []string) string {
	var known []string
	for _, id := range offerable {
		if slices.Contains(offers, id) && !slices.Contains([]string{"smtp", "\x0a\x0a", "sallyport-ssh/2"}, id) {
			known = append(known, id)
		}
	}
	return strings.Join(known, " ")
}

// webOffers are the offers that ask for HTTP and nothing else.
var webOffers = []string{"h2", "http/1.1", "h2 http/1.1", "h2 http/1.0", "http/1.1 http/1.0", "h2 http/1.1 http/1.0"}

// clusterRoute is DESIGN's table for the cluster's own name.
func clusterRoute(offers []string) string {
	asked := meaning(offers)
	if len(offers) == 0 || slices.Contains(webOffers, asked) {
		return "web"
	}
	for id, class := range map[string]string{alpn.Tunnel1: "tunnel", alpn.Gateway1: "gateway", alpn.Store1: "store", "acme-tls/1": "acme"} {
		if asked == id {
			return class
		}
	}
	for id, class := range map[string]string{alpn.Auth1: "auth", alpn.Join1: "join"} {
		if slices.Contains([]string{id, "h2 " + id, "http/1.1 " + id, "h2 http/1.1 " + id}, asked) {
			return class
		}
	}
	return "alert 120"
}

// belowRoute is DESIGN's table for the names below it.
func belowRoute(labels []string, offers []string) string {
	asked := meaning(offers)
	if !alpn.ValidLabel(labels[0]) {
		return "alert 112"
	}
	if len(labels) == 1 {
		switch {
		case slices.Contains(reserved, labels[0]):
			return "alert 112"
		case asked == "acme-tls/1":
			return "acme"
		case slices.Contains(webOffers, asked):
			return "app " + labels[0]
		}
		return "alert 120"
	}
	if len(labels) != 2 || !slices.Contains(kinds, labels[1]) {
		return "alert 112"
	}
	ours := strings.Count(asked, "sallyport-")
	web := strings.Contains(asked, "h2") || strings.Contains(asked, "http/")
	ok := false
	switch labels[1] {
	case "node":
		ok = asked == alpn.SSH1
	case "db":
		ok = len(offers) == 0 || slices.Contains([]string{"postgresql", alpn.DB1, "postgresql " + alpn.DB1}, asked)
	case "kube":
		ok = len(offers) == 0 || slices.Contains(webOffers, asked)
	case "app":
		ok = slices.Contains(webOffers, asked)
	case "tcp":
		ok = ours == 0 || ours == 1 && strings.Contains(asked, alpn.TCP1)
	case "desktop":
		ok = asked == alpn.Desktop1 || ours == 0 && !web
	}
	if !ok {
		return "alert 120"
	}
	return labels[1] + "/" + labels[0]
}

// shown writes a route as the twin does.
func shown(r alpn.Route) string {
	switch r.Class {
	case alpn.Refuse:
		return fmt.Sprint("alert ", r.Alert)
	case alpn.Resource:
		return r.Kind + "/" + string(r.Name)
	case alpn.App:
		return "app " + string(r.Name)
	case alpn.Static:
		return fmt.Sprint("static ", r.Index)
	}
	return r.Class.String()
}

// FuzzRoutes: the border is the name and the protocols of a hello; the oracle
// is a twin that walks all routes and reads DESIGN's table of names from sets.
// Tables that it calls ambiguous must be refused, and no others.
func FuzzRoutes(f *testing.F) {
	f.Add([]byte("\x01\x03\x01\x03\x00\x01\x00\x02\x00\x00\x02\x01\x00\x01"))
	f.Add([]byte("\x00\x04\x01\x00\x01\x00\x01\x03\x00\x01\x08\x00\x05\x01\x00"))
	f.Add([]byte("\x01\x00\x0c\x01\x08"))
	f.Fuzz(checkRoutes)
}

// TestRandomRoutes is FuzzRoutes without coverage, for many more inputs.
func TestRandomRoutes(t *testing.T) { atRandom(t, 32, checkRoutes) }

func checkRoutes(t *testing.T, in []byte) {
	d := &dice{in}
	twin := twinTable{cluster: clusters[d.roll(len(clusters))]}
	for range d.roll(6) {
		twin.static = append(twin.static, alpn.Match{
			SNI:  d.pick(1+d.roll(2), patterns),
			ALPN: d.pick(d.roll(3), offerable),
		})
	}
	table, err := alpn.NewTable(twin.cluster, twin.static)
	if (err == nil) != twin.legal() {
		t.Fatalf("%q %q: %v", twin.cluster, twin.static, err)
	}
	if err != nil {
		return
	}
	name, offers := names[d.roll(len(names))], d.pick(d.roll(5), offerable)
	hello, err := parsed(askFor(name, offers))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := shown(table.Route(hello)), twin.route(name, offers); got != want {
		t.Fatalf("%q %q: %q with %q goes to %s, the twin says %s", twin.cluster, twin.static, name, offers, got, want)
	}
}
