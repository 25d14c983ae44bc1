// Package sock names Unix sockets so that long directories do not matter: a
// socket's address has room for 108 bytes (unix(7)).
package sock

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// maxPath leaves room for the NUL and for the systems that have 104 bytes.
const maxPath = 100

// Path returns an address of the socket name in dir: the plain path when it
// fits, else one by way of a descriptor of the directory, good in this process
// only. The descriptor stays open for the life of the process.
func Path(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	if len(path) <= maxPath {
		return path, nil
	}
	if runtime.GOOS != "linux" {
		return "", fmt.Errorf("%s: longer than the %d bytes that a socket's address can have; use a shorter directory", path, maxPath)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), nil
}
