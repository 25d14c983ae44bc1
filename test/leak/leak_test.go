package leak

import (
	"os"
	"os/signal"
	"strings"
	"testing"
	"time"
)

// TestOthers: a goroutine is found by its stack and name, and is gone when it
// has ended; those of the runtime do not count.
func TestOthers(t *testing.T) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	defer signal.Stop(c)

	ready, stop := make(chan struct{}), make(chan struct{})
	go left(ready, stop)
	<-ready
	alone := []string{"leak.left"}
	if got := wait(time.Millisecond, alone); !strings.Contains(got, "leak.left(") || strings.Contains(got, "\n\n") {
		t.Errorf("found %q", got)
	}
	if got := wait(time.Millisecond, []string{"leak.nobody"}); got != "" {
		t.Errorf("found %q", got)
	}
	// The goroutine of the testing package that waits for this test.
	if got := others(nil); strings.Contains(got, "os/signal") || strings.Contains(got, "ensureSigM") || !strings.Contains(got, "testing.") {
		t.Errorf("found %q", got)
	}
	close(stop)
	if got := wait(patience, alone); got != "" {
		t.Errorf("still there: %q", got)
	}
}

func left(ready, stop chan struct{}) {
	ready <- struct{}{}
	<-stop
}

func TestCode(t *testing.T) {
	cleaned := false
	if got := Code(3, func() { cleaned = true }); got != 3 || !cleaned {
		t.Errorf("code %d, cleaned up: %v", got, cleaned)
	}
	if got := CodeOf(2, "leak.left"); got != 2 {
		t.Errorf("code %d", got)
	}
	if got := CodeOf(0, "leak.left"); got != 0 {
		t.Errorf("code %d", got)
	}
	if got := report("a stack"); got != 1 {
		t.Errorf("code %d", got)
	}
}
