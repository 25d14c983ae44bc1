package audit

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport"
)

// TestF7_RealFullDisk fills a real file system of 512 KiB.
func TestF7_RealFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k,mode=0700"); err != nil {
		t.Skip("mounting a tmpfs needs privileges:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := openSpool(t, SpoolConfig{Dir: filepath.Join(dir, "spool"), Ballast: 128 << 10})
	if err := s.Emit(t.Context(), event("first", nil), true); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	var err error
	before := uint64(1)
	for n := 0; n < 64; n++ { // the last page of the segment has room
		if err = s.Emit(t.Context(), event("before", nil), true); err != nil {
			break
		}
		before++
	}
	if !errors.Is(err, sallyport.ErrExhausted) {
		t.Fatalf("on a full disk: %v", err)
	}
	within(t, "last words", func() bool { return s.Status().Sequence > before })
	if got := names(t, drain(t, s, before)); got != "audit.stopped" {
		t.Errorf("last words %q", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	within(t, "recovery", func() bool { return s.Emit(t.Context(), event("again", nil), true) == nil })
	if got := names(t, drain(t, s, before)); got != "audit.stopped audit.resumed again" {
		t.Errorf("events %q", got)
	}
}
