package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	dirMode  = 0o700
	fileMode = 0o600
	maxFile  = 16 << 20 // of JSON: certificates of 1,024 resources are 2 MiB
)

// writeFile replaces a file so that after a crash the old or the new one is
// there, whole. A file has one writer at a time, so the unfinished one has a
// name of its own and the next writer takes its place.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return err
	}
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	if err := errors.Join(tmp.Chmod(fileMode), write(tmp, data), tmp.Sync(), tmp.Close()); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func write(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readFile returns nil without an error when there is no file. A file that
// others can read is refused: it holds secrets, or should have had its mode.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %#o lets others read it; run chmod 600 on it", path, info.Mode().Perm())
	}
	if info.Size() > most {
		return nil, fmt.Errorf("%s: %d bytes, more than %d", path, info.Size(), most)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, data)
}

// readJSON reports whether there was a file.
func readJSON(path string, v any) (bool, error) {
	data, err := readFile(path, maxFile)
	if err != nil || data == nil {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return true, nil
}
