//go:build unix

package relay

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRelayHalfClose(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) {
			r := startRelay(t, loops[0], 0)
			say(t, near(r), "question")
			near(r).CloseWrite()
			want(t, far(r), "question")
			wantEOF(t, far(r))

			// The other direction goes on, and a long way.
			const size = 3 << 20
			back := carry(far(r), near(r), 5, size)
			wait(t, back, "stream").check(t, size)
			r.wantEnd(t, EndedClosed)
		})
	})
}

// A close in the middle of nothing: both ends at once.
func TestRelayCloseAtOnce(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startRelay(t, loops[0], 0)
		say(t, r.left, "a")
		say(t, r.right, "b")
		r.left.CloseWrite()
		r.right.CloseWrite()
		want(t, r.right, "a")
		want(t, r.left, "b")
		wantEOF(t, r.left)
		wantEOF(t, r.right)
		r.wantEnd(t, EndedClosed)
	})
}

func TestRelayReset(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) {
			for name, before := range map[string]func(t *testing.T, r *run){
				"idle": func(t *testing.T, r *run) {},
				"after bytes": func(t *testing.T, r *run) {
					say(t, near(r), "last words")
				},
				"after its end": func(t *testing.T, r *run) {
					near(r).CloseWrite()
					wantEOF(t, far(r))
				},
				"after the other's end": func(t *testing.T, r *run) {
					far(r).CloseWrite()
					wantEOF(t, near(r))
				},
				"before it was read": func(t *testing.T, r *run) {
					say(t, far(r), "nobody reads this")
					until(t, "the bytes' way", func() bool { return len(peekAll(near(r))) > 0 })
				},
			} {
				t.Run(name, func(t *testing.T) {
					r := startRelay(t, loops[0], 0)
					say(t, near(r), "hello")
					want(t, far(r), "hello")
					before(t, r)
					resetPeer(t, near(r))
					if name == "after bytes" {
						want(t, far(r), "last words")
					}
					if name == "after its end" {
						r.wantEnd(t, EndedReset)
						return // what the far side reads was ended before
					}
					wantReset(t, far(r))
					r.wantEnd(t, EndedReset)
				})
			}
		})
	})
}

// peekAll shows what is queued at a peer without taking it.
func peekAll(c *net.TCPConn) []byte {
	b := make([]byte, 4096)
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = peek(int(fd), b) })
	return b[:n]
}

// outstanding is what a peer's kernel still has to deliver.
func outstanding(c *net.TCPConn) (n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { n = unsent(int(fd)) })
	return n
}

// A server that answers and closes with input unread resets the connection.
// What it had sent is delivered first, also to a client that was not reading.
func TestF15_LastBytesBeforeReset(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) {
			for _, size := range []int{1, 8 << 10, 100 << 10, 1 << 20} {
				narrow, wide := tcpBuffers(t, 16<<10), tcpBuffers(t, 4<<20)
				a, b := wide, narrow
				if probe := (&run{left: wide.peer, right: narrow.peer}); near(probe) != wide.peer {
					a, b = narrow, wide
				}
				r := startLinks(t, loops[0], a, b, State{})
				say(t, far(r), "a question that nobody reads")
				until(t, "the question's way", func() bool { return len(peekAll(near(r))) > 0 })

				answer := make([]byte, size)
				rand.NewChaCha8([32]byte{3}).Read(answer)
				if _, err := near(r).Write(answer); err != nil {
					t.Fatal(err)
				}
				// The relay's kernel has it all; the far peer, which has not
				// read, has not.
				until(t, "the answer's way", func() bool { return outstanding(near(r)) == 0 })
				near(r).Close()

				want(t, far(r), string(answer))
				wantReset(t, far(r))
				r.wantEnd(t, EndedReset)
			}
		})
	})
}

