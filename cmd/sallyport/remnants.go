package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	remnantsDir    = "remnants"
	remnantsMost   = 64   // that status shows
	remnantRecord  = 2048 // bytes: one write, which a reader sees whole or not at all
	remnantRefresh = 2 * time.Second
)

// remnantReport is what an old process says of itself while it still has work, and
// a canary from its start on.
type remnantReport struct {
	PID     int            `json:"pid"`
	Version string         `json:"version"`
	Since   time.Time      `json:"since"` // when it handed over, or a canary began, or was left
	Until   time.Time      `json:"until"` // when it ends at the latest
	Holds   map[string]int `json:"holds"` // by what it is

	Canary bool `json:"canary,omitempty"` // what it holds did not come back from it
}

// remnantFile is this process's place among those that have handed over. Its file is
// locked for as long as the process lives: one without a lock is of a process
// that was killed.
type remnantFile struct{ file *os.File }

// openRemnant makes the file. It has its lock before it has its name.
func openRemnant(dataDir string, r remnantReport) (_ *remnantFile, err error) {
	dir := filepath.Join(dataDir, remnantsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, ".new-*") // 0600
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()), f.Close())
		}
	}()
	if err := lockNow(f, unix.LOCK_EX); err != nil {
		return nil, err
	}
	out := &remnantFile{f}
	if err := out.say(r); err != nil {
		return nil, err
	}
	return out, os.Rename(f.Name(), remnantPath(dir, r.PID))
}

func remnantPath(dir string, pid int) string { return filepath.Join(dir, fmt.Sprintf("%d.json", pid)) }

// say replaces what is told. Records are of one length, so that no reader finds
// the end of a longer one.
func (r *remnantFile) say(report remnantReport) error {
	b, err := json.Marshal(report)
	if err != nil {
		return err
	}
	if len(b) >= remnantRecord {
		return fmt.Errorf("a record of %d bytes", len(b))
	}
	b = append(b, bytes.Repeat([]byte(" "), remnantRecord-1-len(b))...)
	_, err = r.file.WriteAt(append(b, '\n'), 0)
	return err
}

// close takes the process off the list.
func (r *remnantFile) close(dataDir string) error {
	return errors.Join(ignoreMissing(os.Remove(remnantPath(filepath.Join(dataDir, remnantsDir), os.Getpid()))), r.file.Close())
}

// remnantOf opens the file of another process, without its lock.
func remnantOf(dataDir string, pid int) (*remnantFile, error) {
	f, err := os.OpenFile(remnantPath(filepath.Join(dataDir, remnantsDir), pid), os.O_WRONLY, 0)
	return &remnantFile{f}, err
}

// readRemnants lists the old processes and the canaries that live, oldest first.
// Files of those that have died are removed.
func readRemnants(dataDir string) []remnantReport {
	dir := filepath.Join(dataDir, remnantsDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // there has been none
	}
	var out []remnantReport
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" {
			continue
		}
		if r, ok := readRemnant(filepath.Join(dir, e.Name())); ok {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b remnantReport) int { return a.Since.Compare(b.Since) })
	return out
}

func readRemnant(path string) (r remnantReport, alive bool) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return r, false
	}
	defer f.Close()
	if lockNow(f, unix.LOCK_SH) == nil { // shared: readers do not take each other for the process
		_ = os.Remove(path) // another reader may have been quicker
		return r, false
	}
	b, err := io.ReadAll(io.LimitReader(f, remnantRecord))
	return r, err == nil && json.Unmarshal(b, &r) == nil
}

// signal sends one to the canary of this report, and to nobody else: the file has
// its lock for as long as the canary lives, and not only its number. An error is
// that of the kernel; a canary that is gone needs no signal.
func (r remnantReport) signal(dataDir string, s os.Signal) error {
	if r.PID <= 1 || r.PID == os.Getpid() {
		return fmt.Errorf("a record of process %d, which is no canary", r.PID)
	}
	p, err := os.FindProcess(r.PID) // a pidfd, where there are such: from here on it is this process or none
	if err != nil {
		return err
	}
	defer p.Release()
	if now, alive := readRemnant(remnantPath(filepath.Join(dataDir, remnantsDir), r.PID)); !alive || !now.Canary || now.PID != r.PID {
		return nil
	}
	if err := p.Signal(s); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// lockNow takes a lock that ends with the process, or fails at once. how is
// unix.LOCK_EX or unix.LOCK_SH.
func lockNow(f *os.File, how int) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = c.Control(func(fd uintptr) { inner = unix.Flock(int(fd), how|unix.LOCK_NB) })
	return errors.Join(err, inner)
}
