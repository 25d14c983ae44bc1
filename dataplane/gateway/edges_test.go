//go:build unix

package gateway

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// session is one connection through a gateway, seen from both ends.
type session struct {
	testing.TB
	client, far *net.TCPConn
}

// ways are the two ways through a gateway: to a static route's server, and to
// an agent by a leased connection. open sends a hello and has it arrive.
type ways struct {
	*rig
	backend net.Listener
	static  []byte // hellos
	tunnel  []byte
}

func newWays(t *testing.T, loops []relay.Loop) *ways {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { l.Close() })
	w := &ways{backend: l}
	w.rig = newRig(t, loops, func(c *Config) {
		c.Static = []StaticRoute{{Match: alpn.Match{SNI: []string{"shop.example.com"}}, Upstreams: []string{l.Addr().String()}}}
	})
	w.static = helloBytes(t, w.ca.client("shop.example.com", "h2"))
	w.tunnel = helloBytes(t, w.ca.client("orders.db.gw.test", alpn.PostgreSQL))
	return w
}

// each runs f on both ways, as many times as there are loops and more.
func (w *ways) each(t *testing.T, f func(s *session)) {
	const times = 6 // SO_REUSEPORT spreads them over the loops
	for name, way := range map[string]struct {
		hello []byte
		far   func() net.Conn
	}{
		"static": {w.static, func() net.Conn {
			conn, err := w.backend.Accept()
			check(t, err)
			return conn
		}},
		"tunnel": {w.tunnel, func() net.Conn { return w.tunnels.agent().Conn }},
	} {
		t.Run(name, func(t *testing.T) {
			for range times {
				f(w.open(t, way.hello, way.far))
			}
		})
	}
}

// open returns when the relay runs.
func (w *ways) open(t *testing.T, hello []byte, accept func() net.Conn) *session {
	t.Helper()
	s := &session{TB: t, client: w.say(hello)}
	s.far = accept().(*net.TCPConn)
	t.Cleanup(func() { s.far.Close() })
	check(t, s.far.SetDeadline(time.Now().Add(patience)))
	s.wants(s.far, hello)
	s.says(s.far, "answer")
	s.wants(s.client, []byte("answer"))
	return s
}

func (s *session) says(conn net.Conn, what string) {
	s.Helper()
	_, err := io.WriteString(conn, what)
	check(s, err)
}

func (s *session) wants(conn net.Conn, what []byte) {
	s.Helper()
	got := make([]byte, len(what))
	if n, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, what) {
		s.Fatalf("%d of %d bytes, the right ones: %v; %v", n, len(what), bytes.Equal(got, what), err)
	}
}

func (s *session) wantsEnd(conn net.Conn) {
	s.Helper()
	if rest := readAll(s, conn); len(rest) > 0 {
		s.Fatalf("%d bytes before the end", len(rest))
	}
}

func (s *session) wantsReset(conn net.Conn) {
	s.Helper()
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		s.Fatalf("read %d, %v; want a reset", n, err)
	}
}

func reset(t testing.TB, conn *net.TCPConn) {
	t.Helper()
	check(t, conn.SetLinger(0))
	check(t, conn.Close())
}

// hundred is the transfer of the edge cases: more than a buffer, less than what
// the kernels take.
func hundred() []byte {
	b := make([]byte, 100_000)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// TestEdges: what becomes of a connection's end, on both ways through the
// gateway, both loops, four of them.
func TestEdges(t *testing.T) {
	big := hundred()
	for name, edge := range map[string]func(s *session){
		"half-close by the client": func(s *session) {
			s.says(s.client, "question")
			check(s, s.client.CloseWrite())
			s.wants(s.far, []byte("question"))
			s.wantsEnd(s.far)
			s.says(s.far, string(big))
			check(s, s.far.Close())
			s.wants(s.client, big)
			s.wantsEnd(s.client)
		},
		"half-close by the far end": func(s *session) {
			check(s, s.far.CloseWrite())
			s.wantsEnd(s.client)
			s.says(s.client, string(big))
			check(s, s.client.Close())
			s.wants(s.far, big)
			s.wantsEnd(s.far)
		},
		"both at once": func(s *session) {
			check(s, s.client.CloseWrite())
			check(s, s.far.CloseWrite())
			s.wantsEnd(s.client)
			s.wantsEnd(s.far)
		},
		"reset by the client": func(s *session) {
			reset(s, s.client)
			s.wantsReset(s.far)
		},
		"reset by the far end": func(s *session) {
			reset(s, s.far)
			s.wantsReset(s.client)
		},
		"reset by the client after its half-close": func(s *session) {
			check(s, s.client.CloseWrite())
			s.wantsEnd(s.far)
			reset(s, s.client)
			eventually(s, "what is written is refused", func() bool {
				_, err := s.far.Write([]byte("x"))
				return err != nil
			})
		},
		"close by the far end with a question unread": func(s *session) {
			s.says(s.client, "nobody reads this")
			eventually(s, "the question is there", func() bool { return queued(s, s.far) > 0 })
			s.says(s.far, string(big))
			s.wants(s.client, big)
			check(s, s.far.Close()) // a reset (RFC 1122 section 4.2.2.13)
			s.wantsReset(s.client)
		},
	} {
		t.Run(name, func(t *testing.T) {
			onLoops(t, func(t *testing.T, loops []relay.Loop) {
				w := newWays(t, loops)
				w.each(t, edge)
				eventually(t, "no relay is left", func() bool { return w.Snapshot().Relays == 0 })
			})
		})
	}
}

// queued is what a peer has not read yet.
func queued(t testing.TB, conn *net.TCPConn) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { n = relay.Queued(int(fd)) }))
	return n
}

