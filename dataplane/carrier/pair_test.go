//go:build unix

package carrier

import (
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A program that is started while a pair is made has no end of it: a session's
// shell would keep a client's connection, and could write to it.
func TestPairIsNotInherited(t *testing.T) {
	var over atomic.Bool
	var makers sync.WaitGroup
	for range 4 {
		makers.Go(func() {
			for !over.Load() {
				fd, local, err := Pair()
				if err != nil {
					t.Error(err)
					return
				}
				_ = unix.Close(fd)
				local.Close()
			}
		})
	}
	defer makers.Wait()
	defer over.Store(true)
	for range 100 {
		// Whatever a shell has besides its standard streams and what it looks with.
		out, err := exec.Command("sh", "-c", `for f in /dev/fd/*; do [ -S "$f" ] && echo "$f"; done; true`).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Fatalf("a program has inherited sockets: %q, %v", out, err)
		}
	}
}
