package gateway

import (
	"testing"

	"github.com/sallyport/sallyport/alpn"
)

// TestAccountNames: applications in browsers, a class, and by client certificate, a
// kind, were both counted as cluster:app. When there had been both, /metrics answered
// 500 for a name that it had twice, until the next start.
func TestAccountNames(t *testing.T) {
	c := newClasses()
	seen := map[string]bool{}
	note := func(a *account) {
		if seen[a.name] {
			t.Errorf("two accounts are %s", a.name)
		}
		seen[a.name] = true
	}
	for _, a := range c.other {
		note(a)
	}
	for _, a := range c.resources {
		note(a)
	}
	if want := len(c.other) + len(alpn.Kinds()); len(seen) != want {
		t.Errorf("%d names of %d accounts", len(seen), want)
	}
	w := &lane{Gateway: &Gateway{classes: c}}
	for kind, a := range c.resources {
		if got, class := w.accountOf(a.name); got != a || class != alpn.Resource {
			t.Errorf("%s: a moved connection is counted as %s, of class %v", kind, got.name, class)
		}
	}
	for i, a := range c.other {
		if got, class := w.accountOf(a.name); got != a || class != alpn.Class(i) {
			t.Errorf("class %v: a moved connection is counted as %s, of class %v", alpn.Class(i), got.name, class)
		}
	}
}
