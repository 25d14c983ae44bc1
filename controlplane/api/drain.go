package api

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

//lint:file-ignore SA1019 HTTP/2 is configured as x/net has it, on servers that say GOAWAY when they are told to

const (
	// shakeTime is what a handshake still gets when the API is drained. It
	// takes far less; who says nothing is not waited for.
	shakeTime = time.Second

	// drainEvery is how often drained connections are looked at: one whose
	// handshake ends late must be told too.
	drainEvery = 10 * time.Millisecond
)

// entrance is HTTP/2 for one kind of callers.
type entrance struct {
	h2   *http2.Server
	base *http.Server // serves nothing itself: by its Shutdown HTTP/2 says GOAWAY
}

// entrances are those of one Listener.
type entrances struct{ hosts, people, join entrance }

// smallBuffer is how many bytes a connection, all of its streams together, may
// send before they are read: about the least that HTTP/2 allows (RFC 9113,
// section 6.9.2).
const smallBuffer = 1 << 16

// hostStream is a stream's part of the megabyte that a host's connection may send
// ahead.
const hostStream = 1 << 18

// newEntrances configures HTTP/2. Those who are known may do more at a time than
// strangers. Hosts send much, and may be far away; people do not, and each may
// have maxPerCaller connections full of what nobody reads.
func newEntrances(log *slog.Logger) *entrances {
	return &entrances{
		// What ships events may wait unread: it is not to hold up a host's other calls.
		hosts:  newEntrance(log, &http2.Server{MaxConcurrentStreams: 100, IdleTimeout: idleTimeout, ReadIdleTimeout: pingAfter, PingTimeout: pingTimeout, MaxUploadBufferPerStream: hostStream}),
		people: newEntrance(log, &http2.Server{MaxConcurrentStreams: 100, IdleTimeout: idleTimeout, ReadIdleTimeout: pingAfter, PingTimeout: pingTimeout, MaxUploadBufferPerConnection: smallBuffer, MaxUploadBufferPerStream: smallBuffer}),
		join:   newEntrance(log, &http2.Server{MaxConcurrentStreams: joinStreams, IdleTimeout: joinIdle, MaxUploadBufferPerConnection: smallBuffer, MaxUploadBufferPerStream: smallBuffer}),
	}
}

func newEntrance(log *slog.Logger, h2 *http2.Server) entrance {
	base := &http.Server{
		ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnState: func(c net.Conn, s http.ConnState) {
			if f, ok := c.(*farewell); ok {
				f.idle(s == http.StateIdle)
			}
		},
	}
	if err := http2.ConfigureServer(base, h2); err != nil {
		panic(err) // it judges the cipher suites of a TLS configuration, and there is none
	}
	return entrance{h2: h2, base: base}
}

// begin takes a socket that is served from now on, unless Drain was called.
func (l *Listener) begin(ln net.Listener) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining {
		return false
	}
	if l.entrances == nil {
		l.entrances = sync.OnceValue(func() *entrances { return newEntrances(l.Log) })
	}
	if l.sockets == nil {
		l.sockets = map[net.Listener]struct{}{}
	}
	l.sockets[ln] = struct{}{}
	l.serving.Add(1)
	return true
}

func (l *Listener) leaving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.draining
}

// Drain ends all calls of Serve without a call of the API being lost. Nothing
// more is accepted: what comes waits in the sockets' queues, for whoever serves
// them next. Connections are told by GOAWAY (RFC 9113, section 6.8) which
// requests are not served here, so clients repeat those elsewhere; the others
// are served. When ctx is done first, what is still open is closed, and the
// error says how much that was.
//
// The sockets stay open and may be served again, by another Listener. They need
// SetDeadline for that, as TCP's and Unix's have; others are closed.
func (l *Listener) Drain(ctx context.Context) error {
	for _, ln := range l.stopAccepting() {
		d, ok := ln.(interface{ SetDeadline(time.Time) error })
		if !ok || d.SetDeadline(time.Unix(1, 0)) != nil {
			ln.Close()
			continue
		}
		defer d.SetDeadline(time.Time{})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.serving.Wait()
	}()
	return l.sayGoodbye(ctx, ended)
}

