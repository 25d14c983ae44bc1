//go:build unix

package rbac

import (
	"syscall"
	"testing"
	"time"
)

// worked is the processor time that this process has used: unlike a clock it
// stands while others work.
func worked(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
