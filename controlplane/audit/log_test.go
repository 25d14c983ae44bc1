package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// sign stands in for the key of a control plane: it is quick, and Verify is
// called often here.
func sign(head []byte) ([]byte, error) {
	m := hmac.New(sha256.New, []byte("audit test"))
	m.Write(head)
	return m.Sum(nil), nil
}

func check(head, sig []byte) error {
	if want, _ := sign(head); !hmac.Equal(sig, want) {
		return errors.New("bad signature")
	}
	return nil
}

func openLog(t testing.TB, dir string, segment int64) *Log {
	t.Helper()
	l, err := OpenLog(LogConfig{Dir: dir, Host: "auth", Sign: sign, SegmentBytes: segment, Ballast: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func records(from uint64, n int) []Record {
	var out []Record
	for i := range n {
		seq := from + uint64(i)
		e := sallyport.Event{Name: "session.start", Code: "T2000I", UID: fmt.Sprintf("u%d", seq), User: "alice",
			Time: time.Unix(1_700_000_000+int64(seq), 0), Fields: map[string]any{"n": int64(seq)}}
		out = append(out, Record{Sequence: seq, JSON: Encode(e)})
	}
	return out
}

func appendTo(t testing.TB, l *Log, spool string, r []Record, want uint64) {
	t.Helper()
	got, err := l.Append(t.Context(), spool, r)
	if err != nil || got != want {
		t.Fatalf("append to %s: %d, %v, want %d", spool, got, err, want)
	}
}

func mustVerify(t testing.TB, dir string) Report {
	t.Helper()
	r, err := Verify(dir, check)
	if err != nil {
		t.Fatalf("verify: %v\n%v", err, r.Faults)
	}
	return r
}

func TestLogAppend(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, 0)
	appendTo(t, l, "h/1", records(1, 5), 5)
	appendTo(t, l, "h/1", records(3, 5), 7) // two are new
	appendTo(t, l, "h/1", records(1, 7), 7) // none is
	appendTo(t, l, "h/2", records(1, 1), 1)
	other := records(7, 1)
	other[0].JSON = append(other[0].JSON, ' ')
	if got, err := l.Append(t.Context(), "h/1", other); !errors.Is(err, sallyport.ErrConflict) || got != 7 {
		t.Errorf("another event of the same number: %d, %v", got, err)
	}
	bad := records(8, 3)
	bad[2].Sequence++
	for name, r := range map[string][]Record{"a hole": bad, "zero": {{}}, "no number of an event": {{Sequence: 1 << 63}}, "large": {{8, make([]byte, 3*MaxEvent)}}} {
		if got, err := l.Append(t.Context(), "h/1", r); !errors.Is(err, sallyport.ErrInvalid) || got != 7 {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	for _, spool := range []string{"", "a b", "ü", strings.Repeat("x", 300)} {
		if _, err := l.Append(t.Context(), spool, records(1, 1)); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("spool %q: %v", spool, err)
		}
	}
	if err := l.Emit(t.Context(), sallyport.Event{Name: UserLogin, Code: UserLoginCode}, true); err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	l.Close()
	rep := mustVerify(t, dir)
	if rep.Events != 10 || rep.Unfinished != 0 { // one of the log's own
		t.Errorf("report %+v", rep)
	}
	if _, err := VerifyAfter(dir, check, head); err != nil {
		t.Error(err)
	}
	head.Hash[0]++
	if _, err := VerifyAfter(dir, check, head); err == nil {
		t.Error("a head that never was is found")
	}

	l = openLog(t, dir, 0)
	if l.Acknowledged("h/1") != 7 || l.Acknowledged("h/2") != 1 || l.Acknowledged("h/3") != 0 {
		t.Errorf("after a restart: %v", l.Spools())
	}
	appendTo(t, l, "h/1", records(7, 2), 8)
	appendTo(t, l, "h/9", records(5, 1), 5) // of a log before this one
	found, err := l.Search(t.Context(), Query{Names: []string{AuditGap}})
	if err != nil || len(found) != 1 || !strings.Contains(string(found[0]), `"from":1,"missing":4,"spool":"h/9","to":4`) {
		t.Errorf("a gap at the start: %s, %v", found, err)
	}
	l.Close()
	mustVerify(t, dir)
}

// TestLogRestored: a host whose events the restored log had acknowledged could
// never send again, and then refused sessions.
func TestLogRestored(t *testing.T) {
	dir := t.TempDir()
	live, backup := filepath.Join(dir, "live"), filepath.Join(dir, "backup")
	s := openSpool(t, SpoolConfig{Dir: filepath.Join(dir, "spool"), Host: "h"})
	l := openLog(t, live, 0)
	shipSpool(t, s, l, 2)
	l.Close()
	if err := os.CopyFS(backup, os.DirFS(live)); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, live, 0)
	shipSpool(t, s, l, 3) // acknowledged, forgotten, and not in the backup
	l.Close()

	l = openLog(t, backup, 0)
	shipSpool(t, s, l, 2)
	if got := l.Acknowledged(s.ID()); got != 7 {
		t.Errorf("%d acknowledged, want 7", got)
	}
	found, err := l.Search(t.Context(), Query{Names: []string{AuditGap}})
	if want := fmt.Sprintf(`"from":3,"missing":3,"spool":"%s","to":5`, s.ID()); err != nil || len(found) != 1 || !strings.Contains(string(found[0]), want) {
		t.Errorf("the gap: %s, %v, want %s", found, err, want)
	}
	l.Close()
	mustVerify(t, backup)
	l = openLog(t, backup, 0)
	shipSpool(t, s, l, 1) // and no gap is told again
	found, err = l.Search(t.Context(), Query{Names: []string{AuditGap}})
	if err != nil || len(found) != 1 {
		t.Errorf("gaps after a restart: %s, %v", found, err)
	}
	l.Close()
	if rep := mustVerify(t, backup); rep.Events != 5+1+1+2 {
		t.Errorf("report %+v", rep) // shipped, the gap, the backup's opening and two
	}
}

// shipSpool emits n events and has the log take them.
func shipSpool(t testing.TB, s *Spool, l *Log, n int) {
	t.Helper()
	for range n {
		if err := s.Emit(t.Context(), sallyport.Event{Name: "x"}, true); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Next(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Append(t.Context(), s.ID(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Acknowledge(got); err != nil {
		t.Fatal(err)
	}
}

func TestLogUnreadableLine(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, 0)
	appendTo(t, l, "h/1", []Record{{1, []byte("not \x1b[31m json")}, {2, []byte(`{"time":"2024-01-02T03:04:05Z","event":"x","code":"C"}`)}}, 2)
	found, err := l.Search(t.Context(), Query{Names: []string{AuditUnreadable, "x"}})
	if err != nil || len(found) != 2 {
		t.Fatalf("found %q, %v", found, err)
	}
	if !strings.Contains(string(found[0]), `"line":"not \u001b[31m json"`) || !strings.HasPrefix(string(found[1]), `{"event":"x","code":"C"`) {
		t.Errorf("found %q", found)
	}
	l.Close()
	mustVerify(t, dir)
}

func TestLogRotatesAndPacks(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, 8<<10)
	for i := range uint64(40) {
		appendTo(t, l, "h/1", records(1+10*i, 10), 10*(i+1))
	}
	within(t, "packing", func() bool {
		raw, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		return len(raw) == 1
	})
	packed, _ := filepath.Glob(filepath.Join(dir, "*"+packedSuffix))
	if len(packed) < 5 {
		t.Fatalf("%d packed segments", len(packed))
	}
	mustVerify(t, dir) // while it is open
	at := func(s int64) time.Time { return time.Unix(1_700_000_000+s, 0) }
	for _, tt := range []struct {
		q           Query
		n           int
		first, last string
	}{
		{Query{Names: []string{"session.start"}}, 100, `"n":301}`, `"n":400}`},
		{Query{Names: []string{"session.start"}, Limit: 1000}, 400, `"n":1}`, `"n":400}`},
		{Query{From: at(11), To: at(21), Limit: 50}, 10, `"n":11}`, `"n":20}`},
		{Query{From: at(11), To: at(21), Limit: 3}, 3, `"n":18}`, `"n":20}`},
		{Query{Names: []string{"nothing"}}, 0, "", ""},
	} {
		got, err := l.Search(t.Context(), tt.q)
		if err != nil || len(got) != tt.n {
			t.Errorf("%+v: %d events, %v, want %d", tt.q, len(got), err, tt.n)
			continue
		}
		if tt.n > 0 && (!strings.HasSuffix(string(got[0]), tt.first) || !strings.HasSuffix(string(got[tt.n-1]), tt.last)) {
			t.Errorf("%+v: from %s to %s", tt.q, got[0], got[tt.n-1])
		}
	}
	l.Close()
	rep := mustVerify(t, dir)
	if rep.Events != 401 || rep.Segments != len(packed)+1 {
		t.Errorf("report %+v", rep)
	}
	l = openLog(t, dir, 8<<10)
	if l.Acknowledged("h/1") != 400 {
		t.Errorf("after a restart: %v", l.Spools())
	}
	appendTo(t, l, "h/1", records(401, 1), 401)
	l.Close()
	mustVerify(t, dir)
}

func TestLogConcurrent(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, 64<<10)
	var wg sync.WaitGroup
	for g := range 16 {
		spool := fmt.Sprintf("h/%d", g)
		for range 2 { // two shippers of one spool: a connection that died and its successor
			wg.Go(func() {
				for i := range uint64(20) {
					if _, err := l.Append(t.Context(), spool, records(1+5*i, 5)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			for range 20 {
				if err := l.Emit(t.Context(), sallyport.Event{Name: "local"}, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	l.Close()
	if rep := mustVerify(t, dir); rep.Events != 16*100+16*20+1 {
		t.Errorf("report %+v", rep)
	}
}

// TestLogTornTail cuts the log at every place of its end, as a crash does.
func TestLogTornTail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLog(t, dir, 0)
	appendTo(t, l, "h/1", records(1, 2), 2)
	l.Close()
	name := filepath.Join(dir, segmentName(1))
	whole, _ := os.ReadFile(name)
	head, _ := os.ReadFile(filepath.Join(dir, headName))
	l = openLog(t, dir, 0)
	appendTo(t, l, "h/1", records(3, 2), 4)
	l.Close()
	grown, _ := os.ReadFile(name)
	for size := len(whole); size <= len(grown); size += 29 {
		for _, e := range must(os.ReadDir(dir)) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
		os.WriteFile(name, grown[:size], 0o600)
		os.WriteFile(filepath.Join(dir, headName), head, 0o600)
		mustVerify(t, dir) // nothing that was signed before is lost
		l := openLog(t, dir, 0)
		if got := l.Acknowledged("h/1"); got != 2 && got != 4 {
			t.Errorf("cut at %d: %d acknowledged", size, got)
		}
		appendTo(t, l, "h/1", records(l.Acknowledged("h/1")+1, 1), l.Acknowledged("h/1")+1)
		l.Close()
		mustVerify(t, dir)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestLogFindsWhatItAcknowledged: for a moment, which was as long as the head
// file took, events were acknowledged and not yet found.
func TestLogFindsWhatItAcknowledged(t *testing.T) {
	l := openLog(t, t.TempDir(), 2<<10) // several segments
	committed := l.j.hooks.committed
	misses := make(chan string, 100)
	l.j.hooks.committed = func(batch []entry) { // the journal rests: this is the only thing it waits for
		committed(batch)
		acknowledged := l.Acknowledged("h/1")
		found, err := l.Search(context.Background(), Query{Names: []string{"session.start"}, Limit: 1000})
		if err != nil || uint64(len(found)) != acknowledged {
			misses <- fmt.Sprintf("%d acknowledged, %d found, %v", acknowledged, len(found), err)
		}
	}
	for n := range uint64(20) {
		appendTo(t, l, "h/1", records(n+1, 1), n+1)
	}
	close(misses)
	for m := range misses {
		t.Error(m)
	}
}
