package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

func openSmall(t *testing.T, dir string, quota int64) *Store {
	t.Helper()
	s, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Quota: quota, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		cause := err
		if p := new(sallyport.Problem); errors.As(err, &p) && p.Cause != nil {
			cause = p.Cause
		}
		t.Fatalf("open: %v: %v", err, cause)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *Store, key string, size int) error {
	t.Helper()
	_, err := s.Apply(t.Context(), store.Op{Key: key, Value: make([]byte, size), Expect: store.Any})
	return err
}

// TestFullOfHistory: whoever changed records often filled the store, and then
// nothing could be written any more, a lock neither, over restarts too.
func TestFullOfHistory(t *testing.T) {
	s := openSmall(t, t.TempDir(), 8<<20)
	for i := range 40 { // MiB
		if err := put(t, s, "resources/a", store.MaxValue); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	if err := put(t, s, "lock/a", 100); err != nil {
		t.Error(err)
	}
	if id, err := s.Grant(t.Context(), time.Minute); err != nil {
		t.Errorf("lease %d: %v", id, err)
	}
}

// roomBy is when a store that has been full has room again at the latest: the pause
// after the last attempt to make some goes by how long that took.
func roomBy(s *Store) time.Time {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	return time.Now().Add(s.space.pause + time.Minute)
}

// TestFullOfRecords: what is full of what is needed says so, is emptied by
// deleting, or has room again with a larger quota.
func TestFullOfRecords(t *testing.T) {
	dir := t.TempDir()
	s := openSmall(t, dir, 4<<20)
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = put(t, s, fmt.Sprintf("resources/%d", n), store.MaxValue)
	}
	if !errors.Is(err, sallyport.ErrUnavailable) || !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("after %d MiB: %v", n, err)
	}
	s.Close()

	s = openSmall(t, dir, 4<<20)
	if err := put(t, s, "lock/a", store.MaxValue); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("after a restart: %v", err)
	}
	for i := range n {
		if _, err := s.Apply(t.Context(), store.Op{Key: fmt.Sprintf("resources/%d", i), Delete: true, Expect: store.Any}); err != nil {
			t.Fatalf("delete %d: %v", i, err)
		}
	}
	deadline := roomBy(s)
	for err = put(t, s, "lock/a", 100); err != nil; err = put(t, s, "lock/a", 100) {
		if !errors.Is(err, rpctypes.ErrNoSpace) || time.Now().After(deadline) {
			t.Fatalf("after deleting: %v", err)
		}
	}

	for i, err := 0, error(nil); err == nil && i < 100; i++ {
		err = put(t, s, fmt.Sprintf("resources/%d", i), store.MaxValue)
	}
	s.Close()
	s = openSmall(t, dir, 64<<20)
	if err := put(t, s, "lock/b", store.MaxValue); err != nil {
		t.Errorf("with a larger quota: %v", err)
	}
}

// fill writes ordinary records, smaller and smaller ones, until not even a small
// one goes in, and returns their keys.
func fill(t *testing.T, s *Store, name string) (keys []string) {
	t.Helper()
	for _, size := range []int{256 << 10, 32 << 10, 4 << 10, 1} {
		for n := 0; ; n++ {
			key := fmt.Sprintf("resources/%s-%d-%d", name, size, n)
			err := put(t, s, key, size)
			if errors.Is(err, rpctypes.ErrNoSpace) {
				break
			}
			if err != nil || n > 1000 {
				t.Fatalf("%s: %v", key, err)
			}
			keys = append(keys, key)
		}
	}
	return keys
}

// reserved writes a record that may use the reserve.
func reserved(t *testing.T, s *Store, key string, size int) error {
	t.Helper()
	_, err := s.Apply(t.Context(), store.Op{Key: key, Value: make([]byte, size), Expect: store.Any, Reserve: true})
	return err
}

// TestReserve: in a store that was full of what is needed nobody could be locked.
func TestReserve(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	const quota = 16 << 20
	s := openSmall(t, dir, quota)
	var keys []string
	for _, round := range []string{"new", "opened again"} {
		keys = append(keys, fill(t, s, strings.ReplaceAll(round, " ", "-"))...)
		if sp, ok := s.Space(); !ok || sp.Quota != quota || sp.Reserve != quota/16 || sp.InUse > sp.Size || sp.InUse < quota/4*3 || sp.Size >= quota+pagesAnew {
			t.Errorf("%s: %+v, %v", round, sp, ok)
		}
		for i := range 50 {
			if err := reserved(t, s, fmt.Sprintf("lock/%d", i), 1<<10); err != nil {
				t.Fatalf("lock %d: %v", i, err)
			}
		}
		if err := put(t, s, "resources/ordinary", 1); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("an ordinary record beside the locks: %v", err)
		}
		// Who writes something with a lock's leave must have leave for all of it.
		_, err := s.Apply(ctx, store.Op{Key: "lock/mixed", Expect: store.Any, Reserve: true}, store.Op{Key: "resources/mixed", Expect: store.Any})
		if !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("an ordinary record with a lock: %v", err)
		}
		if _, err := s.Grant(ctx, time.Minute); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("a lease: %v", err)
		}
		if _, err := s.Apply(ctx, store.Op{Key: keys[0], Check: true, Expect: store.Any}); err != nil {
			t.Errorf("a check: %v", err)
		}
		s.Close()
		if _, ok := s.Space(); ok {
			t.Error("a closed store says what it takes")
		}
		s = openSmall(t, dir, quota)
	}

	// The reserve has an end, which is no end for removals.
	err := error(nil)
	for i := 0; err == nil && i < 1000; i++ { // etcd knows its size as of the last commit: the faster, the later it ends
		err = reserved(t, s, fmt.Sprintf("lock/large-%d", i), 128<<10)
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("the reserve has no end: %v", err)
	}
	for _, key := range keys {
		if _, err := s.Apply(ctx, store.Op{Key: key, Delete: true, Expect: store.Any}); err != nil {
			t.Fatalf("delete %s: %v", key, err)
		}
	}
	deadline := roomBy(s)
	for err = put(t, s, "resources/a", 1<<20); err != nil; err = put(t, s, "resources/a", 1<<20) {
		if !errors.Is(err, rpctypes.ErrNoSpace) || time.Now().After(deadline) {
			t.Fatalf("after deleting: %v", err)
		}
	}
	if err := reserved(t, s, "lock/last", 1<<10); err != nil {
		t.Error(err)
	}
}

// TestReserveIsKept: however many write at a time.
func TestReserveIsKept(t *testing.T) {
	const quota = 16 << 20
	s := openSmall(t, t.TempDir(), quota)
	var g sync.WaitGroup
	for i := range 16 {
		g.Go(func() {
			for n := 0; ; n++ {
				if err := put(t, s, fmt.Sprintf("resources/%d-%d", i, n), 48<<10); err != nil {
					if !errors.Is(err, rpctypes.ErrNoSpace) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	g.Wait()
	if sp, _ := s.Space(); sp.InUse < quota/4*3 || sp.Size >= quota+pagesAnew {
		t.Errorf("%+v", sp)
	}
	if err := reserved(t, s, "lock/a", 1<<10); err != nil {
		t.Error(err)
	}
	if n := s.space.underway; n != 0 {
		t.Errorf("%d bytes are under way", n)
	}
}
