package database

import (
	"crypto/tls"
	"slices"
	"sync"
)

// relearn is how many handshakes offer only what a server has use for before
// everything is offered again: a server that was upgraded is noticed by then.
const relearn = 256

// classical are the groups without a post-quantum half, in the order in which
// crypto/tls prefers them: it sends a key share for the first.
var classical = [...]tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}

// groups remembers which group a server takes. A post-quantum key share costs
// more than the rest of our side of a handshake, and servers on OpenSSL before
// 3.5 have no use for it. PostgreSQL before 18 takes the one curve of
// ssl_ecdh_curve, by default P-256: a key share of X25519 costs a
// HelloRetryRequest (RFC 8446, section 4.1.4), a round trip in each session.
// The zero value offers everything.
type groups struct {
	mu   sync.Mutex
	left int           // handshakes before everything is offered again
	list []tls.CurveID // what is offered until then
}

// offer returns the groups of the next handshake, nil for all of the library's
// choice; the outcome of such a one is to be learned.
func (g *groups) offer() []tls.CurveID {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left == 0 {
		return nil
	}
	g.left--
	return g.list
}

// learn takes the outcome of a handshake that offered everything; 0 is a key
// exchange without a group. A server that knows a post-quantum group is always
// offered everything.
func (g *groups) learn(chosen tls.CurveID) {
	at := slices.Index(classical[:], chosen)
	if chosen == 0 {
		at = 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if at < 0 {
		g.left = 0
		return
	}
	g.left, g.list = relearn-1, classical[at:]
}

// forget makes the next handshake offer everything.
func (g *groups) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = 0
}
