package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
)

// Want says who the other end of a TLS connection must be.
type Want struct {
	Roots   *x509.CertPool
	Cluster string                   // "" for any
	Kinds   []sallyport.IdentityKind // any of these
	Usage   x509.ExtKeyUsage         // what the certificate must be good for
	Now     time.Time
}

// VerifyPeer checks a chain as it was shown, leaf first, and returns who it
// names. It takes the place of a host name check: ours are named by SPIFFE ids.
func VerifyPeer(chain []*x509.Certificate, want Want) (sallyport.Identity, error) {
	if len(chain) == 0 {
		return sallyport.Identity{}, errors.New("no certificate was shown")
	}
	if want.Roots == nil {
		return sallyport.Identity{}, errors.New("no CA to check the certificate by")
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: want.Roots, Intermediates: between(chain), CurrentTime: want.Now, KeyUsages: []x509.ExtKeyUsage{want.Usage},
	})
	if err != nil {
		return sallyport.Identity{}, err
	}
	id, err := FromX509(chain[0])
	if err != nil {
		return sallyport.Identity{}, err
	}
	if want.Cluster != "" && id.Cluster != want.Cluster {
		return sallyport.Identity{}, fmt.Errorf("certificate of cluster %q, not %q", id.Cluster, want.Cluster)
	}
	if !slices.Contains(want.Kinds, id.Kind) {
		return sallyport.Identity{}, fmt.Errorf("certificate of kind %q, not %v", id.Kind, want.Kinds)
	}
	return id, nil
}

// LeadsTo says whether a server's chain as it was shown, leaf first, leads to one of
// the roots, whomever it names. Nil roots lead nowhere; the zero time is now.
func LeadsTo(roots *x509.CertPool, chain []*x509.Certificate, now time.Time) bool {
	if roots == nil || len(chain) == 0 {
		return false
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between(chain), CurrentTime: now})
	return err == nil
}

// between are the certificates of a chain that are not its leaf.
func between(chain []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range chain[1:] {
		pool.AddCert(c)
	}
	return pool
}

const pinPrefix = "sha256:"

// Pin is a CA's pin: "sha256:" and the lower-case hex of SHA-256 over its
// SubjectPublicKeyInfo (RFC 7469, section 2.4, in hex).
func Pin(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return pinPrefix + hex.EncodeToString(sum[:])
}

// ValidPin says whether text has the form of a pin. Its digits may be capitals.
func ValidPin(text string) bool {
	digits, ok := strings.CutPrefix(text, pinPrefix)
	sum, err := hex.DecodeString(digits)
	return ok && err == nil && len(sum) == sha256.Size
}

// ErrPin means that somebody else answered, or that the pin is not the cluster's.
var ErrPin = errors.New("the CA that was shown does not have the pin that was given")

// PinnedRoots returns the CAs of a chain that have one of the pins. It is an
// error when none has: then the other end is not who was asked for.
func PinnedRoots(chain []*x509.Certificate, pins []string) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), false
	for _, c := range chain {
		if c.IsCA && slices.ContainsFunc(pins, func(p string) bool { return strings.EqualFold(p, Pin(c)) }) {
			pool.AddCert(c)
			found = true
		}
	}
	if !found {
		return nil, ErrPin
	}
	return pool, nil
}
