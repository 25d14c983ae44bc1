//go:build unix

package gateway

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
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

// TestLinkAgain: a relay takes the place of one that has ended, and of no other.
func TestLinkAgain(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops[:1])
		way := w.both(t)[0]
		type seen struct {
			relay *relay.Relay
			peer  netip.AddrPort
		}
		running := func() (all map[*link]seen) {
			w.Gateway.each(func(w *lane) {
				all = map[*link]seen{}
				for l := range w.links.all() {
					all[l] = seen{l.relay, l.peer()}
				}
			})
			return all
		}
		first := w.open(t, way.hello, way.far)
		one := running()
		second := w.open(t, way.hello, way.far)
		two := running()
		check(t, first.client.Close())
		first.wantsEnd(first.far)
		check(t, first.far.Close())
		eventually(t, "it has ended", func() bool { return len(running()) == 1 })
		third := w.open(t, way.hello, way.far)
		three := running()
		if len(one) != 1 || len(two) != 2 || len(three) != 2 {
			t.Fatalf("%d, %d and %d relays", len(one), len(two), len(three))
		}
		for l, was := range two {
			is, there := three[l]
			if _, ended := one[l]; !there || is.relay != was.relay || (is.peer != was.peer) != ended {
				t.Errorf("%v is %v now; it had ended: %v", was, is, ended)
			}
		}
		for _, s := range []*session{second, third} {
			s.says(s.client, "question")
			s.wants(s.far, []byte("question"))
			s.says(s.far, "reply")
			s.wants(s.client, []byte("reply"))
		}
	})
}

// deafOwner is not told of its relay's end.
type deafOwner struct{}

func (deafOwner) Ended(relay.State, relay.Reason) {}

// nothing is a hand-over's writer to which nothing may be sent.
type nothing struct{ *testing.T }

func (n nothing) Send(context.Context, handover.Record) error { n.Error("sent"); return nil }

func (n nothing) TrySend(handover.Record) (bool, error) { n.Error("sent"); return true, nil }

// TestLinkNotToldYet: a relay that has ended and whose link is told later is no relay
// to a hand-over: it has no descriptors.
func TestLinkNotToldYet(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops[:1])
		way := w.both(t)[0]
		s := w.open(t, way.hello, way.far)
		seen := 0
		w.Gateway.each(func(w *lane) {
			w.handing = 1 // nothing was copied in it
			defer func() { w.handing, w.form = 0, nil }()
			for l := range w.links.all() {
				seen++
				fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				check(t, err)
				kept := l.relay
				l.relay = relay.Start(w.loop, relay.State{A: relay.End{FD: fds[0]}, B: relay.End{FD: fds[1]}}, deafOwner{})
				l.relay.Abort()
				uncopied, changed := w.unsaid()
				if len(w.uncopied())+len(uncopied)+len(changed) != 0 {
					t.Error("it is to be copied")
				}
				if ok, err := w.copySlice(nothing{t}, []*link{l}); !ok || err != nil {
					t.Error(ok, err)
				}
				l.relay = kept
			}
		})
		if seen != 1 {
			t.Fatalf("%d relays", seen)
		}
		s.says(s.client, "question")
		s.wants(s.far, []byte("question"))
	})
}
