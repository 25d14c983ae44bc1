//go:build unix

package gateway

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

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
		socket, err := carrier.Accept(w, r)
		if err != nil {
			return // it is answered
		}
		s := &carriage{Socket: socket}
		g.serving.Add(1)
		defer g.serving.Add(-1)
		g.insiders.add(s)
		defer g.insiders.remove(s)
		fd, near, err := carrier.Pair()
		if err != nil {
			s.Abort()
			g.log.Debug("a connection inside a WebSocket has no place", "from", r.RemoteAddr, "err", err)
			return
		}
		peer, _ := netip.ParseAddrPort(r.RemoteAddr)
		lane := g.nextLane()
		if !lane.loop.Post(func() { lane.admitInside(fd, unmap(peer), addrPortOf(local), s) }) {
			relay.Close(fd)
		}
		carrier.Pump(r.Context(), s, near)
	})
}

// carriage is a WebSocket with a connection inside.
type carriage struct {
	*carrier.Socket
	toAuth atomic.Bool
	passed atomic.Uint64 // reads and writes that have come to something
}

// Read implements carrier.Conn.
func (s *carriage) Read(b []byte) (int, error) {
	n, err := s.Socket.Read(b)
	s.passed.Add(1)
	return n, err
}

// Write implements carrier.Conn.
func (s *carriage) Write(b []byte) (int, error) {
	s.passed.Add(1)
	return s.Socket.Write(b)
}

// insiders are the connections that come inside a WebSocket by this process.
type insiders struct {
	mu  sync.Mutex
	all map[*carriage]uint64 // how much had passed when it was last looked
}

func (i *insiders) add(s *carriage) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.all == nil {
		i.all = map[*carriage]uint64{}
	}
	i.all[s] = 0
}

func (i *insiders) remove(s *carriage) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.all, s)
}

func (i *insiders) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.all)
}

// calls are those to auth; with quiet, by which nothing has passed since it was last
// called.
func (i *insiders) calls(quiet bool) (out []*carriage) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for s, before := range i.all {
		passed := s.passed.Load()
		if s.toAuth.Load() && (passed == before || !quiet) {
			out = append(out, s)
		}
		i.all[s] = passed
	}
	return out
}

// Carried is how many connections come inside a WebSocket by this process.
func (g *Gateway) Carried() int { return g.insiders.count() }

const (
	// quietFor is how long nothing may pass between a client and auth until it is
	// taken that no answer is on its way.
	quietFor = 3 * time.Second

	// callsFor is how long that is waited for. Hosts say again what was not answered.
	callsFor = time.Minute
)

// DismissInside ends, until ctx is done, connections to auth inside WebSockets: each
// when nothing passes, and after a minute all. It is for a process that has handed
// everything over: hosts keep such a connection for as long as they live, and make
// another when it ends. What leads elsewhere is somebody's session.
func (g *Gateway) DismissInside(ctx context.Context) { g.dismissInside(ctx, quietFor, callsFor) }

func (g *Gateway) dismissInside(ctx context.Context, quiet, most time.Duration) {
	begun := time.Now()
	tick := time.NewTicker(quiet)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, s := range g.insiders.calls(time.Since(begun) < most) {
			s.Abort()
		}
	}
}

func addrPortOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return unmap(t.AddrPort())
	}
	return netip.AddrPort{}
}

// admitInside is admit for a connection that has travelled inside another.
func (w *lane) admitInside(fd int, peer, local netip.AddrPort, around *carriage) {
	w.counts.add(outcomeAccepted)
	if w.few(fd) {
		w.counts.add(outcomeExhausted)
		relay.Close(fd)
		return
	}
	c := w.begin(fd, peer)
	c.local, c.said, c.slot.exempt, c.around = local, saidProxy, false, around
	c.look()
}
