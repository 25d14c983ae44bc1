package ca

import (
	"crypto/x509"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// DatabaseClientTTL is long enough that an agent's cached certificate,
	// renewed at half of it, outlives the longest time without auth.
	DatabaseClientTTL = 24 * time.Hour

	// DatabaseServerTTL is the default life of a database server's certificate.
	DatabaseServerTTL    = 90 * 24 * time.Hour
	maxDatabaseServerTTL = 3 * 365 * 24 * time.Hour
)

// IssueDatabaseClient issues what an agent logs in to a database with: the
// database user as common name and client use only.
func (k *Keys) IssueDatabaseClient(tlsKey []byte, dbUser string) (Certificates, error) {
	if !validDatabaseUser(dbUser) {
		return Certificates{}, refused("database user cannot stand in a certificate")
	}
	pub, err := ParseTLSKey(tlsKey)
	if err != nil {
		return Certificates{}, err
	}
	out := Certificates{NotAfter: k.now().Add(DatabaseClientTTL).Truncate(time.Second)}
	tmpl := k.leafTemplate(dbUser, out.NotAfter, x509.ExtKeyUsageClientAuth)
	out.X509, err = k.sign(Database, tmpl, pub)
	return out, err
}

// validDatabaseUser takes what a common name can hold (RFC 5280,
// ub-common-name 64 characters; PostgreSQL's names have 63 bytes). A NUL or a
// line break could end the name early for another reader.
func validDatabaseUser(s string) bool {
	return s != "" && utf8.ValidString(s) && utf8.RuneCountInString(s) <= 64 && !strings.ContainsFunc(s, unicode.IsControl)
}

// DatabaseServerRequest asks for the certificate of a database server.
type DatabaseServerRequest struct {
	TLSKey    []byte // PKIX DER
	Names     []string
	Addresses []netip.Addr
	TTL       time.Duration // default DatabaseServerTTL
}

// IssueDatabaseServer issues what a database shows to agents.
func (k *Keys) IssueDatabaseServer(r DatabaseServerRequest) (Certificates, error) {
	if r.TTL == 0 {
		r.TTL = DatabaseServerTTL
	}
	if n := len(r.Names) + len(r.Addresses); n == 0 || n > maxNames {
		return Certificates{}, refused("a database server's certificate needs 1 to 64 names")
	}
	if r.TTL < 0 || r.TTL > maxDatabaseServerTTL {
		return Certificates{}, refused("certificate for " + r.TTL.String() + ": at most " + maxDatabaseServerTTL.String())
	}
	for _, name := range r.Names {
		if !validDNSName(name) {
			return Certificates{}, refused("a database server's name is not a DNS name")
		}
	}
	pub, err := ParseTLSKey(r.TLSKey)
	if err != nil {
		return Certificates{}, err
	}
	out := Certificates{NotAfter: k.now().Add(r.TTL).Truncate(time.Second)}
	tmpl := k.leafTemplate("", out.NotAfter, x509.ExtKeyUsageServerAuth)
	if len(r.Names) > 0 {
		tmpl.Subject.CommonName = commonName(r.Names[0])
	}
	tmpl.DNSNames, tmpl.IPAddresses = r.Names, addresses(r.Addresses)
	out.X509, err = k.sign(Database, tmpl, pub)
	return out, err
}

// validDNSName takes host names in any case, with "_" as databases' names have
// it, and a wildcard as the whole first label.
func validDNSName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	s = strings.TrimPrefix(s, "*.")
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i] | 0x20
			if (c < 'a' || c > 'z') && (label[i] < '0' || label[i] > '9') && label[i] != '-' && label[i] != '_' {
				return false
			}
		}
	}
	return true
}

// commonName leaves out what the field cannot hold (RFC 5280, ub-common-name).
func commonName(s string) string {
	if len(s) > 64 {
		return ""
	}
	return s
}