// A reset that is known before the bytes in front of it have moved, more of them than
// a direction may move at a time, to a peer that takes all at once: none is lost.
func TestF15_MuchBeforeReset(t *testing.T) {
	const size = 4 * pumpBudget
	answer := make([]byte, size)
	rand.NewChaCha8([32]byte{5}).Read(answer)
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) {
			a, b := roomy(t, size)
			r := startLinks(t, loops[0], a, b, State{})
			say(t, far(r), "a question that nobody reads")
			until(t, "the question's way", func() bool { return len(peekAll(near(r))) > 0 })

			asleep := make(chan struct{}) // the loop, which looks at nothing meanwhile
			wake := sync.OnceFunc(func() { close(asleep) })
			defer wake()
			loops[0].Post(func() { <-asleep })
			if _, err := near(r).Write(answer); err != nil {
				t.Fatal(err)
			}
			until(t, "the answer's way", func() bool { return outstanding(near(r)) == 0 })
			near(r).Close()
			wake()

			want(t, far(r), string(answer))
			wantReset(t, far(r))
			r.wantEnd(t, EndedReset)
		})
	})
}

// One that has much to move lets others have their turn: the loop does something
// else in between, also where both peers would give and take all at once.
func TestRelayTurns(t *testing.T) {
	const size = 4 * pumpBudget
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		a, b := roomy(t, size)
		r := startLinks(t, loops[0], a, b, State{})
		sleeps, asleep := make(chan struct{}), make(chan struct{}) // the loop, which looks at nothing meanwhile
		wake := sync.OnceFunc(func() { close(asleep) })
		defer wake()
		loops[0].Post(func() { close(sleeps); <-asleep })
		wait(t, sleeps, "sleep")
		if _, err := r.left.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		until(t, "the bytes' way", func() bool { return outstanding(r.left) == 0 })

		seen := make(chan uint64, 1) // what had moved when another had its turn
		var look func()
		look = func() {
			switch _, moved := r.relay.Written(); moved {
			case 0:
				loops[0].Post(look)
			default:
				seen <- moved
			}
		}
		loops[0].Post(look)
		wake()
		if moved := wait(t, seen, "turn"); moved >= size {
			t.Errorf("%d bytes moved in one turn", moved)
		}
		want(t, r.right, string(make([]byte, size)))
	})
}

// roomy are two connections whose queues hold more than size bytes, where the system
// lets sockets have such.
func roomy(t *testing.T, size int) (a, b link) {
	t.Helper()
	a, b = tcpBuffers(t, 4*size), tcpBuffers(t, 4*size)
	if n := receiveBuffer(a.fd); n < 2*size {
		Close(a.fd)
		Close(b.fd)
		t.Skipf("a socket's queue may have %d bytes (net.core.rmem_max), %d are needed", n, 2*size)
	}
	return a, b
}

func receiveBuffer(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0
	}
	return n
}

// The other case: an orderly close right after the last byte, and a reader
// that is slow.
func TestF15_LastBytesBeforeClose(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) {
			const size = 2 << 20
			r := startRelay(t, loops[0], 0)
			say(t, far(r), "question")
			far(r).CloseWrite()
			want(t, near(r), "question")
			wantEOF(t, near(r))
			answer := make([]byte, size)
			rand.NewChaCha8([32]byte{4}).Read(answer)
			wrote := make(chan error, 1)
			go func() {
				_, err := near(r).Write(answer)
				near(r).Close()
				wrote <- err
			}()
			want(t, far(r), string(answer))
			wantEOF(t, far(r))
			if err := wait(t, wrote, "write"); err != nil {
				t.Fatal(err)
			}
			r.wantEnd(t, EndedClosed)
		})
	})
}

// A reset does not wait for ever behind bytes that nobody takes.
func TestRelayResetPastStalled(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startLinks(t, loops[0], tcpBuffers(t, 4096), tcpBuffers(t, 4096), State{})
		fill(t, r.left)
		resetPeer(t, r.left)
		r.wantEnd(t, EndedReset)
	})
}

// fill writes until nothing more is taken, and returns how much was.
func fill(t *testing.T, c *net.TCPConn) (total int) {
	t.Helper()
	b := make([]byte, 64<<10)
	for quiet := 0; quiet < 3; {
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := c.Write(b)
		total += n
		if n > 0 {
			quiet = 0
		}
		if err != nil {
			quiet++
		}
		if total > 64<<20 {
			t.Fatal("there is no end to what is taken")
		}
	}
	c.SetWriteDeadline(time.Now().Add(3 * patience))
	return total
}
