package access

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
)

// known remembers who the user certificates name whose chain to the user CAs
// was checked, so that a client that comes back costs no signature of a CA. It
// says nothing of what the holder may do: locks, pins, expiry and roles are
// looked at on every use, and that the client has the key in every handshake.
// The zero value is ready.
type known struct {
	mu    sync.Mutex
	cas   []*x509.Certificate // Invariant: all users were checked against exactly these
	users generations[fingerprint, knownUser]
}

// fingerprint is SHA-256 over a certificate, its signature included.
type fingerprint [sha256.Size]byte

type knownUser struct {
	identity sallyport.Identity
	from, to time.Time // while the whole path is valid, both included
}

// find returns who a leaf names, when its chain was checked against the same
// CAs and would still hold now. The chain that it comes with does not matter:
// the one that was checked stands behind it.
func (k *known) find(leaf *x509.Certificate, cas []*x509.Certificate, now time.Time) (sallyport.Identity, bool) {
	key := fingerprint(sha256.Sum256(leaf.Raw))
	k.mu.Lock()
	defer k.mu.Unlock()
	if !sameCertificates(k.cas, cas) {
		return sallyport.Identity{}, false
	}
	u, ok := k.users.get(key)
	if !ok || now.Before(u.from) || now.After(u.to) {
		return sallyport.Identity{}, false
	}
	return u.identity, true
}

// add takes the outcome of a check: path is the verified chain from the leaf to
// one of the CAs. Other CAs than before forget everybody.
func (k *known) add(path []*x509.Certificate, cas []*x509.Certificate, id sallyport.Identity) {
	u := knownUser{identity: id, from: path[0].NotBefore, to: path[0].NotAfter}
	for _, c := range path[1:] {
		if c.NotBefore.After(u.from) {
			u.from = c.NotBefore
		}
		if c.NotAfter.Before(u.to) {
			u.to = c.NotAfter
		}
	}
	key := fingerprint(sha256.Sum256(path[0].Raw))
	k.mu.Lock()
	defer k.mu.Unlock()
	if !sameCertificates(k.cas, cas) {
		k.cas, k.users = cas, generations[fingerprint, knownUser]{}
	}
	k.users.put(key, u)
}

func sameCertificates(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, (*x509.Certificate).Equal)
}
