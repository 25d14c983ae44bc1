// Package executable writes programs that a test is going to start.
package executable

import (
	"os"
	"syscall"
)

// Write makes path an executable file with this content, as [os.WriteFile] does
// by mode, but no process that is being started meanwhile holds it open: between
// its fork and its exec a child has all of its parent's descriptors, and the
// kernel refuses to run a file that anybody may write to (ETXTBSY, execve(2)).
func Write(path string, content []byte, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, content, mode)
}
