package session

import (
	"net"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
)

// Idle returns conn such that the session is cancelled when nothing has been
// read from it for Options.ClientIdleTimeout. Without that option it returns
// conn itself. Reads are those of the client's side: what the resource sends
// does not keep a session alive. stop ends the watch and leaves the connection
// open; closing the returned connection does both.
func Idle(s *Session, conn net.Conn) (watched net.Conn, stop func()) {
	limit := s.Options.ClientIdleTimeout
	if limit <= 0 || s.Cancel == nil {
		return conn, func() {}
	}
	c := &idle{Conn: conn, limit: limit}
	c.timer = time.AfterFunc(limit, func() {
		s.Cancel(&sallyport.Problem{Kind: sallyport.ErrDenied,
			Fact: "no input for " + limit.String() + ", the longest that your roles allow", Hint: "connect again"})
	})
	return c, c.stop
}

type idle struct {
	net.Conn
	limit time.Duration

	mu     sync.Mutex
	closed bool
	timer  *time.Timer
}

func (c *idle) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

func (c *idle) touch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A timer that has fired stays so: the session has been cancelled.
	if !c.closed && c.timer.Stop() {
		c.timer.Reset(c.limit)
	}
}

// CloseWrite passes a half-close on.
func (c *idle) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

func (c *idle) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.timer.Stop()
}

func (c *idle) Close() error {
	c.stop()
	return c.Conn.Close()
}
