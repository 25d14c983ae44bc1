package etcd

import (
	"errors"
	"fmt"
	"log/slog"
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
		t.Fatalf("open: %v", err)
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
	deadline := time.Now().Add(time.Minute)
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
