//go:build unix

package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/preamble"
	"github.com/sallyport/sallyport/dataplane/relay"
)

func tlsServer(conn net.Conn, r *rig) *tls.Conn {
	return tls.Server(conn, r.ca.server(r, alpn.DB1, alpn.PostgreSQL))
}

// feed is a listener that a Handler hands connections to, as cmd does for HTTP.
type feed struct {
	conns chan net.Conn
	done  chan struct{}
}

func newFeed() *feed { return &feed{make(chan net.Conn), make(chan struct{})} }

func (f *feed) handle(ctx context.Context, conn *tls.Conn) {
	select {
	case f.conns <- conn:
	case <-ctx.Done():
		conn.Close()
	}
}

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}
func (f *feed) Close() error   { close(f.done); return nil }
func (f *feed) Addr() net.Addr { return &net.TCPAddr{} }

// webEnd ends TLS for an http.Server that tells who asked, and how.
func webEnd(t testing.TB, config *tls.Config) End {
	t.Helper()
	f := newFeed()
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto+" "+r.RemoteAddr+" "+r.TLS.NegotiatedProtocol)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(f)
	}()
	t.Cleanup(func() { s.Close(); <-done })
	return End{TLS: config, Handlers: map[string]Handler{"h2": f.handle, "http/1.1": f.handle, "": f.handle}}
}

func TestWeb(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		r := newRig(t, loops, func(c *Config) {
			c.Ends = map[alpn.Class]End{alpn.Web: webEnd(t, ca.server(t, "h2", "http/1.1"))}
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		})
		for _, h2 := range []bool{true, false} {
			tr := &http.Transport{
				TLSClientConfig: ca.client(cluster), ForceAttemptHTTP2: h2,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, "tcp", r.addr)
				},
			}
			resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get("https://gw.test/")
			check(t, err)
			body, err := io.ReadAll(resp.Body)
			check(t, err)
			resp.Body.Close()
			tr.CloseIdleConnections()
			if want := map[bool]string{true: "HTTP/2.0 ", false: "HTTP/1.1 "}[h2]; !strings.HasPrefix(string(body), want) {
				t.Errorf("answer %q, want %q", body, want)
			}
		}
		// Behind a trusted proxy, by address instead of a name, without ALPN,
		// and with a hello that comes in two pieces.
		hello := &splitConn{Conn: r.say(proxyLine), rig: r}
		config := ca.client("")
		config.InsecureSkipVerify = true
		conn := tls.Client(hello, config)
		_, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
		check(t, err)
		if got := readAll(t, conn); !bytes.Contains(got, []byte("HTTP/1.0 192.0.2.7:4711 ")) {
			t.Errorf("%q", got)
		}
		r.reaches(outcomeHandshake, 3)
		r.waiting(0)
	})
}

// splitConn writes its first bytes in two pieces that arrive apart.
type splitConn struct {
	net.Conn
	rig  *rig
	done bool
}

func (c *splitConn) Write(b []byte) (int, error) {
	if c.done {
		return c.Conn.Write(b)
	}
	c.done = true
	if _, err := c.Conn.Write(b[:100]); err != nil {
		return 0, err
	}
	c.rig.waiting(1)
	n, err := c.Conn.Write(b[100:])
	return n + 100, err
}

