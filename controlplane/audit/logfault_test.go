package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// ship sends events 1 to n as a shipper does: again and again from what is
// acknowledged.
func ship(t testing.TB, l *Log, n uint64) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		have := l.Acknowledged("h/1")
		if have == n {
			return
		}
		got, err := l.Append(context.Background(), "h/1", records(have+1, int(min(n-have, 3))))
		if err != nil && got != have {
			t.Fatalf("%d acknowledged with error %v, had %d", got, err, have)
		}
		if err != nil && !errors.Is(err, sallyport.ErrUnavailable) && !errors.Is(err, sallyport.ErrExhausted) {
			t.Fatal(err)
		}
	}
	t.Fatalf("%d of %d events shipped", l.Acknowledged("h/1"), n)
}

// wantEvents counts each event of the shipper once.
func wantEvents(t testing.TB, l *Log, n int) {
	t.Helper()
	found, err := l.Search(t.Context(), Query{Names: []string{"session.start"}, Limit: 1000})
	if err != nil || len(found) != n {
		t.Fatalf("%d events, %v, want %d", len(found), err, n)
	}
	for i, line := range found {
		if e, err := Decode(line); err != nil || e.Fields["n"] != int64(i+1) {
			t.Fatalf("event %d is %s, %v", i+1, line, err)
		}
	}
}

// TestF8_LogWriteFaults fails each write of the log in turn, half done: what
// was acknowledged is there, once, and the chain is whole.
func TestF8_LogWriteFaults(t *testing.T) {
	for n := 1; n < 24; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d := newFaultyDisk()
			d.failWrite = n
			open := func() (*Log, error) {
				return OpenLog(LogConfig{Dir: dir, Sign: sign, SegmentBytes: 3 << 10, Ballast: 4 << 10, disk: d.on})
			}
			l, err := open()
			if err != nil { // the fault came at the start: the next start is good
				if l, err = open(); err != nil {
					t.Fatal(err)
				}
			}
			ship(t, l, 30)
			wantEvents(t, l, 30)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			mustVerify(t, dir)
			l = openLog(t, dir, 3<<10)
			wantEvents(t, l, 30)
			ship(t, l, 33)
			l.Close()
			mustVerify(t, dir)
		})
	}
}

func TestF8_LogFailedSync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := newFaultyDisk()
	l, err := OpenLog(LogConfig{Dir: dir, Sign: sign, disk: d.on})
	if err != nil {
		t.Fatal(err)
	}
	ship(t, l, 3)
	d.set(func() { d.syncErr = syscall.EIO })
	if got, err := l.Append(t.Context(), "h/1", records(4, 1)); got != 3 || !errors.Is(err, sallyport.ErrUnavailable) {
		t.Fatalf("after a failed fsync: %d, %v", got, err)
	}
	d.set(func() { d.syncErr = nil })
	ship(t, l, 6)
	wantEvents(t, l, 6)
	l.Close()
	if rep := mustVerify(t, dir); rep.Segments != 2 {
		t.Errorf("%d segments, want the old and a new one", rep.Segments)
	}
}

func TestLogWithoutSignature(t *testing.T) {
	if _, err := OpenLog(LogConfig{Dir: t.TempDir()}); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("no signer: %v", err)
	}
	fail := errors.New("the key is locked")
	_, err := OpenLog(LogConfig{Dir: t.TempDir(), Sign: func([]byte) ([]byte, error) { return nil, fail }})
	if !errors.Is(err, sallyport.ErrUnavailable) || !errors.Is(err, fail) {
		t.Errorf("a signer that fails: %v", err)
	}
}

func TestLogLocked(t *testing.T) {
	dir := t.TempDir()
	openLog(t, dir, 0)
	if _, err := OpenLog(LogConfig{Dir: dir, Sign: sign}); !errors.Is(err, sallyport.ErrConflict) {
		t.Errorf("a second process on the directory: %v", err)
	}
}

