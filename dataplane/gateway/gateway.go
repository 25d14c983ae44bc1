//go:build unix

package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// Config is what a gateway serves, and with what.
type Config struct {
	Cluster string   // the cluster's public name; "" when only static routes are served
	Listen  []string // "host:port"; each loop has a socket of its own at each

	// Loops do the work. They are the caller's, who closes them after the
	// gateway.
	Loops []relay.Loop

	Tunnels Tunnels                         // ways to agents; nil for none
	Auth    Upstream                        // where auth and join connections go; the zero value for nowhere
	Ends    map[alpn.Class]End              // what ends TLS here: Web, Tunnel, Gateway, Store, Challenge, App
	SSH     func(context.Context, Stranger) // what begins with SSH's identification string; nil for nothing
	Static  []StaticRoute
	Silent  *SilentRoute // where clients go that say nothing; nil for nowhere

	// TrustedProxies may tell a client's address by a PROXY header. From
	// everybody else such a header is refused.
	TrustedProxies []netip.Prefix

	// Idle ends a relay in which no byte has moved for so long; 0 never does.
	Idle time.Duration

	Bounds Bounds
	Log    *slog.Logger // nil for none

	guest bool // it listens nowhere
}

// Bounds are what strangers may take. Zero fields take the default.
type Bounds struct {
	// Stage is how long a client may take for each stage: until its hello is
	// whole, until the far end's first byte, until a handshake here is done; 10 s.
	Stage time.Duration

	// Connect is how long an upstream may take when there is another one; 3 s.
	// An agent's data connection that has not even acknowledged the first flight
	// by then gives way to another one.
	Connect time.Duration

	WaitingSource  int // connections that wait, per source (/32, /64); 16
	WaitingGateway int // and in all; 4,096
	WaitingSSH     int // of them, those that speak SSH and have not logged in; 512
	SourceRate     int // new ones per source and second; 20
	LargeHellos    int // hellos of more than 16 KiB at once, per loop; 64

	// Connections whose TLS has ended here and whose client showed no
	// certificate, until they are closed.
	EndedSource  int // per source; 64
	EndedGateway int // and in all; 4,096, and at most a quarter of the descriptors
}

// DefaultStage is Bounds.Stage when it is 0.
const DefaultStage = 10 * time.Second

func (b Bounds) withDefaults() Bounds {
	def(&b.Stage, DefaultStage)
	def(&b.Connect, 3*time.Second)
	def(&b.WaitingSource, 16)
	def(&b.WaitingGateway, 4096)
	def(&b.WaitingSSH, 512)
	def(&b.SourceRate, 20)
	def(&b.LargeHellos, 64)
	def(&b.EndedSource, 64)
	def(&b.EndedGateway, 4096)
	if most := descriptorLimit() / descriptorShare; most > 0 {
		b.EndedGateway = min(b.EndedGateway, most)
	}
	return b
}

// descriptorShare: strangers whose TLS has ended here hold at most this part of
// the process's descriptors; agents, relays, the store and the audit log need the rest.
const descriptorShare = 4

// descriptorLimit is how many the process may have; 0 when that cannot be told.
func descriptorLimit() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur > 1<<30 {
		return 0
	}
	return int(lim.Cur)
}

