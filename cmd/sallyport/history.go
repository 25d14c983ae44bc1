package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	historyFile = "upgrades.json"
	historyMost = 50
	maxHistory  = 1 << 20
)

// Outcomes of an upgrade.
const (
	upgradeDone     = "done"
	upgradePossible = "possible" // --check-only
	upgradeRefused  = "refused"  // before anything was touched
	upgradeUndone   = "undone"   // the old process goes on as before
	upgradeWatching = "watching" // a canary; not in the record
	upgradeBack     = "back"     // a canary has gone back
)

// upgradeReport is what an upgrade came to.
type upgradeReport struct {
	Time    time.Time `json:"time"`
	By      string    `json:"by"`
	Outcome string    `json:"outcome"`

	FromVersion string `json:"from_version"`
	ToVersion   string `json:"to_version,omitempty"`
	FromPID     int    `json:"from_pid"`
	ToPID       int    `json:"to_pid,omitempty"`

	Committed *time.Time `json:"committed,omitempty"` // when it was

	TookMS  float64 `json:"took_ms"`  // from the first step to the commit, or to the failure
	CopyMS  float64 `json:"copy_ms"`  // of that, while everything went on
	StallMS float64 `json:"stall_ms"` // from the first loop's stop until the commit
	Relays  int     `json:"relays"`   // that moved
	Records int     `json:"records"`
	Sockets int     `json:"descriptors"`

	Step string `json:"step,omitempty"` // of the hand-over, where it failed

	Remnant []string `json:"remnant,omitempty"` // what stayed with the old process
	Problem string   `json:"problem,omitempty"`
	Hint    string   `json:"hint,omitempty"`

	Canary *canaryStatus `json:"canary,omitempty"` // what it came to
}

// readHistory returns the upgrades of a data directory, oldest first. A file
// that cannot be read is none: it is for people, nothing depends on it.
func readHistory(dir string) []upgradeReport {
	path := filepath.Join(dir, historyFile)
	if info, err := os.Stat(path); err != nil || info.Size() > maxHistory {
		return nil
	}
	b, err := os.ReadFile(path)
	var all []upgradeReport
	if err != nil || json.Unmarshal(b, &all) != nil {
		return nil
	}
	return all[max(0, len(all)-historyMost):]
}

// addHistory keeps the newest upgrades. The file is replaced as a whole.
func addHistory(dir string, r upgradeReport) error {
	all := append(readHistory(dir), r)
	b, err := json.MarshalIndent(all[max(0, len(all)-historyMost):], "", " ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, historyFile), append(b, '\n'))
}

// sweepHistory removes what a process that was killed while it wrote the record
// has left: such files have names of their own, which no later write takes. They
// are in nobody's way, so one that stays is no error.
func sweepHistory(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished(historyFile)) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// unfinished begins the names under which a file is written before it has its own.
func unfinished(name string) string { return "." + name + "-" }

// replaceFile writes a file of mode 0600 so that a reader finds the old or the
// new one, and nothing between.
func replaceFile(path string, b []byte) error { return replaceFileMode(path, b, 0o600) }

func replaceFileMode(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), unfinished(filepath.Base(path))+"*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
