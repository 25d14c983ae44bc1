package app

import (
	"crypto/sha256"
	"crypto/x509"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/dataplane/oneconn"
)

const (
	poolFor   = 30 * time.Second // a pool outlives the last visit for so long
	poolsKept = 256              // pools without a visit, at most

	// poolIdle is shorter than applications wait for the next request: one that
	// closes while a request with a body is on its way cannot be asked again.
	poolIdle = 2 * time.Second
)

// pools are the connections to an application, by the certificate for whose
// holder they were made.
type pools struct {
	mu   sync.Mutex
	all  map[fingerprint]*pool
	idle int  // of all, those without a visit
	over bool // none outlives its last visit
}

type fingerprint [sha256.Size]byte

// pool is what visits by one certificate share. A connection's set-up costs more
// than most requests do, and programs that make one request for each connection are
// many.
type pool struct {
	key       fingerprint
	transport *http.Transport
	requests  atomic.Int64 // under way

	visits int         // guarded by pools.mu
	ending *time.Timer // of a pool without a visit; guarded by pools.mu
}

// enter is for a visit that begins; leave must follow.
func (s *Server) enter(c *x509.Certificate) *pool {
	p, key := &s.pools, fingerprint(sha256.Sum256(c.Raw))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[fingerprint]*pool{}
	}
	one := p.all[key]
	switch {
	case one == nil:
		one = &pool{key: key, transport: s.place.transport()}
		one.transport.IdleConnTimeout = poolIdle
		p.all[key] = one
	case one.visits == 0:
		one.ending.Stop() // or it finds that there is a visit
		p.idle--
	}
	one.visits++
	return one
}

// leave ends a visit.
func (p *pools) leave(one *pool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if one.visits--; one.visits > 0 {
		return
	}
	p.idle++
	if p.over || p.idle > poolsKept {
		p.dropLocked(one)
		return
	}
	one.ending = time.AfterFunc(poolFor, func() { p.expire(one) })
}

func (p *pools) expire(one *pool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if one.visits == 0 && p.all[one.key] == one {
		p.dropLocked(one)
	}
}

// dropLocked lets go of a pool without a visit.
func (p *pools) dropLocked(one *pool) {
	delete(p.all, one.key)
	p.idle--
	one.transport.CloseIdleConnections()
}

// close lets go of what nobody uses, now and from now on.
func (p *pools) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	for _, one := range p.all {
		if one.visits == 0 {
			one.ending.Stop()
			p.dropLocked(one)
		}
	}
}

// way finds the connections for a request: those of the certificate, or the
// visit's own when the pool has enough to do, or may not have the request.
func (v *visit) way(r *http.Request) (t *http.Transport, leave func()) {
	if len(r.Header["Upgrade"]) > 0 || v.pool == nil {
		return v.alone(), func() {}
	}
	if binds(r.Header["Authorization"]) {
		v.bound.Store(true)
	}
	if v.bound.Load() {
		return v.alone(), func() {}
	}
	if v.pool.requests.Add(1) > oneconn.MaxStreams {
		v.pool.requests.Add(-1)
		return v.alone(), func() {}
	}
	return v.pool.transport, func() { v.pool.requests.Add(-1) }
}

// binds says that credentials may be of a kind that is proved once for a
// connection, as NTLM's (RFC 4559, section 6): who has sent such goes on by
// connections that nobody else has. These are known to be proved by each request.
func binds(lines []string) bool {
	for _, line := range lines {
		scheme, _, _ := strings.Cut(line, " ")
		switch strings.ToLower(scheme) {
		case "basic", "bearer", "digest":
		default:
			return true
		}
	}
	return false
}

// alone are connections of this visit only.
func (v *visit) alone() *http.Transport {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.own == nil {
		v.own = v.server.place.transport()
	}
	return v.own
}

// giveUp lets go of the connections, when no request runs any more.
func (v *visit) giveUp() {
	if v.own != nil {
		v.own.CloseIdleConnections()
	}
	if v.pool != nil {
		v.server.pools.leave(v.pool)
	}
}
