package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/executable"
	"github.com/sallyport/sallyport/tools/peers"
)

// TestMemoryWithChildren: a connection's process of a newer OpenSSH counts as sshd's.
// It was called sshd-session from then on, and sshd's sessions cost nothing.
func TestMemoryWithChildren(t *testing.T) {
	onLinux(t)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		peers.Missing(t, "sleep")
	}
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "sshd-session")
	if err := executable.Write(path, program, 0o700); err != nil {
		t.Fatal(err)
	}
	sh := exec.Command("sh", "-c", `"$0" 600 & wait`, path)
	apart(sh)
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	u := &upgradable{session: sh.Process.Pid}
	defer func() {
		if err := u.stop(); err != nil {
			t.Error(err)
		}
		_ = sh.Wait() // by SIGTERM
	}()
	more := func(name string) bool {
		t.Helper()
		none, err := memoryWithChildren(sh.Process.Pid, "no such name")
		if err != nil {
			t.Fatal(err)
		}
		with, err := memoryWithChildren(sh.Process.Pid, name)
		if err != nil {
			t.Fatal(err)
		}
		return with.RSS > none.RSS+256<<10 // a program has more; the shell grows by less
	}
	for end := time.Now().Add(time.Minute); !more("sshd"); time.Sleep(10 * time.Millisecond) { // until it is the program
		if time.Now().After(end) {
			t.Fatal("sshd-session is not counted as sshd's")
		}
	}
	if more("session") {
		t.Error("a process with the name inside its own is counted")
	}
}
