// Package halfclose ends the two directions of a connection that is no longer HTTP
// (RFC 9110, section 7.8) one by one.
//
// httputil.ReverseProxy copies both ways, and closes both sides at the first error
// that it meets: what the other direction still brings is lost, as the last output
// of a command whose input nobody reads any more. Here the sides are such that it
// meets none before both directions are over.
//
//	both pass ──▶ one has ended: its source has, or its destination takes no more.
//	   │          The destination is told so; what its source still sends is thrown away
//	   │             │
//	   │             ├─▶ so has the other ──┐
//	   │             └─▶ nothing passes ────┤
//	   └─▶ the request's context is done ───┴─▶ both sides are closed
package halfclose

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"
)

// Linger is how long a direction may pass nothing once the other has ended. It is
// looked at as often: twice that is the most.
const Linger = 30 * time.Second

// Proxy returns what serves as p does, but for streams. It takes p over, and calls
// p's ModifyResponse.
//
// A stream's client is closed as net/http's hijacked connection is, by one call to
// Close of what the writer's Hijack has returned; CloseWrite is called before where
// there is one.
func Proxy(p *httputil.ReverseProxy) http.Handler {
	modify := p.ModifyResponse
	p.ModifyResponse = func(r *http.Response) error {
		if modify != nil {
			if err := modify(r); err != nil {
				return err
			}
		}
		s, ok := r.Request.Context().Value(streamKey{}).(*stream)
		if body, duplex := r.Body.(io.ReadWriteCloser); ok && duplex && r.StatusCode == http.StatusSwitchingProtocols {
			r.Body = s.between(body)
		}
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			p.ServeHTTP(w, r)
			return
		}
		s := &stream{}
		p.ServeHTTP(&writer{w, s}, r.WithContext(context.WithValue(r.Context(), streamKey{}, s)))
	})
}

// streamKey is the context's key for the stream that a request may become.
type streamKey struct{}

// writer is the client's side of a request.
type writer struct {
	http.ResponseWriter
	stream *stream
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack meets http.Hijacker: the stream begins.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &client{conn, w.stream.between(conn)}, rw, nil
}

// stream is two sides, each of which is read by one goroutine, and written by the
// one that reads the other.
type stream struct {
	passed atomic.Int64 // bytes that a side has taken
	over   atomic.Bool  // set before the sides are closed
	end    sync.Once

	mu    sync.Mutex
	sides []*side     // the server's, and then the client's
	timer *time.Timer // from when a direction has ended
	seen  int64       // passed, when it was looked at
}

// between makes rw a side.
func (s *stream) between(rw io.ReadWriteCloser) *side {
	d := &side{stream: s, rw: rw}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sides = append(s.sides, d)
	return d
}

// ended notes that a direction has. From now on the other may not stand still.
func (s *stream) ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil && !s.over.Load() {
		s.seen = s.passed.Load()
		s.timer = time.AfterFunc(Linger, s.look)
	}
}

// look closes a stream that stands still.
func (s *stream) look() {
	if !s.moves() {
		s.close()
	}
}

func (s *stream) moves() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	passed := s.passed.Load()
	if passed == s.seen || s.over.Load() {
		return false
	}
	s.seen = passed
	s.timer.Reset(Linger)
	return true
}

// close closes both sides, the server's first: a client may be told why. It
// returns when both are closed, whoever has begun.
func (s *stream) close() {
	s.end.Do(func() {
		s.over.Store(true)
		s.mu.Lock()
		sides := s.sides
		if s.timer != nil {
			s.timer.Stop()
		}
		s.mu.Unlock()
		for _, d := range sides {
			_ = d.rw.Close() // nothing more can be done
		}
	})
}

// side is one of the two, as ReverseProxy gets it.
type side struct {
	stream *stream
	rw     io.ReadWriteCloser
	deaf   bool // it takes no more; of the goroutine that writes
}

// Read has no error but the end until both directions are over: who was reset may
// be told of it, and nobody else.
func (d *side) Read(p []byte) (int, error) {
	n, err := d.rw.Read(p)
	switch {
	case err == nil:
		return n, nil
	case d.stream.over.Load():
		return n, net.ErrClosed
	}
	d.stream.ended()
	return n, io.EOF
}

// Write throws away what the side does not take any more: who sends it may have
// more to get.
func (d *side) Write(p []byte) (int, error) {
	if d.stream.over.Load() {
		return 0, net.ErrClosed
	}
	if d.deaf {
		return len(p), nil
	}
	n, err := d.rw.Write(p)
	d.stream.passed.Add(int64(n))
	if err != nil {
		d.deaf = true
		d.stream.ended()
		_ = d.CloseWrite()
	}
	return len(p), nil
}

// CloseWrite tells the side that nothing more comes. One that cannot be told is
// closed with the other.
func (d *side) CloseWrite() error {
	if half, ok := d.rw.(interface{ CloseWrite() error }); ok && !d.stream.over.Load() {
		_ = half.CloseWrite()
	}
	return nil
}

// Close ends the stream.
func (d *side) Close() error {
	d.stream.close()
	return nil
}

// client is the client's side, which is a connection.
type client struct {
	net.Conn
	side *side
}

func (c *client) Read(p []byte) (int, error)  { return c.side.Read(p) }
func (c *client) Write(p []byte) (int, error) { return c.side.Write(p) }
func (c *client) CloseWrite() error           { return c.side.CloseWrite() }
func (c *client) Close() error                { return c.side.Close() }
