//go:build unix

package gateway

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport/sallyport/dataplane/preamble"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// Upstream is an address that connections are passed on to.
type Upstream struct {
	Address string // "host:port" or "unix:/path"
	Proxy   bool   // tell the client's address by PROXY protocol version 2
}

// upstream is a set of addresses that are taken in turn. Names are resolved in
// the background: a loop does not wait for DNS.
type upstream struct {
	servers []*server
	proxy   bool
	direct  bool // PostgreSQL's clients' TLS comes without a word before it
	gone    bool // its route is no more: who is on the way there is routed anew
	turns   atomic.Uint32
	acct    *account // of the route; nil for auth
}

// server is one configured address and what it stands for now. All upstreams
// that have the address share it.
type server struct {
	address string // as configured
	host    string // a name; "" for a literal
	port    uint16
	targets atomic.Pointer[[]*target] // nil while its name was never resolved
	lost    atomic.Bool               // its name could not be resolved the last time
	failed  atomic.Pointer[time.Time] // when a connection to it failed last; nil for never
	down    atomic.Bool               // the last connection to it failed
}

// fail notes that a connection to the server came to nothing.
func (s *server) fail(now time.Time) {
	s.failed.Store(&now)
	s.down.Store(true)
}

// met notes a connection. What rests is left as it is: it may be another target.
func (s *server) met() {
	if s.down.Load() { // it is everybody's: not written to without need
		s.down.Store(false)
	}
}

// target is one place to connect to: a server has one, or one for each address of
// its name. Each rests by itself, so that a dead one among a name's addresses is
// passed over as a dead server is among others.
type target struct {
	path  string // of a Unix socket
	addr  netip.AddrPort
	rests atomic.Pointer[time.Time] // until when it is tried last; nil for never

	direct atomic.Pointer[time.Time] // until when clients of PostgreSQL come at once, without SSLRequest; nil for never
}

// restFor is how long a target that could not be connected to is tried only when
// all others were: else one that answers nothing costs every client in its turn
// Bounds.Connect.
const restFor = 10 * time.Second

func (t *target) rest(now time.Time) {
	until := now.Add(restFor)
	t.rests.Store(&until)
}

func (t *target) restsAt(now time.Time) bool {
	until := t.rests.Load()
	return until != nil && now.Before(*until) // by what has passed, whatever the clock says
}

// directFor is how long a target that has ended over SSLRequest, and then taken a hello
// at once, is not asked again. It may have ended over something else: PostgreSQL 17
// takes such a hello too, and not of every client.
const directFor = 10 * time.Second

func (t *target) directAt(now time.Time) bool {
	until := t.direct.Load()
	return until != nil && now.Before(*until)
}

func (t *target) connect() (fd int, err error) {
	if t.path != "" {
		return relay.ConnectUnix(t.path)
	}
	return relay.Connect(t.addr)
}

func newServer(address string) (*server, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return serverAt(address, &target{path: path}), nil
	}
	if strings.HasPrefix(address, "/") {
		return serverAt(address, &target{path: address}), nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("upstream %q: %w", address, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" {
		return nil, fmt.Errorf("upstream %q: not host:port", address)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return serverAt(address, &target{addr: netip.AddrPortFrom(ip, uint16(n))}), nil
	}
	return &server{address: address, host: host, port: uint16(n)}, nil
}

// serverAt makes a server that has no name.
func serverAt(address string, t *target) *server {
	s := &server{address: address}
	s.targets.Store(&[]*target{t})
	return s
}

// choice is one client's way through an upstream's addresses.
type choice struct {
	turn  uint32  // the first address is the turn's; who follows it differs from turn to turn
	tried uint64  // which have been tried, of the first 64
	at    *server // of the last
	to    *target // the last; nil when another process chose it among several
	once  bool    // none is tried again: a server has had the flight

	untaken  bool // a server has not taken an SSLRequest
	direct   bool // the last gets the hello at once
	portless bool // to the last this machine has no port left: no fault of the server's
}

// pick gives the next address: one that was not tried yet, and if there is one,
// that does not rest. When all were tried they are tried again, unless a server has
// had the client's flight. others says that there is more than one.
func (u *upstream) pick(c *choice, now time.Time) (t *target, others, ok bool) {
	n := u.size()
	if n == 0 {
		return nil, false, false
	}
	own := int(c.turn) % n
	at, free, resting := u.free(c, now, 0)
	switch {
	case free == 0 && resting >= 0:
		at = resting
	case free == 0 && c.once:
		return nil, false, false
	case free == 0:
		c.tried, at = 0, own
	case free > 1:
		// The turn's address is passed over. Its turns go to each other one in
		// turn: else its neighbour had twice what the others have.
		at, _, _ = u.free(c, now, int(c.turn)/n%free)
	}
	if at < 0 { // other loops have met that nothing answers just now
		at = own
	}
	s, t, ok := u.address(at)
	return t, n > 1, ok && c.take(at, s, t, now)
}