func def[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// Proven makes a source known: somebody from there has proved who he is, to whom the
// caller believes. It may be called concurrently.
func (g *Gateway) Proven(from netip.Addr) { g.crowd.prove(from, time.Now()) }

// Handler serves a connection whose handshake is done. It owns conn and closes
// it. It runs on a goroutine of its own, and returns soon after ctx is done,
// which is when the gateway closes.
type Handler func(ctx context.Context, conn *tls.Conn)

// Stranger is a connection of which nothing has been read. Until Proven or Close is
// called, it holds one of the places of those that wait, without a deadline:
// whoever has it sets them. It runs on a goroutine of its own, and that ends
// soon after its context is done, which is when the gateway closes.
type Stranger interface {
	net.Conn

	// Proven says that the client has proved who it is.
	Proven()
}

// End is how TLS is ended for one class of connections. Each class has a
// tls.Config of its own: what it offers in NextProtos is what Handlers has, so
// that no handshake ends with a protocol of another class.
type End struct {
	TLS      *tls.Config
	Handlers map[string]Handler // by negotiated protocol; "" for a client that offers none
}

// StaticRoute leads a name to upstreams, which end TLS themselves. They are
// taken in turn; one that does not answer is passed over, and is then tried last
// for a while.
type StaticRoute struct {
	Match     alpn.Match
	Upstreams []string // "host:port" or "unix:/path"
	Proxy     bool     // tell the client's address by PROXY protocol version 2
	Direct    bool     // the servers want TLS at once, also of a PostgreSQL client that has asked for it

	silent time.Duration // of a SilentRoute: its After
}

// Gateway is a running gateway.
type Gateway struct {
	cfg     Config
	log     *slog.Logger
	auth    *upstream
	crowd   *crowd
	lanes   []*lane
	addrs   []netip.AddrPort
	ids     atomic.Uint64 // of relays
	classes classes
	outside counters // of what happens on no loop

	reloading sync.Mutex // held while settings are replaced
	current   atomic.Pointer[settings]
	renamed   chan struct{} // the settings have other names to resolve

	ctx      context.Context // done when the gateway closes
	stop     context.CancelFunc
	names    context.Context // done when the gateway has left, or closes: no name is resolved, nothing leased any more
	unnamed  context.CancelFunc
	tasks    sync.WaitGroup // handshakes, handlers, the resolver
	serving  atomic.Int64   // of them, handshakes and handlers
	insiders insiders       // of them, what comes inside a WebSocket
	closed   sync.Once
	served   chan struct{} // closed when the gateway has left and no handler runs
	giver    *Giver
	strays   strays
	trials   trials
}

// Start opens the sockets and serves until Close.
func Start(cfg Config) (*Gateway, error) {
	g, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	g.resolveFirst()
	if err := g.listen(); err != nil {
		g.Close()
		return nil, err
	}
	g.reportLimit()
	g.tasks.Go(g.resolve)
	return g, nil
}

// prepare checks the configuration. Nothing is open when it fails.
func prepare(cfg Config) (*Gateway, error) {
	if len(cfg.Loops) == 0 || len(cfg.Listen) == 0 && !cfg.guest {
		return nil, errors.New("gateway: no loop or no listen address")
	}
	relay.GrowTable()
	for class, end := range cfg.Ends {
		if err := end.check(); err != nil {
			return nil, fmt.Errorf("gateway: %v: %w", class, err)
		}
	}
	g := &Gateway{cfg: cfg, log: cfg.Log, classes: newClasses(), renamed: make(chan struct{}, 1), served: make(chan struct{})}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	s, _, err := g.settle(Settings{Static: cfg.Static, Silent: cfg.Silent, TrustedProxies: cfg.TrustedProxies, Idle: cfg.Idle, Bounds: cfg.Bounds}, nil)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if err := g.toAuth(); err != nil {
		return nil, fmt.Errorf("gateway: auth: %w", err)
	}
	g.current.Store(s)
	g.crowd = newCrowd(s.bounds, g.reserves(s))
	g.ctx, g.stop = context.WithCancel(context.Background())
	g.names, g.unnamed = context.WithCancel(g.ctx)
	g.giver = &Giver{gateway: g}
	return g, nil
}

// reserves says whether anybody can be known here, so that places are kept for him:
// who can prove who he is, or a proxy that speaks for others.
func (g *Gateway) reserves(s *settings) bool {
	return g.cfg.Tunnels != nil || len(g.cfg.Ends) > 0 || g.cfg.SSH != nil || len(s.trusted) > 0
}

func (g *Gateway) toAuth() error {
	if g.cfg.Auth.Address == "" {
		return nil
	}
	s, err := newServer(g.cfg.Auth.Address)
	if err == nil {
		g.auth = &upstream{servers: []*server{s}, proxy: g.cfg.Auth.Proxy}
	}
	return err
}

func (e End) check() error {
	if e.TLS == nil {
		return errors.New("no TLS configuration")
	}
	for _, p := range e.TLS.NextProtos {
		if e.Handlers[p] == nil {
			return fmt.Errorf("protocol %q is offered and has no handler", p)
		}
	}
	for p := range e.Handlers {
		if p != "" && !slices.Contains(e.TLS.NextProtos, p) {
			return fmt.Errorf("protocol %q has a handler and is not offered", p)
		}
	}
	return nil
}

// Addrs are the addresses that are listened on, in the order of Config.Listen.
func (g *Gateway) Addrs() []netip.AddrPort { return slices.Clone(g.addrs) }

// Drain takes no new connection from now on, and returns when the last relay
// has ended or ctx is done. What was queued at the sockets is still accepted:
// a listening socket that closes resets its queue.
func (g *Gateway) Drain(ctx context.Context) error {
	g.each(func(w *lane) { w.unlisten() })
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	for {
		if g.open() == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

const drainTick = 50 * time.Millisecond

// open is the number of connections that are still in the loops' hands.
func (g *Gateway) open() (n int) {
	var mu sync.Mutex
	g.each(func(w *lane) {
		mu.Lock()
		defer mu.Unlock()
		n += len(w.conns) + w.links.len()
	})
	return n
}

// Close ends everything: sockets, relays (by a reset), handshakes, handlers. It
// returns when nothing is left.
func (g *Gateway) Close() {
	g.closed.Do(func() {
		g.giver.letGo()
		g.stop()
		g.each(func(w *lane) { w.close() })
	})
	g.tasks.Wait()
}

// each runs f once for every lane, on the thread of its loop, and waits. A
// loop that is closed already has no thread: then f runs here.
func (g *Gateway) each(f func(*lane)) {
	var wg sync.WaitGroup
	for _, w := range g.lanes {
		wg.Add(1)
		step := func() { defer wg.Done(); f(w) }
		if !w.loop.Post(step) {
			step()
		}
	}
	wg.Wait()
}
