//go:build unix

package audit

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sallyport/sallyport"
)

// lockDir takes the directory for this process until the result is closed. The
// kernel lets go when the process dies.
func lockDir(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, fileMode)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &sallyport.Problem{Kind: sallyport.ErrConflict,
				Fact: "audit directory " + dir + " is in use by another process",
				Hint: "stop the other process, or give this one a data_dir of its own"}
		}
		return nil, err
	}
	return dirLock{f}, nil
}

type dirLock struct{ f *os.File }

// Close lets go at once: a program that is just being started holds the
// descriptor too, between fork and exec, and closing ours would not do.
func (l dirLock) Close() error {
	return errors.Join(syscall.Flock(int(l.f.Fd()), syscall.LOCK_UN), l.f.Close())
}
