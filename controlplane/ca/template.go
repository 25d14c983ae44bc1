package ca

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"math/big"
	"net"
	"time"
)

// backdate is how far clocks of verifiers may be behind ours.
const backdate = 60 * time.Second

// authorityTemplate is the certificate of a CA. What it permits (RFC 5280,
// section 4.2.1.10) and its extended key usages (4.2.1.12, which verifiers
// apply to all below) keep each CA to its role.
func authorityTemplate(kind Kind, cluster string, now time.Time) (*x509.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: cluster + " " + string(kind) + " CA", Organization: []string{"sallyport"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	switch kind {
	case User:
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		t.PermittedDNSDomainsCritical = true
		t.PermittedURIDomains = []string{cluster}
		t.ExcludedIPRanges = everyAddress()
	case Host:
		t.KeyUsage |= x509.KeyUsageDigitalSignature // package signed
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
		t.PermittedDNSDomainsCritical = true
		t.PermittedURIDomains = []string{cluster}
		t.PermittedDNSDomains = []string{cluster}
	case Database:
		// Databases stand under names and addresses of their own. None of
		// their certificates has a URI, and so none can name an identity. Not
		// critical: some databases' TLS libraries do not know constraints.
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
		t.PermittedURIDomains = []string{"no-identities.invalid"}
	default:
		return nil, fmt.Errorf("no CA of kind %q", kind)
	}
	return t, nil
}

func everyAddress() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}

// leafTemplate has what all certificates for holders have in common.
func (k *Keys) leafTemplate(cn string, notAfter time.Time, uses ...x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: cn},
		NotBefore:             k.now().Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           uses,
		BasicConstraintsValid: true,
	}
}

// sign signs with the newest key of the CA.
func (k *Keys) sign(kind Kind, tmpl *x509.Certificate, pub any) ([]byte, error) {
	a := k.all[kind][0]
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("the %s CA ends at %s", kind, a.cert.NotAfter.Format(time.RFC3339))
	}
	return x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
}

// serial has 128 random bits (CA/Browser baseline requirements 7.1 ask for 64),
// and is never zero (RFC 5280, section 4.1.2.2).
func serial() *big.Int {
	var b [16]byte
	for {
		rand.Read(b[:])
		if n := new(big.Int).SetBytes(b[:]); n.Sign() > 0 {
			return n
		}
	}
}

// sshSerial has the 64 bits that PROTOCOL.certkeys allows.
func sshSerial() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:])
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}