func (l *Listener) stopAccepting() []net.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.draining = true
	var out []net.Listener
	for ln := range l.sockets {
		out = append(out, ln)
	}
	clear(l.sockets)
	return out
}

func (l *Listener) sayGoodbye(ctx context.Context, ended <-chan struct{}) error {
	shake := time.NewTimer(shakeTime)
	defer shake.Stop()
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		if l.entrances != nil { // nil: nothing was ever served
			l.entrances().shutdown()
		}
		select {
		case <-ended:
			return nil
		case <-tick.C:
		case <-shake.C:
			l.closeSome(func(h *held) bool { return !h.shaken })
		case <-ctx.Done():
			n := l.closeSome(func(h *held) bool { return h.shaken })
			l.closeAll()
			<-ended
			if n == 0 {
				return nil
			}
			return fmt.Errorf("%d connections were closed with calls on them: %w", n, ctx.Err())
		}
	}
}

// shutdown sends GOAWAY on all connections on which it was not sent yet.
func (d *entrances) shutdown() {
	for _, s := range []*http.Server{d.hosts.base, d.people.base, d.join.base} {
		if err := s.Shutdown(context.Background()); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.ErrorLog.Print(err) // not reached: it has no listener to close and no connection to wait for
		}
	}
}

// closeSome closes the connections that are meant, and counts them.
func (l *Listener) closeSome(meant func(*held) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for c, h := range l.conns {
		if meant(h) {
			c.Close()
			n++
		}
	}
	return n
}

// farewell is a connection that HTTP/2 is served on. When GOAWAY is sent while
// no request is open it says close_notify (RFC 8446, section 6.1) behind it, and
// the client closes at once: HTTP/2 alone would wait a second for that. What
// the client still sends is read until then, so that no reset overtakes the
// GOAWAY. A client with requests open closes by itself when they have ended.
//
// Behind close_notify nothing can be written, and HTTP/2 closes a connection that
// takes no frame, such as the answer to the client's SETTINGS or PING: with what
// the client has sent unread that is a reset. So such frames are dropped; their
// reader is gone, or about to read that we are.
type farewell struct {
	*tls.Conn

	mu    sync.Mutex
	quiet bool // no stream is open

	// Of the goroutine that writes: where it is in the row of frames.
	head [frameHead]byte
	have int    // bytes of head
	left uint32 // bytes of the frame's payload to come
	said bool   // close_notify
}

const (
	frameHead   = 9   // RFC 9113, section 4.1
	frameGoAway = 0x7 // RFC 9113, section 6.8
)

// idle is told whether streams are open.
func (f *farewell) idle(quiet bool) {
	f.mu.Lock()
	f.quiet = quiet
	f.mu.Unlock()
}

func (f *farewell) isQuiet() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.quiet
}

// Write follows the frames that HTTP/2 writes, one goroutine at a time.
//
// Invariant: a stream counts as closed when its last frame is in the buffer
// that b comes from, so when none was open before this call, and b holds the
// GOAWAY, everything that the client waits for has been written with it.
func (f *farewell) Write(b []byte) (int, error) {
	if f.said {
		return len(b), nil
	}
	quiet := f.isQuiet()
	n, err := f.Conn.Write(b)
	if f.follow(b[:n]) && quiet && err == nil {
		f.said = true
		_ = f.Conn.CloseWrite() // who is gone needs no word
	}
	return n, err
}

// follow reports whether a GOAWAY has ended in b.
func (f *farewell) follow(b []byte) (gone bool) {
	for len(b) > 0 {
		if f.have < frameHead {
			n := copy(f.head[f.have:], b)
			f.have, b = f.have+n, b[n:]
			if f.have < frameHead {
				return gone
			}
			f.left = binary.BigEndian.Uint32(f.head[:4]) >> 8 // the length has 24 bits
		}
		n := min(uint32(len(b)), f.left)
		f.left, b = f.left-n, b[n:]
		if f.left == 0 {
			f.have = 0
			gone = gone || f.head[3] == frameGoAway
		}
	}
	return gone
}
