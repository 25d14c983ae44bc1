package app

import (
	"net"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"
)

// gatherSize is how much of an answer is written at a time: the most that a record
// of TLS holds (RFC 8446, section 5.1).
const gatherSize = 16 << 10

// gatherTime is how long what an application says slowly waits for more.
const gatherTime = 100 * time.Millisecond

// gathered is a client's connection of HTTP/1.1. net/http writes by 4 KiB, and each
// piece would be a record of TLS, a system call, and the same again at the gateway.
// Here the pieces of an answer wait for each other: from its head on, until
//
//	there are gatherSize of them ─┐
//	the first has waited a while ─┤
//	the answer is flushed ────────┼─▶ written at once
//	its handler has returned, ────┘
//	  and the server writes the last, sets a deadline, reads, or ends its side
//
// The server does one of these after each answer, and before it waits for
// anything.
type gathered struct {
	net.Conn
	buffers httputil.BufferPool // of at least gatherSize
	late    atomic.Bool         // what is held waits for nothing any more
	lengths lengths             // of the requests

	mu      sync.Mutex
	holding bool
	held    []byte      // nil between answers: a connection that waits has no buffer
	timer   *time.Timer // nil until needed
	timed   bool        // it runs for what is held
}

// hold makes what follows wait.
func (g *gathered) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = true
}

// release is for the end of the handler: the next step of the server takes along
// what is held.
func (g *gathered) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = false
	g.unwind()
	if len(g.held) == 0 {
		g.giveBack()
	}
	g.late.Store(len(g.held) > 0)
}

// Write holds, or writes all that was held and p.
func (g *gathered) Write(p []byte) (n int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.holding && len(g.held) == 0 {
		return g.Conn.Write(p)
	}
	for len(g.held)+len(p) > gatherSize {
		if len(g.held) == 0 {
			m, err := g.Conn.Write(p)
			return n + m, err
		}
		fits := gatherSize - len(g.held)
		g.held = append(g.held, p[:fits]...)
		if err := g.flushLocked(); err != nil {
			return n, err
		}
		p, n = p[fits:], n+fits
	}
	if g.held == nil {
		g.held = g.buffers.Get()[:0]
	}
	g.held = append(g.held, p...)
	if !g.holding {
		err = g.flushLocked()
	} else if !g.timed {
		g.wind()
	}
	return n + len(p), err
}

// wind starts the timer of what is held.
func (g *gathered) wind() {
	g.timed = true
	if g.timer != nil {
		g.timer.Reset(gatherTime)
		return
	}
	g.timer = time.AfterFunc(gatherTime, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.timed {
			_ = g.flushLocked() // an error is also that of what follows
		}
	})
}

// unwind stops the timer.
func (g *gathered) unwind() {
	if g.timed {
		g.timer.Stop()
		g.timed = false
	}
}

// flush writes what is held.
func (g *gathered) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flushLocked()
}

func (g *gathered) flushLocked() error {
	// Afterwards: until then who has to be behind what is held waits for it.
	defer g.late.Store(false)
	g.unwind()
	if len(g.held) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.held)
	g.held = g.held[:0]
	if !g.holding {
		g.giveBack()
	}
	return err
}

// giveBack lets go of the buffer, which is empty.
func (g *gathered) giveBack() {
	if g.held != nil {
		g.buffers.Put(g.held[:cap(g.held)])
		g.held = nil
	}
}

// overdue writes what waits for nothing. While a handler runs nothing does:
// reading goes on beside a write that its client does not take. An error is also
// that of what follows.
func (g *gathered) overdue() {
	if g.late.Load() {
		_ = g.flush()
	}
}

// Read first writes the end of an answer: the client may wait for it.
func (g *gathered) Read(p []byte) (int, error) {
	g.overdue()
	n, err := g.Conn.Read(p)
	if len(p) <= headRead {
		g.lengths.read(p[:n])
	}
	return n, err
}

// SetReadDeadline is what the server does when it stops reading ahead.
func (g *gathered) SetReadDeadline(t time.Time) error {
	g.overdue()
	return g.Conn.SetReadDeadline(t)
}

// SetWriteDeadline is what the server does after each answer.
func (g *gathered) SetWriteDeadline(t time.Time) error {
	g.overdue()
	return g.Conn.SetWriteDeadline(t)
}

// CloseWrite ends this side, behind the last answer.
func (g *gathered) CloseWrite() error {
	if err := g.flush(); err != nil {
		return err
	}
	return g.Conn.(interface{ CloseWrite() error }).CloseWrite() // serve has asked
}
