// Package storetest is the suite that every implementation of store.Store passes.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// wait bounds every wait of the suite; reaching it is a failure.
const wait = time.Minute

// Run runs the suite. Each call of open returns an empty store, which the suite closes.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"Revisions", testRevisions},
		{"Expectations", testExpectations},
		{"AllOrNothing", testAllOrNothing},
		{"Checks", testChecks},
		{"Limits", testLimits},
		{"List", testList},
		{"ListPages", testListPages},
		{"Race", testRace},
		{"Watch", testWatch},
		{"WatchFromPast", testWatchFromPast},
		{"WatchSlow", testWatchSlow},
		{"WatchEnds", testWatchEnds},
		{"LeaseExpires", testLeaseExpires},
		{"LeaseRevoked", testLeaseRevoked},
		{"LeaseKept", testLeaseKept},
		{"Canceled", testCanceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			c.test(t, s)
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Errorf("second close: %v", err)
			}
		})
	}
}

func testRevisions(t *testing.T, s store.Store) {
	ctx := t.Context()
	if _, err := s.Get(ctx, "a/b"); !errors.Is(err, sallyport.ErrNotFound) {
		t.Fatalf("get of nothing: %v", err)
	}
	r1 := put(t, s, "a/b", "one", store.Absent)
	r2 := put(t, s, "a/b", "two", r1)
	if r2 <= r1 {
		t.Fatalf("revision %d after %d", r2, r1)
	}
	got, err := s.Get(ctx, "a/b")
	if err != nil {
		t.Fatal(err)
	}
	want := store.Item{Key: "a/b", Value: []byte("two"), Revision: r2, Created: r1}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if rev, err := s.Revision(ctx); err != nil || rev != r2 {
		t.Errorf("revision: %d, %v; want %d", rev, err, r2)
	}
	apply(t, s, store.Op{Key: "a/b", Delete: true, Expect: r2})
	if _, err := s.Get(ctx, "a/b"); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("get after delete: %v", err)
	}
	apply(t, s, store.Op{Key: "a/b", Delete: true, Expect: store.Any})
	r4 := put(t, s, "a/b", "", store.Absent)
	got, err = s.Get(ctx, "a/b")
	if err != nil || got.Created != r4 || len(got.Value) != 0 {
		t.Errorf("created again: %+v, %v", got, err)
	}
}

