package api

import (
	"context"
	"net/http"
	"sync"
)

// AgainHeader is on an answer that says: this request was not looked at, and
// another process serves by now; send it again on a new connection.
// controlplane/client does so.
const AgainHeader = "Sallyport-Again"

// Gate is the way to a handler that is away for a moment, while what stands
// behind it changes hands. Requests wait meanwhile; none is lost or done twice.
// The zero value is shut.
type Gate struct {
	mu      sync.Mutex
	handler http.Handler  // nil: shut
	left    bool          // it will not open again
	changed chan struct{} // closed at the next Open or Leave; nil while nobody waits
	busy    int           // requests that are in
	empty   chan struct{} // closed when busy comes to 0; nil while nobody waits
}

// Open lets requests in, those first that wait.
func (g *Gate) Open(h http.Handler) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handler = h
	g.wakeLocked()
}

// Shut keeps requests waiting, and returns when those that are in have ended.
// With an error, which is ctx's, some have not.
func (g *Gate) Shut(ctx context.Context) error {
	g.mu.Lock()
	g.handler = nil
	empty := g.emptyLocked()
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Leave sends everybody away who waits or comes: another process serves.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handler, g.left = nil, true
	g.wakeLocked()
}

func (g *Gate) wakeLocked() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// emptyLocked is closed when nobody is in.
func (g *Gate) emptyLocked() <-chan struct{} {
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.emptiedLocked()
	return empty
}

func (g *Gate) emptiedLocked() {
	if g.busy == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// ServeHTTP waits until the gate is open.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, err := g.enter(r.Context())
	if err != nil {
		return // its client is gone
	}
	if h == nil {
		w.Header().Set(AgainHeader, "1")
		w.Header().Set("Connection", "close")
		http.Error(w, "another process serves by now; send this again on a new connection", http.StatusServiceUnavailable)
		return
	}
	defer g.leave()
	h.ServeHTTP(w, r)
}

// enter returns nil after Leave.
func (g *Gate) enter(ctx context.Context) (http.Handler, error) {
	for {
		g.mu.Lock()
		h, left := g.handler, g.left
		if h != nil {
			g.busy++
		} else if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		g.mu.Unlock()
		if h != nil || left {
			return h, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy--
	g.emptiedLocked()
}
