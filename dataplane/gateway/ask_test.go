//go:build unix

package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/preamble"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const dbName = "db.example.com"

// asked reads the request that a server of PostgreSQL gets before any TLS.
func asked(conn net.Conn) error {
	got := make([]byte, len(pgSSL))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, pgSSL) {
		return fmt.Errorf("the server got %x, not an SSLRequest", got)
	}
	return nil
}

// older is a server of PostgreSQL before 17: it wants to be asked, and then echoes.
func older(t testing.TB, ca *authority) string {
	t.Helper()
	echo := echoTLS(ca.server(t))
	return newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		if err := asked(conn); err != nil {
			t.Error(err)
			return
		}
		_, _ = conn.Write([]byte{preamble.PostgresYes})
		echo(conn)
	}).Addr().String()
}

// answering is a server that answers an SSLRequest so, and gets nothing more.
func answering(t testing.TB, hits *atomic.Int32, answer func(net.Conn)) string {
	t.Helper()
	return newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		hits.Add(1)
		if err := asked(conn); err != nil {
			t.Error(err)
			return
		}
		answer(conn)
		if more, _ := io.ReadAll(conn); len(more) > 0 {
			t.Errorf("%d bytes came behind the request", len(more))
		}
	}).Addr().String()
}

// asks is a client that has been told that there is TLS.
func (r *rig) asks() *net.TCPConn {
	r.Helper()
	conn := r.say(pgSSL)
	expect(r, conn, "S")
	return conn
}

// TestAskedServer: a server of PostgreSQL before 17, and PgBouncer, ended the connection
// of a static route's client, which they got without the SSLRequest before it.
func TestAskedServer(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		server := older(t, ca)
		r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to(dbName, server)} })
		small := ca.client(dbName)
		echoes(t, tls.Client(r.asks(), small))
		echoes(t, tls.Client(&cutConn{r.asks()}, small))
		gss := r.say(pgGSSENC)
		expect(t, gss, "N")
		_, err := gss.Write(pgSSL)
		check(t, err)
		expect(t, gss, "S")
		echoes(t, tls.Client(gss, small))
		r.reaches(outcomeRelayed, 3)
		if n := r.count(outcomeNotTaken); n > 0 {
			t.Errorf("%d servers took no SSLRequest", n)
		}
	})
}

// TestAskedLarge: hellos beyond what one look sees.
func TestAskedLarge(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		small := helloBytes(t, newAuthority(t).client(dbName))
		server := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			if err := asked(conn); err != nil {
				t.Error(err)
				return
			}
			_, _ = conn.Write([]byte{preamble.PostgresYes})
			_, _ = io.Copy(conn, conn)
		}).Addr().String()
		r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to(dbName, server)} })
		for name, hello := range map[string][]byte{
			"records of 16": rerecord(small[5:], 16),
			"20 KiB":        rerecord(padded(small[5:], 20<<10), 1<<14),
			"60 KiB":        rerecord(padded(small[5:], 60<<10), 1<<14),
		} {
			conn := r.asks()
			sent := make(chan error, 1)
			go func() {
				_, err := io.Copy(conn, &drip{b: append(bytes.Clone(hello), "then"...), size: 3000})
				sent <- errors.Join(err, conn.CloseWrite())
			}()
			if got := readAll(t, conn); !bytes.Equal(got, append(bytes.Clone(hello), "then"...)) {
				t.Errorf("%s: %d bytes of %d came back, or others", name, len(got), len(hello)+4)
			}
			check(t, <-sent)
		}
	})
}

// cutConn writes in pieces.
type cutConn struct{ *net.TCPConn }

func (c *cutConn) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = c.TCPConn.Write(b[n:min(n+97, len(b))])
		n += m
	}
	return n, err
}

