// Package oneconn serves HTTP on one connection that somebody else has accepted,
// until the connection and all its requests are over.
//
//	Serve ─▶ requests, each from Begin to End ─▶ connection closed, or hijacked ─▶ none begins any more ─▶ the last End
package oneconn

import (
	"cmp"
	"context"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// MaxStreams is how many requests there may be at a time on a connection of HTTP/2.
const MaxStreams = 100

const (
	readHeadTimeout  = 20 * time.Second
	idleTimeout      = 2 * time.Minute // of a connection without a request
	connectionBuffer = 1 << 20         // bytes of bodies that a connection of HTTP/2 holds
	streamBuffer     = 256 << 10       // and one request of it

	// farewell is how long a client of HTTP/2 whose requests are cut has to take that.
	farewell = 500 * time.Millisecond
)

// Server serves one connection. Its fields are set before Serve, which is called
// once.
type Server struct {
	Handler   http.Handler      // calls Begin, before all else, and End
	MaxHead   int               // bytes of a request's head
	HeadTime  time.Duration     // for it; 0: 20 s
	IdleTime  time.Duration     // between requests; 0: 2 min
	Protocols http.Protocols    // none: HTTP/1 and, on a connection of crypto/tls, HTTP/2
	HTTP2     *http.HTTP2Config // nil: with MaxStreams, and little memory
	ErrorLog  *log.Logger

	// Parting is called once, when ctx is done, before what runs is cut, whose contexts are done by
	// then: it waits, for a moment at most, for requests that have a last word. nil: none has.
	Parting func()
	parting sync.Once

	mu      sync.Mutex
	over    bool                             // no request begins any more
	running sync.WaitGroup                   // grows only while over is false
	whole   map[http.ResponseWriter]struct{} // answers that are not cut; nil: none

	streams atomic.Int64 // requests of HTTP/2 that run, or ran when the connection was to end
}

// Serve takes conn over, and returns when it is closed or hijacked, and all
// requests are over. Once ctx is done, what is not hijacked is closed; a client of
// HTTP/2 is told of each request that runs that it is cut (RST_STREAM), because some
// take the end of the connection for that of an answer whose length they do not know.
func (s *Server) Serve(ctx context.Context, conn net.Conn) {
	only := &listener{conn: conn, left: make(chan struct{}), closed: make(chan struct{})}
	srv := s.server(ctx, only)
	stop := context.AfterFunc(ctx, func() { s.end(srv, only) })
	defer stop()
	_ = srv.Serve(only) // ends with one of the two
	if only.taken {
		<-only.left
	} else {
		conn.Close() // it was over before it began
	}
	s.wait()
}

func (s *Server) server(ctx context.Context, only *listener) *http.Server {
	protocols, second := s.Protocols, s.HTTP2
	if protocols == (http.Protocols{}) {
		protocols.SetHTTP1(true)
		protocols.SetHTTP2(true)
	}
	if second == nil {
		second = &http.HTTP2Config{MaxConcurrentStreams: MaxStreams, MaxReceiveBufferPerConnection: connectionBuffer, MaxReceiveBufferPerStream: streamBuffer}
	}
	return &http.Server{
		Handler: s.cutting(ctx), Protocols: &protocols, HTTP2: second, MaxHeaderBytes: s.MaxHead,
		ReadHeaderTimeout: cmp.Or(s.HeadTime, readHeadTimeout), IdleTimeout: cmp.Or(s.IdleTime, idleTimeout),
		BaseContext: func(net.Listener) context.Context { return ctx }, ConnState: only.state, ErrorLog: s.ErrorLog,
	}
}

// cutting is the handler, whose streams of HTTP/2 are reset once ctx is done, also
// where it waits for a client that does not read.
func (s *Server) cutting(ctx context.Context) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 {
			s.Handler.ServeHTTP(w, r)
			return
		}
		s.streams.Add(1)
		reset := func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Unix(1, 0)) } // one that has passed does
		cut := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(cut)
			if s.part(); !s.isWhole(w) {
				reset()
			}
		})
		defer func() {
			switch {
			case !stop():
				<-cut // w is good until the handler has returned
			case ctx.Err() != nil && !s.isWhole(w):
				reset() // the handler was faster
			default:
				s.streams.Add(-1)
			}
		}()
		s.Handler.ServeHTTP(w, r)
	})
}

// Whole says of an answer, after ctx is done, that its last word is said: it ends in order. w is
// what the Handler was called with, and has not returned yet.
func (s *Server) Whole(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole == nil {
		s.whole = map[http.ResponseWriter]struct{}{}
	}
	s.whole[w] = struct{}{}
}

func (s *Server) isWhole(w http.ResponseWriter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.whole[w]
	return ok
}

// part returns when all that have a last word have said it.
func (s *Server) part() {
	if s.Parting != nil {
		s.parting.Do(s.Parting)
	}
}

// end closes the connection when it has said what is cut: GOAWAY, beside the resets.
// Then net/http closes it by itself, a second later, or its client before that.
func (s *Server) end(srv *http.Server, only *listener) {
	s.part()
	if s.streams.Load() > 0 {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		_ = srv.Shutdown(now) // says so, and does not wait
		late := time.NewTimer(farewell)
		defer late.Stop()
		select {
		case <-only.left:
		case <-late.C:
		}
	}
	srv.Close()
}

// Begin counts a request in, unless the connection is over: one of HTTP/2 may
// come to run after that. Who is told true calls End.
func (s *Server) Begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.running.Add(1)
	}
	return !s.over
}

// End counts a request out.
func (s *Server) End() { s.running.Done() }

// wait waits for what runs; nothing begins any more.
func (s *Server) wait() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.running.Wait()
}

// listener is one of one connection.
type listener struct {
	conn    net.Conn
	taken   bool // by Accept, which one goroutine calls
	leaving sync.Once
	left    chan struct{} // closed when the server has let go of the connection
	closing sync.Once
	closed  chan struct{}
}

// Accept gives the connection, and then waits for its end.
func (l *listener) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	select {
	case <-l.left:
	case <-l.closed:
	}
	return nil, net.ErrClosed
}

// state learns when the server has let go of the connection.
func (l *listener) state(_ net.Conn, s http.ConnState) {
	if s == http.StateClosed || s == http.StateHijacked {
		l.leaving.Do(func() { close(l.left) })
	}
}

// Close ends Accept; the connection ends by itself.
func (l *listener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return nil
}

// Addr is that of the connection.
func (l *listener) Addr() net.Addr { return l.conn.LocalAddr() }
