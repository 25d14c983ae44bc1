package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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
	filler := fillDisk(t, dir)
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

// fillDisk leaves nothing of dir's file system until the file that it returns is removed.
func fillDisk(t *testing.T, dir string) (filler string) {
	t.Helper()
	filler = filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 200<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	return filler
}

// fillLog changes what takes so many files of the log.
func fillLog(t *testing.T, s *Store, files int) {
	t.Helper()
	for n := range files*logFile/store.MaxValue + 1 {
		if err := put(t, s, "resources/again", store.MaxValue); err != nil {
			t.Fatalf("change %d: %v", n, err)
		}
	}
}

// TestF7_OpenFull: a store that was opened on a full disk ended the process much
// later, at the end of its log's first file, when there was room for long. What it
// needs is kept while it is closed; without that it is not opened.
func TestF7_OpenFull(t *testing.T) {
	for name, prepare := range map[string]func(next string) error{
		"kept": func(string) error { return nil },
		"after a crash": func(next string) error {
			return os.Rename(next, filepath.Join(filepath.Dir(next), "1.tmp"))
		},
		"not kept": os.Remove,
		"begun": func(next string) error {
			return os.WriteFile(next, []byte("\x04\x00\x00\x00\x00\x00\x00\x84rest"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := smallDisk(t)
			where := filepath.Join(dir, "store")
			s := openSmall(t, where, 1<<30)
			if err := errors.Join(put(t, s, "resources/before", 1<<10), s.Close(), prepare(nextFile(where))); err != nil {
				t.Fatal(err)
			}
			filler := fillDisk(t, dir)
			kept := name == "kept" || name == "after a crash"
			if kept {
				s = openSmall(t, where, 1<<30)
				if err := put(t, s, "resources/refused", 1<<10); err == nil {
					t.Error("a change on a full disk")
				}
			} else if _, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: where}); err == nil || !strings.Contains(err.Error(), "its disk is full") {
				t.Fatalf("opened without room: %v", err)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if !kept {
				s = openSmall(t, where, 1<<30)
			}
			fillLog(t, s, 2)
		})
	}
}

// TestF7_LogEnds: the disk is full while the log begins a file. No change leads to
// its end, with room again neither, before the store is opened anew.
func TestF7_LogEnds(t *testing.T) {
	dir := smallDisk(t)
	where := filepath.Join(dir, "store")
	s := openSmall(t, where, 1<<30)
	for range logFile/store.MaxValue - 1 {
		if err := put(t, s, "resources/before", store.MaxValue); err != nil {
			t.Fatal(err)
		}
	}
	filler := fillDisk(t, dir)
	locks := 0
	for ; !s.disk.ends() && locks < 4000; locks++ {
		if err := reserved(t, s, "lock/a", 32<<10); err != nil {
			t.Fatalf("lock %d: %v", locks, err)
		}
		time.Sleep(time.Millisecond) // the next file is made beside
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := put(t, s, "resources/refused", 1<<10); err == nil || !strings.Contains(err.Error(), "when its log needed room") {
		t.Errorf("after %d locks, a change that leads to the end of the log: %v", locks, err)
	}
	for locks = 0; locks < 4000; locks++ {
		if err := reserved(t, s, "lock/a", 32<<10); err != nil {
			break
		}
	}
	if locks < 32 || locks > logFile/(32<<10) {
		t.Errorf("%d locks", locks)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fillLog(t, openSmall(t, where, 1<<30), 1)
}

// TestF7_Snapshot: etcd writes a snapshot after many changes, and ended the process
// when it could not.
func TestF7_Snapshot(t *testing.T) {
	dir := smallDisk(t)
	s := openSmall(t, filepath.Join(dir, "store"), 1<<30)
	if err := put(t, s, "resources/before", 1<<10); err != nil {
		t.Fatal(err)
	}
	filler := fillDisk(t, dir)
	var refused atomic.Int64
	var clients sync.WaitGroup
	for n := range 32 {
		clients.Go(func() {
			for range snapEvery/32 + snapSoon {
				if err := reserved(t, s, fmt.Sprintf("lock/%d", n), 1); err != nil {
					if !strings.Contains(err.Error(), "the store's disk is full") {
						t.Error(err)
					}
					refused.Add(1)
				}
			}
		})
	}
	clients.Wait()
	if n := refused.Load(); n < 31*snapSoon || n > 34*snapSoon {
		t.Errorf("%d changes were refused", n)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	for n := range 2 * snapSoon {
		if err := put(t, s, "resources/again", n); err != nil {
			t.Fatal(err)
		}
	}
}