// TestAskedBehindHeader: the server's PROXY header comes before the request.
func TestAskedBehindHeader(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		echo := echoTLS(ca.server(t))
		from := make(chan netip.AddrPort, 1)
		server := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			head := make([]byte, 28) // of IPv4
			_, _ = io.ReadFull(conn, head)
			p, _, err := preamble.ParseProxy(head)
			if err == nil {
				err = asked(conn)
			}
			if err != nil {
				t.Error(err)
				return
			}
			from <- p.Source
			_, _ = conn.Write([]byte{preamble.PostgresYes})
			echo(conn)
		})
		r := newRig(t, loops, func(c *Config) {
			c.Static = []StaticRoute{to(dbName, server.Addr().String())}
			c.Static[0].Proxy = true
		})
		conn := r.asks()
		echoes(t, tls.Client(conn, ca.client(dbName)))
		if got := <-from; got.String() != conn.LocalAddr().String() {
			t.Errorf("the client is %v, not %v", got, conn.LocalAddr())
		}
	})
}

// TestAskedGateway: the server is a gateway itself, which takes the header from this one.
func TestAskedGateway(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		server := older(t, ca)
		behind := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) {
			c.Static = []StaticRoute{to(dbName, server)}
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		})
		for _, proxy := range []bool{false, true} {
			r := newRig(t, loops, func(c *Config) {
				c.Static = []StaticRoute{to(dbName, behind.addr)}
				c.Static[0].Proxy = proxy
			})
			echoes(t, tls.Client(r.asks(), ca.client(dbName)))
		}
		behind.reaches(outcomeRelayed, 2)
	})
}

// TestNotAsked: who has not asked for TLS is not asked for, and a server that wants TLS
// at once gets no request; a reload can tell so.
func TestNotAsked(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		var hits atomic.Int32
		echo := echoTLS(ca.server(t))
		server := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			hits.Add(1)
			echo(conn)
		}).Addr().String()
		r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to(dbName, server)} })
		echoes(t, tls.Client(r.dial(), ca.client(dbName)))
		gss := r.say(pgGSSENC)
		expect(t, gss, "N")
		echoes(t, tls.Client(gss, ca.client(dbName)))

		direct := to(dbName, server)
		direct.Direct = true
		d, err := r.Reload(t.Context(), Settings{Static: []StaticRoute{direct}, Bounds: generous()})
		if err != nil || d.Changed != 1 {
			t.Fatalf("%+v, %v", d, err)
		}
		echoes(t, tls.Client(r.asks(), ca.client(dbName)))
		r.reaches(outcomeRelayed, 3)
		if n, asked := hits.Load(), r.count(outcomeNotTaken); n != 3 || asked > 0 {
			t.Errorf("%d connections for three clients; %d requests were not taken", n, asked)
		}
	})
}

// TestTLSAtOnce: a server that ends TLS before a database knows no SSLRequest. It gets
// the hello at once on another connection, and those of later clients on their first,
// until it does not take one.
func TestTLSAtOnce(t *testing.T) {
	for name, unknown := range map[string]func(net.Conn){
		"a TLS alert": func(conn net.Conn) { _, _ = conn.Write(alertOf(alpn.InternalError)) },
		"HTTP":        func(conn net.Conn) { _, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
		"its end":     func(conn net.Conn) { _ = conn.(*net.TCPConn).CloseWrite() },
		"a reset":     func(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) },
	} {
		t.Run(name, func(t *testing.T) {
			onLoops(t, func(t *testing.T, loops []relay.Loop) {
				ca := newAuthority(t)
				echo := echoTLS(ca.server(t))
				var hits atomic.Int32
				var postgres atomic.Bool
				server := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
					hits.Add(1)
					first := &peeked{Conn: conn}
					first.b = make([]byte, len(pgSSL))
					if _, err := io.ReadFull(conn, first.b); err != nil {
						t.Error(err)
						return
					}
					switch asked := bytes.Equal(first.b, pgSSL); {
					case asked && postgres.Load():
						_, _ = conn.Write([]byte{preamble.PostgresYes})
						echo(conn)
					case asked:
						unknown(conn)
					case !postgres.Load():
						echo(first)
					}
				}).Addr().String()
				r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to(dbName, server)} })
				for i := range 3 {
					echoes(t, tls.Client(r.asks(), ca.client(dbName)))
					if n := hits.Load(); n != int32(i+2) {
						t.Errorf("%d connections for %d clients", n, i+1)
					}
				}
				postgres.Store(true) // there is another server now
				conn := r.asks()
				_, err := conn.Write(helloBytes(t, ca.client(dbName)))
				check(t, err)
				if got := readAll(t, conn); !bytes.Equal(got, alertOf(alpn.InternalError)) {
					t.Errorf("the answer is %x", got)
				}
				echoes(t, tls.Client(r.asks(), ca.client(dbName)))
				if n, asked := hits.Load(), r.count(outcomeNotTaken); n != 6 || asked != 1 {
					t.Errorf("%d connections for five clients; %d requests were not taken", n, asked)
				}
			})
		})
	}
}

