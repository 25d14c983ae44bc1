package tunnel

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/relay"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// HubConfig is what a gateway's half needs from elsewhere. Functions may be
// called concurrently.
type HubConfig struct {
	GatewayID   string // the id in the gateway's certificate: spiffe://<cluster>/gateway/<id>
	Cluster     string // agents of another cluster are refused; "" for any
	DataAddress string // host:port for data connections; "": where control went

	// Gateways are all gateways of the cluster, host:port. nil for none to tell.
	Gateways func() []string

	// Verify checks an assignment's signature, cluster, agent and age.
	Verify func(assignment []byte, agentID string) (Assignment, error)

	// Presence is told when an agent comes, changes and goes, in order per
	// agent. It must not block for long, nor serve control connections.
	// nil for nobody to tell.
	Presence func(Presence)

	// Proven is told that somebody from a source (an address of its /32 or /64) has
	// proved himself to an agent. It must not block. nil for nobody to tell.
	Proven func(from netip.Addr)

	// Loops watch the data connections that come inside TLS or a WebSocket, in
	// turn. Without any, those are refused.
	Loops []relay.Loop

	Bounds Bounds
	Log    *slog.Logger     // nil for none
	Now    func() time.Time // nil for time.Now
}

// Assignment is what auth lets one agent serve.
type Assignment struct {
	Revision    uint64
	NotAfter    time.Time // the zero value for no end
	Resources   []sallyport.Resource
	PgCancelTag uint16 // 0 for none
}

// Presence is one change of who is here. An agent that is Up again has
// changed: the assignment is the new one.
type Presence struct {
	AgentID    string
	Up         bool
	Assignment []byte // as the agent sent it; verified
	Version    string
}

// Why Park refused a data connection.
var (
	ErrUnknownTunnel = errors.New("unknown tunnel")
	ErrReplayed      = errors.New("counter was used before")
	ErrPoolFull      = errors.New("more connections than asked for")
	ErrUnanswered    = errors.New("the connection takes no answer")
)

// Hub is the gateway's half: the tunnels of all agents, their parked
// connections, and the clients that wait for one. All methods may be called
// concurrently; Park and Lease on the thread of the loop that they name.
//
// Locks, in the order in which they may be taken: gate, presence, queue.mu, then
// one pool.mu. Hub.mu, strangers.mu and greetings.mu are taken with no queue or pool held,
// adoptions.mu with none but presence and gate.
type Hub struct {
	cfg       HubConfig
	bounds    Bounds
	strangers *strangers
	queue     queue
	counters  counters
	parking   *budget // of all pools
	carried   atomic.Int64
	turn      atomic.Uint32 // of Config.Loops
	waits     waits
	draining  atomic.Bool
	presence  sync.Mutex   // held round a change of agents and the report of it
	greeted   atomic.Int64 // connections of agents in Serve, but for carried ones
	greetings greetings

	// gate is held for reading by what changes tunnels on a goroutine of its own,
	// and for writing while an upgrade has frozen them. What runs on a loop needs
	// no gate: loops stand still then.
	gate  sync.RWMutex
	left  atomic.Bool        // another process has the tunnels
	over  context.Context    // done when the last control connection must have ended, too
	leave context.CancelFunc // ends over

	adoptions  adoptions
	adoptedFor time.Duration // adoptedFor, but in tests
	orphanTick time.Duration // orphanTick, but in tests

	mu        sync.RWMutex
	tunnels   map[ID]*tunnel
	agents    map[string]*tunnel
	names     map[resourceName][]*tunnel // slices are never changed in place
	tags      map[uint16]*tunnel
	revisions map[string]revision
	swept     time.Time // when revisions were last looked through
	orphans   map[*tunnel]bool
}

// resourceName is the key under which clients ask.
type resourceName struct{ kind, name string }

// revision is the newest assignment seen of an agent, so that an older one
// cannot be shown again after a reconnect.
type revision struct {
	number   uint64
	notAfter time.Time
}

