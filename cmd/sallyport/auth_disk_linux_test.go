package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestUpgradeOnFullDisk: auth was closed for the upgrade, and could be opened again
// by nobody before a restart, room or not.
func TestUpgradeOnFullDisk(t *testing.T) {
	cfg := authOnly(t)
	if err := syscall.Mount("tmpfs", cfg.DataDir, "tmpfs", 0, "size=250m,mode=0700"); err != nil {
		t.Skip("mounting a tmpfs needs privileges:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(cfg.DataDir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := startAuthProcessOf(t, cfg)
	defer func() { p.end() }()
	filler := filepath.Join(cfg.DataDir, "filler")
	if err := os.WriteFile(filler, make([]byte, 250<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	giver := &authGiver{p.a}
	if err := giver.Freeze(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "the store's disk is full") {
		t.Errorf("freeze: %v", err)
	}
	if err := giver.Thaw(); err != nil {
		t.Errorf("thaw: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if p.a.shownStore.Load().Room() != nil {
		t.Error("there is no room after all")
	}
	p, _ = p.upgrade()
}
