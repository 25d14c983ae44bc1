// Package leak finds the goroutines that the tests of a package leave behind.
package leak

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is how long goroutines may take to end, on a busy machine too. Only
// tests that leave some wait for it.
const patience = 30 * time.Second

// Main runs the tests, then what cleans up after all of them, and ends the
// process: with 1 when a test failed or a goroutine is left.
func Main(m *testing.M, cleanup ...func()) {
	os.Exit(Code(m.Run(), cleanup...))
}

// Code returns the exit code of a test process whose tests ended with code: the
// same, or 1 when goroutines are left, which it tells on standard error.
func Code(code int, cleanup ...func()) int {
	for _, c := range cleanup {
		c()
	}
	if code != 0 {
		return code
	}
	return report(Goroutines())
}

// CodeOf is Code for packages whose peers in the same process leave goroutines
// behind: only those count in whose stack one of the names stands.
func CodeOf(code int, names ...string) int {
	if code != 0 {
		return code
	}
	return report(wait(patience, names))
}

func report(left string) int {
	if left == "" {
		return 0
	}
	fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
	return 1
}

// Goroutines waits until the caller's goroutine is alone with the runtime's
// own, and returns the stacks of those that do not end; "" when there are none.
func Goroutines() string { return wait(patience, nil) }

func wait(most time.Duration, names []string) string {
	pause := time.Millisecond
	for end := time.Now().Add(most); ; pause = min(2*pause, 100*time.Millisecond) {
		left := others(names)
		if left == "" || time.Now().After(end) {
			return left
		}
		time.Sleep(pause)
	}
}

// others returns the stacks of the goroutines that are neither the caller's nor
// the runtime's, and hold one of the names if there are any.
func others(names []string) string {
	all := strings.Split(strings.TrimSpace(stacks()), "\n\n")
	left := slices.DeleteFunc(all[1:], func(stack string) bool { // the first is the caller's
		return ofRuntime(stack) ||
			len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(stack, n) })
	})
	return strings.Join(left, "\n\n")
}

// ofRuntime says that a goroutine is one that signal.Notify starts once in a
// process and that never ends.
func ofRuntime(stack string) bool {
	return strings.Contains(stack, "runtime.ensureSigM") || strings.Contains(stack, "os/signal.loop")
}

func stacks() string {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return string(buf[:n])
		}
	}
}
