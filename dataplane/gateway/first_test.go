//go:build unix

package gateway

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/preamble"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

var (
	pgSSL     = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}
	pgGSSENC  = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30}
	pgCancel  = []byte{0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 1, 0, 2, 0, 0, 0, 3}
	pgStartup = append([]byte{0, 0, 0, 20, 0, 3, 0, 0}, "user\x00alice\x00\x00"...)
	proxyLine = []byte("PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n")
	rdp       = []byte{3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 11, 0, 0, 0}
)

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestFirstBytes: what each first byte leads to, when it leads nowhere.
func TestFirstBytes(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		data := join([]byte("SLYP"), make([]byte, 58))
		tests := []struct {
			name string
			send []byte
			want outcome
		}{
			{"garbage", []byte("\x01\x02\x03\x04"), outcomeUnknown},
			{"ssh", []byte("SSH-2.0-OpenSSH_9.2\r\n"), outcomeSSH},
			{"rdp", rdp, outcomeRDP},
			{"odd rdp", []byte{3, 0, 0, 7, 2, 0xf0, 0x80}, outcomeMalformed},
			{"untrusted proxy", proxyLine, outcomeProxyRefused},
			{"odd http", []byte("GET / HTTP/3.0\r\n\r\n"), outcomeMalformed},
			{"http 2 in clear", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), outcomeUnknown},
			{"old ssl", []byte{0x80, 0x2e, 1, 3, 1}, outcomeUnknown},
			{"bytes behind ssl request", join(pgSSL, []byte{0x16, 3}), outcomeEarlyBytes},
			{"bytes behind gssenc request", join(pgGSSENC, pgSSL), outcomeEarlyBytes},
			{"bytes behind cancel", join(pgCancel, []byte{0}), outcomeEarlyBytes},
			{"bytes behind startup", join(pgStartup, []byte{0}), outcomeEarlyBytes},
			{"bytes behind a data hello", join(data, []byte{0}), outcomeEarlyBytes},
			{"startup of 2 GiB", []byte{0x80, 0, 0, 0, 0, 3, 0, 0}, outcomeUnknown},
			{"startup of 64 KiB", []byte{0, 0, 0xff, 0xff, 0, 3, 0, 0}, outcomeMalformed},
		}
		want := map[outcome]uint64{}
		for _, tt := range tests {
			conn := r.say(tt.send)
			closes(t, conn)
			want[tt.want]++
			r.reaches(tt.want, want[tt.want])
		}
		conn := r.dial()
		check(t, conn.CloseWrite())
		closes(t, conn)
		r.reaches(outcomeEmpty, 1)
	})
}

// TestA63_EarlyBytes: what comes in clear behind SSLRequest never counts as
// part of what follows, also when it comes a moment later (CVE-2021-23214).
func TestA63_EarlyBytes(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		conn := r.say(join(pgSSL, pgStartup))
		closes(t, conn)
		r.reaches(outcomeEarlyBytes, 1)

		// After 'S' nothing but TLS is listened to.
		for i, after := range [][]byte{pgStartup, pgSSL, pgCancel, []byte("GET / HTTP/1.1\r\n\r\n"), proxyLine, []byte("SLYP")} {
			conn := r.say(pgSSL)
			expect(t, conn, "S")
			_, err := conn.Write(after)
			check(t, err)
			closes(t, conn)
			r.reaches(outcomeOutOfOrder, uint64(i+1))
		}
		if r.tunnels.cancels != nil {
			t.Error("a cancel was taken behind an SSLRequest")
		}
	})
}

// TestA63_BytesInBetween: bytes that come after the look at the request and
// before the answer to it.
func TestA63_BytesInBetween(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops[:1], nil)
		fd, client := pair(r.tunnels.listen)
		defer client.Close()
		check(t, client.SetDeadline(time.Now().Add(patience)))
		_, err := client.Write(join(pgSSL, []byte{0x16}))
		check(t, err)
		r.each(func(w *lane) {
			c := &conn{lane: w, fd: fd, other: -1, lowat: 1}
			w.conns[c] = struct{}{}
			c.say(len(pgSSL), saidSSL, 'S')
		})
		closes(t, client)
		r.reaches(outcomeEarlyBytes, 1)
	})
}

