//go:build unix

package gateway

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/carrier"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// insideRig is a rig whose web origin takes connections inside WebSockets; what
// comes from loopback may speak for others.
func insideRig(t *testing.T, loops []relay.Loop, change func(*Config)) *rig {
	t.Helper()
	var gateway atomic.Pointer[Gateway]
	f := newFeed()
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == carrier.ConnectPath {
			gateway.Load().Inside().ServeHTTP(w, r)
			return
		}
		_, _ = io.WriteString(w, "web for "+r.RemoteAddr)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(f)
	}()
	t.Cleanup(func() { s.Close(); <-done })
	ca := newAuthority(t)
	r := newRig(t, loops, func(c *Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.Ends = map[alpn.Class]End{alpn.Web: {TLS: ca.server(t, "http/1.1"), Handlers: map[string]Handler{"http/1.1": f.handle}}}
		if change != nil {
			change(c)
		}
	})
	gateway.Store(r.Gateway)
	return r
}

// inside is a connection to the gateway's port inside a WebSocket, which itself
// goes over under.
func (r *rig) inside(under net.Conn) (*net.UnixConn, *carrier.Socket) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	s, err := carrier.DialSocket(ctx, under, carrier.Origin{Name: cluster, Path: carrier.ConnectPath})
	check(r, err)
	far, near, err := carrier.ConnPair()
	check(r, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		carrier.Pump(context.Background(), s, near)
	}()
	r.Cleanup(func() { far.Close(); <-done })
	check(r, far.SetDeadline(time.Now().Add(patience)))
	return far, s
}

// TestInside: what comes inside a WebSocket goes where it says, as what comes to
// the port itself.
func TestInside(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := insideRig(t, loops, nil)
		t.Run("a resource", func(t *testing.T) {
			conn, _ := r.inside(r.dial())
			defer conn.Close()
			client := tls.Client(conn, r.ca.client("orders.db.gw.test", alpn.DB1))
			done := make(chan error, 1)
			go func() { done <- client.Handshake() }()
			a := r.tunnels.agent()
			if a.request.Source.Addr() != netip.MustParseAddr("127.0.0.1") || a.request.Source.Port() == 0 {
				t.Errorf("leased for %v", a.request.Source)
			}
			served := make(chan struct{})
			go func() { defer close(served); echoTLS(r.ca.server(r, alpn.DB1))(a) }()
			check(t, <-done)
			if n := r.Carried(); n != 1 {
				t.Errorf("%d carried", n)
			}
			echoes(t, client)
			<-served
			a.Close()
		})
		t.Run("behind a proxy that is trusted", func(t *testing.T) {
			conn, _ := r.inside(r.say(proxyLine))
			defer conn.Close()
			_, err := conn.Write(helloBytes(t, r.ca.client("orders.db.gw.test", alpn.DB1)))
			check(t, err)
			a := r.tunnels.agent()
			defer a.Close()
			a.answers(conn)
			if a.request.Source != netip.MustParseAddrPort("192.0.2.7:4711") {
				t.Errorf("leased for %v", a.request.Source)
			}
		})
		t.Run("the web origin", func(t *testing.T) {
			conn, _ := r.inside(r.say(proxyLine))
			defer conn.Close()
			config := r.ca.client(cluster, "http/1.1")
			config.InsecureSkipVerify = true
			client := tls.Client(conn, config)
			_, err := io.WriteString(client, "GET / HTTP/1.0\r\n\r\n")
			check(t, err)
			if got := readAll(t, client); !strings.HasSuffix(string(got), "web for 192.0.2.7:4711") {
				t.Errorf("%q", got)
			}
		})
		eventually(t, "nothing is carried", func() bool { return r.Carried() == 0 && r.Serving() == 0 })
		r.waiting(0)
	})
}

// TestInsideIsNoProxy: a header that says for whom a connection comes would be
// the client's own word.
func TestInsideIsNoProxy(t *testing.T) {
	r := insideRig(t, newLoops(t, relay.NewDefault, 1), nil)
	conn, _ := r.inside(r.dial())
	_, err := conn.Write(append([]byte(proxyLine), helloBytes(t, r.ca.client("orders.db.gw.test", alpn.DB1))...))
	check(t, err)
	closes(t, conn)
	r.reaches(outcomeOutOfOrder, 1)
	if n := r.tunnels.asked(); n > 0 {
		t.Errorf("%d leases", n)
	}
}

