//go:build unix

// Package logsink writes a program's log without waiting for whoever reads it. A
// terminal that is stopped (Ctrl-S), a pager, a pipe or a log service that hangs
// would stop whoever has something to say, one after the other: here, all
// connections.
package logsink

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// waiting is how much of the log is kept for a reader who does not read, in
	// bytes. What is said beyond that is lost, and counted.
	waiting = 1 << 20

	closeTick = 5 * time.Millisecond
)

// Sink is a log's way to its reader. Into a pipe or a socket lines are written at once
// while he reads, so that the last before a crash is there; else, and while he does
// not, they wait.
//
//	Write ─┬─ he is ready, nothing waits ─▶ file
//	       └─ else ─▶ queue ─▶ drain ─────▶ file
type Sink struct {
	// Resumed is told how many lines were lost when the reader reads again; nil for
	// nobody. It may write.
	Resumed func(lost uint64)

	file *os.File
	raw  syscall.RawConn // nil: lines are never written at once

	mu      sync.Mutex
	polls   bool   // the file cannot be told not to wait: it is asked before
	writing bool   // somebody is, with or without the queue
	queue   []byte // lines, in order
	taken   int    // bytes of the queue that are being written
	lost    uint64 // since the reader read last
	total   uint64 // ever
}

// New returns the sink of f, which stays its caller's.
func New(f *os.File) *Sink {
	s := &Sink{file: f}
	// A device that can be written to may have room for half a line, and of a file
	// nobody can tell whether its disk is about to hang.
	if info, err := f.Stat(); err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0 {
		s.raw, _ = f.SyscallConn()
	}
	return s
}

// File is where the lines go.
func (s *Sink) File() *os.File { return s.file }

// Write takes a line. It meets io.Writer, and does not wait.
func (s *Sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := p
	if !s.writing && len(p) <= atOnce && s.raw != nil {
		rest = s.offer(p)
	}
	switch {
	case len(rest) == 0:
	case len(s.queue)+s.taken+len(rest) > waiting:
		s.lost++
		s.total++
	default:
		s.queue = append(s.queue, rest...)
		s.begin()
	}
	return len(p), nil
}

// Lost is how many lines nobody will read.
func (s *Sink) Lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Close waits until everything is written, for a while at most: the reader may
// never come. The file stays open.
func (s *Sink) Close(wait time.Duration) {
	for end := time.Now().Add(wait); s.busy() && time.Now().Before(end); {
		time.Sleep(closeTick)
	}
}

func (s *Sink) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writing
}

// offer has the file take of a short line what it takes without a wait, and returns
// the rest.
func (s *Sink) offer(p []byte) (rest []byte) {
	if !s.polls {
		n, err := 0, error(nil)
		if cerr := s.raw.Control(func(fd uintptr) { n, err = writeNow(int(fd), p) }); cerr != nil {
			return p
		}
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			s.polls = true
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			return p
		case err != nil:
			return nil // there is nobody to tell
		default:
			return p[n:]
		}
	}
	if !s.ready() {
		return p
	}
	s.direct(p)
	return nil
}

// ready says that the file takes a short line now.
func (s *Sink) ready() bool {
	ready := false
	err := s.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, 0)
		ready = err == nil && n == 1
	})
	return err == nil && ready
}

// direct writes a line in its caller's place. Another process may have the same pipe
// and fill it just now: then the caller waits, and whoever he keeps waiting.
func (s *Sink) direct(p []byte) {
	s.writing = true
	s.mu.Unlock()
	_, _ = s.file.Write(p) // there is nobody to tell
	s.mu.Lock()
	s.writing = false
	if len(s.queue) > 0 {
		s.begin()
	}
}

// begin has the queue written, if nobody writes.
func (s *Sink) begin() {
	if !s.writing {
		s.writing = true
		go s.drain()
	}
}

func (s *Sink) drain() {
	var spare []byte
	for {
		s.mu.Lock()
		s.taken = 0
		if lost := s.lost; lost > 0 && len(s.queue) == 0 && s.Resumed != nil {
			s.lost = 0
			s.mu.Unlock()
			s.Resumed(lost)
			continue
		}
		if len(s.queue) == 0 {
			s.writing, s.queue = false, nil
			s.mu.Unlock()
			return
		}
		lines := s.queue
		s.queue, s.taken = spare[:0], len(lines)
		s.mu.Unlock()
		_, _ = s.file.Write(lines)
		spare = lines
	}
}
