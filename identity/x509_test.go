package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// sign makes a self-signed certificate: FromX509 is given verified ones and
// does not look at the signature.
func sign(t *testing.T, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := alice()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(77),
		Subject:      pkix.Name{CommonName: id.Name},
		URIs:         []*url.URL{URI(id.Kind, id.Cluster, id.Name)},
		NotBefore:    now, NotAfter: now.Add(time.Hour),
		ExtraExtensions: []pkix.Extension{extension(t, id)},
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func extension(t *testing.T, id sallyport.Identity) pkix.Extension {
	t.Helper()
	ext, err := Extension(id)
	if err != nil {
		t.Fatal(err)
	}
	return ext
}

func TestFromX509(t *testing.T) {
	cert := sign(t, nil)
	got, err := FromX509(cert)
	if err != nil {
		t.Fatal(err)
	}
	want := alice()
	want.Serial, want.NotBefore, want.NotAfter = "77", now, now.Add(time.Hour)
	want.Fingerprint = got.Fingerprint
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(got.Fingerprint) != 64 {
		t.Errorf("fingerprint %q", got.Fingerprint)
	}
}

func TestFromX509Host(t *testing.T) {
	cert := sign(t, func(c *x509.Certificate) {
		c.Subject.CommonName = "something else"
		c.URIs = []*url.URL{URI(sallyport.KindAgent, "localhost", "uuid-1")}
		c.DNSNames = []string{"orders.db.localhost"}
		c.ExtraExtensions = nil
	})
	id, err := FromX509(cert)
	if err != nil {
		t.Fatal(err)
	}
	if id.Kind != sallyport.KindAgent || id.Name != "uuid-1" || id.Cluster != "localhost" || id.Roles != nil {
		t.Errorf("got %+v", id)
	}
}

func TestFromX509Refuses(t *testing.T) {
	other := func(change func(*sallyport.Identity)) pkix.Extension {
		id := alice()
		change(&id)
		return extension(t, id)
	}
	tests := map[string]func(*x509.Certificate){
		"no URI":         func(c *x509.Certificate) { c.URIs = nil },
		"two URIs":       func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"not SPIFFE":     func(c *x509.Certificate) { c.URIs[0] = &url.URL{Scheme: "https", Host: "x.test", Path: "/user/a"} },
		"no extension":   func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"common name":    func(c *x509.Certificate) { c.Subject.CommonName = "root" },
		"no common name": func(c *x509.Certificate) { c.Subject.CommonName = "" },
		"host name":      func(c *x509.Certificate) { c.DNSNames = []string{"orders.db.gw.example.com"} },
		"authority":      func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
		"A14_cluster":    func(c *x509.Certificate) { c.URIs[0] = URI(sallyport.KindUser, "other", alice().Name) },
		"other kind":     func(c *x509.Certificate) { c.URIs[0] = URI(sallyport.KindAgent, alice().Cluster, alice().Name) },
		"other name": func(c *x509.Certificate) {
			c.ExtraExtensions[0] = other(func(id *sallyport.Identity) { id.Name = "eve" })
		},
		"not DER":         func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{1, 2, 3} },
		"bytes after DER": func(c *x509.Certificate) { c.ExtraExtensions[0].Value = append(c.ExtraExtensions[0].Value, 0) },
		"critical field": func(c *x509.Certificate) {
			b, _ := encode(alice())
			c.ExtraExtensions[0].Value, _ = asn1.Marshal(appendString(b, firstCritical, "x"))
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			if id, err := FromX509(sign(t, change)); err == nil {
				t.Errorf("taken as %+v", id)
			}
		})
	}
}
