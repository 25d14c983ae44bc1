package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

func testWatch(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r0 := put(t, s, "w/old", "", store.Absent)
	ch := s.Watch(ctx, "w", r0)
	r1 := put(t, s, "w/a", "1", store.Absent)
	put(t, s, "wx", "beside", store.Absent)
	put(t, s, "w/a", "2", r1)
	apply(t, s, store.Op{Key: "w/a", Delete: true, Expect: store.Any}, store.Op{Key: "w/b", Value: []byte("3")})

	got := receive(t, ch, 4)
	for i, want := range []string{"w/a=1", "w/a=2"} {
		if describe(got[i]) != want {
			t.Errorf("change %d: %s, want %s", i, describe(got[i]), want)
		}
	}
	last := map[string]bool{describe(got[2]): true, describe(got[3]): true}
	if !last["w/a gone"] || !last["w/b=3"] {
		t.Errorf("last two changes: %v", last)
	}
	if got[2].Item.Revision != got[3].Item.Revision {
		t.Errorf("one transaction, two revisions: %+v", got[2:])
	}
}

func testWatchFromPast(t *testing.T, s store.Store) {
	r1 := put(t, s, "w/a", "1", store.Absent)
	put(t, s, "w/a", "2", store.Any)
	put(t, s, "w/b", "3", store.Any)
	got := receive(t, s.Watch(t.Context(), "w/", r1), 2)
	if describe(got[0]) != "w/a=2" || describe(got[1]) != "w/b=3" {
		t.Errorf("got %s, %s", describe(got[0]), describe(got[1]))
	}
	ch := s.Watch(t.Context(), "", 0)
	if all := receive(t, ch, 3); describe(all[0]) != "w/a=1" {
		t.Errorf("from the beginning: %s", describe(all[0]))
	}
}

// testWatchSlow checks that a reader who does not read costs a bounded amount:
// it is cut off, and told so by the closed channel.
func testWatchSlow(t *testing.T, s store.Store) {
	ch := s.Watch(t.Context(), "w", 0)
	big := bytes.Repeat([]byte("v"), store.MaxValue)
	const n = 40 // MiB: more than any implementation may hold
	for i := range n {
		put(t, s, fmt.Sprintf("w/%d", i%4), string(big), store.Any)
	}
	seen := 0
	deadline := time.After(wait)
	for {
		select {
		case c, ok := <-ch:
			seen += len(c)
			if !ok {
				if seen >= n {
					t.Errorf("the slow reader got all %d changes", seen)
				}
				return
			}
			if seen >= n {
				t.Fatalf("the slow reader got all %d changes", seen)
			}
		case <-deadline:
			t.Fatal("the slow reader was not cut off")
		}
	}
}

func testWatchEnds(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	ch := s.Watch(ctx, "w", 0)
	cancel()
	closed(t, ch)
	closed(t, s.Watch(t.Context(), "/", 0))
	closed(t, s.Watch(t.Context(), "w", -1))
	ch = s.Watch(t.Context(), "w", 0)
	put(t, s, "w/1", "", store.Absent)
	receive(t, ch, 1)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	closed(t, ch)
	if _, err := s.Get(t.Context(), "w/1"); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("get after close: %v", err)
	}
}

func testLeaseExpires(t *testing.T, s store.Store) {
	id := grant(t, s, 5*store.MinTTL) // time for a busy machine to use it
	ch := s.Watch(t.Context(), "l", 0)
	apply(t, s, store.Op{Key: "l/a", Value: []byte("x"), Lease: id})
	got := receive(t, ch, 2)
	if got[0].Item.Lease != id {
		t.Errorf("lease of the item: %+v", got[0].Item)
	}
	if describe(got[1]) != "l/a gone" {
		t.Errorf("got %s", describe(got[1]))
	}
	if err := s.KeepAlive(t.Context(), id); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("keep alive after the end: %v", err)
	}
	if _, err := s.Apply(t.Context(), store.Op{Key: "l/b", Lease: id}); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("use after the end: %v", err)
	}
}

func testLeaseRevoked(t *testing.T, s store.Store) {
	id := grant(t, s, time.Hour)
	other := grant(t, s, time.Hour)
	apply(t, s, store.Op{Key: "l/a", Lease: id}, store.Op{Key: "l/b", Lease: other}, store.Op{Key: "l/c"})
	if err := s.Revoke(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	items, _, err := s.List(t.Context(), "l")
	if err != nil || len(items) != 2 || items[0].Key != "l/b" || items[1].Key != "l/c" {
		t.Errorf("after revoke: %+v, %v", items, err)
	}
	if err := s.Revoke(t.Context(), id); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("second revoke: %v", err)
	}
}

// testLeaseKept keeps one lease alive until another of the same length ends.
func testLeaseKept(t *testing.T, s store.Store) {
	const ttl = 5 * store.MinTTL // time for a busy machine to keep it
	kept, left := grant(t, s, ttl), grant(t, s, ttl)
	ch := s.Watch(t.Context(), "l", 0)
	apply(t, s, store.Op{Key: "l/kept", Lease: kept}, store.Op{Key: "l/left", Lease: left})
	receive(t, ch, 2)
	tick := time.NewTicker(store.MinTTL / 4)
	defer tick.Stop()
	deadline := time.After(wait)
	for {
		select {
		case <-tick.C:
			if err := s.KeepAlive(t.Context(), kept); err != nil {
				t.Fatalf("keep alive: %v", err)
			}
		case c := <-ch:
			if len(c) != 1 || describe(c[0]) != "l/left gone" {
				t.Errorf("got %+v", c)
			}
			return
		case <-deadline:
			t.Fatal("the lease that was left did not end")
		}
	}
}

func testCanceled(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, do := range map[string]func() error{
		"get":      func() error { _, err := s.Get(ctx, "a"); return err },
		"list":     func() error { _, _, err := s.List(ctx, "a"); return err },
		"apply":    func() error { _, err := s.Apply(ctx, store.Op{Key: "a"}); return err },
		"revision": func() error { _, err := s.Revision(ctx); return err },
		"grant":    func() error { _, err := s.Grant(ctx, time.Minute); return err },
	} {
		if err := do(); !errors.Is(err, sallyport.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func grant(t *testing.T, s store.Store, ttl time.Duration) store.LeaseID {
	t.Helper()
	id, err := s.Grant(t.Context(), ttl)
	if err != nil {
		t.Fatalf("grant: %v", err)
	}
	return id
}

func receive(t *testing.T, ch <-chan []store.Change, n int) []store.Change {
	t.Helper()
	var got []store.Change
	deadline := time.After(wait)
	for len(got) < n {
		select {
		case c, ok := <-ch:
			if !ok {
				t.Fatalf("watch ended after %d of %d changes", len(got), n)
			}
			got = append(got, c...)
		case <-deadline:
			t.Fatalf("%d of %d changes within %v", len(got), n, wait)
		}
	}
	return got
}

func closed(t *testing.T, ch <-chan []store.Change) {
	t.Helper()
	deadline := time.After(wait)
	for {
		select {
		case _, ok := <-ch:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("watch did not end")
		}
	}
}

func describe(c store.Change) string {
	if c.Deleted {
		return c.Item.Key + " gone"
	}
	return c.Item.Key + "=" + string(c.Item.Value)
}
