package app

import (
	"net/http/httptest"
	"testing"
)

type flushed struct{ *httptest.ResponseRecorder }

func (f flushed) FlushError() error { f.Flush(); return nil }

// TestDripIsLate: a timer that runs when the answer has ended already flushes nothing:
// its writer is not to be used any more.
func TestDripIsLate(t *testing.T) {
	var drips Drips
	w := httptest.NewRecorder()
	w.Header().Set("Content-Length", "4")
	d := drips.Begin(w, flushed{w})
	d.timer.Stop() // as if it ran now, and waited for End
	d.End()
	d.late()
	if w.Flushed || d.to != nil || d.out != nil {
		t.Errorf("flushed: %v; it still has %v", w.Flushed, d.to)
	}
}