// free finds an address that was not tried yet and does not rest: from the turn's on
// the one behind skip others. It says how many there are (1 when it is the turn's
// own), and which is the first not tried that rests. at and resting are -1 for none.
func (u *upstream) free(c *choice, now time.Time, skip int) (at, free, resting int) {
	n := u.size()
	at, resting = -1, -1
	for i := range n {
		next := (int(c.turn) + i) % n
		if next < 64 && c.tried&(1<<next) != 0 {
			continue
		}
		_, t, ok := u.address(next)
		switch {
		case !ok:
			return at, free, resting // a name has lost addresses just now
		case t.restsAt(now):
			if resting < 0 {
				resting = next
			}
			continue
		}
		if free <= skip {
			at = next
		}
		if free++; i == 0 {
			return at, free, resting
		}
	}
	return at, free, resting
}

func (c *choice) take(at int, s *server, t *target, now time.Time) bool {
	if at < 64 {
		c.tried |= 1 << at
	}
	c.at, c.to, c.direct = s, t, t.directAt(now)
	return true
}

// address is the one at a position of all.
func (u *upstream) address(at int) (s *server, t *target, ok bool) {
	for _, s := range u.servers {
		if k := s.size(); at >= k {
			at -= k
			continue
		}
		t, ok = s.target(at)
		return s, t, ok
	}
	return nil, nil, false
}

// size is the number of addresses.
func (u *upstream) size() (n int) {
	for _, s := range u.servers {
		n += s.size()
	}
	return n
}

func (s *server) size() int {
	if targets := s.targets.Load(); targets != nil {
		return len(*targets)
	}
	return 0
}

func (s *server) target(i int) (t *target, ok bool) {
	targets := s.targets.Load()
	if targets == nil || i >= len(*targets) {
		return nil, false
	}
	return (*targets)[i], true
}

// head is what an upstream gets before the client's bytes.
func (u *upstream) head(c *conn) []byte {
	var b []byte
	if u.proxy {
		local := c.local
		if !local.IsValid() {
			local = relay.LocalAddr(c.fd)
		}
		b = preamble.AppendProxyV2(b, c.peer, local)
	}
	if c.asks() {
		request := preamble.PostgresSSLRequest()
		b = append(b, request[:]...)
	}
	return b
}

const (
	resolveEvery = 30 * time.Second
	resolveWait  = 5 * time.Second
	resolveSoon  = time.Second // after a name that could not be resolved

	// resolveAtStart is how long nothing is served for the sake of names that have
	// not been looked up: the first clients would be refused.
	resolveAtStart = 2 * time.Second

	// resolveMost names are looked up at once.
	resolveMost = 16
)

// resolveFirst looks all names up before anybody is served. What takes longer is
// left to resolve.
func (g *Gateway) resolveFirst() {
	ctx, cancel := context.WithTimeout(g.names, resolveAtStart)
	defer cancel()
	g.resolveAll(ctx, g.named())
}

// resolve keeps the addresses of names up to date until the gateway closes. A
// name that cannot be resolved keeps the addresses it had.
func (g *Gateway) resolve() {
	for {
		wait := resolveEvery
		if !g.resolveAll(g.names, g.named()) {
			wait = resolveSoon
		}
		select {
		case <-g.names.Done():
			return
		case <-g.renamed:
		case <-time.After(wait):
		}
	}
}

// named are the servers that have names.
func (g *Gateway) named() (out []*server) {
	if g.auth != nil && g.auth.servers[0].host != "" {
		out = append(out, g.auth.servers[0])
	}
	for _, s := range g.current.Load().servers {
		if s.host != "" {
			out = append(out, s)
		}
	}
	return out
}

// resolveAll reports whether all could be resolved.
func (g *Gateway) resolveAll(ctx context.Context, servers []*server) bool {
	var failed atomic.Bool
	var tasks errgroup.Group
	tasks.SetLimit(resolveMost)
	for _, s := range servers {
		tasks.Go(func() error {
			err := s.resolve(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				failed.Store(true)
			}
			switch lost := err != nil; {
			case s.lost.Swap(lost) == lost: // said before
			case lost:
				g.log.Warn("upstream not resolved", "host", s.host, "err", err)
			default:
				g.log.Info("upstream resolved again", "host", s.host)
			}
			return nil
		})
	}
	_ = tasks.Wait() // they return none
	return !failed.Load()
}

func (s *server) resolve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", s.host)
	if err != nil {
		return err
	}
	s.standFor(ips)
	return nil
}

// standFor notes a name's addresses. A target that is one of them still stays, and
// rests on.
func (s *server) standFor(ips []netip.Addr) {
	known := map[netip.AddrPort]*target{}
	if old := s.targets.Load(); old != nil {
		for _, t := range *old {
			known[t.addr] = t
		}
	}
	targets := make([]*target, len(ips))
	for i, ip := range ips {
		addr := netip.AddrPortFrom(ip.Unmap(), s.port)
		if targets[i] = known[addr]; targets[i] == nil {
			targets[i] = &target{addr: addr}
		}
	}
	s.targets.Store(&targets)
}