// peeked is a connection of which something has been read.
type peeked struct {
	net.Conn
	b []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.b)
	p.b = p.b[n:]
	return n, nil
}

// TestRequestNotTaken: a server that does not say just yes gets nothing of the client's,
// and another one is asked. It is asked once, and not left to rest. One that speaks
// something else than PostgreSQL, or ends, gets the hello at once, on another connection.
func TestRequestNotTaken(t *testing.T) {
	answer := func(b ...byte) func(net.Conn) {
		return func(conn net.Conn) { _, _ = conn.Write(b) }
	}
	for name, answers := range map[string]func(net.Conn){
		"no":          answer('N'),
		"an error":    answer(preamble.Refused28000("too many clients", "")...),
		"early bytes": answer('S', 'S'),
	} {
		t.Run(name, func(t *testing.T) {
			onLoops(t, func(t *testing.T, loops []relay.Loop) {
				ca := newAuthority(t)
				var hits atomic.Int32
				bad := answering(t, &hits, answers)
				r := newRig(t, loops, func(c *Config) {
					c.Static = []StaticRoute{to(dbName, bad), to("both.example.com", bad, older(t, ca))}
					c.Bounds.Connect = patience
				})
				conn := r.asks()
				_, err := conn.Write(helloBytes(t, ca.client(dbName)))
				check(t, err)
				if got := readAll(t, conn); !bytes.Equal(got, alertOf(alpn.InternalError)) {
					t.Errorf("the answer is %x", got)
				}
				r.reaches(outcomeNotTaken, 1)
				r.reaches(outcomeNoPostgres, 1)
				if s := r.Snapshot(); s.Refusals["pg_no_upstream"] != 1 || s.Routes[0].Results["unreachable"] != 1 || len(s.Down) > 0 {
					t.Errorf("refused are %v, of the route %v; down are %v", s.Refusals, s.Routes[0].Results, s.Down)
				}
				for range 2 { // whichever is first
					echoes(t, tls.Client(r.asks(), ca.client("both.example.com")))
				}
				r.reaches(outcomeNotTaken, 2)
				if n := hits.Load(); n != 2 {
					t.Errorf("it was asked %d times, want 2", n)
				}
			})
		})
	}
}

// TestRequestUnanswered: a server that says nothing has for its answer what it has for
// the connection.
func TestRequestUnanswered(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		var hits atomic.Int32
		silent := answering(t, &hits, func(net.Conn) {})
		r := newRig(t, loops, func(c *Config) {
			// The first turn is the second server's, and the last one that is tried has all the time that is left.
			c.Static = []StaticRoute{to("both.example.com", older(t, ca), silent, silent, silent)}
			c.Bounds.Connect = 100 * time.Millisecond
		})
		echoes(t, tls.Client(r.asks(), ca.client("both.example.com")))
		r.reaches(outcomeNotTaken, 3)

		alone := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to(dbName, silent)} })
		conn := alone.asks()
		_, err := conn.Write(helloBytes(t, ca.client(dbName)))
		check(t, err)
		eventually(t, "it is asked", func() bool { return hits.Load() == 4 && alone.inStage(asking) == 1 })
		alone.each(func(w *lane) { // its time is over
			for c := range w.conns {
				c.Due(w.loop.Now())
			}
		})
		if got := readAll(t, conn); !bytes.Equal(got, alertOf(alpn.InternalError)) {
			t.Errorf("the answer is %x", got)
		}
		alone.reaches(outcomeNoPostgres, 1)
	})
}

