package executable

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// TestWrite: a program can be run as soon as it is written, while others are
// started all the time.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			for i := range 100 {
				path := filepath.Join(dir, fmt.Sprint(n, "-", i))
				if err := Write(path, []byte("#!/bin/sh\nexit 7\n"), 0o700); err != nil {
					t.Error(err)
					return
				}
				err := exec.CommandContext(t.Context(), path).Run()
				if end, ok := err.(*exec.ExitError); !ok || end.ExitCode() != 7 {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
