//go:build unix

package logsink

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

func line(n int) []byte {
	return fmt.Appendf(nil, "line %06d of many, as long as a line of a log is\n", n)
}

// pipe is a sink into a pipe.
func pipe(t *testing.T) (s *Sink, r *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// What a program inherits waits, unlike what Go has opened.
	blocking, err := unix.Dup(int(w.Fd()))
	if err := errors.Join(err, unix.SetNonblock(blocking, false), w.Close()); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(blocking), "log")
	t.Cleanup(func() {
		r.Close()
		s.Close(time.Minute) // a write that waits ends with its reader
		f.Close()
	})
	s = New(f)
	return s, r
}

// TestAtOnce: what is said while somebody reads is there when Write returns.
func TestAtOnce(t *testing.T) {
	s, r := pipe(t)
	for n := range 100 {
		s.polls = s.polls || n >= 50 // as where there is no other way
		if m, err := s.Write(line(n)); err != nil || m != len(line(n)) {
			t.Fatal(m, err)
		}
		if s.busy() {
			t.Fatal("a line waits, and nobody is in the way")
		}
		b := make([]byte, 1<<10)
		m, err := r.Read(b)
		if err != nil || !bytes.Equal(b[:m], line(n)) {
			t.Fatalf("%q: %v", b[:m], err)
		}
	}
}

// TestFile: nobody waits for a disk, but who ends.
func TestFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := New(f)
	var want []byte
	for n := range 10_000 {
		if _, err := s.Write(line(n)); err != nil {
			t.Fatal(err)
		}
		want = append(want, line(n)...)
	}
	s.Close(time.Minute)
	if b, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(b, want) || s.Lost() != 0 {
		t.Fatalf("%d of %d bytes, %d lines lost: %v", len(b), len(want), s.Lost(), err)
	}
}

// TestNobodyReads: 5 MiB go by, the first MiB and what the pipe takes is kept, in
// order, and how much was lost is told once somebody reads.
func TestNobodyReads(t *testing.T) {
	s, r := pipe(t)
	told := make(chan uint64, 1)
	s.Resumed = func(lost uint64) {
		fmt.Fprintf(s, "%d are lost\n", lost)
		told <- lost
	}
	const most = 100_000
	for n := range most {
		if _, err := s.Write(line(n)); err != nil {
			t.Fatal(err)
		}
	}
	lost := s.Lost()
	if kept := (most - int(lost)) * len(line(0)); kept < waiting || kept > 2*waiting {
		t.Fatalf("%d bytes are kept", kept)
	}
	in := bufio.NewScanner(r)
	for n := range most - int(lost) {
		if !in.Scan() || in.Text()+"\n" != string(line(n)) {
			t.Fatalf("%q in place of line %d", in.Text(), n)
		}
	}
	if got := <-told; got != lost {
		t.Errorf("%d are said to be lost, not %d", got, lost)
	}
	if !in.Scan() || in.Text() != fmt.Sprintf("%d are lost", lost) {
		t.Errorf("%q at the end", in.Text())
	}
	s.Close(time.Minute)
	if _, err := s.Write(line(0)); err != nil || s.busy() || !in.Scan() {
		t.Error("afterwards lines still wait")
	}
	if s.Lost() != lost {
		t.Error("what was lost is forgotten")
	}
}

// TestTerminalStopped: a terminal has room for half a line and more, and Ctrl-S
// stops it. Nobody waits for it.
func TestTerminalStopped(t *testing.T) {
	near, far, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	defer far.Close()
	s := New(far)
	for n := range 10_000 {
		if _, err := s.Write(line(n)); err != nil {
			t.Fatal(err)
		}
	}
	if !s.busy() {
		t.Error("who was to read has not, and nothing waits")
	}
	in := bufio.NewReader(near)
	for n := range 10_000 {
		got, err := in.ReadBytes('\n')
		if want := bytes.Replace(line(n), []byte("\n"), []byte("\r\n"), 1); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q in place of line %d: %v", got, n, err)
		}
	}
}

// TestSharedPipe: two processes, before and after an upgrade, have one pipe that nobody
// reads, with room for one line. One of them waited, with all who had something to say.
func TestSharedPipe(t *testing.T) {
	for range 200 {
		a, r := pipe(t)
		fd, err := unix.Dup(int(a.file.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "log")
		b := New(f)
		block := bytes.Repeat([]byte("x"), atOnce)
		for !a.busy() {
			_, _ = a.Write(block)
		}
		if a.polls {
			t.Skip("this kernel has no RWF_NOWAIT for pipes")
		}
		room := make([]byte, 2*atOnce) // for the line that waits and one more
		if _, err := io.ReadFull(r, room); err != nil {
			t.Fatal(err)
		}
		a.Close(time.Minute)
		var wg sync.WaitGroup
		for _, s := range []*Sink{a, b} {
			wg.Go(func() { _, _ = s.Write(block) })
		}
		wg.Wait() // for ever, with the bug
		r.Close()
		a.Close(time.Minute)
		b.Close(time.Minute)
		f.Close()
	}
}

// TestManyWriters: each writer's lines come in his order, whole.
func TestManyWriters(t *testing.T) {
	s, r := pipe(t)
	const writers, each = 8, 1000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				fmt.Fprintf(s, "%d %d\n", w, n)
			}
		})
	}
	next := [writers]int{}
	in := bufio.NewScanner(r)
	for range writers * each {
		var w, n int
		if !in.Scan() {
			t.Fatal(in.Err())
		}
		if _, err := fmt.Sscanf(in.Text(), "%d %d", &w, &n); err != nil || n != next[w] {
			t.Fatalf("%q where %d of %d was due: %v", in.Text(), n, w, err)
		}
		next[w]++
	}
	wg.Wait()
}

// TestReaderGone: a log without a reader is no reason to wait, nor to fail.
func TestReaderGone(t *testing.T) {
	s, r := pipe(t)
	for n := range 10_000 { // more than the pipe takes
		_, _ = s.Write(line(n))
	}
	r.Close()
	s.Close(time.Minute)
	if _, err := s.Write(line(0)); err != nil || s.busy() {
		t.Error(err, s.busy())
	}
}

// TestCloseWaits, but not for ever.
func TestCloseWaits(t *testing.T) {
	s, _ := pipe(t)
	for n := range 10_000 {
		_, _ = s.Write(line(n))
	}
	s.Close(20 * time.Millisecond)
	if !s.busy() {
		t.Error("everything is written, and nobody has read")
	}
}
