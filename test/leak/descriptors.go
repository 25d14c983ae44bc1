package leak

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// Descriptors notes the descriptors that are open. What it returns fails the test
// unless the same are open again, soon: it says which are left, and which are gone
// that were not the test's to close. Files that nobody has any more, such as those
// of an earlier test, are closed first: the collector would close them at any time.
// Elsewhere than on Linux nothing is found.
func Descriptors(t testing.TB) (check func()) {
	t.Helper()
	before := settled()
	return func() {
		t.Helper()
		if changed := changes(before, patience); changed != "" {
			t.Errorf("descriptors:\n%s", changed)
		}
	}
}

// Changes is how the open descriptors differ from those before, line by line, once
// they have had the time to be closed.
func changes(before map[string]string, most time.Duration) string {
	pause := time.Millisecond
	for end := time.Now().Add(most); ; pause = min(2*pause, 100*time.Millisecond) {
		changed := difference(before, open())
		if changed == "" || time.Now().After(end) {
			return changed
		}
		Collect()
		time.Sleep(pause)
	}
}

func difference(before, after map[string]string) string {
	var lines []string
	for fd, what := range after {
		if before[fd] != what {
			lines = append(lines, fmt.Sprintf("left: %s is %s", fd, what))
		}
	}
	for fd, what := range before {
		if after[fd] != what {
			lines = append(lines, fmt.Sprintf("gone: %s was %s", fd, what))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// open returns the open descriptors, and what they are of.
func open() map[string]string {
	const dir = "/proc/self/fd"
	entries, _ := os.ReadDir(dir)
	all := make(map[string]string, len(entries))
	for _, e := range entries {
		if what, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // but for that of the directory
			all[e.Name()] = what
		}
	}
	return all
}

// settled returns the open descriptors when collecting changes nothing any more.
func settled() map[string]string {
	for last := open(); ; {
		Collect()
		now := open()
		if maps.Equal(last, now) {
			return now
		}
		last = now
	}
}

// Collect lets the collector run what it runs for values that nobody has: twice,
// as the first run finds what the finalizers of others held.
func Collect() {
	for range 2 {
		finalized, cleaned := make(chan struct{}), make(chan struct{})
		value := new([64]byte)
		runtime.SetFinalizer(value, func(*[64]byte) { close(finalized) })
		other := new([64]byte)
		runtime.AddCleanup(other, func(done chan struct{}) { close(done) }, cleaned)
		runtime.GC()
		<-finalized
		<-cleaned
	}
}