// TestEdgesStalled: a far end that has stopped reading takes a bounded amount,
// loses none of it, and delays nobody.
func TestEdgesStalled(t *testing.T) {
	const most = 48 << 20 // what four sockets of this system may hold, and a pipe
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops[:1]) // with its neighbour on one loop
		stuck := w.open(t, w.tunnel, func() net.Conn { return w.tunnels.agent().Conn })
		other := w.open(t, w.tunnel, func() net.Conn { return w.tunnels.agent().Conn })
		wrote := make(chan int, 1)
		go func() {
			total := 0
			for piece := hundred(); total < 2*most; {
				n, err := stuck.client.Write(piece)
				total += n
				if err != nil {
					break
				}
			}
			_ = stuck.client.CloseWrite()
			wrote <- total
		}()
		before := -1
		eventually(t, "standstill", func() bool {
			for range 300 {
				other.says(other.client, "ping")
				other.wants(other.far, []byte("ping"))
				other.says(other.far, "pong")
				other.wants(other.client, []byte("pong"))
			}
			now := queued(t, stuck.far)
			still := now > 0 && now == before
			before = now
			return still
		})
		check(t, stuck.client.SetWriteDeadline(time.Now()))
		total := <-wrote
		if total > most {
			t.Errorf("%d bytes were taken for a far end that does not read", total)
		}
		n, err := io.Copy(io.Discard, stuck.far)
		if err != nil || n != int64(total) {
			t.Errorf("%d of %d bytes arrived: %v", n, total, err)
		}
	})
}

// TestEdgesHelloAndEnd: a client that says its hello, however large, and ends
// its stream at once, gets its answer; one whose hello is too large its alert.
func TestEdgesHelloAndEnd(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops)
		for _, size := range []int{0, 16 << 10, 17 << 10, 60 << 10} {
			hello := w.tunnel
			if size > 0 {
				hello = rerecord(padded(w.tunnel[5:], size), 1<<14)
			}
			conn := w.say(hello)
			check(t, conn.CloseWrite())
			s := &session{TB: t, client: conn, far: w.tunnels.agent().Conn.(*net.TCPConn)}
			s.wants(s.far, hello)
			s.says(s.far, "answer")
			s.wantsEnd(s.far)
			check(t, s.far.Close())
			s.wants(conn, []byte("answer"))
			s.wantsEnd(conn)
		}
		conn := w.say(rerecord(padded(w.tunnel[5:], 65400), 1<<14)) // the records' heads are too many
		check(t, conn.CloseWrite())
		want := alpn.DecodeError.Record()
		if got := readAll(t, conn); !bytes.Equal(got, want[:]) {
			t.Errorf("the alert is %v, want %v", got, want)
		}
	})
}

// TestEdgesDead: a server that is not there is told to the client at once, by
// an alert, whether the client has ended or not.
func TestEdgesDead(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops)
		check(t, w.backend.Close())
		want := alpn.InternalError.Record()
		for _, ends := range []bool{false, true} {
			conn := w.say(w.static)
			if ends {
				check(t, conn.CloseWrite())
			}
			if got := readAll(t, conn); !bytes.Equal(got, want[:]) {
				t.Errorf("ended %v: the alert is %v, want %v", ends, got, want)
			}
		}
	})
}
