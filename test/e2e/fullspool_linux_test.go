package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestF7_FullSpool: while the agent's audit spool has no room, a session that
// does not start says so and ends with an error; none ends as if all were well
// with nothing carried.
func TestF7_FullSpool(t *testing.T) {
	dir := shortDir(t)
	spool := filepath.Join(dir, "data", "agent", "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", spool, "tmpfs", 0, "size=6m,mode=0700"); err != nil {
		t.Skip("mounting a tmpfs needs privileges:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(spool, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := startDemoIn(t, dir)
	p := newPerson(t)
	p.login(d)
	filler := filepath.Join(spool, "filler")
	if err := os.WriteFile(filler, make([]byte, 8<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	echo := func() (carried bool) {
		t.Helper()
		r := p.try("hello\n", "sally", "proxy", "tcp", "--stdio", "echo")
		switch {
		case r.code == 0 && r.stdout == "hello\n":
			return true
		case r.code == 1 && r.stdout == "" && strings.Contains(r.stderr, "ERROR: audit spool"):
			return false
		}
		t.Fatalf("neither carried nor refused: %+v", r)
		return false
	}
	for n := 0; echo(); n++ { // the last page has room for some
		if n == 100 {
			t.Fatal("sessions go on without room for their events")
		}
	}
	p.refused(1, []string{"audit spool"}, "sally", "ssh", login(t)+"@"+d.name("node"), "true")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	await(t, "sessions after the disk has room again", runWait, echo)
}
