package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRemnants: who lives is listed, with the newest that it said; who has died
// is not, and leaves no file.
func TestRemnants(t *testing.T) {
	dir := t.TempDir()
	if got := readRemnants(dir); got != nil {
		t.Errorf("%v before the first", got)
	}
	now := time.Now()
	older := remnantReport{PID: os.Getpid() + 1, Version: "v1", Since: now.Add(-time.Hour), Holds: map[string]int{"sessions": 123456}}
	a, err := openRemnant(dir, remnantReport{PID: os.Getpid(), Version: "v2", Since: now, Holds: map[string]int{"sessions": 2}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := openRemnant(dir, older)
	if err != nil {
		t.Fatal(err)
	}
	older.Holds = map[string]int{"sessions": 1}
	if err := b.say(older); err != nil {
		t.Fatal(err)
	}
	got := readRemnants(dir)
	if len(got) != 2 || got[0].Version != "v1" || got[0].Holds["sessions"] != 1 || got[1].PID != os.Getpid() {
		t.Errorf("%+v", got)
	}
	for _, r := range got {
		path := remnantPath(filepath.Join(dir, remnantsDir), r.PID)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || info.Size() != remnantRecord {
			t.Errorf("%v, %v", info, err)
		}
	}
	if err := b.file.Close(); err != nil { // as the death of the process does
		t.Fatal(err)
	}
	if got := readRemnants(dir); len(got) != 1 || got[0].Version != "v2" {
		t.Errorf("%+v", got)
	}
	if err := a.say(remnantReport{Version: strings.Repeat("v", remnantRecord)}); err == nil {
		t.Error("a record without a bound was written")
	}
	if err := a.close(dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, remnantsDir)); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestReadersAreNotTheProcess: of two readers of a dead process's record one took the
// other's lock for the process's, and had it for alive.
func TestReadersAreNotTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1.json")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := lockNow(other, unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	if _, alive := readRemnant(path); alive {
		t.Error("a reader was taken for the process")
	}
}