// TestEndsAreApart: a class's handshake can only end with its own protocols.
func TestEndsAreApart(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		got := make(chan string, 1)
		r := newRig(t, loops, func(c *Config) {
			tunnels := ca.server(t, alpn.Tunnel1)
			tunnels.ClientAuth, tunnels.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool
			c.Ends = map[alpn.Class]End{
				alpn.Web: webEnd(t, ca.server(t, "h2", "http/1.1")),
				alpn.Tunnel: {TLS: tunnels, Handlers: map[string]Handler{alpn.Tunnel1: func(_ context.Context, conn *tls.Conn) {
					defer conn.Close()
					state := conn.ConnectionState()
					got <- state.NegotiatedProtocol + " " + state.ServerName
				}}},
			}
		})
		config := ca.client(cluster, alpn.Tunnel1)
		config.Certificates = []tls.Certificate{ca.issue(t, "/agent/1")}
		conn := tls.Client(r.dial(), config)
		check(t, conn.Handshake())
		if g := <-got; g != alpn.Tunnel1+" "+cluster {
			t.Errorf("handler got %q", g)
		}
		for _, protocols := range [][]string{{alpn.Tunnel1, "h2"}, {alpn.Tunnel1, alpn.Auth1}, {alpn.Gateway1}} {
			config.NextProtos = protocols
			raw := r.dial()
			err := tls.Client(raw, config).Handshake()
			raw.Close()
			if err == nil || !strings.Contains(err.Error(), "no application protocol") {
				t.Errorf("%q: %v", protocols, err)
			}
		}
		// Without a certificate the handshake fails, and its place is given back.
		config = ca.client(cluster, alpn.Tunnel1)
		conn = tls.Client(r.dial(), config)
		_ = conn.Handshake()
		_, err := conn.Read(make([]byte, 1))
		var alert *net.OpError
		if !errors.As(err, &alert) {
			t.Errorf("without a certificate: %v", err)
		}
		r.reaches(outcomeHandshakeFailed, 1)
		r.waiting(0)
	})
}

func TestEndIsChecked(t *testing.T) {
	loops := newLoops(t, relay.NewDefault, 1)
	none := func(context.Context, *tls.Conn) {}
	for want, end := range map[string]End{
		"no TLS":          {},
		"has no handler":  {TLS: &tls.Config{NextProtos: []string{"h2"}}},
		"not offered":     {TLS: &tls.Config{}, Handlers: map[string]Handler{"h2": none}},
		"not offered ...": {TLS: &tls.Config{NextProtos: []string{"h2"}}, Handlers: map[string]Handler{"h2": none, alpn.Tunnel1: none}},
	} {
		_, err := Start(Config{Listen: []string{"127.0.0.1:0"}, Loops: loops, Ends: map[alpn.Class]End{alpn.Web: end}})
		if err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(want, " ...")) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestAuth: control and join connections reach auth as they are, over TCP and
// over a Unix socket that is told the client's address.
func TestAuth(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		config := ca.server(t, alpn.Auth1, alpn.Join1)
		peers := make(chan netip.AddrPort, 1)
		path := filepath.Join(t.TempDir(), "auth.sock")
		newBackend(t, "unix", path, func(conn net.Conn) {
			b := make([]byte, 28) // a version 2 header for IPv4
			_, _ = io.ReadFull(conn, b)
			p, _, err := preamble.ParseProxy(b)
			if err == nil {
				peers <- p.Source
			}
			echoTLS(config)(conn)
		})
		tcp := newBackend(t, "tcp", "127.0.0.1:0", echoTLS(config))
		for _, auth := range []Upstream{{Address: "unix:" + path, Proxy: true}, {Address: tcp.Addr().String()}} {
			r := newRig(t, loops, func(c *Config) { c.Auth = auth })
			for _, protocol := range []string{alpn.Auth1, alpn.Join1} {
				raw := r.dial()
				conn := tls.Client(raw, ca.client(cluster, protocol))
				echoes(t, conn)
				if got := conn.ConnectionState().NegotiatedProtocol; got != protocol {
					t.Errorf("protocol %q", got)
				}
				if !auth.Proxy {
					continue
				}
				if peer := <-peers; peer.String() != raw.LocalAddr().String() {
					t.Errorf("auth was told %v, the client is %v", peer, raw.LocalAddr())
				}
			}
			r.waiting(0)
		}
	})
}

// TestAuthIsAway: the client hears of it at once, and not that the name is unknown.
func TestAuthIsAway(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		for _, address := range []string{"127.0.0.1:1", "unix:" + filepath.Join(t.TempDir(), "none")} {
			r := newRig(t, loops, func(c *Config) { c.Auth = Upstream{Address: address} })
			conn := r.say(helloBytes(t, r.ca.client(cluster, alpn.Auth1)))
			want := alpn.InternalError.Record()
			if got := readAll(t, conn); !bytes.Equal(got, want[:]) {
				t.Errorf("%s: %v", address, got)
			}
			r.reaches(outcomeNoUpstream, 1)
		}
	})
}

