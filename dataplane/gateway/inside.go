//go:build unix

package gateway

import (
	"net"
	"net/http"
	"net/netip"

	"github.com/sallyport/sallyport/dataplane/carrier"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// Inside takes WebSockets of clients and hosts that cannot reach the port itself,
// because something on the way ends TLS. What is inside is a connection as if it
// had been accepted: with its first bytes it says where it goes, within the same
// bounds, and its own TLS goes on to the agent or to auth.
//
//	client ══ WebSocket ══▶ pump (two goroutines) ══ pair ══▶ reading ─▶ … ─▶ relay
//
// For as long as it lasts the connection around it counts as one whose TLS has
// ended here. A proxy's header inside is refused: it would come from the client.
func (g *Gateway) Inside() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		switch {
		case r.Header.Get("Origin") != "": // a page of some browser
			http.Error(w, "this is for programs", http.StatusForbidden)
			return
		case local != nil && local.Network() == "unix": // each layer would be paid for by those around it
			http.Error(w, "this connection is inside a WebSocket already", http.StatusForbidden)
			return
		}
		s, err := carrier.Accept(w, r)
		if err != nil {
			return // it is answered
		}
		g.serving.Add(1)
		defer g.serving.Add(-1)
		g.inside.Add(1)
		defer g.inside.Add(-1)
		fd, near, err := carrier.Pair()
		if err != nil {
			s.Abort()
			g.log.Debug("a connection inside a WebSocket has no place", "from", r.RemoteAddr, "err", err)
			return
		}
		peer, _ := netip.ParseAddrPort(r.RemoteAddr)
		lane := g.nextLane()
		if !lane.loop.Post(func() { lane.admitInside(fd, unmap(peer), addrPortOf(local)) }) {
			relay.Close(fd)
		}
		carrier.Pump(r.Context(), s, near)
	})
}

// Carried is how many connections come inside a WebSocket by this process.
func (g *Gateway) Carried() int { return int(g.inside.Load()) }

func addrPortOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return unmap(t.AddrPort())
	}
	return netip.AddrPort{}
}

// admitInside is admit for a connection that has travelled inside another.
func (w *lane) admitInside(fd int, peer, local netip.AddrPort) {
	w.counts.add(outcomeAccepted)
	if w.few(fd) {
		w.counts.add(outcomeExhausted)
		relay.Close(fd)
		return
	}
	c := w.begin(fd, peer)
	c.local, c.said, c.slot.exempt = local, saidProxy, false
	c.look()
}