// TestF6_KillLog kills a process that keeps a log: what it acknowledged is
// there, once, and the chain is whole before and after the next start.
func TestF6_KillLog(t *testing.T) {
	if dir := os.Getenv("AUDIT_TEST_LOG"); dir != "" {
		logUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	var acked uint64
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestF6_KillLog$")
		cmd.Env = append(os.Environ(), "AUDIT_TEST_LOG="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		read := func() bool {
			ok := lines.Scan()
			_, _ = fmt.Sscanf(lines.Text(), "acked %d", &acked)
			return ok
		}
		for n := 0; n < 30 && read(); n++ {
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for read() {
		}
		_ = cmd.Wait()
		mustVerify(t, dir)
	}
	l := openLog(t, dir, 8<<10)
	if got := l.Acknowledged("h/1"); got < acked || acked < 90 {
		t.Errorf("%d events are there, %d were acknowledged", got, acked)
	}
	wantEvents(t, l, int(l.Acknowledged("h/1")))
	l.Close()
	mustVerify(t, dir)
}

func logUntilKilled(t *testing.T, dir string) {
	l, err := OpenLog(LogConfig{Dir: dir, Sign: sign, SegmentBytes: 8 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for {
		n, err := l.Append(context.Background(), "h/1", records(l.Acknowledged("h/1")+1, 2))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("acked %d %s\n", n, filler)
	}
}

// TestF7_LogFullDisk: hosts could fill the disk, and then nobody could be locked.
func TestF7_LogFullDisk(t *testing.T) {
	dir := t.TempDir()
	d := newFaultyDisk()
	d.space = 200 << 10
	var l *Log
	reopen := func() {
		t.Helper()
		var err error
		if l, err = OpenLog(LogConfig{Dir: dir, Sign: sign, Ballast: 100 << 10, disk: d.on}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	reopen()
	full := func() error {
		_, err := l.Append(t.Context(), "h/1", records(l.Acknowledged("h/1")+1, 20))
		return err
	}
	within(t, "the disk is full", func() bool { return errors.Is(full(), sallyport.ErrExhausted) })
	have := l.Acknowledged("h/1")
	lock := func() error {
		return l.Emit(t.Context(), sallyport.Event{Name: LockCreate, Code: LockCreateCode}, true)
	}
	within(t, "auth's own events are taken", func() bool { return lock() == nil })
	for range 20 {
		if err := full(); !errors.Is(err, sallyport.ErrExhausted) {
			t.Fatalf("hosts' events without a ballast: %v", err)
		}
		if err := lock(); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.Acknowledged("h/1"); got != have {
		t.Errorf("%d acknowledged, want %d", got, have)
	}
	l.Close()
	reopen() // with the space that the ballast has given up
	if err := full(); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("hosts' events after a restart: %v", err)
	}
	if err := lock(); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	d.set(func() { d.space += 1 << 20 })
	within(t, "hosts' events are taken again", func() bool { return full() == nil })
	l.Close()
	d.set(func() { d.space = 0 }) // something else has filled it
	reopen()
	if err := errors.Join(lock(), lock()); err != nil {
		t.Errorf("after a restart on a full disk: %v", err)
	}
	d.set(func() { d.space += 1 << 20 })
	within(t, "hosts' events are taken again", func() bool { return full() == nil })
	wantEvents(t, l, int(have)+40)
	for name, n := range map[string]int{AuditStopped: 3, AuditResumed: 2} {
		if found, err := l.Search(t.Context(), Query{Names: []string{name}}); err != nil || len(found) != n {
			t.Errorf("%s: %s, %v", name, found, err)
		}
	}
	if b, err := os.Stat(filepath.Join(dir, ballastName)); err != nil || b.Size() != 100<<10 {
		t.Errorf("the ballast is not back: %v", err)
	}
	l.Close()
	mustVerify(t, dir)
}

// TestLogOwnEventsHaveRoom: a backlog of many hosts in the queue kept auth's own
// events out, and so logins.
func TestLogOwnEventsHaveRoom(t *testing.T) {
	l := openLog(t, t.TempDir(), 0)
	l.j.mu.Lock()
	l.j.pendingBytes = maxPending // nothing wakes the journal before the next event
	l.j.mu.Unlock()
	if _, err := l.Append(t.Context(), "h/1", records(1, 1)); !errors.Is(err, errBehind) {
		t.Errorf("a host's events: %v", err)
	}
	if err := l.Emit(t.Context(), sallyport.Event{Name: UserLogin}, true); err != nil {
		t.Errorf("auth's own: %v", err)
	}
}
