package tunnel

import "time"

// Bounds are what a gateway allows strangers and agents. Zero fields take the
// default.
type Bounds struct {
	PoolFloor   int // parked connections that a tunnel always has; 4
	PoolCeiling int // and at most; 256
	PoolGateway int // of all tunnels; 65,536, and at most half of the descriptors

	// ParkedFor is how old a parked connection gets. Keep-alive refreshes what
	// counts packets; this is for what counts from the first one, or does not
	// count empty packets: below the 4 minutes after which the shortest of the
	// clouds' translators forget. 3 min 30 s.
	ParkedFor time.Duration

	HalfOpenSource  int // half-open streams per source (/32, /64); 16
	HalfOpenAgent   int // per agent; 64
	HalfOpenGateway int // of the whole gateway; 4,096
	SourceRate      int // new half-open streams per source and second; 20

	LeaseWait    time.Duration // how long a client waits for an empty pool; 2 s
	HelloWait    time.Duration // from TCP connection to hello; 10 s
	PingInterval time.Duration // 2 s
	DeadAfter    time.Duration // without a byte of the agent; 5 s

	Greetings  int // connections of agents that have not been welcomed; 4,096, and at most an eighth of the descriptors
	Carried    int // data connections inside TLS or a WebSocket; 4,096
	Tunnels    int // control connections; 16,384
	Resources  int // per agent; 16,384
	CancelRate int // pg-cancel messages per agent and second; 50
}

// A quarter of every shared bound (a pool's connections, an agent's and the
// gateway's half-open streams) is kept for sources with a recent stream-up.
const reservedPart = 4

// trustedFactor is how many more half-open streams a source with a recent
// stream-up may have: an office behind one address is not a stranger.
const trustedFactor = 4

// recentFor is how long a stream-up makes its source known: from one to two
// times this.
const recentFor = 10 * time.Minute

// maxSources bounds the tables of sources: about 5 MiB each when full.
const maxSources = 32768

// maxAttempts is how often a client's stream may be leased: the first time, and
// twice more when a data connection ends before the agent's first byte.
const maxAttempts = 3

func (b Bounds) withDefaults() Bounds {
	def(&b.PoolFloor, 4)
	def(&b.PoolCeiling, 256)
	b.PoolCeiling = max(b.PoolCeiling, b.PoolFloor)
	def(&b.PoolGateway, 65536)
	if most := descriptorLimit() / 2; most > 0 {
		b.PoolGateway = min(b.PoolGateway, most)
	}
	def(&b.ParkedFor, 3*time.Minute+30*time.Second)
	def(&b.HalfOpenSource, 16)
	def(&b.HalfOpenAgent, 64)
	def(&b.HalfOpenGateway, 4096)
	def(&b.SourceRate, 20)
	def(&b.LeaseWait, 2*time.Second)
	def(&b.HelloWait, 10*time.Second)
	def(&b.PingInterval, 2*time.Second)
	def(&b.DeadAfter, 5*time.Second)
	def(&b.Greetings, 4096)
	if most := descriptorLimit() / 8; most > 0 {
		b.Greetings = min(b.Greetings, most)
	}
	def(&b.Carried, 4096)
	def(&b.Tunnels, 16384)
	def(&b.Resources, 16384)
	def(&b.CancelRate, 50)
	return b
}

func def[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// open is how much of a shared bound a source may use.
func open(bound int, known bool) int {
	if known {
		return bound
	}
	return bound - bound/reservedPart
}
