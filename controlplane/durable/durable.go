// Package durable writes files so that what was acknowledged is there after a
// crash, and after a power cut: whole, under its name, in directories that are
// there too.
//
// A file that is new or renamed is found after a power cut only when its
// directory was synced as well (fsync(2)); the same goes for a directory that
// is new.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
)

// Files and directories are their owner's only.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// WriteFile replaces a file: after a crash the old or the new one is there,
// whole; when it has returned without error, the new one. Directories that are
// missing are made. A file has one writer at a time, so the unfinished one has a
// name of its own and the next writer takes its place.
func WriteFile(path string, data []byte) error {
	if err := MkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	unfinished := path + ".new"
	if err := write(unfinished, data); err != nil {
		return err
	}
	if err := failpoint.Hit("durable.rename"); err != nil {
		return err
	}
	if err := os.Rename(unfinished, path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(fileMode), failpoint.Hit("durable.write"))
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = errors.Join(failpoint.Hit("durable.sync"), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path)) // it may take space that is short
	}
	return nil
}

// SyncDir makes durable what was made, renamed or removed in a directory.
func SyncDir(dir string) error {
	if err := failpoint.Hit("durable.syncdir"); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MkdirAll makes a directory with all above it that is missing, durably. One
// that is there stays as it is.
func MkdirAll(dir string) error {
	info, err := os.Stat(dir)
	if err == nil {
		if info.IsDir() {
			return nil
		}
		return os.MkdirAll(dir, dirMode) // says what is wrong
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(dir)
	if above != dir {
		if err := MkdirAll(above); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("durable.mkdir"); err != nil {
		return err
	}
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(above)
}
