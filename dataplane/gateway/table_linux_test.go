package gateway

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestTable: where there is a gateway, the table of descriptors need not grow.
func TestTable(t *testing.T) {
	newRig(t, newLoops(t, relay.NewDefault, 1), nil)
	var limit unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	status, err := os.ReadFile("/proc/self/status")
	check(t, err)
	_, rest, _ := strings.Cut(string(status), "FDSize:")
	var size uint64
	if _, err := fmt.Sscan(rest, &size); err != nil || size < min(limit.Cur, 64<<10) {
		t.Errorf("a table of %d (%v), and %d descriptors may come", size, err, limit.Cur)
	}
}
