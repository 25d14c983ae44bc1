package etcd

import (
	"fmt"
	"os"
	"runtime"

	"github.com/sallyport/sallyport"
)

// maxSocketPath is the longest path of a Unix socket: sun_path is 108 bytes
// with its NUL on Linux, 104 on the BSDs and macOS.
func maxSocketPath() int {
	if runtime.GOOS == "linux" {
		return 107
	}
	return 103
}

// socketDir is a name of the directory that is short enough for sockets.
type socketDir struct {
	path string
	file *os.File // keeps path valid; may be nil
}

// openSocketDir uses the directory's own path when it is short enough, and
// else, on Linux, its path by an open descriptor.
func openSocketDir(dir string) (*socketDir, error) {
	if len(dir)+len("/"+clientSock) <= maxSocketPath() {
		return &socketDir{path: dir}, nil
	}
	if runtime.GOOS != "linux" {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid,
			Fact: fmt.Sprintf("path of the store's directory has %d bytes: too long for a Unix socket", len(dir)),
			Hint: "use a shorter data_dir"}
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return &socketDir{path: fmt.Sprintf("/proc/self/fd/%d", f.Fd()), file: f}, nil
}

// Close gives the descriptor back.
func (d *socketDir) Close() {
	if d.file != nil {
		d.file.Close()
	}
}
