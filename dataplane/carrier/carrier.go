// Package carrier moves the bytes of one connection inside another, for networks
// that let only certain things through: inside TLS, or inside a WebSocket
// (RFC 6455). What is carried is authenticated by itself; nothing is believed of
// what carries it.
package carrier

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// Conn is a connection that carries another one's bytes. Its two directions
// end separately. Reading ends with io.EOF only when the peer has said so.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

const (
	// idleBuffer is what a carried connection waits with, busyBuffer what it
	// copies with once a whole one has come: one TLS record.
	idleBuffer = 512
	busyBuffer = 16 << 10

	// hangUpCheck is how often a connection of which one half has been closed
	// is looked at for the other.
	hangUpCheck = time.Second
)

// Pump moves bytes between a carrier and the local end of a pair, until both
// directions have ended, one has failed, the pair's other end has been closed, or
// ctx is done. It closes both.
func Pump(ctx context.Context, c Conn, local *PairEnd) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	stop := context.AfterFunc(ctx, func() {
		local.Close()
		Abort(c) // Close may wait for the peer
	})
	inbound := make(chan struct{})
	go func() {
		defer close(inbound)
		if err := carry(local, c); err != nil {
			end()
			return
		}
		_ = local.CloseWrite() // fails when the other end has gone: watchHangUp sees that
	}()
	if err := carry(c, local); err != nil || c.CloseWrite() != nil {
		end()
	}
	if !watchHangUp(inbound, local) {
		end()
		<-inbound
	}
	if stop() {
		c.Close()
		local.Close()
	}
}

// watchHangUp waits until the inbound direction has ended too. It is false when
// nobody is at the pair's other end any more who could want it.
func watchHangUp(inbound <-chan struct{}, local *PairEnd) bool {
	t := time.NewTicker(hangUpCheck)
	defer t.Stop()
	for {
		select {
		case <-inbound:
			return true
		default:
		}
		if hungUp(local) {
			return false
		}
		select {
		case <-inbound:
			return true
		case <-t.C:
		}
	}
}

// Abort closes without waiting for the peer.
func Abort(c Conn) {
	switch c := c.(type) {
	case interface{ Abort() }:
		c.Abort()
	case interface{ NetConn() net.Conn }:
		c.NetConn().Close()
	default:
		c.Close()
	}
}

// carry copies from src to dst until src ends, which is no error. It holds
// little while nothing comes.
func carry(dst io.Writer, src io.Reader) error {
	b := make([]byte, idleBuffer)
	for {
		n, err := src.Read(b)
		if n > 0 {
			if _, werr := dst.Write(b[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case n == idleBuffer && len(b) == idleBuffer:
			b = make([]byte, busyBuffer)
		}
	}
}

const (
	// maxMessage bounds one WebSocket message; what is sent is at most busyBuffer.
	maxMessage = 64 << 10

	// awake is how long nothing may be sent before a ping is: below the 30 to
	// 60 s after which proxies cut an idle WebSocket.
	awake    = 25 * time.Second
	pingWait = 5 * time.Second
)

// Socket is a WebSocket as a carrier. A binary message carries bytes, wherever
// it begins and ends; an empty one ends its direction. Other messages end the
// connection.
type Socket struct {
	conn  *websocket.Conn
	over  *atomic.Bool // the connection beneath it has ended
	in    io.Reader    // the message that is being read; nil between two
	fresh bool         // nothing of it has come
	alarm *time.Timer

	mu      sync.Mutex
	writing bool
	wrote   time.Time
	closed  bool
}

// Accept answers a request for a WebSocket, also when it fails.
func Accept(w http.ResponseWriter, r *http.Request) (*Socket, error) {
	over := new(atomic.Bool)
	conn, err := websocket.Accept(&taken{w, over}, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled, OnPingReceived: noPong})
	if err != nil {
		return nil, err
	}
	return newSocket(conn, over), nil
}

// taken is an answer whose connection tells of its end.
type taken struct {
	http.ResponseWriter
	over *atomic.Bool
}

// Hijack implements http.Hijacker. What is buffered was read before: the library
// goes on reading from the connection.
func (t *taken) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &ending{conn, t.over}, rw, nil
}

// ending notes that a connection has ended. To the library's reader of a message an
// end in front of its first byte is the end of an empty message.
type ending struct {
	net.Conn
	over *atomic.Bool
}

// Read implements net.Conn. An end that comes with bytes, as TLS may say it, is told
// when these have been read: they may end their direction themselves.
func (e *ending) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	if n > 0 {
		return n, nil
	}
	if err != nil {
		e.over.Store(true)
	}
	return 0, err
}

func newSocket(c *websocket.Conn, over *atomic.Bool) *Socket {
	c.SetReadLimit(maxMessage)
	s := &Socket{conn: c, over: over, wrote: time.Now()}
	s.alarm = time.AfterFunc(awake, s.stayAwake)
	return s
}

