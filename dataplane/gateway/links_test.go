//go:build unix

package gateway

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestLinks: whatever is added and removed, also while all are looked at, each link is
// there once, and nothing is kept of those that are gone.
func TestLinks(t *testing.T) {
	var s links
	in := map[*link]bool{}
	same := func() {
		t.Helper()
		seen := slices.Collect(s.all())
		if len(seen) != len(in) || s.len() != len(in) {
			t.Fatalf("%d links, %d of them seen, want %d", s.len(), len(seen), len(in))
		}
		for i, l := range seen {
			if !in[l] || l.place == 0 || slices.Contains(seen[:i], l) {
				t.Fatalf("link %d of %d is not in, or twice", i, len(seen))
			}
		}
	}
	add := func() {
		l := &link{}
		s.add(l)
		in[l] = true
	}
	remove := func(l *link) {
		s.remove(l)
		s.remove(l) // as when a relay ends that was let go of
		delete(in, l)
		if l.place != 0 {
			t.Fatal("a link that was removed has a place")
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 5 * linksPage {
		add()
	}
	same()
	for range 20 {
		for l := range s.all() {
			switch r.IntN(4) {
			case 0:
				remove(l)
			case 1:
				add()
			case 2:
				remove(*s.at(r.IntN(s.len())))
			}
		}
		same()
	}
	for l := range s.all() {
		remove(l)
	}
	same()
	if len(s.pages) > 2 {
		t.Errorf("%d pages of nothing", len(s.pages))
	}
	for _, p := range s.pages {
		if *p != [linksPage]*link{} {
			t.Error("a link that is gone is kept")
		}
	}
}
