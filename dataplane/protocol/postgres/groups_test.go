package postgres

import (
	"context"
	"crypto/tls"
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

// picky is a server that takes only some groups. It tells how each handshake
// went; a failed one is a zero state.
type picky struct {
	net.Listener
	groups chan []tls.CurveID // of the next handshake
	states chan tls.ConnectionState
}

func (p *picky) serve(t *testing.T) {
	cert := dbtest.DBCA.Pair("server", "127.0.0.1")
	for groups := range p.groups {
		conn, err := p.Accept()
		if err != nil {
			return // closed
		}
		if _, err := pgproto3.NewBackend(conn, conn).ReceiveStartupMessage(); err != nil {
			t.Error(err)
		}
		conn.Write([]byte{'S'})
		tc := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, CurvePreferences: groups, SessionTicketsDisabled: true})
		if tc.Handshake() == nil {
			p.states <- tc.ConnectionState()
		} else {
			p.states <- tls.ConnectionState{}
		}
		conn.Close()
	}
}

// TestGroupsOfServer: a server that takes one group gets a key share of it from
// the second session on; one that was configured anew in between is met again
// with everything.
func TestGroupsOfServer(t *testing.T) {
	p := &picky{must(net.Listen("tcp", "127.0.0.1:0")), make(chan []tls.CurveID), make(chan tls.ConnectionState)}
	defer p.Close()
	defer close(p.groups)
	go p.serve(t)
	s := &Server{Target: database.Target{Address: p.Addr().String()}, Roots: roots(dbtest.DBCA.Pool),
		Certificate: func(context.Context, string, string) (*tls.Certificate, error) {
			return new(dbtest.DBCA.Pair("alice")), nil
		}}
	l := &live{server: s, sess: &session.Session{}, first: &startup{user: "alice"}}
	for i, step := range []struct {
		server  tls.CurveID
		tries   int
		retried bool // by a HelloRetryRequest
	}{
		{tls.CurveP256, 1, true},
		{tls.CurveP256, 1, false},
		{tls.X25519, 2, false}, // configured anew
		{tls.X25519, 1, false},
		{tls.X25519MLKEM768, 2, false}, // upgraded
		{tls.X25519MLKEM768, 1, false},
		{tls.CurveP384, 1, true},
		{tls.CurveP384, 1, false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		dialed := make(chan error, 1)
		go func() {
			conn, err := l.dial(ctx)
			if err == nil {
				conn.NetConn().Close()
			}
			dialed <- err
		}()
		for try := 1; try <= step.tries; try++ {
			p.groups <- []tls.CurveID{step.server}
			var state tls.ConnectionState
			select {
			case state = <-p.states:
			case <-ctx.Done():
				t.Fatalf("step %d, try %d: %v", i, try, ctx.Err())
			}
			if last := try == step.tries; state.HandshakeComplete != last {
				t.Fatalf("step %d, try %d: handshake complete %v", i, try, !last)
			} else if last && (state.CurveID != step.server || state.HelloRetryRequest != step.retried) {
				t.Errorf("step %d: group %v, retried %v", i, state.CurveID, state.HelloRetryRequest)
			}
		}
		if err := <-dialed; err != nil {
			t.Errorf("step %d: %v", i, err)
		}
		cancel()
	}
}

// TestGroupsOfPostgreSQL: the second session with a real server needs no
// HelloRetryRequest.
func TestGroupsOfPostgreSQL(t *testing.T) {
	r := newRig(t)
	l := &live{server: r.server, sess: &session.Session{}, first: &startup{user: "alice"}}
	for i := range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		conn, err := l.dial(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if state := conn.ConnectionState(); i == 1 && state.HelloRetryRequest {
			t.Errorf("a HelloRetryRequest for %v", state.CurveID)
		}
		database.HangUp(conn)
	}
}