// ConnectPath is where a gateway's web origin takes WebSockets that carry a
// connection to its port.
const ConnectPath = "/sallyport/connect"

// ErrNotEnded: who ends TLS at the other end is the gateway itself, so there is
// nothing to go around.
var ErrNotEnded = errors.New("the gateway itself ends TLS there")

// Origin is the web origin to which a WebSocket is made.
type Origin struct {
	Name, Path string // the name is what the TLS around it asks for

	// Own says whether a chain leads to the cluster's own CAs: then there is nothing to
	// go around. Pinned is the protocol id by which a gateway is asked for such a chain,
	// whatever certificate it has for browsers. nil: any will do.
	Own    func(chain []*x509.Certificate) bool
	Pinned string
}

// DialSocket makes a WebSocket to a web origin, at the other end of under, which is
// closed with it, or by the caller when this fails. Nothing is believed of the TLS
// around it. The error is ErrNotEnded when Own says so.
func DialSocket(ctx context.Context, under net.Conn, to Origin) (*Socket, error) {
	cfg := &tls.Config{
		ServerName: to.Name, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, // see above
	}
	if to.Own != nil {
		cfg.NextProtos = append(cfg.NextProtos, to.Pinned)
	}
	outer := tls.Client(under, cfg)
	if err := outer.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if to.Own != nil && to.Own(outer.ConnectionState().PeerCertificates) {
		return nil, ErrNotEnded
	}
	return upgrade(ctx, outer, to.Name, to.Path)
}

// upgrade is DialSocket with TLS that stands.
func upgrade(ctx context.Context, outer net.Conn, name, path string) (*Socket, error) {
	over := new(atomic.Bool)
	ws, _, err := websocket.Dial(ctx, "wss://"+name+path, &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return &ending{outer, over}, nil }},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		CompressionMode: websocket.CompressionDisabled, OnPingReceived: noPong,
	})
	if err != nil {
		return nil, err
	}
	return newSocket(ws, over), nil
}

// Read implements Conn. One goroutine reads.
func (s *Socket) Read(b []byte) (int, error) {
	for {
		if s.in == nil {
			kind, r, err := s.conn.Reader(context.Background())
			if err != nil {
				return 0, closeError(err)
			}
			if kind != websocket.MessageBinary {
				return 0, errMessage
			}
			s.in, s.fresh = r, true
		}
		n, err := s.in.Read(b)
		empty := s.fresh && n == 0
		s.fresh = s.fresh && n == 0
		switch {
		case errors.Is(err, io.EOF):
			s.in = nil
			if empty && s.over.Load() {
				return 0, errCut
			}
			if empty {
				return 0, io.EOF
			}
		case err != nil:
			return n, closeError(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

var (
	errMessage = errors.New("a WebSocket message that is not binary")
	errCut     = errors.New("the WebSocket has ended in the middle")
)

// closeError: a WebSocket that is closed before its direction has been ended was
// cut, however politely.
func closeError(err error) error {
	if errors.Is(err, io.EOF) || websocket.CloseStatus(err) >= 0 {
		return errCut
	}
	return err
}

// Write implements Conn. One goroutine writes.
func (s *Socket) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		part := b[sent:min(len(b), sent+busyBuffer)]
		if err := s.send(part); err != nil {
			return sent, err
		}
		sent += len(part)
	}
	return len(b), nil
}

// CloseWrite implements Conn.
func (s *Socket) CloseWrite() error { return s.send(nil) }

func (s *Socket) send(b []byte) error {
	s.busy(true)
	defer s.busy(false)
	return s.conn.Write(context.Background(), websocket.MessageBinary, b)
}

func (s *Socket) busy(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing, s.wrote = yes, time.Now()
}

// stayAwake pings when nothing has been sent for long. No pong is expected: a
// peer that has stopped reading could not send one, and is not dead for that.
func (s *Socket) stayAwake() {
	s.mu.Lock()
	idle := time.Since(s.wrote)
	ping, again := !s.writing && idle >= awake, !s.closed
	s.mu.Unlock()
	if ping && again {
		ctx, cancel := context.WithTimeout(context.Background(), pingWait)
		_ = s.conn.Ping(ctx) // its error is the pong that is not sent
		cancel()
		idle = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.alarm.Reset(max(awake-idle, time.Second))
	}
}

// noPong is a websocket option: see stayAwake.
func noPong(context.Context, []byte) bool { return false }

// Close implements Conn: both directions have ended, and the peer knows.
func (s *Socket) Close() error {
	s.rest()
	return s.conn.Close(websocket.StatusNormalClosure, "")
}

// Abort closes without waiting for the peer.
func (s *Socket) Abort() {
	s.rest()
	_ = s.conn.CloseNow() // whatever its error, it is closed
}

func (s *Socket) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.alarm.Stop()
}
