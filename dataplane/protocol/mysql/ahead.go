package mysql

import (
	"context"
	"net"
	"sync"

	"github.com/sallyport/sallyport/dataplane/session"
)

// Bounds of connections to the server for clients that have not yet said who
// they want to be. They have a certificate of ours, and perhaps no right to this
// database: such a one must not take up the server's max_connections, nor make it
// block this host for logins that never end (max_connect_errors, by default 100
// in a row).
const (
	aheadMost   = 8
	aheadWasted = 10 // in a row
)

// ahead counts connections that are made before a client is known, and keeps the
// server's last greeting for clients who get none. The zero value is ready.
type ahead struct {
	mu     sync.Mutex
	open   int
	wasted int // ended without a login, since the last one
	last   *greeting
}

// take reports whether one more may be made; settle must follow then.
func (a *ahead) take() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open >= aheadMost || a.wasted >= aheadWasted {
		return false
	}
	a.open++
	return true
}

// settle takes the outcome: whether the client may use the server.
func (a *ahead) settle(used bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open--
	if !used {
		a.wasted++
	}
}

// loggedIn ends a row of wasted connections, as it does at the server.
func (a *ahead) loggedIn() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wasted = 0
}

func (a *ahead) learn(g greeting) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g.thread = 0
	a.last = &g
}

func (a *ahead) known() greeting {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		return unknownServer()
	}
	return *a.last
}

// met is a server's greeting, and the connection that it came by, if there is
// one.
type met struct {
	greeting
	conn  net.Conn
	taken bool // counted as open
	ahead *ahead
}

// meet gets a greeting for a client: of a connection that waits for its login,
// or else the last one.
func (s *Server) meet(ctx context.Context, c *session.Candidate) *met {
	m := &met{ahead: &s.ahead}
	if c.Refusal == nil && s.ahead.take() {
		m.taken = true
		ctx, cancel := context.WithTimeout(ctx, s.Bounds.withDefaults().Ahead)
		defer cancel()
		if conn, g, err := s.reach(ctx); err == nil {
			m.conn, m.greeting = conn, g
			return m
		}
	}
	m.greeting = s.ahead.known()
	return m
}

// release closes a connection that nobody has claimed.
func (m *met) release() {
	if m.taken {
		m.ahead.settle(m.conn == nil) // a server that was not reached counts nothing
		m.taken = false
	}
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
}

// claim gives the connection to a session, once; nil when there is none.
func (m *met) claim() net.Conn {
	conn := m.conn
	m.conn = nil
	if m.taken {
		m.ahead.settle(true)
		m.taken = false
	}
	return conn
}
