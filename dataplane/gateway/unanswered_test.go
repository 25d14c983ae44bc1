//go:build unix

package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestServerThatOnlyListens: a static route's server gets all that the client
// says, and its end, whether or not it ever answers.
func TestServerThatOnlyListens(t *testing.T) {
	for _, tc := range []struct {
		name string
		// behind the hello: with it in one write, and once the server has it
		with, later int
		end         bool
	}{
		{"more with the hello", 100, 0, true},
		{"more than a view with the hello", 40 << 10, 0, true},
		{"more later", 0, 1 << 20, true},
		{"both", 100 << 10, 1 << 20, true},
		{"no end", 10, 1 << 20, false},
		{"only the end", 0, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onLoops(t, func(t *testing.T, loops []relay.Loop) {
				hello := helloBytes(t, newAuthority(t).client("shop.example.com"))
				want := append(append([]byte(nil), hello...), bytes.Repeat([]byte("data"), (tc.with+tc.later)/4)...)
				first, all := make(chan struct{}), make(chan []byte, 1)
				b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
					got := make([]byte, len(want))
					n, _ := io.ReadFull(conn, got[:len(hello)])
					close(first)
					m, _ := io.ReadFull(conn, got[n:])
					all <- got[:n+m]
					if tc.end {
						_, _ = io.Copy(io.Discard, conn)
					}
				})
				r := newRig(t, loops, func(c *Config) { c.Static = []StaticRoute{to("shop.example.com", b.Addr().String())} })
				conn := r.say(want[:len(hello)+tc.with])
				<-first
				_, err := conn.Write(want[len(hello)+tc.with:])
				check(t, err)
				if tc.end {
					check(t, conn.CloseWrite())
				}
				if got := <-all; !bytes.Equal(got, want) {
					t.Fatalf("the server got %d bytes of %d, or others", len(got), len(want))
				}
				if rest := readAll(t, conn); len(rest) > 0 {
					t.Errorf("nobody said %q", rest)
				}
				r.reaches(outcomeRelayed, 1)
			})
		})
	}
}

// TestServerThatOnlyListensToOneReport: what a client says behind its hello, or its
// end, was held back until the stage had passed when the loop was told of it
// together with the hello, and the server said nothing first.
func TestServerThatOnlyListensToOneReport(t *testing.T) {
	for _, tc := range []struct {
		name         string
		before, with int // bytes of the hello that the gateway waits with, and behind it
		end          bool
	}{
		{"the end with the hello", 0, 0, true},
		{"the end with the rest of it", 100, 0, true},
		{"the end with more", 100, 100, true},
		{"more than a view", 0, 40 << 10, false},
		{"more than a view with the rest", 100, 40 << 10, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onLoops(t, func(t *testing.T, loops []relay.Loop) {
				hello := helloBytes(t, newAuthority(t).client("shop.example.com"))
				want := append(append([]byte(nil), hello...), bytes.Repeat([]byte("x"), tc.with)...)
				all := make(chan []byte, 1)
				b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
					got := make([]byte, len(want))
					n, _ := io.ReadFull(conn, got)
					if tc.end {
						_, _ = io.Copy(io.Discard, conn)
					}
					all <- got[:n]
				})
				r := newRig(t, loops, func(c *Config) {
					c.Bounds.Stage = 10 * patience // a stage that ends passes on everything
					c.Static = []StaticRoute{to("shop.example.com", b.Addr().String())}
				})
				conn := r.say(hello[:tc.before])
				r.waiting(1)
				func() {
					defer stop(loops)()
					_, err := conn.Write(want[tc.before:])
					check(t, err)
					if tc.end {
						check(t, conn.CloseWrite())
					}
				}()
				r.reaches(outcomeRelayed, 1)
				if got := <-all; !bytes.Equal(got, want) {
					t.Errorf("the server got %d bytes of %d, or others", len(got), len(want))
				}
			})
		})
	}
}

// TestResetBeforeAnswer: a client that breaks off before the server has said anything has
// not ended in order, and the server hears so.
func TestResetBeforeAnswer(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		hello := helloBytes(t, newAuthority(t).client("shop.example.com"))
		began, end := make(chan struct{}), make(chan error, 1)
		b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			_, _ = io.ReadFull(conn, make([]byte, len(hello)))
			close(began)
			_, err := conn.Read(make([]byte, 1))
			end <- err
		})
		r := newRig(t, loops, func(c *Config) {
			c.Bounds.Stage = 10 * patience
			c.Static = []StaticRoute{to("shop.example.com", b.Addr().String())}
		})
		conn := r.say(hello)
		<-began
		reset(t, conn)
		if err := <-end; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server read %v, want a reset", err)
		}
		r.reaches(outcomeReset, 1)
	})
}

// TestServerThatTakesItsTime: a static route's server has the flight, once, and
// may answer later than a stage lasts.
func TestServerThatTakesItsTime(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		hello := helloBytes(t, newAuthority(t).client("shop.example.com"))
		joined := make(chan struct{})
		b := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			got := make([]byte, len(hello))
			_, _ = io.ReadFull(conn, got)
			<-joined
			_, _ = conn.Write(got)
		})
		r := newRig(t, loops, func(c *Config) {
			c.Bounds.Stage = DefaultStage // the server takes more
			c.Static = []StaticRoute{{Match: alpn.Match{SNI: []string{"shop.example.com"}}, Upstreams: []string{b.Addr().String()}}}
		})
		conn := r.say(hello)
		r.reaches(outcomeRelayed, 1)
		close(joined)
		if got := readAll(t, conn); !bytes.Equal(got, hello) {
			t.Errorf("got %d bytes", len(got))
		}
	})
}
