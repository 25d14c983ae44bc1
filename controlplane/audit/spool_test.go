package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

const testHost = "2a7dcb64-25e6-4bd0-9a8a-6c1b4a3d6f11"

func openSpool(t testing.TB, c SpoolConfig) *Spool {
	t.Helper()
	if c.Host == "" {
		c.Host = testHost
	}
	if c.Ballast == 0 {
		c.Ballast = 64 << 10
	}
	s, err := OpenSpool(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func event(name string, fields map[string]any) sallyport.Event {
	return sallyport.Event{Name: name, Code: "T2000I", User: "alice", Fields: fields}
}

func emit(t testing.TB, s *Spool, n int) {
	t.Helper()
	for i := range n {
		if err := s.Emit(t.Context(), event("session.data", map[string]any{"n": int64(i)}), false); err != nil {
			t.Fatal(err)
		}
	}
}

// drain reads everything that is durable after a number.
func drain(t testing.TB, s *Spool, after uint64) []Record {
	t.Helper()
	var out []Record
	for after < s.Status().Sequence {
		r, err := s.Next(t.Context(), after, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range r {
			if x.Sequence != after+1 && len(out) > 0 {
				t.Fatalf("record %d after %d", x.Sequence, after)
			}
			after = x.Sequence
		}
		out = append(out, r...)
	}
	return out
}

func names(t testing.TB, records []Record) string {
	t.Helper()
	var out []string
	for _, r := range records {
		e, err := Decode(r.JSON)
		if err != nil {
			t.Fatalf("record %d: %v", r.Sequence, err)
		}
		out = append(out, e.Name)
	}
	return strings.Join(out, " ")
}

// within fails the test when the condition does not come true.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	const patience = time.Minute // the most that anything may take, on a busy machine too
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		runtime.Gosched()
	}
}

func TestSpoolKeepsOrder(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, SpoolConfig{Dir: dir, MaxBytes: 256 << 10}) // segments of 32 KiB
	const n = 500
	for i := range n { // a commit each, or a batch would fill one segment
		if err := s.Emit(t.Context(), event("session.data", map[string]any{"n": int64(i)}), i%25 == 24); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Emit(t.Context(), event("session.end", nil), true); err != nil {
		t.Fatal(err)
	}
	got := drain(t, s, 0)
	if len(got) != n+1 {
		t.Fatalf("%d records, want %d", len(got), n+1)
	}
	for i, r := range got[:n] {
		e, err := Decode(r.JSON)
		if err != nil || e.Fields["n"] != int64(i) || e.UID == "" || e.Time.IsZero() || e.ServerID != testHost {
			t.Fatalf("record %d: %+v, %v", i, e, err)
		}
	}
	if err := s.Acknowledge(n + 2); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("acknowledging more than there is: %v", err)
	}
	if err := s.Acknowledge(300); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	before := len(files)
	if r, _ := s.Next(t.Context(), 0, 1); len(r) != 1 || r[0].Sequence != 301 {
		t.Errorf("after an acknowledgement: %+v", r)
	}
	id := s.ID()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, SpoolConfig{Dir: dir, MaxBytes: 256 << 10})
	if s.ID() != id || s.Status().Sequence != n+1 || s.Status().Acknowledged != 300 {
		t.Errorf("after a restart: %+v, want id %s", s.Status(), id)
	}
	if got := drain(t, s, 0); len(got) != n+1-300 {
		t.Errorf("%d records after a restart, want %d", len(got), n+1-300)
	}
	if err := s.Emit(t.Context(), event("session.start", nil), true); err != nil {
		t.Fatal(err)
	}
	if err := s.Acknowledge(n + 2); err != nil {
		t.Fatal(err)
	}
	files, _ = filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if len(files) != 1 || before < 2 {
		t.Errorf("%d segments before, %d after everything was acknowledged", before, len(files))
	}
}

func TestSpoolModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := openSpool(t, SpoolConfig{Dir: dir})
	emit(t, s, 1)
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", st.Mode(), err)
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if i, _ := e.Info(); i.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v", e.Name(), i.Mode())
		}
	}
	if _, err := OpenSpool(SpoolConfig{Dir: dir}); !errors.Is(err, sallyport.ErrConflict) {
		t.Errorf("a second process on the directory: %v", err)
	}
}

