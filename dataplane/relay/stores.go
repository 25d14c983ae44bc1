//go:build unix

package relay

import "time"

// stores are what the relays of one loop borrow while bytes are in flight: an
// idle relay holds neither a buffer nor a pipe. Only the loop's thread touches
// them.
type stores struct {
	buffers []*buffer
	pipes   []*pipe // empty ones, the last used on top
	open    int     // pipes that exist, lent or not
	retry   time.Time
	turn    turn
}

// turn is what the relays of a loop have done since it last waited.
type turn struct {
	spliced int // bytes
	copied  int // messages that fitted the buffer, in relays that run
}

// buffer is lent whole.
type buffer [ScratchSize]byte

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
	if l, ok := l.(lender); ok {
		return l.lend()
	}
	return new(stores)
}

func (s *stores) buffer() *buffer {
	n := len(s.buffers)
	if n == 0 {
		return new(buffer)
	}
	b := s.buffers[n-1]
	s.buffers = s.buffers[:n-1]
	return b
}

func (s *stores) putBuffer(b *buffer) {
	if len(s.buffers) < buffersKeep {
		s.buffers = append(s.buffers, b)
	}
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
