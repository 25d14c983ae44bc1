package client

import (
	"context"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// listening is where f serves connections until the test ends.
func listening(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go f(conn)
		}
	}()
	return l.Addr().String()
}

// TestOtherGateways: an agent whose gateway is away, or silent, reaches auth by another
// one that it has heard of, and within the time of one call. It was without auth for as long
// as the one that is configured was away.
func TestOtherGateways(t *testing.T) {
	w := the()
	other := listening(t, func(conn net.Conn) {
		auth, err := net.Dial("unix", w.socket)
		if err != nil {
			conn.Close()
			return
		}
		go func() { _, _ = io.Copy(auth, conn); auth.Close() }()
		_, _ = io.Copy(conn, auth)
		conn.Close()
	})
	silent := listening(t, func(net.Conn) {})
	cfg := w.config(t, sallyport.KindAgent)
	w.host(t, cfg)
	for name, address := range map[string]string{"away": "127.0.0.1:1", "silent": silent} {
		t.Run(name, func(t *testing.T) {
			cfg.Addresses = func() []string { return []string{address} }
			h, err := OpenHost(cfg)
			if err != nil {
				t.Fatal(err)
			}
			h.keeper.set(&view{gateways: []string{address, other}})
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // less than a handshake may take
			defer cancel()
			conn, err := h.Dialer().Dial(ctx, ProtocolAuth)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if conn.RemoteAddr().String() != other {
				t.Errorf("by way of %s", conn.RemoteAddr())
			}
		})
	}
}

// TestSilentGateways: the stream of snapshots, whose call has no deadline, does not wait
// out each silent gateway before it asks the next one: locks came 15 s later for each.
func TestSilentGateways(t *testing.T) {
	w := the()
	cfg := w.config(t, sallyport.KindAgent)
	w.host(t, cfg)
	var met atomic.Int32
	silent := func() string { return listening(t, func(net.Conn) { met.Add(1) }) }
	all := []string{silent(), silent(), silent(), listening(t, func(conn net.Conn) {
		auth, err := net.Dial("unix", w.socket)
		if err != nil {
			conn.Close()
			return
		}
		go func() { _, _ = io.Copy(auth, conn); auth.Close() }()
		_, _ = io.Copy(conn, auth)
		conn.Close()
	})}
	cfg.Addresses = func() []string { return all }
	h, err := OpenHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer time.AfterFunc(2*(dialTimeout+handshakeTimeout), cancel).Stop() // no deadline that could be shared
	conn, err := h.Dialer().Dial(ctx, ProtocolAuth)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if conn.RemoteAddr().String() != all[3] || met.Load() != 3 {
		t.Errorf("by way of %s, after %d others", conn.RemoteAddr(), met.Load())
	}
}

// TestWays: whom an agent asks for auth, and in which order.
func TestWays(t *testing.T) {
	w := the()
	many := []string{"a:1", "b:1", "c:1", "d:1", "e:1", "f:1", "g:1", "h:1", "i:1", "j:1", "k:1"}
	for _, tt := range []struct {
		kind   sallyport.IdentityKind
		own    []string
		others int
	}{
		{sallyport.KindAgent, []string{"c:1", "x:1"}, othersMost},
		{sallyport.KindAgent, []string{"unix:/auth.sock"}, 0},
		{sallyport.KindGateway, []string{"c:1"}, 0},
	} {
		cfg := w.config(t, tt.kind)
		w.host(t, cfg)
		cfg.Addresses = func() []string { return tt.own }
		h, err := OpenHost(cfg)
		if err != nil {
			t.Fatal(err)
		}
		h.keeper.set(&view{gateways: many})
		got := h.ways()
		n := len(tt.own)
		if len(got) != n+tt.others || !slices.Equal(got[:n], tt.own) {
			t.Errorf("%s of %v: %v", tt.kind, tt.own, got)
			continue
		}
		for i, a := range got[n:] {
			if slices.Contains(got[:n+i], a) || !slices.Contains(many, a) {
				t.Errorf("%s of %v: %v", tt.kind, tt.own, got)
			}
		}
	}
	if !slices.Equal(many, []string{"a:1", "b:1", "c:1", "d:1", "e:1", "f:1", "g:1", "h:1", "i:1", "j:1", "k:1"}) {
		t.Errorf("the snapshot's are %v", many)
	}
}
