package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is the program itself where a test starts it as a server's keeper.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "demo-child" {
		main()
	}
	os.Exit(m.Run())
}

// tiedServer is a server that writes down what it is told.
type tiedServer struct {
	*kept
	leash *leash
	says  string // a file
	pid   int
}

// startTied starts one: script is what it does at SIGINT.
func startTied(t *testing.T, script string) *tiedServer {
	t.Helper()
	l, err := newLeash()
	if err != nil {
		t.Fatal(err)
	}
	s := &tiedServer{leash: l, says: filepath.Join(t.TempDir(), "says")}
	cmd := exec.Command("/bin/sh", "-c", "trap 'echo INT >>"+s.says+"; "+script+"' INT; trap 'echo QUIT >>"+s.says+"; exit 7' QUIT; echo $$ >"+s.says+".pid; mv "+s.says+".pid "+s.says+"; while :; do sleep 0.02; done")
	if s.kept, err = l.startKept(cmd, syscall.SIGINT, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.close()
		<-s.done
	})
	s.await(t, "it runs", func() bool {
		text, err := os.ReadFile(s.says)
		s.pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil && s.pid > 0
	})
	return s
}

func (s *tiedServer) await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func (s *tiedServer) gone(t *testing.T) {
	t.Helper()
	s.await(t, "the server ends", func() bool {
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.pid)) // one that nobody has taken leave of has none either
		return err != nil
	})
}

func (s *tiedServer) told(t *testing.T, want string) {
	t.Helper()
	text, err := os.ReadFile(s.says)
	if got := strings.Join(strings.Fields(string(text))[1:], " "); err != nil || got != want {
		t.Errorf("it was told %q, %v, want %q", got, err, want)
	}
}

// TestTied: a server ends when the last main process has, in order, and never
// before.
func TestTied(t *testing.T) {
	t.Run("leash", func(t *testing.T) {
		s := startTied(t, "exit 3")
		fd, err := dup(s.leash.write)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.leash.drop(); err != nil { // another main process has the other end
			t.Fatal(err)
		}
		if err := syscall.Kill(s.pid, 0); err != nil {
			t.Fatal(err)
		}
		closeFDs([]int{fd})
		<-s.done
		s.gone(t)
		s.told(t, "INT")
		if code := s.cmd.ProcessState.ExitCode(); code != 3 {
			t.Errorf("the keeper's exit code is %d", code)
		}
	})
	t.Run("keeper killed", func(t *testing.T) {
		s := startTied(t, "exit 3")
		if err := s.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		s.gone(t)
		s.told(t, "INT")
	})
	t.Run("stop", func(t *testing.T) {
		s := startTied(t, "exit 0")
		s.stop()
		s.gone(t)
		s.told(t, "INT")
	})
	t.Run("ends by itself", func(t *testing.T) {
		s := startTied(t, "exit 0")
		if err := syscall.Kill(s.pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-s.done
		if code := s.cmd.ProcessState.ExitCode(); code != 128+9 {
			t.Errorf("the keeper's exit code is %d", code)
		}
	})
	t.Run("no program", func(t *testing.T) {
		l, err := newLeash()
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		k, err := l.startKept(exec.Command("/nowhere/at all"), syscall.SIGINT)
		if err != nil {
			t.Fatal(err)
		}
		<-k.done
		if code := k.cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
	})
}

// TestTiedOutlivesThread: the demo's database stopped when the thread that had
// started it ended, which Go does to threads that somebody has changed.
func TestTiedOutlivesThread(t *testing.T) {
	tid := 0
	var s *tiedServer
	onThreadThatEnds(func() {
		tid = unix.Gettid()
		s = startTied(t, "exit 0")
	})
	s.await(t, "the thread's end", func() bool { return errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH) })
	// A signal of the thread's end comes first: it has been sent.
	if err := syscall.Kill(s.pid, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-s.done
	s.told(t, "QUIT")
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
