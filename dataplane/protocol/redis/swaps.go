package redis

import (
	"bytes"
	"crypto/rand"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sallyport/sallyport"
)

// swaps put answers of ours among those of the server, each at its place. A
// command that does not pass is replaced by a stand-in, a command with a random
// name: the server answers that it knows none of that name, and this answer is
// exchanged. So order is the server's, also where answers and commands are not
// one to one (subscriptions, MONITOR, CLIENT REPLY), and a transaction that
// holds a refused command is not executed. Its methods may be called
// concurrently.
type swaps struct {
	name  string
	count atomic.Int64 // of open

	mu   sync.Mutex
	next int64
	open []swap
}

type swap struct {
	number int64
	reply  []byte
}

// swapsMost is how many answers may be due: a client that wants no answers
// (CLIENT REPLY OFF) gets none of ours either.
const swapsMost = 1024

func newSwaps() *swaps { return &swaps{name: "sallyport-" + strings.ToLower(rand.Text()) + "-"} }

// put returns what the server gets, so that the client gets reply.
func (s *swaps) put(reply []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) == swapsMost {
		return nil, refuse(codeError, sallyport.ErrExhausted, "too many commands that are not served wait for an answer", "connect again")
	}
	s.next++
	s.open = append(s.open, swap{s.next, reply})
	s.count.Store(int64(len(s.open)))
	return appendCommand(nil, []byte(s.name+strconv.FormatInt(s.next, 10))), nil
}

// waiting says that an answer is due.
func (s *swaps) waiting() bool { return s != nil && s.count.Load() > 0 }

// find says what stands in place of an error. Servers may change the case of
// the name, and cut it beyond its 64 bytes.
func (s *swaps) find(line []byte) ([]byte, bool) {
	line = bytes.ToLower(line)
	i := bytes.Index(line, []byte(s.name))
	if i < 0 {
		return nil, false
	}
	digits := line[i+len(s.name):]
	n := 0
	for n < len(digits) && digits[n] >= '0' && digits[n] <= '9' {
		n++
	}
	number, err := strconv.ParseInt(string(digits[:n]), 10, 64)
	if err != nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Those before it were never answered.
	for len(s.open) > 0 && s.open[0].number < number {
		s.open = s.open[1:]
	}
	if len(s.open) == 0 || s.open[0].number != number {
		s.count.Store(int64(len(s.open)))
		return nil, false
	}
	reply := s.open[0].reply
	s.open = s.open[1:]
	s.count.Store(int64(len(s.open)))
	return reply, true
}
