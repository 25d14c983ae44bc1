// Package supervise keeps a process id, while the processes that do the work
// follow one another: for process 1 of a container, for a shell, and for init
// systems that watch the process they started.
//
// There is no supervisor until the first upgrade. Then the process that was
// started becomes one, by execve(2), which keeps its id, its children and its
// place as their reaper (PR_SET_CHILD_SUBREAPER), and loses everything else.
//
//	supervisor ◀── "main 3 4711" ──┐
//	     ▲   ◀── "over 3 0" ───────┤ one socket pair; every main process, and
//	     └──── end of file ────────┘ who may become one, has the far end
//
// Who is the main process is said over a socket and not in a file, because only
// a socket has an order with the end of those who write: the one that leaves
// names its successor before it ends, the successor names itself, and the end of
// file says that nobody is left who could. A supervisor that reads a file when a
// process has died cannot tell whether its successor has yet to write. And the
// socket works both ways: when the supervisor is killed the main process reads
// the end of file. PR_SET_PDEATHSIG would not do: it is sent when the thread
// dies that made the child, and a successor is no child of the supervisor's.
package supervise

import (
	"fmt"
	"strconv"
	"strings"
)

// maxMessage bounds one message.
const maxMessage = 64

// Lost is the exit code when there was no main process.
const Lost = 1

// Exit codes of a main process that is no child of the supervisor's, because the
// process that it was started by still runs as a remnant: nobody can be asked for
// its status. One that ends says so before. One that crashes lets the runtime
// say why, and the runtime ends it with this code. One that says nothing was
// killed by the signal that leaves no time to: all others are caught, ignored, or
// end in a crash.
const (
	crashed = 2
	killed  = 128 + 9
)

const (
	kindMain = "main" // the process id of the main process
	kindOver = "over" // the exit code of the main process, which ends in order

	// kindLast is what the runtime says of a crash: text in any form, in as many
	// pieces as it likes (runtime/debug, SetCrashOutput).
	kindLast = "last words"
)

// message is what a main process says of itself or of its successor. The
// generation counts upgrades, so that what is said late is known to be old.
type message struct {
	kind       string
	generation uint64
	value      int
}

func (m message) encode() []byte {
	return fmt.Appendf(nil, "%s %d %d", m.kind, m.generation, m.value)
}

// decode reads a message. What is none are the runtime's words; messages of
// later versions, which this one does not know, have the form of the others.
func decode(b []byte) (message, error) {
	f := strings.Split(string(b), " ")
	if len(f) != 3 || !isWord(f[0]) {
		return message{kind: kindLast}, nil
	}
	generation, err := strconv.ParseUint(f[1], 10, 64)
	value, verr := strconv.Atoi(f[2])
	switch {
	case err != nil || verr != nil:
		return message{kind: kindLast}, nil
	case f[0] != kindMain && f[0] != kindOver:
		return message{}, fmt.Errorf("%q is not a message of a main process", b)
	}
	return message{f[0], generation, value}, nil
}

func isWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < 'a' || r > 'z' })
}

// State is what a supervisor knows; it can be told to the program that it becomes.
type State struct {
	Generation uint64 // of the main process
	Main       int    // its id

	said  *int        // the exit code that it announced
	last  bool        // the runtime has said that it crashes
	codes map[int]int // of children that have ended
}

// codesMost bounds the children whose end is remembered: a main process may end
// before it is known to be one.
const codesMost = 64

// heard takes a message; it reports whether there is another main process now.
func (s *State) heard(m message) bool {
	switch {
	case m.kind == kindMain && m.generation > s.Generation && m.value > 0:
		s.Generation, s.Main, s.said, s.last = m.generation, m.value, nil, false
		return true
	case m.kind == kindOver && m.generation == s.Generation:
		s.said = &m.value
	case m.kind == kindLast:
		s.last = true
	}
	return false
}

// ended remembers with what a child has ended.
func (s *State) ended(pid, code int) {
	if s.codes == nil || len(s.codes) >= codesMost {
		kept := s.codes
		s.codes = map[int]int{}
		if c, there := kept[s.Main]; there {
			s.codes[s.Main] = c
		}
	}
	s.codes[pid] = code
}

// code is the exit code of the whole, once no main process is left.
func (s *State) code() int {
	if c, there := s.codes[s.Main]; there {
		return c
	}
	switch {
	case s.said != nil:
		return *s.said
	case s.Main == 0:
		return Lost
	case s.last:
		return crashed
	}
	return killed
}