// TestInsideRefuses: pages in browsers, and WebSockets inside such a connection,
// of which each byte would be paid for once more with each layer.
func TestInsideRefuses(t *testing.T) {
	r := insideRig(t, newLoops(t, relay.NewDefault, 1), nil)
	upgrade := func(under net.Conn, more string) string {
		config := r.ca.client(cluster, "http/1.1")
		config.InsecureSkipVerify = true
		client := tls.Client(under, config)
		_, err := io.WriteString(client, "GET "+carrier.ConnectPath+" HTTP/1.1\r\nHost: "+cluster+"\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"+more+"\r\n")
		check(t, err)
		b := make([]byte, 12)
		_, err = io.ReadFull(client, b)
		check(t, err)
		return string(b)
	}
	if got := upgrade(r.dial(), ""); got != "HTTP/1.1 101" {
		t.Errorf("a program: %q", got)
	}
	if got := upgrade(r.dial(), "Origin: https://gw.test\r\n"); got != "HTTP/1.1 403" {
		t.Errorf("a page: %q", got)
	}
	conn, _ := r.inside(r.dial())
	if got := upgrade(conn, ""); got != "HTTP/1.1 403" {
		t.Errorf("inside another: %q", got)
	}
}

// TestInsideEnds: who falls silent inside has the time of all who do, and a
// WebSocket that is cut ends what is in it.
func TestInsideEnds(t *testing.T) {
	r := insideRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) { c.Bounds.Stage = time.Second / 4 })
	conn, _ := r.inside(r.dial())
	_, err := conn.Write(helloBytes(t, r.ca.client("orders.db.gw.test", alpn.DB1))[:40])
	check(t, err)
	closes(t, conn)
	eventually(t, "the WebSocket has gone", func() bool { return r.Carried() == 0 && r.Serving() == 0 })

	conn, s := r.inside(r.dial())
	client := tls.Client(conn, r.ca.client("orders.db.gw.test", alpn.DB1))
	shaken := make(chan struct{})
	go func() { defer close(shaken); _ = client.Handshake() }()
	a := r.tunnels.agent()
	s.Abort()
	<-shaken
	if _, err := io.Copy(io.Discard, a); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	eventually(t, "nothing is carried", func() bool { return r.Carried() == 0 && r.Serving() == 0 })
}

// TestInsideDismissed: of what is inside WebSockets a process that others follow ends
// what leads to auth when nothing passes, and nothing else.
func TestInsideDismissed(t *testing.T) {
	ca := newAuthority(t)
	b := newBackend(t, "tcp", "127.0.0.1:0", echoTLS(ca.server(t, alpn.Auth1)))
	r := insideRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) {
		c.Auth = Upstream{Address: b.Addr().String()}
		c.Static = []StaticRoute{to("shop.example.com", b.Addr().String())}
	})
	talks := func(conn *tls.Conn) {
		t.Helper()
		got := make([]byte, 6)
		_, err := conn.Write([]byte("hello?"))
		check(t, err)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello?" {
			t.Errorf("%q, %v", got, err)
		}
	}
	open := func(config *tls.Config) *tls.Conn {
		under, _ := r.inside(r.dial())
		conn := tls.Client(under, config)
		talks(conn)
		return conn
	}
	shop, idle, busy := open(ca.client("shop.example.com")), open(ca.client(cluster, alpn.Auth1)), open(ca.client(cluster, alpn.Auth1))
	r.insiders.calls(true) // how much has passed until now
	talks(busy)
	if quiet := r.insiders.calls(true); len(quiet) != 1 {
		t.Errorf("nothing passes by %d connections", len(quiet))
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.dismissInside(ctx, time.Millisecond, time.Hour)
	}()
	for _, conn := range []*tls.Conn{idle, busy} {
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes", n)
		}
	}
	eventually(t, "one is carried", func() bool { return r.Carried() == 1 })
	talks(shop)
	stop()
	<-done

	last := open(ca.client(cluster, alpn.Auth1))
	talks(last)
	if all := r.insiders.calls(false); len(all) != 1 || !all[0].toAuth.Load() {
		t.Errorf("%d lead to auth", len(all))
	}
}
