// Package dbtest has what the tests of all databases' protocols need: CAs, a gate
// that a test decides for, and tests that are the same for all.
package dbtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// Authority is a throw-away CA.
type Authority struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
	PEM  []byte
	Pool *x509.CertPool
}

// NewAuthority makes a CA that is valid for a day.
func NewAuthority(name string) *Authority {
	a := &Authority{Pool: x509.NewCertPool()}
	a.Key = Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der := Must(x509.CreateCertificate(rand.Reader, template, template, a.Key.Public(), a.Key))
	a.Cert = Must(x509.ParseCertificate(der))
	a.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a.Pool.AddCert(a.Cert)
	return a
}

// Issue makes a certificate for a holder, and for names when it is a server.
func (a *Authority) Issue(holder string, names ...string) (certPEM, keyPEM []byte) {
	key := Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: Must(rand.Int(rand.Reader, big.NewInt(1<<62))), Subject: pkix.Name{CommonName: holder},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der := Must(x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.Key))
	pkcs8 := Must(x509.MarshalPKCS8PrivateKey(key))
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// Pair is Issue for crypto/tls.
func (a *Authority) Pair(holder string, names ...string) tls.Certificate {
	return Must(tls.X509KeyPair(a.Issue(holder, names...)))
}

// Must is for what can only fail when the test itself is wrong.
func Must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// UserCA, HostCA and DBCA are the CAs of all tests: of our users and hosts, and of databases.
var (
	UserCA = NewAuthority("users")
	HostCA = NewAuthority("hosts")
	DBCA   = NewAuthority("databases")
)
