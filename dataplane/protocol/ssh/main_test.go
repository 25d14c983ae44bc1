package ssh

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain fails when processes or goroutines are left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 && children() > 0 {
		fmt.Fprintln(os.Stderr, "processes were left behind")
		code = 1
	}
	if left := goroutines(); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "goroutines were left behind\n"+left)
		code = 1
	}
	os.Exit(code)
}

// goroutines gives the stacks of those that serve SSH, once they had time to
// end.
func goroutines() string {
	for end := time.Now().Add(5 * time.Second); ; {
		buf := make([]byte, 4<<20)
		var left []string
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "protocol/ssh.") && !strings.Contains(stack, "TestMain") || strings.Contains(stack, "crypto/ssh.") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return strings.Join(left, "\n\n")
		}
		<-time.After(10 * time.Millisecond)
	}
}

// children counts what this process has not reaped.
func children() int {
	out, err := exec.Command("ps", "--ppid", strconv.Itoa(os.Getpid()), "-o", "pid=,comm=").Output()
	if err != nil {
		return 0
	}
	n := 0
	for line := range strings.Lines(string(out)) {
		if !strings.HasSuffix(strings.TrimSpace(line), " ps") {
			n++
		}
	}
	return n
}