func testExpectations(t *testing.T, s store.Store) {
	r1 := put(t, s, "here", "1", store.Absent)
	r2 := put(t, s, "here", "2", store.Any)
	put(t, s, "anew", "1", store.Any)
	for _, c := range []struct {
		name string
		op   store.Op
		want error
	}{
		{"create again", store.Op{Key: "here", Expect: store.Absent}, sallyport.ErrExists},
		{"old revision", store.Op{Key: "here", Expect: r1}, sallyport.ErrConflict},
		{"future revision", store.Op{Key: "here", Expect: r2 + 1000}, sallyport.ErrConflict},
		{"delete old", store.Op{Key: "here", Delete: true, Expect: r1}, sallyport.ErrConflict},
		{"update nothing", store.Op{Key: "gone", Expect: r1}, sallyport.ErrNotFound},
		{"delete nothing", store.Op{Key: "gone", Delete: true, Expect: r1}, sallyport.ErrNotFound},
	} {
		if _, err := s.Apply(t.Context(), c.op); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if it, err := s.Get(t.Context(), "here"); err != nil || it.Revision != r2 || string(it.Value) != "2" {
		t.Errorf("changed by refused changes: %+v, %v", it, err)
	}
}

func testAllOrNothing(t *testing.T, s store.Store) {
	r := put(t, s, "a", "1", store.Absent)
	before, _ := s.Revision(t.Context())
	_, err := s.Apply(t.Context(),
		store.Op{Key: "b", Value: []byte("x"), Expect: store.Absent},
		store.Op{Key: "a", Value: []byte("2"), Expect: r - 1})
	if !errors.Is(err, sallyport.ErrConflict) {
		t.Fatalf("err %v", err)
	}
	if after, _ := s.Revision(t.Context()); after != before {
		t.Errorf("revision went from %d to %d by a refused change", before, after)
	}
	rev := apply(t, s,
		store.Op{Key: "b", Value: []byte("x"), Expect: store.Absent},
		store.Op{Key: "c", Value: []byte("y"), Expect: store.Any},
		store.Op{Key: "a", Delete: true, Expect: r})
	items, at, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	want := []store.Item{
		{Key: "b", Value: []byte("x"), Revision: rev, Created: rev},
		{Key: "c", Value: []byte("y"), Revision: rev, Created: rev},
	}
	if d := cmp.Diff(want, items); d != "" || at != rev {
		t.Errorf("at %d, want %d: %s", at, rev, d)
	}
}

func testChecks(t *testing.T, s store.Store) {
	r := put(t, s, "guard", "1", store.Absent)
	apply(t, s, store.Op{Key: "guard", Check: true, Expect: r}, store.Op{Key: "none", Check: true, Expect: store.Absent}, store.Op{Key: "a"})
	if it, err := s.Get(t.Context(), "guard"); err != nil || it.Revision != r || string(it.Value) != "1" {
		t.Errorf("a check changed its key: %+v, %v", it, err)
	}
	if _, err := s.Get(t.Context(), "none"); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("a check made its key: %v", err)
	}
	for _, c := range []struct {
		op   store.Op
		want error
	}{
		{store.Op{Key: "guard", Check: true, Expect: r - 1}, sallyport.ErrConflict},
		{store.Op{Key: "guard", Check: true, Expect: store.Absent}, sallyport.ErrExists},
		{store.Op{Key: "none", Check: true, Expect: r}, sallyport.ErrNotFound},
	} {
		if _, err := s.Apply(t.Context(), store.Op{Key: "b"}, c.op); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c.op, err)
		}
	}
	if _, err := s.Get(t.Context(), "b"); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("done although a check failed: %v", err)
	}
}

func testLimits(t *testing.T, s store.Store) {
	big := bytes.Repeat([]byte("v"), store.MaxValue)
	many := make([]store.Op, store.MaxOps+1)
	for i := range many {
		many[i] = store.Op{Key: fmt.Sprint("many/", i)}
	}
	apply(t, s, store.Op{Key: strings.Repeat("k", store.MaxKey), Value: big})
	apply(t, s, many[:store.MaxOps]...)
	for _, c := range []struct {
		name string
		ops  []store.Op
	}{
		{"no change", nil},
		{"too many", many},
		{"empty key", []store.Op{{Key: ""}}},
		{"long key", []store.Op{{Key: strings.Repeat("k", store.MaxKey+1)}}},
		{"leading slash", []store.Op{{Key: "/a"}}},
		{"trailing slash", []store.Op{{Key: "a/"}}},
		{"blank", []store.Op{{Key: "a b"}}},
		{"newline", []store.Op{{Key: "a\nb"}}},
		{"NUL", []store.Op{{Key: "a\x00"}}},
		{"not ASCII", []store.Op{{Key: "ä"}}},
		{"long value", []store.Op{{Key: "a", Value: append(big, 'x')}}},
		{"long in sum", []store.Op{{Key: "a", Value: big}, {Key: "b", Value: big}}},
		{"same key twice", []store.Op{{Key: "a"}, {Key: "a"}}},
		{"negative revision", []store.Op{{Key: "a", Expect: -2}}},
		{"delete what must not exist", []store.Op{{Key: "a", Delete: true}}},
		{"check with value", []store.Op{{Key: "a", Check: true, Value: []byte("x")}}},
		{"check and delete", []store.Op{{Key: "a", Check: true, Delete: true, Expect: store.Any}}},
		{"delete with value", []store.Op{{Key: "a", Delete: true, Expect: store.Any, Value: []byte("x")}}},
	} {
		if _, err := s.Apply(t.Context(), c.ops...); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := s.Get(t.Context(), "a\xff"); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("get: %v", err)
	}
	if _, _, err := s.List(t.Context(), "/"); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("list: %v", err)
	}
	for _, ttl := range []time.Duration{-1, 0, store.MinTTL - 1, store.MaxTTL + 1} {
		if _, err := s.Grant(t.Context(), ttl); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("lease of %v: %v", ttl, err)
		}
	}
}

