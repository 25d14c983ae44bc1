package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/controlplane/store"
)

// smallDisk is a directory with room for 200 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=200m,mode=0700"); err != nil {
		t.Skip("mounting a tmpfs needs privileges:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestF7_FullDisk: etcd ended the process when the disk was full, with every
// connection that it carried.
func TestF7_FullDisk(t *testing.T) {
	dir := smallDisk(t)
	s := openSmall(t, filepath.Join(dir, "store"), 1<<30)
	if err := put(t, s, "resources/before", 1<<10); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 200<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	for range 3 {
		err := put(t, s, "resources/refused", 1<<10)
		if err == nil || !strings.Contains(err.Error(), "the store's disk is full") {
			t.Fatalf("an ordinary change: %v", err)
		}
	}
	if _, err := s.Grant(t.Context(), time.Minute); err == nil {
		t.Error("a lease was granted")
	}
	locks := 0
	for ; locks < 4000; locks++ {
		if err := reserved(t, s, fmt.Sprintf("lock/%d", locks), 32<<10); err != nil {
			if !strings.Contains(err.Error(), "the store's disk is full") {
				t.Fatalf("lock %d: %v", locks, err)
			}
			break
		}
	}
	if locks < 32 || locks == 4000 {
		t.Errorf("%d locks", locks)
	}
	s.space.commit()
	if items, _, err := s.List(t.Context(), "lock/"); err != nil || len(items) != locks {
		t.Errorf("%d of %d locks are there: %v", len(items), locks, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := put(t, s, "resources/again", store.MaxValue); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestF7_LogGoesOn: a store that was opened on a full disk ended the process much
// later, at the end of its log's first file, when there was room for long. What it
// needs is kept while it is closed; without that, too, no change leads there.
func TestF7_LogGoesOn(t *testing.T) {
	for name, spared := range map[string]bool{"spared": true, "not spared": false} {
		t.Run(name, func(t *testing.T) {
			dir := smallDisk(t)
			where, filler := filepath.Join(dir, "store"), filepath.Join(dir, "filler")
			s := openSmall(t, where, 1<<30)
			if err := errors.Join(put(t, s, "resources/before", 1<<10), s.Close()); err != nil {
				t.Fatal(err)
			}
			if !spared {
				if err := os.Remove(spareFile(where)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filler, make([]byte, 200<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("the file system is not full: %v", err)
			}
			s = openSmall(t, where, 1<<30)
			if err := put(t, s, "resources/refused", 1<<10); err == nil {
				t.Error("a change on a full disk")
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if !spared {
				if err := put(t, s, "resources/refused", 1<<10); err == nil || !strings.Contains(err.Error(), "when its log needed room") {
					t.Errorf("a change that leads to the end of the log: %v", err)
				}
				if err := reserved(t, s, "lock/a", 1<<10); err == nil {
					t.Error("a lock that leads there")
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openSmall(t, where, 1<<30)
			}
			for n := range 2 * logFile / store.MaxValue {
				if err := put(t, s, "resources/again", store.MaxValue); err != nil {
					t.Fatalf("change %d: %v", n, err)
				}
			}
		})
	}
}