// TestStatic: upstreams are taken in turn, and one that is dead is passed over.
func TestStatic(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		served := make(chan int, 16)
		var addresses []string
		for i := range 2 {
			b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
				served <- i
				echoTLS(ca.server(t))(conn)
			})
			addresses = append(addresses, b.Addr().String())
		}
		r := newRig(t, loops, func(c *Config) {
			c.Static = []StaticRoute{
				{Match: alpn.Match{SNI: []string{"shop.example.com"}}, Upstreams: addresses},
				{Match: alpn.Match{SNI: []string{"*.example.com"}}, Upstreams: []string{"127.0.0.1:1", addresses[1]}},
			}
		})
		for range 4 {
			echoes(t, tls.Client(r.dial(), ca.client("shop.example.com")))
		}
		counts := map[int]int{}
		for range 4 {
			counts[<-served]++
		}
		if counts[0] != 2 || counts[1] != 2 {
			t.Errorf("served %v", counts)
		}
		for range 3 {
			echoes(t, tls.Client(r.dial(), ca.client("other.example.com")))
			if i := <-served; i != 1 {
				t.Errorf("served by %d", i)
			}
		}
	})
}

// TestStaticByName: an upstream's name is resolved beside the loop.
func TestStaticByName(t *testing.T) {
	ca := newAuthority(t)
	b := newBackend(t, "tcp", "127.0.0.1:0", echoTLS(ca.server(t)))
	_, port, err := net.SplitHostPort(b.Addr().String())
	check(t, err)
	r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) {
		c.Static = []StaticRoute{{Match: alpn.Match{SNI: []string{"shop.example.com"}}, Upstreams: []string{"localhost:" + port}}}
	})
	eventually(t, "the name is resolved", func() bool {
		_, _, ok := r.current.Load().static[0].pick(new(choice), time.Now())
		return ok
	})
	echoes(t, tls.Client(r.dial(), ca.client("shop.example.com")))
}

// TestDrain: nothing new is taken, what runs goes on, and the end of it ends
// the drain.
func TestDrain(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		for _, b := range []string{"GET / HTTP/1.1\r\n\r\n", "garbage", "\x16\x03\x01\x00\x01\x02"} {
			conn := r.say([]byte(b))
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
		conn := r.say(helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL)))
		agent := r.tunnels.agent()
		_, err := agent.Write([]byte("up"))
		check(t, err)
		expect(t, conn, "up")

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := r.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drained with a relay: %v", err)
		}
		if c, err := net.Dial("tcp", r.addr); err == nil {
			c.Close()
			t.Error("a connection was taken")
		}
		_, err = agent.Write([]byte("still"))
		check(t, err)
		expect(t, conn, "still")
		agent.Close()
		conn.Close()
		check(t, r.Drain(t.Context()))
	})
}

// TestClose: everything ends, at each stage.
func TestClose(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		started := make(chan struct{})
		r := newRig(t, loops, func(c *Config) {
			c.Ends = map[alpn.Class]End{
				alpn.Web: {TLS: ca.server(t, "h2"), Handlers: map[string]Handler{"h2": func(ctx context.Context, conn *tls.Conn) {
					defer conn.Close()
					close(started)
					<-ctx.Done()
				}}},
			}
		})
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		relayed := r.say(hello)
		agent := r.tunnels.agent()
		_, err := agent.Write([]byte("up"))
		check(t, err)
		expect(t, relayed, "up")
		offered := r.say(hello)
		r.tunnels.agent()
		reading := r.say(hello[:50])
		served := tls.Client(r.dial(), ca.client(cluster, "h2"))
		check(t, served.Handshake())
		<-started
		shaking := r.say(helloBytes(t, ca.client(cluster, "h2")))
		_, err = io.ReadFull(shaking, make([]byte, 5)) // its handshake runs
		check(t, err)
		r.Close()
		for name, conn := range map[string]net.Conn{"relay": relayed, "offered": offered, "reading": reading, "served": served, "handshake": shaking} {
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Errorf("%s: still open", name)
			}
		}
		if n := r.endedStreams(); n != 2 {
			t.Errorf("%d streams were given back", n)
		}
		r.Close()
	})
}

func (r *rig) endedStreams() int { return r.tunnels.endedNow() }

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
