package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
)

// TestDemoKilled: a demo that is killed leaves no database behind, and another
// goes on with its data at once, while the database may still be stopping.
func TestDemoKilled(t *testing.T) {
	d := startDemo(t)
	if d.name("db") == "" {
		peers.Missing(t, "postgres")
	}
	before := postmaster(t, d)
	dir := filepath.Dir(d.data)
	d.kill()
	d = startDemoIn(t, dir)
	await(t, "the end of the first database", runWait, func() bool {
		return errors.Is(syscall.Kill(before, 0), syscall.ESRCH)
	})
	p := newPerson(t)
	p.login(d)
	if out := p.run("sally", "db", "connect", "--db-user=writer", "--db-name=demo", "demo", "--", "-tAc", "select 6*7"); out != "42\n" {
		t.Errorf("the second database said %q", out)
	}
	after := postmaster(t, d)
	d.stop()
	if err := syscall.Kill(after, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the second database is left: %v", err)
	}
}

// postmaster is the number of the database's process.
func postmaster(t *testing.T, d *demo) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.data, "postgres", "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
