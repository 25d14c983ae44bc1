package database

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/database/dbtest"
)

// below is a CA that a signed.
func below(a *dbtest.Authority, notAfter time.Time) *dbtest.Authority {
	b := &dbtest.Authority{Key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "between"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	b.Cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, a.Cert, b.Key.Public(), a.Key))))
	return b
}

// TestCheckedServer: a server that was checked is trusted without its chain,
// and only while name, CAs and certificate are the same.
func TestCheckedServer(t *testing.T) {
	between := below(dbtest.DBCA, time.Now().Add(time.Hour))
	leafOf := func(a *dbtest.Authority, name string) *x509.Certificate {
		return must(x509.ParseCertificate(a.Pair("server", name).Certificate[0]))
	}
	leaf := leafOf(between, "db.internal")
	again := x509.NewCertPool()
	again.AddCert(must(x509.ParseCertificate(dbtest.DBCA.Cert.Raw)))
	both := again.Clone()
	both.AddCert(dbtest.UserCA.Cert)
	var s Memory
	for _, step := range []struct {
		name  string
		chain []*x509.Certificate
		host  string
		pools []*x509.CertPool
		want  bool
	}{
		{"nothing", nil, "db.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}, false},
		{"the leaf alone", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}, false},
		{"with its chain", []*x509.Certificate{leaf, between.Cert}, "db.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}, true},
		{"checked before", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}, true},
		{"the same CA, read again", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{again, nil}, true},
		{"another name", []*x509.Certificate{leaf, between.Cert}, "other.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}, false},
		{"any name", []*x509.Certificate{leaf}, "", []*x509.CertPool{dbtest.DBCA.Pool, nil}, false},
		{"a CA more", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{both, nil}, false},
		{"another CA", []*x509.Certificate{leaf, between.Cert}, "db.internal", []*x509.CertPool{dbtest.HostCA.Pool, nil}, false},
		{"no CA", []*x509.Certificate{leaf, between.Cert}, "db.internal", []*x509.CertPool{nil, nil}, false},
		{"a certificate of another CA", []*x509.Certificate{leafOf(dbtest.HostCA, "db.internal")}, "db.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}, false},
		{"another certificate", []*x509.Certificate{leafOf(dbtest.DBCA, "db.internal")}, "db.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}, true},
		{"the first, its chain forgotten", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}, false},
	} {
		if err := s.trusts(step.chain, step.host, step.pools); (err == nil) != step.want {
			t.Errorf("%s: %v", step.name, err)
		}
	}
}

// TestCheckedForATime: what was checked holds as long as all of its path.
func TestCheckedForATime(t *testing.T) {
	now := time.Now()
	from, to := now.Add(-time.Minute), now.Add(time.Minute)
	wide := &x509.Certificate{Raw: []byte("wide"), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	narrow := &x509.Certificate{Raw: []byte("narrow"), NotBefore: from, NotAfter: to}
	for name, path := range map[string][]*x509.Certificate{"the leaf": {narrow, wide}, "what is above it": {wide, narrow}} {
		var c checked
		c.keep(path, "db", nil)
		for _, row := range []struct {
			at   time.Time
			want bool
		}{{now, true}, {from, true}, {to, true}, {from.Add(-1), false}, {to.Add(1), false}} {
			if got := c.holds(path[0], "db", nil, row.at); got != row.want {
				t.Errorf("%s ends: %v at %v", name, got, row.at.Sub(now))
			}
		}
	}
}

func BenchmarkCheckedServer(b *testing.B) {
	chain := []*x509.Certificate{must(x509.ParseCertificate(dbtest.DBCA.Pair("server", "db.internal").Certificate[0]))}
	for _, name := range []string{"new", "checked"} {
		b.Run(name, func(b *testing.B) {
			var s Memory
			b.ReportAllocs()
			for b.Loop() {
				if name == "new" {
					s.checked.last.Store(nil)
				}
				if err := s.trusts(chain, "db.internal", []*x509.CertPool{dbtest.DBCA.Pool, nil}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
