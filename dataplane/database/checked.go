package database

import (
	"crypto/x509"
	"slices"
	"sync/atomic"
	"time"
)

// checked remembers the server's certificate whose chain was checked last, so
// that the next session costs no signature of a CA. It holds while the whole
// path is valid and the trusted CAs are the same; that the server has the key
// is proved in every handshake. The zero value is ready.
type checked struct{ last atomic.Pointer[checkedChain] }

type checkedChain struct {
	leaf     *x509.Certificate
	host     string // the name that it was checked for; "" for any
	pools    []*x509.CertPool
	from, to time.Time // while the whole path is valid, both included
}

// holds says that a leaf is the one that was checked, and that the outcome
// would be the same now.
func (c *checked) holds(leaf *x509.Certificate, host string, pools []*x509.CertPool, now time.Time) bool {
	last := c.last.Load()
	return last != nil && last.host == host && !now.Before(last.from) && !now.After(last.to) &&
		leaf.Equal(last.leaf) && slices.EqualFunc(pools, last.pools, (*x509.CertPool).Equal)
}

// keep takes the outcome of a check: path is the verified chain from the leaf
// to a CA of the pools.
func (c *checked) keep(path []*x509.Certificate, host string, pools []*x509.CertPool) {
	k := &checkedChain{leaf: path[0], host: host, pools: pools, from: path[0].NotBefore, to: path[0].NotAfter}
	for _, above := range path[1:] {
		if above.NotBefore.After(k.from) {
			k.from = above.NotBefore
		}
		if above.NotAfter.Before(k.to) {
			k.to = above.NotAfter
		}
	}
	c.last.Store(k)
}