func TestSpoolGroupCommit(t *testing.T) {
	d := newFaultyDisk()
	s := openSpool(t, SpoolConfig{Dir: t.TempDir(), disk: d.on})
	start := time.Now()
	var wg sync.WaitGroup
	const emitters, each = 64, 20
	for range emitters {
		wg.Go(func() {
			for range each {
				if err := s.Emit(context.Background(), event("session.start", nil), true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	d.mu.Lock()
	syncs := d.syncs
	d.mu.Unlock()
	// One for the header, then one after each pause at most.
	if most := 2 + int(elapsed/commitPause); syncs > most {
		t.Errorf("%d syncs in %v, want at most %d", syncs, elapsed, most)
	}
	if syncs > emitters*each/4 {
		t.Errorf("%d syncs for %d events: not grouped", syncs, emitters*each)
	}
	if got := len(drain(t, s, 0)); got != emitters*each {
		t.Errorf("%d events, want %d", got, emitters*each)
	}
}

// TestSpoolGroupsWhatNobodyWaitsFor: queries come by the thousand, and the disk
// is not asked for each.
func TestSpoolGroupsWhatNobodyWaitsFor(t *testing.T) {
	d := newFaultyDisk()
	s := openSpool(t, SpoolConfig{Dir: t.TempDir(), disk: d.on})
	start := time.Now()
	for range 200 {
		if err := s.Emit(t.Context(), event("db.session.query", nil), false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Microsecond)
	}
	elapsed := time.Since(start)
	d.mu.Lock()
	defer d.mu.Unlock()
	// One for the header, then one each 10 ms at most.
	if most := 2 + int(elapsed/commitDelay); d.syncs > most {
		t.Errorf("%d syncs in %v, want at most %d", d.syncs, elapsed, most)
	}
}

// TestSpoolEndsArePatient: the end of one session does not put the start of the
// next behind a pause of its own.
func TestSpoolEndsArePatient(t *testing.T) {
	d := newFaultyDisk()
	s := openSpool(t, SpoolConfig{Dir: t.TempDir(), disk: d.on})
	d.mu.Lock() // nothing is written from here on
	defer d.mu.Unlock()
	emit(t, s, 1)
	state := func() (pending int, awaited bool) {
		s.j.mu.Lock()
		defer s.j.mu.Unlock()
		return len(s.j.pending), s.j.awaited
	}
	for n := 1; n > 0; n, _ = state() { // until the journal stands before the disk
		runtime.Gosched()
	}
	for _, step := range []struct {
		name    string
		awaited bool
	}{{"db.session.end", false}, {"session.leave", false}, {"db.session.start", true}, {"db.session.end", true}} {
		if _, err := s.Begin(LineOf(event(step.name, nil), "host"), true); err != nil {
			t.Fatal(err)
		}
		if _, awaited := state(); awaited != step.awaited {
			t.Errorf("after %s: awaited %v", step.name, awaited)
		}
	}
}

func TestJournalPause(t *testing.T) {
	for _, c := range []struct {
		awaited    bool
		waited     int // for the last commit
		took, want time.Duration
	}{
		{false, 1, 0, 10 * time.Millisecond},
		{false, 1, time.Second, 10 * time.Millisecond},
		{true, 1, 0, time.Millisecond},
		{true, 0, 3 * time.Millisecond, 3 * time.Millisecond},
		{true, 1, 3 * time.Millisecond, 3 * time.Millisecond},
		{true, 2, 3 * time.Millisecond, 6 * time.Millisecond},
		{true, 100, 500 * time.Microsecond, 2 * time.Millisecond},
		{true, 1, time.Second, 10 * time.Millisecond},
	} {
		j := &journal{took: c.took, waited: c.waited}
		j.queueLocked([]entry{{typ: frameEvent, wait: &waiter{}, patient: true}})
		if c.awaited {
			j.queueLocked([]entry{{typ: frameEvent}, {typ: frameEvent, wait: &waiter{}}, {typ: frameEvent}})
		}
		if got := j.pauseLocked(); got != c.want {
			t.Errorf("awaited %v after %v for %d: %v, want %v", c.awaited, c.took, c.waited, got, c.want)
		}
	}
	patient, start, query := entry{wait: &waiter{}, patient: true}, entry{wait: &waiter{}}, entry{}
	if n := impatient([]entry{patient, start, query, start}); n != 2 {
		t.Errorf("%d wait for two starts", n)
	}
}

// TestF7_FullSpool: the bound of the spool itself.
func TestF7_FullSpool(t *testing.T) {
	s := openSpool(t, SpoolConfig{Dir: t.TempDir(), MaxBytes: 128 << 10})
	var err error
	for range 1000 {
		if err = s.Emit(t.Context(), event("session.start", map[string]any{"fill": strings.Repeat("x", 900)}), true); err != nil {
			break
		}
	}
	var p *sallyport.Problem
	if !errors.Is(err, sallyport.ErrExhausted) || !errors.As(err, &p) || p.Fact != "audit spool is full: new sessions are refused" || p.Hint == "" {
		t.Fatalf("a full spool: %v", err)
	}
	if err := s.Emit(t.Context(), event("session.end", nil), true); err != nil {
		t.Errorf("the end of a session that runs: %v", err)
	}
	got := names(t, drain(t, s, 0))
	if strings.Count(got, "audit.stopped") != 1 || !strings.HasSuffix(got, "audit.stopped session.end") {
		t.Errorf("last words: …%s", got[max(0, len(got)-60):])
	}
	if st := s.Status(); !st.Refusing || st.Problem != "the spool is full" {
		t.Errorf("status %+v", st)
	}
	if err := s.Acknowledge(s.Status().Sequence); err != nil {
		t.Fatal(err)
	}
	after := s.Status().Sequence
	if err := s.Emit(t.Context(), event("session.start", nil), true); err != nil {
		t.Fatalf("after space came back: %v", err)
	}
	if got := names(t, drain(t, s, after)); got != "audit.resumed session.start" || s.Status().Refusing {
		t.Errorf("after space came back: %s, %+v", got, s.Status())
	}
}

// TestF7_FullDisk: ENOSPC, the ballast for the last words, and recovery.
func TestF7_FullDisk(t *testing.T) {
	t.Parallel()
	d := newFaultyDisk()
	s := openSpool(t, SpoolConfig{Dir: t.TempDir(), disk: d.on, Ballast: 32 << 10})
	if err := s.Emit(t.Context(), event("first", nil), true); err != nil {
		t.Fatal(err)
	}
	d.set(func() { d.space = 100 })
	err := s.Emit(t.Context(), event("lost", nil), true)
	if !errors.Is(err, sallyport.ErrExhausted) {
		t.Fatalf("on a full disk: %v", err)
	}
	if !s.Status().Refusing {
		t.Errorf("status on a full disk: %+v", s.Status())
	}
	within(t, "last words", func() bool { return s.Status().Sequence >= 2 })
	if got := names(t, drain(t, s, 0)); got != "first audit.stopped" {
		t.Errorf("events %q", got)
	}
	if err := s.Emit(t.Context(), event("refused", nil), true); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("while the ballast is gone: %v", err)
	}
	if err := s.Emit(t.Context(), event("session.end", nil), true); err != nil {
		t.Errorf("the end of a session: %v", err)
	}
	d.set(func() { d.space = 10 << 20 })
	within(t, "recovery", func() bool { return s.Emit(t.Context(), event("again", nil), true) == nil })
	if got := names(t, drain(t, s, 0)); got != "first audit.stopped session.end audit.resumed again" {
		t.Errorf("events %q", got)
	}
}

// TestF7_FullDiskSweep fills the disk at every point of a short run: what was
// acknowledged is there afterwards, once and in order.
func TestF7_FullDiskSweep(t *testing.T) {
	t.Parallel()
	for space := int64(0); space < 12<<10; space += 769 {
		sweep(t, func(d *faultyDisk) { d.space = 70<<10 + space })
	}
}

// TestF8_WriteFaults fails each write in turn, half done.
func TestF8_WriteFaults(t *testing.T) {
	t.Parallel()
	for n := 4; n < 24; n++ {
		sweep(t, func(d *faultyDisk) { d.failWrite = n })
	}
}

func sweep(t *testing.T, fault func(*faultyDisk)) {
	t.Helper()
	dir := t.TempDir()
	d := newFaultyDisk()
	fault(d)
	s, err := OpenSpool(SpoolConfig{Dir: dir, Host: testHost, disk: d.on, Ballast: 4 << 10, MaxBytes: 32 << 10})
	if err != nil {
		return // no place for a spool at all: told at the start
	}
	var acked []int64
	for i := range int64(24) {
		if s.Emit(context.Background(), event("x", map[string]any{"n": i}), true) == nil {
			acked = append(acked, i)
		}
	}
	_ = s.Close()
	s, err = OpenSpool(SpoolConfig{Dir: dir, Host: testHost, Ballast: 4 << 10, MaxBytes: 32 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []int64
	for _, r := range drain(t, s, 0) {
		if e, err := Decode(r.JSON); err != nil {
			t.Fatal(err)
		} else if n, ok := e.Fields["n"].(int64); ok {
			got = append(got, n)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(acked) {
		t.Fatalf("acknowledged %v\nthere is     %v", acked, got)
	}
}

// TestF8_FailedSync: an event whose fsync failed is never acknowledged, and
// the file is not trusted again.
func TestF8_FailedSync(t *testing.T) {
	t.Parallel()
	d := newFaultyDisk()
	dir := t.TempDir()
	s := openSpool(t, SpoolConfig{Dir: dir, disk: d.on})
	if err := s.Emit(t.Context(), event("first", nil), true); err != nil {
		t.Fatal(err)
	}
	d.set(func() { d.syncErr = syscall.EIO })
	err := s.Emit(t.Context(), event("lost", nil), true)
	var p *sallyport.Problem
	if !errors.Is(err, sallyport.ErrUnavailable) || !errors.As(err, &p) || p.Hint == "" || !errors.Is(err, syscall.EIO) {
		t.Fatalf("after a failed fsync: %v", err)
	}
	if err := s.Emit(t.Context(), event("refused", nil), true); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("before the disk is good again: %v", err)
	}
	d.set(func() { d.syncErr = nil })
	within(t, "recovery", func() bool { return s.Emit(t.Context(), event("again", nil), true) == nil })
	want := "first audit.stopped audit.resumed again"
	if got := names(t, drain(t, s, 0)); got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if len(files) != 2 {
		t.Errorf("%d segments, want the old and a new one", len(files))
	}
	s.Close()
	s = openSpool(t, SpoolConfig{Dir: dir})
	if got := names(t, drain(t, s, 0)); got != want {
		t.Errorf("after a restart %q, want %q", got, want)
	}
}

// TestSpoolTornTail cuts the last segment at every byte.
func TestSpoolTornTail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openSpool(t, SpoolConfig{Dir: dir})
	for range 3 {
		if err := s.Emit(t.Context(), event("x", nil), true); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	name := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for size := len(whole); size >= 0; size -= 23 {
		for _, zeros := range []int{0, 4096} { // a file may be extended and not written
			if err := os.WriteFile(name, append(whole[:size:size], make([]byte, zeros)...), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := OpenSpool(SpoolConfig{Dir: dir, Host: testHost, Ballast: 4 << 10})
			if err != nil {
				t.Fatalf("cut at %d: %v", size, err)
			}
			n := len(drain(t, s, 0))
			if want := 3 * (size - headerSize) / (len(whole) - headerSize); size > headerSize && n != want {
				t.Errorf("cut at %d: %d events, want %d", size, n, want)
			}
			if err := s.Emit(t.Context(), event("y", nil), true); err != nil {
				t.Errorf("cut at %d: %v", size, err)
			}
			s.Close()
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if sc, err := scanSegment(b, spoolMagic, nil); err != nil || sc.fault != nil {
				t.Errorf("cut at %d: of %d bytes %d are whole: %v, %v", size, len(b), sc.good, err, sc.fault)
			}
		}
	}
}

// TestSpoolDamage: a changed byte in the middle makes a new spool that holds
// what can still be read.
func TestSpoolDamage(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, SpoolConfig{Dir: dir})
	emit(t, s, 10)
	if err := s.Emit(t.Context(), event("x", nil), true); err != nil {
		t.Fatal(err)
	}
	old := s.ID()
	if err := s.Acknowledge(2); err != nil {
		t.Fatal(err)
	}
	s.Close()
	name := filepath.Join(dir, segmentName(1))
	b, _ := os.ReadFile(name)
	b[headerSize+5*(len(b)-headerSize)/11] ^= 0x10
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	s = openSpool(t, SpoolConfig{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if s.ID() == old || !strings.HasPrefix(s.ID(), testHost+"/") {
		t.Errorf("id %s after damage, was %s", s.ID(), old)
	}
	if err := s.Emit(t.Context(), event("y", nil), true); err != nil {
		t.Fatal(err)
	}
	got := names(t, drain(t, s, 0))
	if want := "audit.recovered" + strings.Repeat(" session.data", 7) + " x y"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, asidePrefix+"*")); len(aside) != 1 {
		t.Errorf("set aside: %v", aside)
	}
	if !strings.Contains(log.String(), "audit spool was damaged") {
		t.Errorf("log: %s", log.String())
	}
}

// TestSpoolBehindAcknowledged: a spool that has lost lines which auth has got begins
// anew. Under its old id auth would take the next ones for those.
func TestSpoolBehindAcknowledged(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, SpoolConfig{Dir: dir})
	for range 3 {
		if err := s.Emit(t.Context(), event("x", nil), true); err != nil {
			t.Fatal(err)
		}
	}
	old := s.ID()
	if err := s.Acknowledge(3); err != nil {
		t.Fatal(err)
	}
	s.Close()
	name := filepath.Join(dir, segmentName(1))
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, headerSize+(st.Size()-headerSize)/3); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, SpoolConfig{Dir: dir})
	if s.ID() == old {
		t.Fatal("it goes on under the old id")
	}
	if err := s.Emit(t.Context(), event("y", nil), true); err != nil {
		t.Fatal(err)
	}
	if got := names(t, drain(t, s, 0)); got != "audit.recovered y" {
		t.Errorf("events %q", got)
	}
}

func TestSpoolNextWaits(t *testing.T) {
	s := openSpool(t, SpoolConfig{Dir: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := s.Next(ctx, 0, 10)
		got <- err
	}()
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	go func() {
		r, err := s.Next(t.Context(), 0, 10)
		if err == nil && len(r) != 1 {
			err = fmt.Errorf("%d records", len(r))
		}
		got <- err
	}()
	if err := s.Emit(t.Context(), event("x", nil), true); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	go func() {
		_, err := s.Next(t.Context(), 1, 10)
		got <- err
	}()
	s.Close()
	if err := <-got; !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("after close: %v", err)
	}
	if err := s.Emit(t.Context(), event("x", nil), true); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("emit after close: %v", err)
	}
}

func TestNoGoroutineLeft(t *testing.T) { // not parallel
	before := runtime.NumGoroutine()
	for range 10 {
		s := openSpool(t, SpoolConfig{Dir: t.TempDir()})
		emit(t, s, 10)
		s.Close()
		l := openLog(t, t.TempDir(), 0)
		l.Close()
	}
	within(t, "goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

// TestF6_KillSpool kills a process that spools, and looks whether all it
// acknowledged is there.
func TestF6_KillSpool(t *testing.T) {
	if dir := os.Getenv("AUDIT_TEST_SPOOL"); dir != "" {
		spoolUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	seen := map[int64]bool{}
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestF6_KillSpool$")
		cmd.Env = append(os.Environ(), "AUDIT_TEST_SPOOL="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 200 && lines.Scan(); {
			var i int64
			if k, _ := fmt.Sscanf(lines.Text(), "acked %d", &i); k == 1 {
				seen[i] = true
				n++
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it said before it died counts
			var i int64
			if k, _ := fmt.Sscanf(lines.Text(), "acked %d", &i); k == 1 {
				seen[i] = true
			}
		}
		_ = cmd.Wait()
	}
	s := openSpool(t, SpoolConfig{Dir: dir, MaxBytes: 512 << 10})
	there := map[int64]int{}
	for _, r := range drain(t, s, 0) {
		e, err := Decode(r.JSON)
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := e.Fields["n"].(int64); ok {
			there[n]++
		}
	}
	if len(seen) < 600 {
		t.Fatalf("the child acknowledged %d events", len(seen))
	}
	for n := range seen {
		if there[n] != 1 {
			t.Errorf("event %d was acknowledged and is there %d times", n, there[n])
		}
	}
}

// filler makes lines long: a process that nobody reads from soon waits at its pipe,
// and does not go on until the spool is full.
var filler = strings.Repeat("x", 1000)

func spoolUntilKilled(t *testing.T, dir string) {
	s, err := OpenSpool(SpoolConfig{Dir: dir, Host: testHost, MaxBytes: 512 << 10, Ballast: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	base := time.Now().UnixNano()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for g := range int64(8) {
		wg.Go(func() {
			for i := int64(0); ; i++ {
				n := base + g*1_000_000 + i
				if s.Emit(context.Background(), event("x", map[string]any{"n": n}), true) != nil {
					return
				}
				mu.Lock()
				fmt.Printf("acked %d %s\n", n, filler)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
