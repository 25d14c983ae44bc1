package agent

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 && !settled(3) {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}

// settled waits until at most n goroutines are left: the test's own, and the
// runtime's helpers.
func settled(n int) bool {
	for range 300 {
		if runtime.NumGoroutine() <= n {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}
