package audit

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
)

// TestSearchesAtOnce: each search had a whole segment in memory, and as many were under
// way as somebody asked for.
func TestSearchesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Log{j: &journal{}, searches: make(chan struct{}, searchesAtOnce)}
		for range searchesAtOnce {
			if err := l.beginSearch(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if _, err := l.Search(t.Context(), Query{}); !errors.Is(err, sallyport.ErrExhausted) || time.Since(start) != searchWait {
			t.Errorf("one more: %v after %v", err, time.Since(start))
		}
		found := make(chan error)
		go func() {
			_, err := l.Search(t.Context(), Query{})
			found <- err
		}()
		synctest.Wait()
		<-l.searches
		if err := <-found; err != nil {
			t.Errorf("after its turn came: %v", err)
		}
		if len(l.searches) != searchesAtOnce-1 {
			t.Errorf("%d turns are taken, want %d", len(l.searches), searchesAtOnce-1)
		}
	})
}
