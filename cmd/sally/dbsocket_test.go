package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/dial"
	"github.com/sallyport/sallyport/test/executable"
)

// TestSocketOutlivesSignals: the second SIGHUP of a terminal that closes, and Ctrl-\, left
// the directory behind.
func TestSocketOutlivesSignals(t *testing.T) {
	s, err := listenForClient("orders")
	must(t, err)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGTERM} {
		if sig == syscall.SIGHUP && signal.Ignored(sig) { // nohup(1)
			continue
		}
		must(t, syscall.Kill(os.Getpid(), sig))
		if got := <-s.held; got != sig {
			t.Errorf("%v is held, not %v", got, sig)
		}
	}
	s.remove()
	if _, err := os.Stat(s.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", s.dir, err)
	}
}

// TestListenForClient: while the client of "db connect" ran, any user of the machine
// could come by its port and be the user.
func TestListenForClient(t *testing.T) {
	short, err := os.MkdirTemp("/tmp", "sp")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(short) })
	long := filepath.Join(short, strings.Repeat("d", maxSocketPath))
	must(t, os.Mkdir(long, 0o700))
	name := strings.Repeat("n", 63) // the longest label
	for tmp, parent := range map[string]string{short: short, long: "/tmp", filepath.Join(short, "missing"): "/tmp"} {
		t.Setenv("TMPDIR", tmp)
		s, err := listenForClient(name)
		must(t, err)
		dir := filepath.Dir(s.path)
		if info, err := os.Stat(dir); err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%v, %v", info, err)
		}
		if filepath.Dir(dir) != parent || filepath.Base(s.path) != name || len(s.path) > maxSocketPath {
			t.Errorf("TMPDIR=%s: %s", tmp, s.path)
		}
		c, err := net.Dial("unix", s.path)
		must(t, err)
		c.Close()
		s.remove()
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it stays: %v", err)
		}
	}
	for _, dir := range []string{short, long} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 && left[0].Name() != filepath.Base(long) {
			t.Errorf("in %s stay %v, %v", dir, left, err)
		}
	}
	if s, err := listenIn(long, "x"); err == nil || !strings.Contains(err.Error(), "longer than the 100 bytes") {
		t.Errorf("%v, %v", s, err)
	}
}

// TestSweep: a program that was killed left its directory behind for good.
func TestSweep(t *testing.T) {
	tmp, err := os.MkdirTemp("/tmp", "sp")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(tmp) })
	t.Setenv("TMPDIR", tmp)
	long := time.Now().Add(-time.Hour)
	abandoned := func(name string, files ...string) string {
		dir := filepath.Join(tmp, name)
		must(t, os.Mkdir(dir, 0o700))
		for _, file := range files {
			must(t, os.WriteFile(filepath.Join(dir, file), nil, 0o600))
		}
		return dir
	}
	socket := func(dir string) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "orders"), Net: "unix"})
		must(t, err)
		l.SetUnlinkOnClose(false)
		must(t, l.Close())
	}
	gone := []string{abandoned("sally.1"), abandoned("sally.2")}
	socket(gone[1])
	stay := []string{abandoned("sally.3", "file"), abandoned("sally.4", "orders"), abandoned("sally-1234"), abandoned("sally.open"), abandoned("sally.two", "file")}
	socket(stay[4])
	must(t, os.Chmod(stay[3], 0o755))
	live, err := listenForClient("orders")
	must(t, err)
	for _, dir := range append(append([]string{live.dir}, gone...), stay...) {
		must(t, os.Chtimes(dir, long, long))
	}
	young := abandoned("sally.young")
	must(t, os.Symlink(stay[2], filepath.Join(tmp, "sally.link")))

	s, err := listenForClient("orders")
	must(t, err)
	for _, dir := range gone {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s stays: %v", dir, err)
		}
	}
	for _, path := range append(stay, young, live.path, s.path, filepath.Join(tmp, "sally.link"), filepath.Join(stay[0], "file"), filepath.Join(stay[4], "orders")) {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	s.remove()
	live.remove()
	if _, err := os.Lstat(live.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s stays: %v", live.dir, err)
	}
}

// TestRunOn: the client comes by the socket, says how it ended, and leaves nothing.
func TestRunOn(t *testing.T) {
	p := newProgram(t)
	var out strings.Builder
	p.stdout = &out
	s, err := listenForClient("orders")
	must(t, err)
	client := filepath.Join(t.TempDir(), "client")
	must(t, executable.Write(client, []byte("#!/bin/sh\ntest -S \"$1\" && ls -ld \"${1%/*}\" | cut -c1-10\nexit 3\n"), 0o700))
	err = p.runOn(&dial.LocalProxy{Listener: s, Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("unused") }}, exec.Command(client, s.path))
	s.remove()
	if out.String() != "drwx------\n" || err == nil || err.Error() != "exit status 3" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if _, err := os.Lstat(s.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it stays: %v", err)
	}
}

// lastWordsTo is set in a process that is a client in TestRunOnEnds.
const lastWordsTo = "SALLY_TEST_LAST_WORDS_TO"

// TestRunOnEnds: what a client says before it exits arrives, and its connection ends in
// order. Sessions that had ended were in the audit log as lost.
func TestRunOnEnds(t *testing.T) {
	if path := os.Getenv(lastWordsTo); path != "" {
		conn, err := net.Dial("unix", path)
		must(t, err)
		_, err = conn.Read(make([]byte, 1)) // the server's
		must(t, err)
		_, err = conn.Write([]byte("last words"))
		must(t, err)
		must(t, syscall.Kill(os.Getpid(), syscall.SIGKILL)) // a program of the race detector takes a second for any other end
		select {}
	}
	p := newProgram(t)
	p.stdout = io.Discard
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	type end struct {
		said []byte
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			ended <- end{err: err}
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte{0}) // what is wrong the client says
		said, err := io.ReadAll(conn)
		ended <- end{said, err}
	}()
	s, err := listenForClient("orders")
	must(t, err)
	defer s.remove()
	client := exec.Command(os.Args[0], "-test.run=^TestRunOnEnds$")
	client.Env = append(os.Environ(), lastWordsTo+"="+s.path)
	err = p.runOn(&dial.LocalProxy{Listener: s, Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		return slow{conn}, err
	}}, client)
	if err == nil {
		t.Error("the client was not killed")
	}
	if got := <-ended; string(got.said) != "last words" || got.err != nil {
		t.Errorf("%q, %v", got.said, got.err)
	}
}

// slow is a way on which the client has exited before its words arrive.
type slow struct{ net.Conn }

func (s slow) Write(b []byte) (int, error) {
	if len(b) > 0 {
		time.Sleep(200 * time.Millisecond)
	}
	return s.Conn.Write(b)
}

func (s slow) CloseWrite() error { return s.Conn.(*net.TCPConn).CloseWrite() }
