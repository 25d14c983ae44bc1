//go:build unix

package relay

import (
	"math"
	"time"
)

// stores are what the relays of one loop borrow while bytes are in flight: an
// idle relay holds neither a buffer nor a pipe. Only the loop's thread touches
// them.
type stores struct {
	loop    Loop
	buffers []*kept // with room, and nothing in it
	pipes   []*pipe // empty ones, the last used on top
	open    int     // pipes that exist, lent or not
	retry   time.Time
	began   time.Time // the zero of time
	turn    turn

	waiting []*Relay // for their next turn, each once
	spare   []*Relay // room for that
	again   func()   // goOn; made once
}

// turn is what the relays of a loop have done since it last waited.
type turn struct {
	spliced int // bytes
	copied  int // messages that fitted the buffer, in relays that run

	answer *side // to whom the last of them went
	polled bool  // all of it was found by side.poll
}

// kept is what could not be written yet: in a buffer that is lent whole, or in
// memory that came with the relay.
type kept struct {
	bytes []byte
	room  *[ScratchSize]byte // nil: there is no buffer
}

// pipe is a kernel buffer between two sockets.
type pipe struct {
	r, w int
	held int // bytes; 0 while it is not lent
}

const (
	buffersKeep = 64 // 1 MiB a loop
	pipesKeep   = 16

	// pipesMost bounds the pipes of a loop. Four loops stay within what a
	// user without privileges may have (fs.pipe-user-pages-soft, 16,384 pages).
	pipesMost = 64

	// pipeSize: above it nothing is gained, below 128 KiB much is lost.
	pipeSize = 256 << 10

	// pipeLeast: a pipe of one page is what a user over the limit gets; to
	// copy is cheaper.
	pipeLeast = 64 << 10

	// pipeRetry is the pause after the system refused a pipe.
	pipeRetry = time.Second
)

// lender is a Loop with stores; both loops of this package are.
type lender interface{ lend() *stores }

func (s *stores) lend() *stores { return s }

// storesOf returns the loop's stores, or new ones for a foreign loop.
func storesOf(l Loop) *stores {
	lends, ok := l.(lender)
	if !ok {
		return &stores{loop: l}
	}
	s := lends.lend()
	if s.loop == nil {
		s.loop = l
	}
	return s
}

// time is t on a clock that takes less room; never for none.
func (s *stores) time(t time.Time) time.Duration {
	if s.began.IsZero() {
		s.began = time.Now()
	}
	return t.Sub(s.began)
}

// never is the longest ago that there is: what Sub makes of the zero time.
const never = time.Duration(math.MinInt64)

// at undoes time.
func (s *stores) at(d time.Duration) time.Time {
	if d == never {
		return time.Time{}
	}
	return s.began.Add(d)
}

// keep copies b, which is no larger than a buffer.
func (s *stores) keep(b []byte) *kept {
	k := &kept{}
	if n := len(s.buffers); n > 0 {
		k = s.buffers[n-1]
		s.buffers = s.buffers[:n-1]
	} else {
		k.room = new([ScratchSize]byte)
	}
	k.bytes = k.room[:copy(k.room[:], b)]
	return k
}

func (s *stores) putBack(k *kept) {
	k.bytes = nil
	if k.room != nil && len(s.buffers) < buffersKeep {
		s.buffers = append(s.buffers, k)
	}
}

// await lets r go on in the loop's next round. It is false when the loop has
// been closed.
func (s *stores) await(r *Relay) bool {
	if s.again == nil {
		s.again = s.goOn
	}
	if len(s.waiting) == 0 && !s.loop.Post(s.again) {
		return false
	}
	s.waiting = append(s.waiting, r)
	return true
}

// goOn is the turn of those that wait, in their order. Who waits again has the
// next one.
func (s *stores) goOn() {
	turn := s.waiting
	s.waiting, s.spare = s.spare[:0], nil
	for i, r := range turn {
		turn[i] = nil
		r.resume()
	}
	s.spare = turn[:0]
}

// pipe returns an empty pipe, or nil when there is none to be had: then bytes
// are copied.
func (s *stores) pipe(now time.Time) *pipe {
	if n := len(s.pipes); n > 0 {
		p := s.pipes[n-1]
		s.pipes = s.pipes[:n-1]
		return p
	}
	if s.open >= pipesMost || now.Before(s.retry) {
		return nil
	}
	p, err := newPipe()
	if err != nil {
		s.retry = now.Add(pipeRetry)
		return nil
	}
	s.open++
	return p
}

// putPipe takes an empty pipe back.
func (s *stores) putPipe(p *pipe) {
	if len(s.pipes) >= pipesKeep {
		s.dropPipe(p)
		return
	}
	s.pipes = append(s.pipes, p)
}

// dropPipe closes a pipe, and what is in it is gone.
func (s *stores) dropPipe(p *pipe) {
	s.open--
	p.close()
}

func (s *stores) close() {
	for _, p := range s.pipes {
		s.dropPipe(p)
	}
	s.pipes, s.buffers = nil, nil
}
