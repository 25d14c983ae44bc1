package audit

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
)

// TestSpoolBehind: while the disk is behind, events wait for it; who ends the wait
// has no event, and ends of sessions have room of their own.
func TestSpoolBehind(t *testing.T) {
	s := openSpool(t, SpoolConfig{Dir: t.TempDir()})
	defer s.Close()
	behind := func(n int) {
		s.j.mu.Lock()
		s.j.pendingBytes += n // nothing wakes the journal before the next event
		s.j.mu.Unlock()
	}
	behind(maxPending)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Emit(gone, event("x", nil), false); !errors.Is(err, errBehind) || !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("with too much waiting: %v", err)
	}
	waits := make(chan error, 1)
	go func() { waits <- s.Emit(t.Context(), event("y", nil), false) }()
	select {
	case err := <-waits:
		t.Errorf("did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := s.Emit(t.Context(), event("session.end", nil), true); err != nil {
		t.Errorf("an end: %v", err)
	}
	if err := <-waits; err != nil { // the end's commit has taken all there was
		t.Error(err)
	}
	within(t, "both are in the spool", func() bool { return s.Status().Sequence == 2 })
	if got := names(t, drain(t, s, 0)); got != "session.end y" {
		t.Errorf("in the spool: %s", got)
	}
}

// TestSpoolPaces: who fills the spool is slowed down, more the more he writes and
// the less room there is, until his session ends.
func TestSpoolPaces(t *testing.T) {
	const most = 1 << 20
	s := &Spool{c: SpoolConfig{MaxBytes: most}}
	for _, tt := range []struct {
		used int64
		size int
		want time.Duration
	}{
		{0, MaxEvent, 0}, {most / 2, MaxEvent, 0},
		{most * 3 / 4, MaxEvent, longestPause / 2}, {most, MaxEvent, longestPause}, {most, MaxEvent / 64, longestPause / 64},
	} {
		if got := s.pause(tt.used, tt.size); got != tt.want {
			t.Errorf("%d bytes when %d are there: %v, want %v", tt.size, tt.used, got, tt.want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		Commit{pause: 100 * time.Millisecond}.Pause(ctx)
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Errorf("paused %v", took)
		}
		Commit{pause: time.Hour}.Pause(ctx)
		if took := time.Since(began); took != time.Second {
			t.Errorf("the session has ended; paused %v", took)
		}
	})
	for name, paced := range map[string]bool{"x": true, "session.end": false} {
		full := openSpool(t, SpoolConfig{Dir: t.TempDir(), MaxBytes: 64 << 10})
		var c Commit
		for c.pause == 0 {
			var err error
			if c, err = full.Begin(Line{name, Encode(event(name, nil))}, false); err != nil {
				break
			}
		}
		if (c.pause > 0) != paced {
			t.Errorf("%s: a pause of %v", name, c.pause)
		}
		full.Close()
	}
}
