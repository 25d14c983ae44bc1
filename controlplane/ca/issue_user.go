package ca

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"net/url"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

const (
	// MaxUserTTL is the longest life of a person's certificate.
	MaxUserTTL = 12 * time.Hour
	// MaxWebTTL is the longest life of one that a gateway holds for a browser.
	MaxWebTTL = 10 * time.Minute
)

// UserRequest asks for certificates of a person. Who may be told what has been
// decided before; here is only checked that it can stand in a certificate.
type UserRequest struct {
	// Identity is of kind user and of this cluster. PinnedAddr becomes the SSH
	// certificate's source-address. NotAfter, when set, is a further bound.
	Identity sallyport.Identity

	TLSKey []byte // PKIX DER; none: no X.509 certificate
	SSHKey []byte // authorized_keys line; none: no SSH certificate

	TTL    time.Duration // at most MaxUserTTL, for usage web MaxWebTTL
	Permit Permit
}

// Permit says what sshd and our agents may give to a session (PROTOCOL.certkeys).
type Permit struct {
	PTY             bool
	AgentForwarding bool
	PortForwarding  bool
	X11Forwarding   bool
}

// Certificates are what was issued: X509 as DER, SSH as an authorized_keys line.
type Certificates struct {
	X509     []byte
	SSH      []byte
	NotAfter time.Time
}

// IssueUser issues a person's certificates. Without principals there is no SSH
// certificate: some readers take an empty list for "anybody" (CVE-2024-7594).
func (k *Keys) IssueUser(r UserRequest) (Certificates, error) {
	id := r.Identity
	if err := k.checkUser(r); err != nil {
		return Certificates{}, err
	}
	out := Certificates{NotAfter: k.now().Add(r.TTL).Truncate(time.Second)}
	if !id.NotAfter.IsZero() && id.NotAfter.Before(out.NotAfter) {
		out.NotAfter = id.NotAfter
	}
	if !out.NotAfter.After(k.now()) {
		return Certificates{}, refused("the certificate would have ended already")
	}
	var err error
	if len(r.TLSKey) > 0 {
		if out.X509, err = k.userX509(r, out.NotAfter); err != nil {
			return Certificates{}, err
		}
	}
	if len(r.SSHKey) > 0 && len(id.Principals) > 0 {
		if out.SSH, err = k.userSSH(r, out.NotAfter); err != nil {
			return Certificates{}, err
		}
	}
	return out, nil
}

func (k *Keys) checkUser(r UserRequest) error {
	id := r.Identity
	most := MaxUserTTL
	if id.Usage == sallyport.UsageWeb {
		most = MaxWebTTL
	}
	switch {
	case id.Kind != sallyport.KindUser:
		return refused("certificate of the user CA for a holder of kind " + string(id.Kind))
	case id.Cluster != k.cluster:
		return refused("certificate for a user of another cluster")
	case r.TTL <= 0 || r.TTL > most:
		return refused("certificate for " + r.TTL.String() + ": at most " + most.String())
	case len(r.TLSKey) == 0 && len(r.SSHKey) == 0:
		return refused("no public key to certify")
	case id.Usage != "" && len(r.SSHKey) > 0:
		return refused("no SSH certificate for usage " + string(id.Usage))
	}
	return nil
}

func (k *Keys) userX509(r UserRequest, notAfter time.Time) ([]byte, error) {
	pub, err := ParseTLSKey(r.TLSKey)
	if err != nil {
		return nil, err
	}
	ext, err := identity.Extension(r.Identity)
	if err != nil {
		return nil, refused(err.Error())
	}
	tmpl := k.leafTemplate(r.Identity.Name, notAfter, x509.ExtKeyUsageClientAuth)
	tmpl.URIs = []*url.URL{identity.URI(sallyport.KindUser, k.cluster, r.Identity.Name)}
	tmpl.ExtraExtensions = []pkix.Extension{ext}
	return k.sign(User, tmpl, pub)
}

func (k *Keys) userSSH(r UserRequest, notAfter time.Time) ([]byte, error) {
	pub, err := ParseSSHKey(r.SSHKey)
	if err != nil {
		return nil, err
	}
	cert := k.sshCertificate(r.Identity.Name, r.Identity.Principals, notAfter)
	cert.CertType, cert.Key = ssh.UserCert, pub
	value, err := identity.SSHValue(r.Identity)
	if err != nil {
		return nil, refused(err.Error())
	}
	cert.Extensions = r.Permit.extensions()
	cert.Extensions[identity.SSHExtensionName] = value
	if r.Identity.PinnedAddr != "" {
		addr, err := netip.ParseAddr(r.Identity.PinnedAddr)
		if err != nil {
			return nil, refused("pinned address " + r.Identity.PinnedAddr + " is not an address")
		}
		cert.CriticalOptions = map[string]string{"source-address": netip.PrefixFrom(addr, addr.BitLen()).String()}
	}
	if err := k.signSSH(User, cert); err != nil {
		return nil, err
	}
	// The door's own rules have the last word on principals and options.
	if _, err := identity.FromSSH(cert); err != nil {
		return nil, refused(err.Error())
	}
	return ssh.MarshalAuthorizedKey(cert), nil
}

func (p Permit) extensions() map[string]string {
	out := make(map[string]string)
	for name, on := range map[string]bool{
		"permit-pty":              p.PTY,
		"permit-agent-forwarding": p.AgentForwarding,
		"permit-port-forwarding":  p.PortForwarding,
		"permit-X11-forwarding":   p.X11Forwarding,
	} {
		if on {
			out[name] = ""
		}
	}
	return out
}

// sshCertificate has what both kinds of SSH certificates have in common.
func (k *Keys) sshCertificate(keyID string, principals []string, notAfter time.Time) *ssh.Certificate {
	return &ssh.Certificate{
		Serial:          sshSerial(),
		KeyId:           keyID,
		ValidPrincipals: principals,
		ValidAfter:      uint64(k.now().Add(-backdate).Unix()),
		ValidBefore:     uint64(notAfter.Unix()),
	}
}

func (k *Keys) signSSH(kind Kind, cert *ssh.Certificate) error {
	return cert.SignCert(rand.Reader, k.all[kind][0].ssh)
}

func refused(fact string) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact}
}