func testList(t *testing.T, s store.Store) {
	for _, k := range []string{"user/b", "user/a", "user/a/x", "users/c", "usea", "zz", "user"} {
		put(t, s, k, k, store.Absent)
	}
	for _, c := range []struct{ prefix, want string }{
		{"", "usea user user/a user/a/x user/b users/c zz"},
		{"user", "user/a user/a/x user/b"},
		{"user/", "user/a user/a/x user/b"},
		{"user/a", "user/a/x"},
		{"use", ""},
		{"none", ""},
	} {
		items, _, err := s.List(t.Context(), c.prefix)
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, it := range items {
			keys = append(keys, it.Key)
		}
		if got := strings.Join(keys, " "); got != c.want {
			t.Errorf("list %q: %q, want %q", c.prefix, got, c.want)
		}
	}
}

func testListPages(t *testing.T, s store.Store) {
	const n = 700
	for i := 0; i < n; i += 50 {
		var ops []store.Op
		for j := i; j < i+50; j++ {
			ops = append(ops, store.Op{Key: fmt.Sprintf("p/%05d", j), Value: []byte{byte(j)}})
		}
		apply(t, s, ops...)
	}
	items, rev, err := s.List(t.Context(), "p")
	if err != nil {
		t.Fatal(err)
	}
	if now, _ := s.Revision(t.Context()); rev != now || len(items) != n {
		t.Fatalf("%d items at %d, want %d at %d", len(items), rev, n, now)
	}
	for i, it := range items {
		if it.Key != fmt.Sprintf("p/%05d", i) || it.Value[0] != byte(i) {
			t.Fatalf("item %d is %s", i, it.Key)
		}
	}
}

// testRace lets many writers create one key: one wins. Then all count up one
// key by compare-and-swap: no step is lost.
func testRace(t *testing.T, s store.Store) {
	const writers, steps = 8, 10
	var wins, sum sync.Map
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			_, err := s.Apply(t.Context(), store.Op{Key: "one", Value: []byte{byte(w)}})
			if err == nil {
				wins.Store(w, true)
			} else if !errors.Is(err, sallyport.ErrExists) {
				t.Errorf("create: %v", err)
			}
			for i := range steps {
				v, err := increment(t.Context(), s, "counter")
				if err != nil {
					t.Errorf("count: %v", err)
					return
				}
				if _, twice := sum.LoadOrStore(v, true); twice {
					t.Errorf("value %d given twice (writer %d, step %d)", v, w, i)
				}
			}
		})
	}
	wg.Wait()
	if n := size(&wins); n != 1 {
		t.Errorf("%d writers created the same key", n)
	}
	if n := size(&sum); n != writers*steps {
		t.Errorf("counted to %d, want %d", n, writers*steps)
	}
}

func increment(ctx context.Context, s store.Store, key string) (int, error) {
	for {
		it, err := s.Get(ctx, key)
		if err != nil && !errors.Is(err, sallyport.ErrNotFound) {
			return 0, err
		}
		var n int
		fmt.Sscan(string(it.Value), &n)
		n++
		_, err = s.Apply(ctx, store.Op{Key: key, Value: fmt.Append(nil, n), Expect: it.Revision})
		switch {
		case err == nil:
			return n, nil
		case !errors.Is(err, sallyport.ErrConflict) && !errors.Is(err, sallyport.ErrExists):
			return 0, err
		}
	}
}

func size(m *sync.Map) (n int) {
	m.Range(func(any, any) bool { n++; return true })
	return n
}

func put(t *testing.T, s store.Store, key, value string, expect int64) int64 {
	t.Helper()
	return apply(t, s, store.Op{Key: key, Value: []byte(value), Expect: expect})
}

func apply(t *testing.T, s store.Store, ops ...store.Op) int64 {
	t.Helper()
	rev, err := s.Apply(t.Context(), ops...)
	if err != nil {
		t.Fatalf("apply %s: %v", ops[0].Key, err)
	}
	return rev
}
