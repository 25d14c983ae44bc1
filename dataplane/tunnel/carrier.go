package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// Carriers: how a data connection's bytes get through a network that lets only
// certain things through. The hello, the frames and the client's bytes are the
// same in all of them. Both halves use what is here.

// Carrier names a way for an agent's data connections.
type Carrier string

// The carriers, in the order in which an agent tries them. The later ones move
// bytes in this process and not in the kernel.
const (
	CarrierTCP       Carrier = "tcp"       // plain TCP
	CarrierTLS       Carrier = "tls"       // inside TLS, with the protocol id of control connections
	CarrierWebSocket Carrier = "websocket" // inside a WebSocket, RFC 6455, on the gateway's web origin
)

// The numbers of carriers in tunnel.carrier.
const (
	carriedNone = iota
	carriedTCP
	carriedTLS
	carriedWebSocket
)

func carrierName(n int32) string {
	return [...]string{
		carriedNone: "", carriedTCP: string(CarrierTCP), carriedTLS: string(CarrierTLS), carriedWebSocket: string(CarrierWebSocket),
	}[n]
}

// carrier is a connection that carries another one's bytes. Its two directions
// end separately. Reading ends with io.EOF only when the peer has said so.
type carrier interface {
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

// pump moves bytes between a carrier and the local end of a pair, until both
// directions have ended, one has failed, the pair's other end has been closed, or
// ctx is done. It closes both.
func pump(ctx context.Context, c carrier, local *net.UnixConn) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	stop := context.AfterFunc(ctx, func() {
		local.Close()
		abort(c) // Close may wait for the peer
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
func watchHangUp(inbound <-chan struct{}, local *net.UnixConn) bool {
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

// abort closes without waiting for the peer.
func abort(c carrier) {
	switch c := c.(type) {
	case interface{ abort() }:
		c.abort()
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

// socket is a WebSocket as a carrier. A binary message carries bytes, wherever
// it begins and ends; an empty one ends its direction. Other messages end the
// connection.
type socket struct {
	conn  *websocket.Conn
	in    io.Reader // the message that is being read; nil between two
	fresh bool      // nothing of it has come
	alarm *time.Timer

	mu      sync.Mutex
	writing bool
	wrote   time.Time
	closed  bool
}

func newSocket(c *websocket.Conn) *socket {
	c.SetReadLimit(maxMessage)
	s := &socket{conn: c, wrote: time.Now()}
	s.alarm = time.AfterFunc(awake, s.stayAwake)
	return s
}

// Read implements carrier. One goroutine reads.
func (s *socket) Read(b []byte) (int, error) {
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

// Write implements carrier. One goroutine writes.
func (s *socket) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		part := b[sent:min(len(b), sent+busyBuffer)]
		if err := s.send(part); err != nil {
			return sent, err
		}
		sent += len(part)
	}
	return len(b), nil
}

// CloseWrite implements carrier.
func (s *socket) CloseWrite() error { return s.send(nil) }

func (s *socket) send(b []byte) error {
	s.busy(true)
	defer s.busy(false)
	return s.conn.Write(context.Background(), websocket.MessageBinary, b)
}

func (s *socket) busy(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing, s.wrote = yes, time.Now()
}

// stayAwake pings when nothing has been sent for long. No pong is expected: a
// peer that has stopped reading could not send one, and is not dead for that.
func (s *socket) stayAwake() {
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

// Close implements carrier: both directions have ended, and the peer knows.
func (s *socket) Close() error {
	s.rest()
	return s.conn.Close(websocket.StatusNormalClosure, "")
}

func (s *socket) abort() {
	s.rest()
	_ = s.conn.CloseNow() // whatever its error, it is closed
}

func (s *socket) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.alarm.Stop()
}
