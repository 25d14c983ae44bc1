//go:build unix

package gateway

import (
	"net/netip"

	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// Tunnels are the ways to agents. Park and Lease are called on l's thread.
type Tunnels interface {
	// Park takes over an agent's data connection, also when it fails.
	Park(l relay.Loop, fd int, hello []byte, from netip.AddrPort) error

	// Lease asks for a data connection to an agent that serves a resource. The
	// waiter is told once, on the same thread, from within the call or later,
	// and not after cancel.
	Lease(l relay.Loop, r tunnel.LeaseRequest, w Waiter) (cancel func())

	// Cancel passes a PostgreSQL CancelRequest to the agent it is meant for.
	Cancel(pid, key uint32) bool
}

// Waiter is told what came of a lease.
type Waiter interface {
	Leased(s Stream)
	LeaseFailed(reason string)
}

// Stream is a data connection that belongs to one client.
type Stream struct {
	FD    int    // the waiter's; watched by no loop
	Frame []byte // to be written first
	Lease Lease
}

// Lease is what a stream is to its tunnel.
type Lease interface {
	Ended() // to be called when the descriptor has been closed

	// Ref names the stream, for another process that goes on with it.
	Ref() tunnel.StreamRef
}

// Adopter is Tunnels that count streams which another process has leased, also
// before they know the tunnel. ended is to be called as Lease.Ended is.
type Adopter interface {
	AdoptStream(tunnel.StreamRef) (ended func())
}

// Through makes the ways of a hub's tunnels.
func Through(h *tunnel.Hub) Tunnels { return hub{h} }

type hub struct{ *tunnel.Hub }

// Lease implements Tunnels.
func (h hub) Lease(l relay.Loop, r tunnel.LeaseRequest, w Waiter) (cancel func()) {
	return h.Hub.Lease(l, r, hubWaiter{w})
}

type hubWaiter struct{ Waiter }

// Leased implements tunnel.Waiter.
func (w hubWaiter) Leased(l *tunnel.Lease) {
	w.Waiter.Leased(Stream{FD: l.FD, Frame: l.Frame, Lease: l})
}
