package access

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// maxChain bounds what a client may send: a leaf and our intermediates.
const maxChain = 4

// verdict is who a client is. With a refusal it is one of ours who gets no
// session.
type verdict struct {
	identity sallyport.Identity
	refusal  *sallyport.Problem
}

// identify says who a client is by its certificate. An error means: none of
// ours, or not for this door. User certificates are good for any resource; a
// gateway's own opens the SSH handshake only, where the user follows inside.
func (d *Door) identify(chain []*x509.Certificate, r sallyport.Resource, open Opening) (verdict, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return verdict{}, fmt.Errorf("%d certificates", len(chain))
	}
	trust, stale := d.Snapshot.Trust()
	if trust == nil {
		return verdict{}, &stranger{refusedNoTrust, orStale(stale)}
	}
	if trust.Cluster != d.Cluster {
		return verdict{}, &stranger{refusedNoTrust, fmt.Errorf("snapshot of cluster %q", trust.Cluster)}
	}
	id, err := d.user(chain, trust)
	if err == nil {
		return verdict{identity: id, refusal: d.refusal(id, r, open)}, nil
	}
	if r.Kind != sallyport.KindNode {
		return verdict{}, err
	}
	if id, gwErr := d.gateway(chain, trust, open); gwErr == nil {
		return verdict{identity: id}, nil
	}
	return verdict{}, err
}

// user takes a chain to a user CA. Time is not judged here: a certificate that
// was ours an hour ago is still ours, and its holder is told why it is refused.
func (d *Door) user(chain []*x509.Certificate, trust *sallyport.Trust) (sallyport.Identity, error) {
	leaf, now := chain[0], d.Now()
	if id, ok := d.known.find(leaf, trust.UserCAs, now); ok {
		return id, nil
	}
	path, err := verify(chain, trust.UserCAs, within(now, leaf))
	if err != nil {
		return sallyport.Identity{}, err
	}
	id, err := identity.FromX509(leaf)
	if err != nil {
		return sallyport.Identity{}, err
	}
	if id.Kind != sallyport.KindUser {
		return sallyport.Identity{}, fmt.Errorf("%s certificate by a user CA", id.Kind)
	}
	if id.Cluster != d.Cluster {
		return sallyport.Identity{}, fmt.Errorf("user of cluster %q", id.Cluster)
	}
	d.known.add(path, trust.UserCAs, id)
	return id, nil
}

// gateway takes a chain to a host CA that names the very gateway whose tunnel
// carries the stream.
func (d *Door) gateway(chain []*x509.Certificate, trust *sallyport.Trust, open Opening) (sallyport.Identity, error) {
	if _, err := verify(chain, trust.HostCAs, d.Now()); err != nil {
		return sallyport.Identity{}, err
	}
	id, err := identity.FromX509(chain[0])
	if err != nil {
		return sallyport.Identity{}, err
	}
	if id.Kind != sallyport.KindGateway || id.Cluster != d.Cluster || id.Name != open.GatewayID {
		return sallyport.Identity{}, fmt.Errorf("%s %s of cluster %q is not this stream's gateway", id.Kind, id.Name, id.Cluster)
	}
	return id, nil
}

// verify checks a chain to one of the CAs of one role, for client use, and
// returns it with that CA. The leaf must say that it is for clients: one without
// any purpose is for everything, and ours are not.
func verify(chain, cas []*x509.Certificate, at time.Time) (path []*x509.Certificate, err error) {
	leaf := chain[0]
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return nil, errors.New("certificate is not for clients")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	return paths[0], nil
}

// within is now, or the nearest moment at which the certificate was valid.
func within(now time.Time, cert *x509.Certificate) time.Time {
	if now.After(cert.NotAfter) {
		return cert.NotAfter
	}
	if now.Before(cert.NotBefore) {
		return cert.NotBefore
	}
	return now
}

// refusal is why one of our users gets no session on this connection whatever
// it asks for, or nil.
func (d *Door) refusal(id sallyport.Identity, r sallyport.Resource, open Opening) *sallyport.Problem {
	if id.Usage == sallyport.UsageWeb && !carries(open, id) {
		return sallyport.Denied("this certificate is good for the gateway that holds it only", "")
	}
	if p := checkUsage(id, r.Kind); p != nil {
		return p
	}
	return d.Admit(id, open.Client)
}

// carries says that the stream comes by the gateway that a web certificate is
// bound to.
func carries(open Opening, id sallyport.Identity) bool {
	return open.GatewayID != "" && id.BoundTo == identity.URI(sallyport.KindGateway, id.Cluster, open.GatewayID).String()
}

// checkUsage keeps a browser's certificate away from native protocols.
func checkUsage(id sallyport.Identity, kind sallyport.Kind) *sallyport.Problem {
	if id.Usage == "" || id.Usage == sallyport.UsageWeb && kind == sallyport.KindApp {
		return nil
	}
	return sallyport.Denied("this certificate is for web applications only", "log in with: sally login")
}

func orStale(err error) error {
	if err == nil {
		return errors.New("no snapshot")
	}
	return err
}