func expect(t testing.TB, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

// TestA110_Postgres: SSLRequest and GSSENCRequest, at most one each, any order.
func TestA110_Postgres(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		hello := helloBytes(t, r.ca.client("orders.db.gw.test"))
		step := func(conn net.Conn, send []byte, want string) {
			t.Helper()
			_, err := conn.Write(send)
			check(t, err)
			expect(t, conn, want)
		}
		for _, order := range [][]string{{"S"}, {"N", "S"}, {"S", "N"}, {"N"}} {
			conn := r.dial()
			for _, a := range order {
				step(conn, map[string][]byte{"S": pgSSL, "N": pgGSSENC}[a], a)
			}
			_, err := conn.Write(hello)
			check(t, err)
			agent := r.tunnels.agent()
			got := make([]byte, len(hello))
			_, err = io.ReadFull(agent, got)
			check(t, err)
			if !bytes.Equal(got, hello) {
				t.Fatalf("after %v the agent got other bytes", order)
			}
			agent.answers(conn)
			agent.Close()
			conn.Close()
		}
		for i, twice := range [][]byte{pgGSSENC, pgSSL} {
			conn := r.say(twice)
			expect(t, conn, []string{"N", "S"}[i])
			_, err := conn.Write(twice)
			check(t, err)
			closes(t, conn)
			r.reaches(outcomeOutOfOrder, uint64(i+1))
		}

		// Nothing but a database is reached behind a request.
		for _, tls := range []struct{ name, protocol string }{{cluster, "h2"}, {cluster, alpn.Auth1}, {"host.node.gw.test", alpn.SSH1}} {
			conn := r.say(pgSSL)
			expect(t, conn, "S")
			_, err := conn.Write(helloBytes(t, r.ca.client(tls.name, tls.protocol)))
			check(t, err)
			want := alpn.NoApplicationProtocol.Record()
			if got := readAll(t, conn); !bytes.Equal(got, want[:]) {
				t.Errorf("%s with %s behind an SSLRequest: %v", tls.name, tls.protocol, got)
			}
		}

		conn := r.say(pgStartup)
		msg, err := pgproto3.NewFrontend(conn, conn).Receive()
		check(t, err)
		if e, ok := msg.(*pgproto3.ErrorResponse); !ok || e.Code != "28000" {
			t.Errorf("startup in clear: %#v", msg)
		}
		readAll(t, conn)
		r.reaches(outcomeStartupInClear, 1)
	})
}

// TestPsql: the real client, by SSLRequest and in clear.
func TestPsql(t *testing.T) {
	r := newRig(t, newLoops(t, relay.NewDefault, 1), nil)
	host, port, err := net.SplitHostPort(r.addr)
	check(t, err)
	to := "host=orders.db.gw.test hostaddr=" + host + " port=" + port + " user=alice dbname=orders connect_timeout=60 sslcert= sslkey= "
	out := command(t, nil, "psql", to+"sslmode=disable", "-c", "select 1")
	if !strings.Contains(out, "TLS only") || !strings.Contains(out, "sslmode=verify-full") {
		t.Errorf("in clear: %s", out)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		select {
		case a := <-r.tunnels.agents:
			defer a.Close()
			refuseSession(a, r)
		case <-t.Context().Done():
		}
	}()
	out = command(t, nil, "psql", to+"sslmode=require", "-c", "select 1")
	if !strings.Contains(out, "no such luck") {
		t.Errorf("over TLS: %s", out)
	}
	<-served
}

// TestA110_Cancel: passed to the tunnels, without an answer, and not too often.
func TestA110_Cancel(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		const rate = 5
		r := newRig(t, loops, func(c *Config) { c.Bounds.SourceRate = rate })
		began, asked := time.Now(), uint64(0)
		refused := func() uint64 { return r.count(outcomeCancelRefused) + r.count(outcomeSourceRate) }
		eventually(t, "one too many is refused", func() bool {
			conn := r.dial()
			_, _ = conn.Write(pgCancel) // it may be refused before it has said what it wants
			closes(t, conn)
			asked++
			return refused() > 0
		})
		eventually(t, "all are counted", func() bool { return r.count(outcomeCancelled)+refused() == asked })
		most := rate + rate*time.Since(began).Seconds()
		r.tunnels.mu.Lock()
		defer r.tunnels.mu.Unlock()
		// A request that came a moment after its connection is charged twice.
		if n := len(r.tunnels.cancels); n < 2 || float64(n) > most || r.tunnels.cancels[0] != [2]uint32{0x10002, 3} {
			t.Errorf("cancelled %v, want %v at most", r.tunnels.cancels, most)
		}
	})
}

