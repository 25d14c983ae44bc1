package access

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"

	"github.com/sallyport/sallyport"
)

// decide answers a request, from memory when the same was asked before under
// the same policy. What depends on time, address or MFA is asked each time.
// Locks and expiry are not part of the answer: they are checked at each use.
func (d *Door) decide(r sallyport.AccessRequest, revision uint64) sallyport.Decision {
	if r.Identity.Fingerprint == "" {
		return d.Decider.Decide(r)
	}
	key := keyOf(r, revision)
	if dec, ok := d.decided.get(key); ok {
		return dec
	}
	dec := d.Decider.Decide(r)
	// A newer policy than the one the key names may have decided.
	if !dec.Fleeting && dec.Revision == revision {
		d.decided.put(key, dec)
	}
	return dec
}

// key identifies a question: SHA-256 over its fields, each with its length
// before it, so that no two questions run into the same bytes.
type key [sha256.Size]byte

func keyOf(r sallyport.AccessRequest, revision uint64) key {
	b := make([]byte, 0, 512)
	b = binary.BigEndian.AppendUint64(b, revision)
	// The fingerprint stands for everything that the identity says. A web
	// certificate and its like are other certificates.
	for _, s := range []string{
		r.Identity.Fingerprint,
		string(r.Resource.Kind), r.Resource.Name, r.Resource.ID, r.Resource.Protocol, r.Resource.AgentID,
		r.Login, r.DBUser, r.DBName, r.AWSRole, string(r.Action),
	} {
		b = appendField(b, s)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Resource.Labels)) {
		b = appendField(appendField(b, name), r.Resource.Labels[name])
	}
	return sha256.Sum256(b)
}

func appendField(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// cache keeps decisions: two generations of them take some 2 MiB.
type cache struct {
	mu        sync.Mutex
	decisions generations[key, sallyport.Decision]
}

func (c *cache) get(k key) (sallyport.Decision, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.decisions.get(k)
}

func (c *cache) put(k key, dec sallyport.Decision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.decisions.put(k, dec)
}
