package sock

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestPath(t *testing.T) {
	short := t.TempDir()
	long := filepath.Join(short, strings.Repeat("d", 120))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	dirs := []string{long}
	if len(short) < 90 {
		dirs = append(dirs, short)
	}
	for _, dir := range dirs {
		path, err := Path(dir, "x.sock")
		if runtime.GOOS != "linux" && dir == long {
			if err == nil {
				t.Error("a path that is too long was taken")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatalf("%d bytes: %v", len(path), err)
		}
		defer ln.Close()
		if info, err := os.Stat(filepath.Join(dir, "x.sock")); err != nil || info.Mode().Type() != os.ModeSocket {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
		again, err := Path(dir, "x.sock") // as another process would
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("unix", again)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	if path, err := Path(filepath.Join(short, strings.Repeat("e", 120)), "x.sock"); err == nil {
		t.Errorf("a directory that is not there: %s", path)
	}
}
