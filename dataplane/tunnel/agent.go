package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"
)

// AgentConfig is what an agent's half needs from elsewhere. Functions may be
// called concurrently.
type AgentConfig struct {
	AgentID string // the id in the agent's certificate: spiffe://<cluster>/agent/<id>
	Cluster string // gateways of another cluster are refused; "" for any
	Version string // of this program

	// Gateways are the addresses to dial always, host:port. What welcomes name
	// is dialed besides.
	Gateways []string

	// TLS returns the configuration for a connection to a gateway's address: the
	// newest client certificate, and the check of the server's chain. RunAgent
	// adds the protocol, and TLS 1.3 as the lowest version.
	TLS func(gateway string) (*tls.Config, error)

	// Own says whether a chain leads to the cluster's own CAs: then nothing on the way
	// ends TLS. nil: that is not known.
	Own func(chain []*x509.Certificate) bool

	// Refused says why a gateway with a good certificate is not believed, or nil.
	// It is asked for each control connection, and then each second; nil for never.
	Refused func(gatewayID string) error

	// Assignments delivers the encoded assignment, and again whenever it
	// changes. Nothing is dialed before the first. It may be closed.
	Assignments <-chan []byte

	// Outdated is told that a gateway takes no tunnel with the newest assignment:
	// it knows a newer one, or this one is no good. It does not block; nil for nobody.
	Outdated func()

	// Serve serves one stream. The connection is closed when it returns. ctx
	// is done when the agent stops.
	Serve func(ctx context.Context, s *Stream)

	// Cancel is given PostgreSQL cancel requests; nil for none. ctx is done when the agent stops.
	Cancel func(ctx context.Context, processID uint32, secretKey []byte)

	// Gate stops the dialing of gateways in an upgrade; nil for always open.
	Gate *Gate

	// Dial makes TCP connections; nil for net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Carriers are the ways to try for data connections, in this order, and
	// CarrierWebSocket also for the control connection; nil for all.
	Carriers []Carrier

	// Listed returns the addresses of the cluster's gateways, by somebody else than a
	// gateway, and what is closed when they may have changed. nil: a tunnel's welcome
	// alone names gateways, those that there are when it comes up.
	Listed func() (addresses []string, changed <-chan struct{})

	// Proxy returns the HTTP proxy by which an address is reached, by CONNECT; a
	// nil URL, or a nil function, for none.
	Proxy func(address string) (*url.URL, error)

	MaxPool    int // parked connections per gateway, whatever it asks for; 1,024
	MaxStreams int // streams at once; 16,384

	Log *slog.Logger // nil for none

	// answerWait is how long the answer to a data hello may take; nil for
	// answerLimit. Tests know which carriers are answered, if late.
	answerWait func(Carrier) time.Duration

	fasterEvery time.Duration                        // fasterEvery, but in tests
	renewal     func(now, until time.Time) time.Time // renewal, but in tests
}

// Stream is one client's stream at the agent. The gateway has read the
// client's ClientHello and sends it next: nothing of it has been read here.
type Stream struct {
	// Conn is the data connection itself: a *net.TCPConn when the dialer made
	// one, something slower when only that gets through. No deadline is set.
	// RunAgent closes it.
	Conn net.Conn

	ConnectionID ID
	Kind, Name   string         // what the gateway was asked for; the server name inside the TLS must say the same
	Client       netip.AddrPort // where the client comes from, as the gateway sees it; may be the zero value
	GatewayID    string         // the gateway that opened it, from its certificate

	link   *link
	report sync.Once
}

// Up tells the gateway that the client has proved who it is: the stream is no
// longer half-open. It does not block. The first of Up and Refuse counts.
func (s *Stream) Up() { s.report.Do(func() { s.link.streamUp(s.ConnectionID) }) }

// Refuse tells the gateway that the client has not, with a short word for its
// counters.
func (s *Stream) Refuse(reason string) {
	s.report.Do(func() { s.link.streamRefused(s.ConnectionID, reason) })
}

// RunAgent keeps a tunnel to every gateway until ctx is done, or the gate has
// been left, and then waits for all streams to return. Its error is that of ctx,
// or says what is missing in the configuration.
func RunAgent(ctx context.Context, cfg AgentConfig) error {
	if cfg.AgentID == "" || cfg.TLS == nil || cfg.Serve == nil || cfg.Assignments == nil || len(cfg.Gateways) == 0 {
		return errors.New("agent: id, gateways, TLS, assignments and serve are needed")
	}
	a := newAgent(ctx, cfg)
	defer a.endLinks()
	defer a.tasks.Wait()
	if !a.firstAssignment() {
		return ctx.Err()
	}
	a.dialAll(cfg.Gateways, nil)
	a.watchAssignments()
	defer time.AfterFunc(a.Gate.lastLinks(), a.endLinks).Stop()
	a.tasks.Wait()
	return ctx.Err()
}

// lastLinks is how long the tunnels of an agent that has left may wait for a
// newer process to take their place. It is longer than usedUpFor: a gateway that
// changes its process too uses up what is parked.
const lastLinks = usedUpFor + 2*time.Second

// agent is the state that all links share.
type agent struct {
	AgentConfig
	ctx      context.Context
	linkCtx  context.Context // of the control connections
	endLinks context.CancelFunc
	tasks    sync.WaitGroup // links, data connections, cancels
	served   *served
	streams  chan struct{} // one slot per stream
	cancels  chan struct{} // one slot per cancel request under way

	mu         sync.Mutex
	assignment []byte
	changed    chan struct{}    // closed and replaced when assignment changes
	links      map[string]bool  // addresses that somebody dials
	named      []string         // addresses of the newest welcome
	listed     []string         // those that Listed returned last
	gateways   map[string]*link // by gateway id: at most one tunnel to each
	known      map[string]way   // by address: what got through last
}

