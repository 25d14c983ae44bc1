package client

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// TestShut: all that a host wants of an auth that refuses it dials seldom, and one that is
// let in again is not kept from it for long.
func TestShut(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		most time.Duration
	}{
		{"refused", handshakeProblem("a:1", &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}), shutMost},
		{"foreign", handshakeProblem("a:1", x509.UnknownAuthorityError{}), foreignMost},
		{"away", errors.New("away"), 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, dials, longest := new(Dialer), 0, time.Duration(0)
				for begun, last := time.Now(), time.Now(); time.Since(begun) < time.Hour; time.Sleep(time.Second) {
					if err := d.closed(); err != nil {
						if !errors.Is(err, row.err) {
							t.Fatal(err)
						}
						continue
					}
					dials++
					longest, last = max(longest, time.Since(last)), time.Now()
					d.close(row.err)
				}
				if row.most == 0 && dials != 3600 || row.most > 0 && (dials > 2*int(time.Hour/row.most)+20 || longest > row.most*5/4+time.Second) {
					t.Errorf("%d dials, with pauses up to %s", dials, longest)
				}
				time.Sleep(2 * row.most)
				d.close(row.err)
				d.remember(reached{addr: "a:1"})
				if d.closed() != nil {
					t.Error("closed after it got through")
				}
			})
		})
	}
}
