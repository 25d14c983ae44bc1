//go:build !unix

package audit

import (
	"io"
	"os"
	"path/filepath"
)

// lockDir opens the lock file. Systems without flock are protected only by
// the caller's own lock on the data directory.
func lockDir(dir string) (io.Closer, error) {
	return os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, fileMode)
}
