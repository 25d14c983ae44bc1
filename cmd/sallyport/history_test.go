package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestHistory: the newest upgrades are kept, in a file that is nobody else's.
func TestHistory(t *testing.T) {
	dir := t.TempDir()
	if got := readHistory(dir); len(got) != 0 {
		t.Errorf("%v before the first", got)
	}
	for i := range historyMost + 3 {
		if err := addHistory(dir, upgradeReport{ToPID: i + 1, Outcome: upgradeDone}); err != nil {
			t.Fatal(err)
		}
	}
	all := readHistory(dir)
	if len(all) != historyMost || all[0].ToPID != 4 || all[historyMost-1].ToPID != historyMost+3 {
		t.Errorf("%d, first %d", len(all), all[0].ToPID)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	path := filepath.Join(dir, historyFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	// A file that is broken is none, and is replaced by the next.
	if err := os.WriteFile(path, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readHistory(dir); got != nil {
		t.Errorf("%v of a broken file", got)
	}
	if err := addHistory(dir, upgradeReport{ToPID: 1}); err != nil || len(readHistory(dir)) != 1 {
		t.Errorf("%v, %v", err, readHistory(dir))
	}
	if err := os.Truncate(path, maxHistory+1); err != nil || readHistory(dir) != nil {
		t.Errorf("a file without an end was read: %v", err)
	}
}

// TestHistoryAfterKill: what a killed process had begun to write stayed for ever.
func TestHistoryAfterKill(t *testing.T) {
	dir := t.TempDir()
	if err := addHistory(dir, upgradeReport{ToPID: 1, Outcome: upgradeDone}); err != nil {
		t.Fatal(err)
	}
	// The process dies between its write and the rename.
	f, err := os.CreateTemp(dir, unfinished(historyFile)+"*")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "."+historyFile)
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := &node{cfg: &config{DataDir: dir}}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.prepareDir(); err != nil {
		t.Fatal(err)
	}
	defer n.lock.Close()
	defer n.admin.Close()
	if _, err := os.Stat(f.Name()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", f.Name(), err)
	}
	if _, err := os.Stat(other); err != nil || len(readHistory(dir)) != 1 {
		t.Errorf("%v, %v", err, readHistory(dir))
	}
}