// tunnel is one agent's control connection and what hangs on it.
type tunnel struct {
	id      ID
	agent   string
	version string
	since   time.Time
	keys    keys // set before the tunnel can be found
	pool    *pool
	talk    *talk // nil for an orphan
	cancels limiter
	changes limiter                 // of what is routed here
	end     context.CancelCauseFunc // ends its control connection
	tag     uint16                  // guarded by Hub.mu
	carrier atomic.Int32            // how its data connections come: the newest one's
	follows bool                    // its agent goes to a successor of this process first
	orphan  *orphan                 // nil with a control connection; set before the tunnel can be found
	up      bool                    // announced; guarded by Hub.presence
	former  []ID                    // tunnels of the agent that it has inherited from; guarded by Hub.presence

	heir   atomic.Pointer[tunnel]    // of an elder: the agent's newer tunnel
	elders atomic.Pointer[[]*tunnel] // orphans of the same agent, the newest first; changed under Hub.presence

	names      atomic.Pointer[map[resourceName]bool] // what is routed here now; changed under Hub.mu
	assignment atomic.Pointer[assignmentView]
}

// assignmentView is the newest assignment of a tunnel.
type assignmentView struct {
	Assignment
	raw []byte
}

// NewHub returns a hub without tunnels. It has no goroutine of its own; it is
// over when Serve has returned for all connections.
func NewHub(cfg HubConfig) *Hub {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Gateways == nil {
		cfg.Gateways = func() []string { return nil }
	}
	if cfg.Presence == nil {
		cfg.Presence = func(Presence) {}
	}
	b := cfg.Bounds.withDefaults()
	c := newCounters()
	over, leave := context.WithCancel(context.Background())
	return &Hub{
		cfg: cfg, bounds: b, strangers: newStrangers(b), counters: c, over: over, leave: leave, adoptedFor: adoptedFor, orphanTick: orphanTick,
		parking: &budget{most: int64(b.PoolGateway), refused: c.m["pool_gateway_full"]},
		tunnels: map[ID]*tunnel{}, agents: map[string]*tunnel{}, names: map[resourceName][]*tunnel{},
		tags: map[uint16]*tunnel{}, revisions: map[string]revision{}, orphans: map[*tunnel]bool{},
	}
}

// Live says whether an agent that serves the name has a tunnel here.
func (h *Hub) Live(kind, name string) bool {
	return !h.draining.Load() && len(h.serving(resourceName{kind, name})) > 0
}

// Cancel passes a PostgreSQL CancelRequest on to the agent whose tag is the
// upper half of pid. It reports false when there is none, or it is asked too
// often. Whether the key is right is for the agent to say.
func (h *Hub) Cancel(pid, key uint32) bool {
	h.mu.RLock()
	t := h.tags[uint16(pid>>16)]
	h.mu.RUnlock()
	if t == nil {
		h.counters.add("cancel_unknown")
		return false
	}
	if !t.cancels.allow(h.cfg.Now(), h.bounds.CancelRate) {
		h.counters.add("cancel_rate")
		return false
	}
	msg := &tunnelv1.PgCancel{ProcessId: pid, SecretKey: binary.BigEndian.AppendUint32(nil, key)}
	if t.orphan != nil {
		return h.cancelLater(t, msg)
	}
	return h.cancelBy(t, msg)
}

func (h *Hub) cancelBy(t *tunnel, msg *tunnelv1.PgCancel) bool {
	if !t.talk.send(&tunnelv1.Control{Message: &tunnelv1.Control_PgCancel{PgCancel: msg}}) {
		h.counters.add("cancel_slow_agent")
		return false
	}
	return true
}

func (h *Hub) serving(n resourceName) []*tunnel {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.names[n]
}

func (h *Hub) tunnel(id ID) *tunnel {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.tunnels[id]
}

// leastBusy orders tunnels by the streams that run through them.
func leastBusy(ts []*tunnel) []*tunnel {
	if len(ts) < 2 {
		return ts
	}
	ts = slices.Clone(ts)
	slices.SortStableFunc(ts, func(a, b *tunnel) int { return cmp.Compare(a.streams(), b.streams()) })
	return ts
}

// streams is how many of the agent are leased and not ended.
func (t *tunnel) streams() int64 { return t.pool.share.streams.Load() }

// serves says whether a name leads here: that is the newest tunnel's to say.
func (t *tunnel) serves(n resourceName) bool {
	if heir := t.heir.Load(); heir != nil {
		return heir.serves(n)
	}
	return (*t.names.Load())[n]
}

// askForMore wakes the tunnel's writer, which asks for what the pool lacks. For
// what an elder lacks its heir asks.
func (t *tunnel) askForMore() {
	if heir := t.heir.Load(); heir != nil {
		heir.pool.begin()
		heir.askForMore()
		return
	}
	if t.orphan == nil {
		t.talk.poke()
	}
}