// TestYesAndTheEnd: a server that says yes and ends has not served the client.
func TestYesAndTheEnd(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		bad := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			if err := asked(conn); err != nil {
				t.Error(err)
				return
			}
			_, _ = conn.Write([]byte{preamble.PostgresYes})
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
		}).Addr().String()
		r := newRig(t, loops, func(c *Config) {
			c.Static = []StaticRoute{to(dbName, bad, older(t, ca))}
			c.Bounds.Connect = patience
		})
		for range 2 {
			echoes(t, tls.Client(r.asks(), ca.client(dbName)))
		}
		r.reaches(outcomeRelayed, 2)
	})
}

// TestClientLeavesAsking: a client that is gone before the server has answered leaves
// nothing behind.
func TestClientLeavesAsking(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		var hits atomic.Int32
		silent := answering(t, &hits, func(net.Conn) {})
		r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to(dbName, silent)} })
		conn := r.asks()
		_, err := conn.Write(helloBytes(t, ca.client(dbName)))
		check(t, err)
		eventually(t, "the server is asked", func() bool { return hits.Load() == 1 && r.inStage(asking) == 1 })
		reset(t, conn)
		r.reaches(outcomeReset, 1)
		r.waiting(0)
	})
}

// TestMoreWhileAsking: what a client sends behind its hello, and its end, wait for the
// server's answer and then go on, whether or not the server ever says a word in TLS.
func TestMoreWhileAsking(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		want := append(helloBytes(t, newAuthority(t).client(dbName)), "and more"...)
		yes, all := make(chan struct{}), make(chan []byte, 1)
		server := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			if err := asked(conn); err != nil {
				t.Error(err)
			}
			<-yes
			_, _ = conn.Write([]byte{preamble.PostgresYes})
			got, _ := io.ReadAll(conn)
			all <- got
		})
		r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to(dbName, server.Addr().String())} })
		client := r.asks()
		_, err := client.Write(want[:len(want)-8])
		check(t, err)
		eventually(t, "the server is asked", func() bool { return r.inStage(asking) == 1 })
		_, err = client.Write(want[len(want)-8:])
		check(t, err)
		check(t, client.CloseWrite())
		eventually(t, "the end has been seen", func() bool { return r.sum(func(c *conn) bool { return c.ending }) == 1 })
		close(yes)
		if got := <-all; !bytes.Equal(got, want) {
			t.Errorf("the server got %d bytes of %d, or others", len(got), len(want))
		}
	})
}

// TestMoveAsking: a server that has been asked and has not answered yet is asked anew by
// the next process, and one that is kept has still to answer.
func TestMoveAsking(t *testing.T) {
	onMoves(t, func(t *testing.T, loops []relay.Loop, move func(*rig)) {
		ca := newAuthority(t)
		echo := echoTLS(ca.server(t))
		yes := make(chan struct{})
		server := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			if err := asked(conn); err != nil {
				return // it was the process's that has gone, and is none of this one's
			}
			<-yes
			_, _ = conn.Write([]byte{preamble.PostgresYes})
			echo(conn)
		})
		r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to(dbName, server.Addr().String())} })
		clients := make([]*tls.Conn, 3)
		for i := range clients {
			conn := r.asks()
			clients[i] = tls.Client(conn, ca.client(dbName))
			go func() { _ = clients[i].Handshake() }()
		}
		eventually(t, "the server is asked", func() bool { return r.inStage(asking) == len(clients) })
		move(r)
		close(yes)
		for _, c := range clients {
			echoes(t, c)
		}
		r.reaches(outcomeRelayed, uint64(len(clients)))
	})
}

