//go:build unix

package gateway

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/preamble"
	"github.com/sallyport/sallyport/dataplane/relay"
)

const greeting = "220 speaks first\r\n"

// greets speaks first, and says then what it hears.
func greets(conn net.Conn) {
	_, _ = io.WriteString(conn, greeting)
	_, _ = io.Copy(conn, conn)
}

// silently leads silent clients to a server, soon.
func silently(c *Config, proxy bool, to ...string) {
	c.Silent = &SilentRoute{After: 20 * time.Millisecond, Upstreams: to, Proxy: proxy}
}

// greeted checks that a client which has said nothing talks with a server.
func greeted(t testing.TB, conn *net.TCPConn) {
	t.Helper()
	expect(t, conn, greeting)
	_, err := io.WriteString(conn, "EHLO")
	check(t, err)
	expect(t, conn, "EHLO")
	check(t, conn.CloseWrite())
	if rest := readAll(t, conn); len(rest) > 0 {
		t.Errorf("nobody said %q", rest)
	}
}

// TestSilentClient: one that says nothing gets to where the operator says, and
// only there.
func TestSilentClient(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		b := newBackend(t, "tcp", "127.0.0.1:0", greets)
		r := newRig(t, loops, func(c *Config) { silently(c, false, b.Addr().String()) })
		for n := range uint64(5) {
			greeted(t, r.dial())
			r.reaches(outcomeSilent, n+1)
			r.reaches(outcomeRelayed, n+1)
		}
		r.waiting(0)
		routes := r.Snapshot().Routes
		if len(routes) != 1 || routes[0].Name != silentLabel || routes[0].Results[resultRelayed.String()] != 5 {
			t.Errorf("routes %+v", routes)
		}
	})
}

// TestSilentServerToo: a server that also waits gets what the client says in the
// end.
func TestSilentServerToo(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
		r := newRig(t, loops, func(c *Config) { silently(c, false, b.Addr().String()) })
		conn := r.dial()
		r.reaches(outcomeSilent, 1)
		_, err := io.WriteString(conn, "well then")
		check(t, err)
		expect(t, conn, "well then")
		conn.Close()
		ends := r.dial()
		r.reaches(outcomeSilent, 2)
		check(t, ends.CloseWrite())
		closes(t, ends)
	})
}

// TestSilentAfterWords: who has said something, be it a byte, is no silent
// client, and a silent one without a place to go is closed.
func TestSilentAfterWords(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		b := newBackend(t, "tcp", "127.0.0.1:0", greets)
		r := newRig(t, loops, func(c *Config) {
			silently(c, false, b.Addr().String())
			c.Bounds.Stage = 10 * c.Silent.After
		})
		release := stop(loops) // so that the words are there when the connection is accepted
		conns := []net.Conn{r.say(pgSSL)}
		for _, words := range [][]byte{{0x16}, {0x16, 3, 1, 2, 0, 1}, []byte("GET / HTTP/1.1\r\n"), []byte("SSH")} {
			conns = append(conns, r.say(words))
		}
		release()
		expect(t, conns[0], "S")
		for _, conn := range conns {
			closes(t, conn)
		}
		r.reaches(outcomeTimeout, uint64(len(conns)))
		r.reaches(outcomeSilent, 0)

		none := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) { c.Bounds.Stage = 200 * time.Millisecond })
		closes(t, none.dial())
		none.reaches(outcomeTimeout, 1)
	})
}

// TestSilentProxied: a trusted proxy's words are not the client's, and the
// server is told whose connection it is.
func TestSilentProxied(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		from := make(chan string, 1)
		b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			head := make([]byte, len(preamble.AppendProxyV2(nil, netip.MustParseAddrPort("192.0.2.7:1"), netip.MustParseAddrPort("192.0.2.8:1"))))
			_, _ = io.ReadFull(conn, head)
			p, _, _ := preamble.ParseProxy(head)
			from <- p.Source.String()
			greets(conn)
		})
		r := newRig(t, loops, func(c *Config) {
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			silently(c, true, b.Addr().String())
		})
		greeted(t, r.saysAtOnce(loops, proxyLine))
		if got := <-from; got != "192.0.2.7:4711" {
			t.Errorf("the server was told %s", got)
		}
		own := r.dial()
		greeted(t, own)
		if got := <-from; got != own.LocalAddr().String() {
			t.Errorf("the server was told %s of %s", got, own.LocalAddr())
		}
	})
}

// TestSilentDeadServer: one that refuses is passed over. A client with nowhere
// to go is told nothing: an alert is none of its protocol's words.
func TestSilentDeadServer(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		const dead = "127.0.0.1:1" // a port that was free might be somebody's by now
		b := newBackend(t, "tcp", "127.0.0.1:0", greets)
		r := newRig(t, loops, func(c *Config) { silently(c, false, dead, b.Addr().String()) })
		for range 3 {
			greeted(t, r.dial())
		}
		_, err := r.Reload(t.Context(), Settings{Bounds: generous(), Silent: &SilentRoute{After: time.Millisecond, Upstreams: []string{dead}}})
		check(t, err)
		closes(t, r.dial())
		r.reaches(outcomeNoUpstream, 1)
	})
}

// TestSilentReload: the place comes, changes and goes with a reload.
func TestSilentReload(t *testing.T) {
	r := newRig(t, newLoops(t, relay.NewDefault, 2), nil)
	b := newBackend(t, "tcp", "127.0.0.1:0", greets)
	bounds := generous()
	reload := func(s *SilentRoute, want Difference) {
		t.Helper()
		if got, err := r.Reload(t.Context(), Settings{Silent: s, Bounds: bounds}); err != nil || got != want {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
	}
	s := SilentRoute{After: 10 * time.Millisecond, Upstreams: []string{b.Addr().String()}}
	later := s
	later.After = 20 * time.Millisecond
	reload(&s, Difference{Added: 1})
	greeted(t, r.dial())
	reload(&s, Difference{Kept: 1})
	reload(&later, Difference{Changed: 1})
	greeted(t, r.dial())
	bounds.Stage = 300 * time.Millisecond
	reload(nil, Difference{Removed: 1})
	closes(t, r.dial())
	r.reaches(outcomeTimeout, 1)
	r.reaches(outcomeSilent, 2)
	if _, err := r.Reload(t.Context(), Settings{Silent: &SilentRoute{Upstreams: s.Upstreams}}); err == nil || !strings.Contains(err.Error(), "silent clients: after 0s") {
		t.Errorf("without a time: %v", err)
	}
	if _, err := r.Reload(t.Context(), Settings{Silent: &SilentRoute{After: time.Second}}); err == nil {
		t.Error("without a server it is taken")
	}
}

// TestMoveSilent: a silent client is moved while it says nothing, and while its
// server has not spoken.
func TestMoveSilent(t *testing.T) {
	onMoves(t, func(t *testing.T, loops []relay.Loop, move func(*rig)) {
		here, speak := make(chan struct{}), make(chan struct{})
		b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			here <- struct{}{}
			<-speak
			greets(conn)
		})
		r := newRig(t, loops, func(c *Config) {
			silently(c, false, b.Addr().String())
			c.Silent.After = 100 * time.Millisecond
		})
		conn := r.dial()
		r.reaches(outcomeAccepted, 1) // on a slow machine its time is over by now
		move(r)
		<-here
		move(r)
		close(speak)
		greeted(t, conn)
	})
}