// DefaultMaxPool is AgentConfig.MaxPool when it is 0.
const DefaultMaxPool = 1024

// maxCancels bounds the cancel requests that are carried out at once.
const maxCancels = 32

// maxSecretKey bounds the key of one: 256 bytes since PostgreSQL's protocol 3.2.
const maxSecretKey = 256

// maxGateways bounds what a welcome may make an agent dial.
const maxGateways = 64

func newAgent(ctx context.Context, cfg AgentConfig) *agent {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{KeepAliveConfig: keepAliveConfig()}).DialContext
	}
	if cfg.Carriers == nil {
		cfg.Carriers = []Carrier{CarrierTCP, CarrierTLS, CarrierWebSocket}
	}
	if cfg.Cancel == nil {
		cfg.Cancel = func(context.Context, uint32, []byte) {}
	}
	if cfg.Outdated == nil {
		cfg.Outdated = func() {}
	}
	if cfg.Gate == nil {
		cfg.Gate = new(Gate)
	}
	if cfg.answerWait == nil {
		cfg.answerWait = func(Carrier) time.Duration { return answerLimit }
	}
	if cfg.renewal == nil {
		cfg.renewal = renewal
	}
	def(&cfg.fasterEvery, fasterEvery)
	def(&cfg.MaxPool, DefaultMaxPool)
	def(&cfg.MaxStreams, 16384)
	linkCtx, endLinks := context.WithCancel(ctx)
	return &agent{
		AgentConfig: cfg, ctx: ctx, linkCtx: linkCtx, endLinks: endLinks, served: newServed(),
		streams: make(chan struct{}, cfg.MaxStreams), cancels: make(chan struct{}, maxCancels),
		changed: make(chan struct{}), links: map[string]bool{}, gateways: map[string]*link{}, known: map[string]way{},
	}
}

func (a *agent) firstAssignment() bool {
	select {
	case <-a.ctx.Done():
		return false
	case <-a.Gate.gone():
		return false
	case b, ok := <-a.Assignments:
		a.assignment = b
		return ok
	}
}

// listAfter is when an agent that starts dials what is listed. Until then the ways to a
// gateway that it was told have come first, where several lead there.
const listAfter = 2 * time.Second

// watchAssignments hands each new assignment to all links, and dials gateways that are
// new, until the end or the gate is left.
func (a *agent) watchAssignments() {
	in, changed := a.Assignments, (<-chan struct{})(nil)
	first := time.NewTimer(listAfter)
	defer first.Stop()
	for {
		select {
		case <-first.C:
			changed = a.list()
		case <-changed:
			changed = a.list()
		case <-a.ctx.Done():
			return
		case <-a.Gate.gone():
			return
		case b, ok := <-in:
			if !ok {
				in = nil
				continue
			}
			a.setAssignment(b)
		}
	}
}

// list dials the gateways that are listed, and returns what is closed when those may
// have changed; nil for never.
func (a *agent) list() (changed <-chan struct{}) {
	if a.Listed == nil {
		return nil
	}
	listed, changed := a.Listed()
	a.mu.Lock()
	a.listed = listed[:min(len(listed), maxGateways)]
	a.mu.Unlock()
	a.dialAll(nil, nil)
	return changed
}

func (a *agent) setAssignment(b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.assignment = b
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) currentAssignment() (b []byte, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.assignment, a.changed
}

// dialAll starts a link to each address that has none. named are the addresses
// of a welcome: they replace those of the one before.
func (a *agent) dialAll(always, named []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if named != nil {
		a.named = named[:min(len(named), maxGateways)]
	}
	for _, addr := range slices.Concat(always, a.named, a.listed) {
		if a.links[addr] || a.ctx.Err() != nil {
			continue
		}
		a.links[addr] = true
		a.tasks.Go(func() { a.keepLink(addr) })
	}
}

// wanted says whether an address is still to be dialed, and forgets it if not.
func (a *agent) wanted(addr string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(a.Gateways, addr) || slices.Contains(a.named, addr) || slices.Contains(a.listed, addr) {
		return true
	}
	delete(a.links, addr)
	delete(a.known, addr)
	return false
}

// enter makes a link the one to its gateway. It fails when there is another:
// two addresses lead to the same gateway. One whose gateway has a successor makes
// room.
func (a *agent) enter(l *link) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.gateways[l.gateway]; old != nil {
		if !old.isLeaving() {
			return false
		}
		l.elder = old
	}
	a.gateways[l.gateway] = l
	return true
}

// leave takes a link's place away. One that has not come up gives it back.
func (a *agent) leave(l *link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gateways[l.gateway] != l {
		return
	}
	if l.elder != nil {
		a.gateways[l.gateway] = l.elder
		return
	}
	delete(a.gateways, l.gateway)
}

// served remembers which connection ids were served, so that a second attempt
// of a gateway does not serve a client twice.
type served struct {
	mu        sync.Mutex
	turned    time.Time
	now, past map[ID]struct{}
}

// Second attempts come within seconds. An id is remembered for one to two
// servedFor, and less only when there are more than maxServed in that time.
const (
	servedFor = time.Minute
	maxServed = 1 << 16
)

func newServed() *served { return &served{now: map[ID]struct{}{}, turned: time.Now()} }

// first reports whether id is new, and remembers it.
func (s *served) first(id ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.turned) >= servedFor || len(s.now) >= maxServed {
		s.past, s.now, s.turned = s.now, map[ID]struct{}{}, now
	}
	_, a := s.now[id]
	_, b := s.past[id]
	s.now[id] = struct{}{}
	return !a && !b
}
