package tunnel

import "sync"

// Between its certificate and its welcome an agent's connection is nobody's
// tunnel yet. What it may hold by then is counted here: any host that has joined
// can show a certificate.

const (
	// greetEach is how many connections of one agent may be greeted at once: those
	// that it dials for data inside TLS, for the old and the new process of this
	// gateway, and control connections beside them.
	greetEach = 2*parallelDials + 16

	// helloEach and helloAll bound what the hellos on their way say that they will
	// hold, in bytes: of one agent and of all. One may be as large as MaxControl.
	helloEach = 4 * MaxControl
	helloAll  = 64 * MaxControl
)

// greetings are the connections that are greeted now. The zero value is ready.
type greetings struct {
	mu    sync.Mutex
	by    map[string]greeted // agents that have some
	conns int                // of all
	bytes int64
}

type greeted struct {
	conns int
	bytes int64
}

// greeting is one connection's place among them, until leave is called. It is
// its goroutine's.
type greeting struct {
	all   *greetings
	agent string
	bytes int64
	left  bool
}

// enter takes a place for a connection, of at most so many; nil when there is none.
func (g *greetings) enter(agent string, most int) *greeting {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.by[agent]
	if g.conns >= most || a.conns >= greetEach {
		return nil
	}
	if g.by == nil {
		g.by = map[string]greeted{}
	}
	a.conns++
	g.conns++
	g.by[agent] = a
	return &greeting{all: g, agent: agent}
}

// claim takes room for a hello, once, before any of it is read. It is false when there is none.
func (p *greeting) claim(bytes int64) bool {
	g := p.all
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.by[p.agent]
	if g.bytes+bytes > helloAll || a.bytes+bytes > helloEach {
		return false
	}
	p.bytes = bytes
	a.bytes += bytes
	g.bytes += bytes
	g.by[p.agent] = a
	return true
}

// leave gives the place and the room back. It is idempotent.
func (p *greeting) leave() {
	if p.left {
		return
	}
	p.left = true
	g := p.all
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.by[p.agent]
	a.conns--
	a.bytes -= p.bytes
	g.conns--
	g.bytes -= p.bytes
	if a.conns == 0 {
		delete(g.by, p.agent)
		return
	}
	g.by[p.agent] = a
}
