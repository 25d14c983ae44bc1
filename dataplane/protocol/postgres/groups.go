package postgres

import (
	"crypto/tls"
	"sync/atomic"
)

// relearn is how many handshakes leave the post-quantum group out before it is
// offered again: a server that was upgraded is noticed by then.
const relearn = 256

// groups remembers whether a server knows X25519MLKEM768. Its key share costs
// more than the rest of our side of a handshake, and servers on OpenSSL before
// 3.5 have no use for it. The zero value offers everything.
type groups struct{ left atomic.Int32 }

// offer returns the groups of the next handshake, nil for the library's own
// choice, and whether its outcome is to be learned.
func (g *groups) offer() (curves []tls.CurveID, learn bool) {
	if g.left.Load() <= 0 || g.left.Add(-1) < 0 {
		return nil, true
	}
	return []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}, false
}

// learn takes the outcome of a handshake that offered everything.
func (g *groups) learn(chosen tls.CurveID) {
	if chosen == tls.X25519MLKEM768 {
		g.left.Store(0)
		return
	}
	g.left.Store(relearn - 1)
}
