package tunnel

import (
	"context"
	"sync"
	"time"
)

// Gate is what an agent's upgrade does to its tunnels: a gateway keeps the newest
// one of an agent, so the old process must not dial once the new one may. The
// zero value is open. Methods may be called concurrently.
//
//	open ──Hold──▶ held ──Leave──▶ left
//	  ▲────Resume────┘     Drain──▶
//
// Tunnels that are up stay so in all three, and their streams are served. Once
// the gate has been left a tunnel that ends is not dialed again; what is still
// up after lastLinks ends then, and at once for an agent that drains: nobody takes
// its place.
type Gate struct {
	mu     sync.Mutex
	state  gateState
	drains bool
	open   context.Context // done while the gate is not open
	close  context.CancelFunc
	opened chan struct{} // closed by Resume and Leave; nil: nobody waits
	left   chan struct{} // closed by Leave
}

type gateState int

const (
	gateOpen gateState = iota
	gateHeld
	gateLeft
)

// Hold stops dialing. Attempts that are under way end.
func (g *Gate) Hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.initLocked()
	if g.state == gateOpen {
		g.state = gateHeld
		g.close()
	}
}

// Resume dials again, unless the gate has been left.
func (g *Gate) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.initLocked()
	if g.state != gateHeld {
		return
	}
	g.state = gateOpen
	g.open, g.close = context.WithCancel(context.Background())
	g.wakeLocked()
}

// Leave ends dialing for good.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.initLocked()
	if g.state == gateLeft {
		return
	}
	g.state = gateLeft
	g.close()
	close(g.left)
	g.wakeLocked()
}

// Drain is Leave for an agent that nobody takes the place of: the gateways are told
// goodbye, and streams that run go on.
func (g *Gate) Drain() {
	g.mu.Lock()
	g.drains = true
	g.mu.Unlock()
	g.Leave()
}

// lastLinks is how long the tunnels may stay once the gate has been left.
func (g *Gate) lastLinks() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.drains {
		return 0
	}
	return lastLinks
}

func (g *Gate) initLocked() {
	if g.left == nil {
		g.open, g.close = context.WithCancel(context.Background())
		g.left, g.opened = make(chan struct{}), make(chan struct{})
	}
}

func (g *Gate) wakeLocked() {
	close(g.opened)
	g.opened = make(chan struct{})
}

// gone is closed once the gate has been left.
func (g *Gate) gone() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.initLocked()
	return g.left
}

// pass waits until the gate is open. It reports false when that will not be.
func (g *Gate) pass(ctx context.Context) bool {
	for {
		g.mu.Lock()
		g.initLocked()
		state, opened := g.state, g.opened
		g.mu.Unlock()
		switch {
		case ctx.Err() != nil || state == gateLeft:
			return false
		case state == gateOpen:
			return true
		}
		select {
		case <-ctx.Done():
		case <-opened:
		}
	}
}

// while returns a context that is done when ctx is, or the gate closes.
func (g *Gate) while(ctx context.Context) (context.Context, context.CancelFunc) {
	g.mu.Lock()
	g.initLocked()
	open := g.open
	g.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(open, cancel)
	return ctx, func() { stop(); cancel() }
}
