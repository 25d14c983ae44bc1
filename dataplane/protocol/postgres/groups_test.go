package postgres

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport/dataplane/session"
)

// TestGroups: everything is offered until a server turns out to take a group
// that is not post-quantum, then once in a while; to one that takes a
// post-quantum one, always.
func TestGroups(t *testing.T) {
	for _, row := range []struct {
		name   string
		server tls.CurveID
		share  tls.CurveID // the first of what is offered when not everything is
		full   int         // of 3*relearn handshakes, those that offer everything
	}{
		{"ML-KEM with X25519", tls.X25519MLKEM768, 0, 3 * relearn},
		{"ML-KEM with P-256", tls.SecP256r1MLKEM768, 0, 3 * relearn},
		{"of a later time", 0x9999, 0, 3 * relearn},
		{"X25519", tls.X25519, tls.X25519, 3},
		{"P-256", tls.CurveP256, tls.CurveP256, 3},
		{"P-384", tls.CurveP384, tls.CurveP384, 3},
		{"P-521", tls.CurveP521, tls.CurveP521, 3},
		{"TLS 1.2 with RSA", 0, tls.X25519, 3},
	} {
		t.Run(row.name, func(t *testing.T) {
			var g groups
			full := 0
			for range 3 * relearn {
				curves := g.offer()
				if curves == nil {
					full++
					g.learn(row.server)
					continue
				}
				if curves[0] != row.share || slices.Contains(curves, tls.X25519MLKEM768) {
					t.Fatalf("offers %v", curves)
				}
			}
			if full != row.full {
				t.Errorf("%d handshakes offered everything, want %d", full, row.full)
			}
		})
	}
	var g groups
	g.learn(tls.X25519)
	g.learn(tls.X25519MLKEM768) // upgraded meanwhile
	if g.offer() != nil {
		t.Error("an upgraded server is still taken for an old one")
	}
	g.learn(tls.CurveP256)
	g.forget()
	if g.offer() != nil {
		t.Error("not forgotten")
	}
}

// picky is a server that takes only some groups. It tells how each handshake
// went; a failed one is a zero state.
type picky struct {
	net.Listener
	groups chan []tls.CurveID // of the next handshake
	states chan tls.ConnectionState
}

func (p *picky) serve(t *testing.T) {
	cert := dbCA.pair("server", "127.0.0.1")
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
	s := &Server{Target: Target{Address: p.Addr().String()}, Roots: roots(dbCA.pool),
		Certificate: func(context.Context, string, string) (*tls.Certificate, error) { return new(dbCA.pair("alice")), nil }}
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
		hangUp(conn)
	}
}
