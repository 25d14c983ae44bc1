package gateway

import (
	"context"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestDrainEndsSharedSockets: what another process still had of the listening sockets
// kept the port open, and clients in a queue that nobody looked at.
func TestDrainEndsSharedSockets(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		r.each(func(w *lane) {
			for _, l := range w.listeners {
				fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					continue
				}
				t.Cleanup(func() { relay.Close(fd) })
			}
		})
		over, cancel := context.WithCancel(t.Context())
		cancel()
		_ = r.Drain(over)
		for range 4 * len(loops) { // the kernel chooses a socket by the client's port
			if conn, err := net.DialTimeout("tcp", r.addr, patience); err == nil {
				conn.Close()
				t.Fatal("a client is connected, and nobody there accepts it")
			}
		}
	})
}
