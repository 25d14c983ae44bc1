package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPostgresOutlivesThread: the demo's database stopped when the thread that
// had started it ended, which Go does to threads that somebody has changed.
func TestPostgresOutlivesThread(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "postgres"), []byte("#!/bin/sh\nexec sleep 300\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // it looks ready at once
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	handle, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	p := &demoPostgres{bin: dir, dir: dir, port: l.Addr().(*net.TCPAddr).Port, as: &syscall.SysProcAttr{Setpgid: true}, handle: handle}
	tieToUs(p.as)
	tid := 0
	onThreadThatEnds(func() {
		tid = unix.Gettid()
		if err = p.start(t.Context()); err == nil {
			awaitSleep(t, p.cmd.Process.Pid)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); !errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH); {
		if time.Now().After(end) {
			t.Fatal("the thread did not end")
		}
		runtime.Gosched()
	}
	// A signal of the thread's end has a smaller number, and comes first.
	if err := p.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Error(err)
	}
	<-p.done
	if ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGUSR1 {
		t.Errorf("it ended by %v", p.cmd.ProcessState)
	}
}

// awaitSleep returns when the shell has become sleep: until then it may catch
// signals.
func awaitSleep(t *testing.T, pid int) {
	for end := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if string(name) == "sleep\n" {
			return
		}
		if err != nil || time.Now().After(end) {
			t.Errorf("it is not sleep: %q, %v", name, err)
			return
		}
	}
}

// onThreadThatEnds returns when f has run; its thread ends then.
func onThreadThatEnds(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the first thread lives as long as the process
			onThreadThatEnds(f)
			runtime.UnlockOSThread()
			return
		}
		f() // never unlocked: the thread ends with us
	}()
	<-done
}
