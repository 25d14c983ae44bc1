package audit

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sallyport/sallyport"
)

// gaps counts the gaps that are told with a text.
func gaps(t testing.TB, l *Log, text string) (n int) {
	t.Helper()
	found, err := l.Search(t.Context(), Query{Names: []string{AuditGap}, Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range found {
		if strings.Contains(string(line), text) {
			n++
		}
	}
	return n
}

// TestLogHostSpools: one host could name so many spools that each commit wrote
// megabytes of their state, and no new host had room for its own.
func TestLogHostSpools(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, 0)
	appendTo(t, l, "other/1", records(1, 3), 3)
	const all = 3 * maxHostSpools
	for i := range all {
		appendTo(t, l, fmt.Sprintf("h/%d", i), records(1, 2), 2)
		if i > 0 {
			appendTo(t, l, "h/0", records(uint64(i+2), 1), uint64(i+2)) // the one in use
		}
	}
	want := func() {
		t.Helper()
		have := l.Spools()
		if len(have) != maxHostSpools+1 || have["other/1"] != 3 || have["h/0"] != all+1 || have[fmt.Sprintf("h/%d", all-1)] != 2 || have["h/1"] != 0 {
			t.Errorf("the log knows %v", have)
		}
	}
	want()
	l.Close()
	mustVerify(t, dir)
	l = openLog(t, dir, 0)
	want()
	if n := gaps(t, l, ""); n != 0 {
		t.Errorf("%d gaps", n)
	}
	appendTo(t, l, "h/1", records(3, 1), 3) // forgotten meanwhile
	if n := gaps(t, l, `"from":1,"missing":2,"spool":"h/1"`); n != 1 {
		t.Errorf("%d gaps of what was forgotten", n)
	}
	appendTo(t, l, "h/2", records(1, 2), 2) // likewise, and sent again from the start
	l.Close()
	mustVerify(t, dir)
}

// TestLogForgetsOldest: a log that has seen as many spools as there may be had
// no room for new hosts.
func TestLogForgetsOldest(t *testing.T) {
	dir := t.TempDir()
	open := func() *Log {
		l, err := OpenLog(LogConfig{Dir: dir, Sign: sign, Ballast: 4 << 10, maxSpools: 8})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	l := open()
	for i := range 12 {
		appendTo(t, l, fmt.Sprintf("h%d/1", i), records(1, 1), 1)
		if i > 0 {
			appendTo(t, l, "h0/1", records(uint64(i+1), 1), uint64(i+1))
		}
	}
	l.Close()
	l = open()
	have := l.Spools()
	if len(have) != 8 || have["h0/1"] != 12 || have["h4/1"] != 0 || have["h5/1"] != 1 {
		t.Errorf("the log knows %v", have)
	}
	// What is under way is not forgotten.
	busy := l.sender("h5/1")
	busy.mu.Lock()
	appendTo(t, l, "h12/1", records(1, 1), 1)
	busy.mu.Unlock()
	if have := l.Spools(); have["h5/1"] != 1 || have["h6/1"] != 0 {
		t.Errorf("the log knows %v", have)
	}
	for name := range l.Spools() {
		l.sender(name).mu.Lock()
	}
	if _, err := l.Append(t.Context(), "h13/1", records(1, 1)); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("all are busy: %v", err)
	}
	for name := range l.Spools() {
		l.sender(name).mu.Unlock()
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for n := range uint64(5) {
				_, err := l.Append(t.Context(), fmt.Sprintf("x%d/1", i), records(n+1, 1))
				if err != nil && !errors.Is(err, sallyport.ErrExhausted) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	l.Close()
	mustVerify(t, dir)
}

// TestLogLargeState: where the state of all spools was larger than a segment,
// each commit began a new one with all of it.
func TestLogLargeState(t *testing.T) {
	dir := t.TempDir()
	const segment = 4 << 10
	l := openLog(t, dir, segment)
	for i := range 200 {
		appendTo(t, l, fmt.Sprintf("host-%d/1", i), records(1, 1), 1)
	}
	before, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix+"*"))
	for i := range 60 {
		appendTo(t, l, "host-0/1", records(uint64(i+2), 1), uint64(i+2))
	}
	l.Close()
	after, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix+"*"))
	if n := len(after) - len(before); n > 2 {
		t.Errorf("60 commits began %d segments", n)
	}
	mustVerify(t, dir)
}
