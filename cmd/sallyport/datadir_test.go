package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

// TestOwnDir: a data directory that others may write to was taken.
func TestOwnDir(t *testing.T) {
	root := t.TempDir()
	dir := func(name string, mode os.FileMode) string {
		path := filepath.Join(root, name)
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, path, want string }{
		{"new", filepath.Join(root, "a", "b"), ""},
		{"closed", dir("closed", 0o700), ""},
		{"readable", dir("readable", 0o755), ""},
		{"group", dir("group", 0o770), "can be written to by other users (mode 0770)"},
		{"everybody", dir("everybody", 0o777), "can be written to by other users (mode 0777)"},
		{"sticky", dir("sticky", 0o777|os.ModeSticky), "can be written to by other users (mode 0777)"},
		{"file", file, "cannot be used: not a directory"},
		{"below a file", filepath.Join(file, "x"), "cannot be used: not a directory"},
	}
	if os.Geteuid() == 0 {
		other := dir("other", 0o700)
		if err := os.Chown(other, 54321, 54321); err != nil {
			t.Fatal(err)
		}
		tests = append(tests, struct{ name, path, want string }{"another's", other, "belongs to another user (uid 54321; this process has 0)"})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := &node{cfg: &config{DataDir: tt.path}}
			defer n.close()
			err := n.prepareDir()
			var p *sallyport.Problem
			switch {
			case tt.want == "":
				if err != nil {
					t.Error(err)
				}
				if info, err := os.Stat(tt.path); err != nil || info.Mode().Perm()&0o022 != 0 {
					t.Errorf("%v, %v", info, err)
				}
			case !errors.As(err, &p) || !strings.Contains(p.Fact, tt.want) || p.Hint == "":
				t.Errorf("%v", err)
			}
		})
	}
}
