package ssh

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/leak"
)

// TestMain fails when processes or goroutines are left behind.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "serve-files" { // as the agent's own program does
		if err := ServeFiles(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	for end := time.Now().Add(deadline); code == 0 && children() > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if code == 0 && children() > 0 {
		fmt.Fprintln(os.Stderr, "processes were left behind")
		code = 1
	}
	os.Exit(leak.CodeOf(code, "protocol/ssh.", "crypto/ssh."))
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
