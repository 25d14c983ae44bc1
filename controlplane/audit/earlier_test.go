package audit

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sallyport/sallyport"
)

// earlier copies a log and a spool that a version wrote which told gaps at a
// spool's start only, without their numbers, and kept any number of spools of a
// host: h/1 to event 7, h/9 with event 5 alone, and h/s0 to h/s19.
func earlier(t testing.TB) (log, spool string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "earlier"))); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "log"), filepath.Join(dir, "spool")
}

// TestEarlierVersion: what an earlier version wrote is whole, and goes on.
func TestEarlierVersion(t *testing.T) {
	log, dir := earlier(t)
	mustVerify(t, log)
	l := openLog(t, log, 2500)
	if have := l.Spools(); have["h/1"] != 7 || len(have) != maxHostSpools {
		t.Errorf("acknowledged: %v", have)
	}
	appendTo(t, l, "h/1", records(8, 2), 9)
	s := openSpool(t, SpoolConfig{Dir: dir, Host: "h", Ballast: 512})
	if got := names(t, drain(t, s, 0)); got != "e3 e4 e5" {
		t.Errorf("the spool has %s", got)
	}
	if err := s.Emit(t.Context(), sallyport.Event{Name: "e6"}, true); err != nil {
		t.Fatal(err)
	}
	r := drain(t, s, 0)
	appendTo(t, l, s.ID(), r, 6)
	appendTo(t, l, "h/9", records(6, 1), 6) // one of those forgotten
	if n := gaps(t, l, `"from":1,"missing":5,"spool":"h/9"`); n != 1 {
		t.Errorf("%d gaps of it", n)
	}
	l.Close()
	mustVerify(t, log)
}