// TestMoveConnectingUnasked: a process that asks no server has begun a connection for a
// client that has; the one that goes on with it asks.
func TestMoveConnectingUnasked(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		full := newFullServer(t)
		r := newRig(t, loops, func(c *Config) {
			c.Static = []StaticRoute{to(dbName, full.addr)}
			c.Bounds.Connect, c.Bounds.Stage = patience, patience
		})
		hello := helloBytes(t, r.ca.client(dbName))
		r.say(hello)
		eventually(t, "it connects", func() bool { return r.inStage(connecting) == 1 })
		h := r.heir(newLoops(t, relay.NewDefault, 2), nil)
		w := &olderWire{wire: wire{heir: h}}
		check(t, r.Giver().Copy(t.Context(), w))
		check(t, r.Giver().Freeze(t.Context(), w))
		check(t, h.Complete(t.Context()))
		h.Start()
		r.Giver().Leave()
		r.Close()
		server := full.empty()
		check(t, asked(server))
		_, err := server.Write([]byte{preamble.PostgresYes})
		check(t, err)
		expect(t, server, string(hello))
	})
}

// olderWire brings connections as if their clients had asked, and no server had been.
type olderWire struct{ wire }

func (w *olderWire) Send(ctx context.Context, r handover.Record) error {
	if handoverv1.GatewayKind(r.Kind) == handoverv1.GatewayKind_GATEWAY_KIND_CONNECTIONS {
		m := &handoverv1.GatewayConnections{}
		if err := proto.Unmarshal(r.Body, m); err != nil {
			return err
		}
		for _, c := range m.Connection {
			c.Said |= uint32(saidSSL)
		}
		r.Body = appended(nil, m)
	}
	return w.wire.Send(ctx, r)
}

// TestAskedToOlderHeir: what a process gets that knows of no question says nothing of one.
func TestAskedToOlderHeir(t *testing.T) {
	c := &conn{lane: &lane{loop: newLoops(t, relay.NewPortable, 1)[0]}, other: 7, said: saidSSL, routed: alpn.Static, up: &upstream{}, acct: &account{name: "a"}, head: pgSSL, sent: 8, flight: 9}
	for _, s := range []stage{connecting, asking} {
		c.stage = s
		m := c.image()
		if m.Stage != handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING || m.Far || len(m.Head) > 0 || m.Sent > 0 || m.Flight != 9 {
			t.Errorf("%v", m)
		}
	}
	c.stage = offering
	if m := c.image(); !m.Far || !bytes.Equal(m.Head, pgSSL) || m.Sent != 8 {
		t.Errorf("%v", m)
	}
}

// TestDirectIsForgotten: a server that has ended once over SSLRequest, as one that is
// restarted does, and then took a hello at once, was never asked again. PostgreSQL 17
// takes it so, and then ends all whose clients name no protocol.
func TestDirectIsForgotten(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		w, done := r.lanes[0], make(chan struct{})
		if !w.loop.Post(func() {
			defer close(done)
			to, now := new(target), w.loop.Now()
			learn := func(direct bool) {
				c := &conn{lane: w, said: saidSSL}
				c.choice.to, c.choice.direct = to, true
				c.learn(direct)
			}
			var c choice
			for _, step := range []struct {
				learn func()
				at    time.Time
				want  bool
			}{
				{func() {}, now, false},
				{func() { learn(true) }, now, true},
				{func() { learn(true) }, now.Add(directFor), false},
				{func() { learn(false) }, now, false},
			} {
				step.learn()
				if c.take(0, nil, to, step.at); c.direct != step.want {
					t.Errorf("%v after it was learned: direct is %v", step.at.Sub(now), c.direct)
				}
			}
		}) {
			t.Fatal("the loop is closed")
		}
		<-done
	})
}
