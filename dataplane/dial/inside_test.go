package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/carrier"
	"github.com/sallyport/sallyport/identity"
)

// balancer ends TLS in front of a gateway, with a certificate of its own, and
// passes WebSockets on: what is inside them ends with inner.
type balancer struct {
	addr     string
	direct   atomic.Int32 // handshakes that offered no protocol of the web
	upgrades atomic.Int32
}

func newBalancer(t *testing.T, outer tls.Certificate, inner *tls.Config) *balancer {
	t.Helper()
	b := &balancer{}
	ctx, cancel := context.WithCancel(context.Background())
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != carrier.ConnectPath || inner == nil {
			http.NotFound(w, r)
			return
		}
		b.upgrades.Add(1)
		s, err := carrier.Accept(w, r)
		if err != nil {
			t.Error(err)
			return
		}
		far, near, err := carrier.ConnPair()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			defer far.Close()
			tc := tls.Server(far, inner)
			_, _ = io.Copy(tc, tc)
			_ = tc.CloseWrite()
		}()
		carrier.Pump(ctx, s, near)
	}))
	// As nginx does, it takes no notice of protocols that it does not know.
	s.TLS = &tls.Config{Certificates: []tls.Certificate{outer}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Contains(h.SupportedProtos, alpn.HTTP11) {
			b.direct.Add(1)
			return &tls.Config{Certificates: []tls.Certificate{outer}}, nil
		}
		return nil, nil
	}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.StartTLS()
	t.Cleanup(func() { cancel(); s.Close() })
	b.addr = s.Listener.Addr().String()
	return b
}

// TestInside: where a load balancer ends TLS the connection goes inside a
// WebSocket, with its own TLS to the agent, and from the second on at once.
func TestInside(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	agent := ca.issue(t, sallyport.KindAgent, []string{"orders.db.gw.test"}, nil)
	b := newBalancer(t, other.issue(t, sallyport.KindGateway, []string{"127.0.0.1"}, nil), &tls.Config{Certificates: []tls.Certificate{agent}, NextProtos: []string{alpn.DB1}})
	d := &Dialer{Proxy: b.addr, Cluster: cluster, Roots: ca.pool()}
	known := &Dialer{Proxy: b.addr, Cluster: cluster, Roots: ca.pool(), Ended: true}
	for _, d := range []*Dialer{d, d, known} {
		conn, err := d.DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.DB1)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().String(); got != b.addr {
			t.Errorf("remote address %s", got)
		}
		if _, err := io.WriteString(conn, "hello?"); err != nil {
			t.Fatal(err)
		}
		if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); string(got) != "hello?" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		conn.Close()
	}
	if n, m := b.direct.Load(), b.upgrades.Load(); n != 1 || m != 3 {
		t.Errorf("%d straight, %d inside", n, m)
	}
	// What is said inside is the answer: nothing else is tried, and of nothing else is told.
	if _, err := known.DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.SSH1); err == nil || errors.Is(err, errUntrusted) {
		t.Errorf("a protocol that is not spoken: %v", err)
	}
	fresh := &Dialer{Proxy: b.addr, Cluster: cluster, Roots: ca.pool()}
	if _, err := fresh.DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.SSH1); err == nil || errors.Is(err, errUntrusted) {
		t.Errorf("a protocol that is not spoken: %v", err)
	}
	if n, m := b.direct.Load(), b.upgrades.Load(); n != 2 || m != 5 {
		t.Errorf("%d straight, %d inside", n, m)
	}
}

// TestInsideIsBelievedNoMore: whoever ends TLS on the way cannot be who is meant.
func TestInsideIsBelievedNoMore(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	outer := other.issue(t, sallyport.KindGateway, []string{"127.0.0.1"}, nil)
	imposter := other.issue(t, sallyport.KindAgent, []string{"orders.db.gw.test"}, nil)
	b := newBalancer(t, outer, &tls.Config{Certificates: []tls.Certificate{imposter}, NextProtos: []string{alpn.DB1}})
	_, err := (&Dialer{Proxy: b.addr, Cluster: cluster, Roots: ca.pool()}).DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.DB1)
	problem(t, err, sallyport.ErrUnauthorized, "not who it should be")
	if b.upgrades.Load() != 1 {
		t.Error("it was not asked for inside a WebSocket")
	}

	// One that takes no WebSockets leaves the first failure.
	b = newBalancer(t, outer, nil)
	_, err = (&Dialer{Proxy: b.addr, Cluster: cluster, Roots: ca.pool()}).DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.DB1)
	problem(t, err, sallyport.ErrUnauthorized, "not who it should be")
}

// TestInsideNotNeeded: a gateway that refuses is not asked in another way.
func TestInsideNotNeeded(t *testing.T) {
	ca := newAuthority(t)
	gateway := ca.issue(t, sallyport.KindGateway, []string{"127.0.0.1"}, nil)
	b := newBalancer(t, gateway, &tls.Config{Certificates: []tls.Certificate{gateway}, NextProtos: []string{alpn.DB1}})
	for _, d := range []*Dialer{{Roots: ca.pool()}, {Pins: []string{identity.Pin(ca.cert)}}} {
		d.Proxy, d.Cluster = b.addr, cluster
		if _, err := d.DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.DB1); err == nil {
			t.Error("a connection")
		}
	}
	if n := b.upgrades.Load(); n != 0 {
		t.Errorf("%d upgrades", n)
	}
	// One that was given is all there is.
	var dials atomic.Int32
	d := &Dialer{Proxy: b.addr, Cluster: cluster, Roots: newAuthority(t).pool(), Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	if _, err := d.DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.DB1); err == nil || dials.Load() != 1 {
		t.Errorf("%v after %d connections", err, dials.Load())
	}
}
