package login

import (
	"context"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
)

// gate lets a few in at once, some wait for a while, and turns away the rest:
// a flood of logins costs a bounded amount of memory and processor.
type gate struct {
	slots     chan struct{} // one token for each that is in
	queue     int           // how many may wait or be in
	perSource int           // how many of them may have the same source
	patience  time.Duration

	mu      sync.Mutex
	present int
	sources map[string]int
}

func newGate(parallel, queue, perSource int, patience time.Duration) *gate {
	return &gate{slots: make(chan struct{}, parallel), queue: parallel + queue, perSource: perSource, patience: patience,
		sources: make(map[string]int)}
}

// enter waits for a turn. Source "" is not counted by source. The caller calls
// leave when it is done.
func (g *gate) enter(ctx context.Context, source string) (leave func(), err error) {
	if !g.register(source) {
		return nil, busy()
	}
	ctx, cancel := context.WithTimeout(ctx, g.patience)
	defer cancel()
	select {
	case g.slots <- struct{}{}:
		return func() {
			<-g.slots
			g.unregister(source)
		}, nil
	case <-ctx.Done():
		g.unregister(source)
		return nil, busy()
	}
}

func (g *gate) register(source string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.present >= g.queue || source != "" && g.sources[source] >= g.perSource {
		return false
	}
	g.present++
	if source != "" {
		g.sources[source]++
	}
	return true
}

func (g *gate) unregister(source string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.present--
	if source == "" {
		return
	}
	if g.sources[source]--; g.sources[source] == 0 {
		delete(g.sources, source)
	}
}

func busy() error {
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many logins at once", Hint: "try again in a moment"}
}
