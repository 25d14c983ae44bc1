package etcd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport"
)

// lockDir takes the directory for this process. The kernel drops the lock when
// the process ends, however it ends; the file stays and is never removed,
// because a removed one could be locked twice.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, inUse(dir, f)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if err := writePID(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func inUse(dir string, f *os.File) error {
	by := "another process"
	b, _ := io.ReadAll(io.LimitReader(f, 16))
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		by = fmt.Sprintf("process %d", pid)
	}
	return &sallyport.Problem{
		Kind: sallyport.ErrUnavailable,
		Fact: fmt.Sprintf("data directory %s is in use by %s", dir, by),
		Hint: "stop that process, or start this one with another data_dir",
	}
}
