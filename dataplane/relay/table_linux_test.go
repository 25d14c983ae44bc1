package relay

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestGrowTable: there is room, and no descriptor has become of it.
func TestGrowTable(t *testing.T) {
	noLeak(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	GrowTable()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var size uint64
		if _, err := fmt.Sscanf(line, "FDSize: %d", &size); err != nil {
			continue
		}
		if want := min(limit.Cur, tableMost); size < want {
			t.Errorf("a table of %d, want %d at least", size, want)
		}
		return
	}
	t.Errorf("no FDSize in\n%s", status)
}
