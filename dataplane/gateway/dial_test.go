//go:build unix

package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestDial: what is said to an agent in a client's place goes behind the open
// frame, and a data connection that ends before its first byte costs nothing.
func TestDial(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		client := netip.MustParseAddrPort("[::ffff:192.0.2.1]:4000")
		to := Destination{Kind: sallyport.KindDatabase, Name: "orders", Client: client}
		said := bytes.Repeat([]byte("hello "), 1000)
		type result struct {
			conn net.Conn
			err  error
		}
		dial := func(ctx context.Context, to Destination) chan result {
			out := make(chan result, 1)
			go func() {
				conn, err := r.Gateway.Dial(ctx, to, func(_ context.Context, s net.Conn) (net.Conn, error) {
					if n, err := s.Write(said); n != len(said) || err != nil {
						return nil, errors.Join(err, io.ErrShortWrite)
					}
					_, err := io.ReadFull(s, make([]byte, 6))
					return s, err
				})
				out <- result{conn, err}
			}()
			return out
		}
		read := func(a *agentConn) {
			t.Helper()
			got := make([]byte, len(said))
			_, err := io.ReadFull(a, got)
			check(t, err)
			if !bytes.Equal(got, said) {
				t.Fatal("the agent got something else")
			}
		}

		done := dial(t.Context(), to)
		first := r.tunnels.agent()
		read(first)
		first.Close()
		second := r.tunnels.agent()
		read(second)
		_, err := second.Write([]byte("served"))
		check(t, err)
		got := <-done
		check(t, got.err)
		if a, b := first.request, second.request; a.ConnectionID != b.ConnectionID || b.Attempt != 1 || a.Source != unmap(client) || a.Kind != "db" || a.Name != "orders" {
			t.Errorf("leased %+v, then %+v", a, b)
		}
		if n := r.tunnels.endedNow(); n != 1 {
			t.Errorf("%d streams are given back while one is open", n)
		}
		_, err = got.conn.Write([]byte("more"))
		check(t, err)
		more := make([]byte, 4)
		if _, err := io.ReadFull(second, more); err != nil || string(more) != "more" {
			t.Errorf("%q, %v", more, err)
		}
		got.conn.Close()
		got.conn.Close()
		second.Close()
		eventually(t, "both are given back", func() bool { return r.tunnels.endedNow() == 2 })

		// After a byte of the agent's there is no other one.
		done = dial(t.Context(), to)
		a := r.tunnels.agent()
		read(a)
		_, err = a.Write([]byte("no"))
		check(t, err)
		a.Close()
		if got := <-done; got.err == nil {
			t.Error("half an answer is one")
		}
		eventually(t, "it is given back", func() bool { return r.tunnels.endedNow() == 3 })
		if got := <-dial(t.Context(), Destination{Kind: sallyport.KindApp, Name: "nothing", Client: client}); !errors.Is(got.err, sallyport.ErrUnavailable) {
			t.Errorf("a name without an agent: %v", got.err)
		}

		r.tunnels.answerNone()
		ctx, cancel := context.WithCancel(t.Context())
		done = dial(ctx, to)
		asked := func() int { r.tunnels.mu.Lock(); defer r.tunnels.mu.Unlock(); return len(r.tunnels.requests) }
		eventually(t, "a lease is asked for", func() bool { return asked() == 5 })
		cancel()
		if got := <-done; !errors.Is(got.err, context.Canceled) {
			t.Errorf("%v", got.err)
		}
		eventually(t, "the lease is taken back", func() bool {
			r.tunnels.mu.Lock()
			defer r.tunnels.mu.Unlock()
			return r.tunnels.cancelled == 1
		})
		done = dial(t.Context(), to)
		eventually(t, "a lease is asked for", func() bool { return asked() == 6 })
		r.Close()
		if got := <-done; got.err == nil {
			t.Error("a gateway that is closed")
		}
	})
}

// TestDialLate: a data connection that comes when nobody waits any more is
// closed and given back.
func TestDialLate(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		tunnels := newFakeTunnels(t)
		q := &question{answers: make(chan answer, 1)}
		fd, agent := pair(tunnels.listen)
		q.Leased(Stream{FD: fd, Frame: frame, Lease: &fakeLease{tunnels: tunnels}})
		q.takeBack()
		closes(t, agent)
		agent.Close()
		if n := tunnels.endedNow(); n != 1 {
			t.Errorf("given back %d times", n)
		}
	})
}

// TestMoveDial: who waits here for a data connection, in a client's place, is told
// when another gateway has the tunnels, and so is who asks after that. What is
// given up goes on waiting, as before.
func TestMoveDial(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		old := r.Gateway
		r.tunnels.answerNone()
		done := make(chan error, 1)
		dial := func() {
			_, err := old.Dial(t.Context(), Destination{Kind: sallyport.KindApp, Name: "shop", Client: netip.MustParseAddrPort("192.0.2.1:4000")},
				func(context.Context, net.Conn) (net.Conn, error) { return nil, errors.New("a stream from nowhere") })
			done <- err
		}
		go dial()
		eventually(t, "a lease is asked for", func() bool { return r.tunnels.asked() == 1 })
		r.turnsBack(relay.NewDefault)
		select {
		case err := <-done:
			t.Fatalf("after a way back: %v", err)
		default:
		}

		h := r.heir(newLoops(t, relay.NewDefault, 2), nil)
		w := &wire{heir: h}
		check(t, old.Giver().Copy(t.Context(), w))
		check(t, old.Giver().Freeze(t.Context(), w))
		check(t, h.Complete(t.Context()))
		h.Start()
		old.Giver().Leave()
		r.Gateway = h.Gateway()
		told := func() {
			t.Helper()
			select {
			case err := <-done:
				if !errors.Is(err, sallyport.ErrUnavailable) {
					t.Errorf("told %v", err)
				}
			case <-time.After(patience):
				t.Fatal("nobody is told")
			}
		}
		told()
		eventually(t, "the question is taken back", func() bool {
			r.tunnels.mu.Lock()
			defer r.tunnels.mu.Unlock()
			return r.tunnels.cancelled == 1
		})
		go dial()
		told()
		if got := r.tunnels.asked(); got != 1 {
			t.Errorf("%d leases were asked for, by who had left", got)
		}
		old.Close()
	})
}