// TestA48_Proxy: a header is believed from trusted sources only, once, and
// before everything else.
func TestA48_Proxy(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		src, dst := netip.MustParseAddrPort("[2001:db8::7]:4711"), netip.MustParseAddrPort("[2001:db8::1]:443")
		for _, tt := range []struct{ header, want string }{
			{string(proxyLine), "192.0.2.7:4711"},
			{string(preamble.AppendProxyV2(nil, src, dst)), "[2001:db8::7]:4711"},
			{"PROXY UNKNOWN\r\n", "127.0.0.1"},
			{"", "127.0.0.1"},
			{"PROXY TCP6 ::ffff:192.0.2.8 ::1 1 2\r\n", "192.0.2.8:1"},
		} {
			conn := r.say(join([]byte(tt.header), hello))
			agent := r.tunnels.agent()
			if got := agent.request.Source.String(); !strings.HasPrefix(got, tt.want) {
				t.Errorf("%q: source %s", tt.header, got)
			}
			agent.answers(conn)
			agent.Close()
			conn.Close()
		}
		refused := map[outcome]uint64{}
		for _, tt := range []struct {
			send []byte
			want outcome
		}{
			{join(proxyLine, proxyLine), outcomeOutOfOrder},
			{[]byte("PROXY TCP4 1.1.1.1 1.1.1.1 99999 1\r\n"), outcomeMalformed},
			{join([]byte("\r\n\r\n\x00\r\nQUIT\n"), []byte{0x21, 0x11, 0xff, 0xff}), outcomeMalformed},
		} {
			refused[tt.want]++
			closes(t, r.say(tt.send))
			r.reaches(tt.want, refused[tt.want])
		}
		conn := r.say(pgSSL)
		expect(t, conn, "S")
		_, err := conn.Write(proxyLine)
		check(t, err)
		closes(t, conn)
		r.reaches(outcomeOutOfOrder, 2)

		// From others it is not believed, whoever is trusted.
		for _, trusted := range [][]netip.Prefix{nil, {netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("::/0")}} {
			r := newRig(t, loops, func(c *Config) { c.TrustedProxies = trusted })
			for i, header := range [][]byte{proxyLine, preamble.AppendProxyV2(nil, src, dst), []byte("PROXY UNKNOWN\r\n")} {
				closes(t, r.say(join(header, hello)))
				r.reaches(outcomeProxyRefused, uint64(i+1))
			}
			if n := len(r.tunnels.requests); n > 0 {
				t.Errorf("%d streams were asked for", n)
			}
		}
	})
}

// TestA48_ClientIsCounted: behind a trusted proxy it is the client that has a bound,
// whether the header comes with the connection or later; the proxy has none.
func TestA48_ClientIsCounted(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		const most = 2
		for _, later := range []bool{false, true} {
			r := newRig(t, loops, func(c *Config) {
				c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
				c.Bounds = Bounds{Stage: patience, WaitingSource: most, SourceRate: 1e6}
			})
			var silent []net.Conn
			for range most + 1 {
				silent = append(silent, r.dial())
			}
			r.waiting(most + 1)
			for i, conn := range silent {
				if !later {
					conn.Close()
					r.waiting(most - i)
					continue
				}
				_, err := conn.Write(proxyLine)
				check(t, err)
			}
			if !later {
				for range most + 1 {
					r.saysAtOnce(loops, proxyLine)
				}
			}
			r.reaches(outcomeSourceFull, 1)
			r.waiting(most)
			r.say([]byte("PROXY TCP4 192.0.2.8 192.0.2.1 1 2\r\n"))
			r.waiting(most + 1)
			if n := r.count(outcomeSourceFull); n != 1 {
				t.Errorf("%d were refused", n)
			}
		}
	})
}

// TestDataHello: 62 bytes, in any pieces, go to the tunnels with the descriptor.
func TestDataHello(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		hello := join([]byte("SLYP"), bytes.Repeat([]byte{7}, tunnel.HelloSize-4))
		conn := r.say(hello[:40])
		r.waiting(1)
		_, err := conn.Write(hello[40:])
		check(t, err)
		r.reaches(outcomeParked, 1)
		p := r.tunnels.parked[0]
		if !bytes.Equal(p.hello, hello) || p.from.String() != conn.LocalAddr().String() {
			t.Errorf("parked %+v", p)
		}
		_, err = p.conn.Write([]byte("frame"))
		check(t, err)
		expect(t, conn, "frame")
		r.waiting(0)
		from := sourceOf(p.from.Addr())
		eventually(t, "the agent's source is known", func() bool { return slices.Contains(r.crowd.proven(time.Now()), from) })

		r.tunnels.mu.Lock()
		r.tunnels.parkErr = tunnel.ErrUnknownTunnel
		r.tunnels.mu.Unlock()
		closes(t, r.say(hello))
		r.reaches(outcomeParkRefused, 1)
	})
}

func TestHTTPRedirect(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		conn := r.say([]byte("GET /x HTTP/1.1\r\nHost: gw.te"))
		r.waiting(1)
		_, err := conn.Write([]byte("st:8443\r\n\r\n"))
		check(t, err)
		if got := string(readAll(t, conn)); !strings.HasPrefix(got, "HTTP/1.1 308 ") || !strings.Contains(got, "Location: https://gw.test:8443/x\r\n") {
			t.Errorf("%q", got)
		}
		conn.Close()
		r.waiting(0)
		r.reaches(outcomeRedirected, 1)
	})
}

// refuseSession ends TLS as an agent does and refuses the session in the
// protocol's own words.
func refuseSession(a *agentConn, r *rig) {
	_, _ = io.ReadFull(a, make([]byte, len(frame)))
	conn := tlsServer(a, r)
	head := make([]byte, 4)
	if _, err := io.ReadFull(conn, head); err != nil {
		return
	}
	_, _ = io.ReadFull(conn, make([]byte, binary.BigEndian.Uint32(head)-4))
	b, _ := (&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28000", Message: "no such luck"}).Encode(nil)
	_, _ = conn.Write(b)
	_ = conn.Close()
}
