package relay

import (
	"math/rand/v2"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// urge sends one byte of urgent data.
func urge(t *testing.T, c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	var inner error
	if err := raw.Write(func(fd uintptr) bool {
		inner = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil)
		return inner != unix.EAGAIN
	}); err != nil || inner != nil {
		t.Error(err, inner)
	}
}

// Urgent data is a mark in the stream, at which each read ends. What lies behind it
// goes on, also when nothing comes after that, and before the end. The marked byte
// itself is no part of the stream.
func TestRelayUrgentData(t *testing.T) {
	for _, size := range []int{1 << 10, 4 << 20} { // copied, and spliced
		eachKind(t, 1, func(t *testing.T, loops []Loop) {
			sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) {
				r := startRelay(t, loops[0], 0)
				all := make([]byte, size)
				rand.NewChaCha8([32]byte{7}).Read(all)
				for range 4 {
					go func() {
						_, _ = near(r).Write(all[:size/2])
						urge(t, near(r))
						_, _ = near(r).Write(all[size/2:])
					}()
					want(t, far(r), string(all))
				}
				go func() {
					urge(t, near(r))
					_, _ = near(r).Write(all)
					_ = near(r).CloseWrite()
				}()
				want(t, far(r), string(all))
				wantEOF(t, far(r))
			})
		})
	}
}

// A relay finds a mark and the end behind it before an event has told of either.
func TestRelayUrgentDataFromTheStart(t *testing.T) {
	all := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{8}).Read(all)
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		a, b := tcpBuffers(t, 4*len(all)), tcp(t)
		say(t, a.peer, string(all[:len(all)/2]))
		urge(t, a.peer)
		say(t, a.peer, string(all[len(all)/2:]))
		if err := a.peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		until(t, "all has come", func() bool {
			fds := []unix.PollFd{{Fd: int32(a.fd), Events: unix.POLLRDHUP}}
			n, _ := unix.Poll(fds, 0)
			return n == 1
		})
		r := startLinks(t, loops[0], a, b, State{})
		want(t, r.right, string(all))
		wantEOF(t, r.right)
	})
}
