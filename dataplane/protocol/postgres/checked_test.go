package postgres

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync/atomic"
	"testing"
	"time"
)

// below is a CA that a signed.
func (a *authority) below(notAfter time.Time) *authority {
	b := &authority{key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "between"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	b.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, a.cert, b.key.Public(), a.key))))
	return b
}

// TestCheckedServer: a server that was checked is trusted without its chain,
// and only while name, CAs and certificate are the same.
func TestCheckedServer(t *testing.T) {
	between := dbCA.below(time.Now().Add(time.Hour))
	leafOf := func(a *authority, name string) *x509.Certificate {
		return must(x509.ParseCertificate(a.pair("server", name).Certificate[0]))
	}
	leaf := leafOf(between, "db.internal")
	again := x509.NewCertPool()
	again.AddCert(must(x509.ParseCertificate(dbCA.cert.Raw)))
	both := again.Clone()
	both.AddCert(userCA.cert)
	var s Server
	for _, step := range []struct {
		name  string
		chain []*x509.Certificate
		host  string
		pools []*x509.CertPool
		want  bool
	}{
		{"nothing", nil, "db.internal", []*x509.CertPool{dbCA.pool, nil}, false},
		{"the leaf alone", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{dbCA.pool, nil}, false},
		{"with its chain", []*x509.Certificate{leaf, between.cert}, "db.internal", []*x509.CertPool{dbCA.pool, nil}, true},
		{"checked before", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{dbCA.pool, nil}, true},
		{"the same CA, read again", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{again, nil}, true},
		{"another name", []*x509.Certificate{leaf, between.cert}, "other.internal", []*x509.CertPool{dbCA.pool, nil}, false},
		{"any name", []*x509.Certificate{leaf}, "", []*x509.CertPool{dbCA.pool, nil}, false},
		{"a CA more", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{both, nil}, false},
		{"another CA", []*x509.Certificate{leaf, between.cert}, "db.internal", []*x509.CertPool{hostCA.pool, nil}, false},
		{"no CA", []*x509.Certificate{leaf, between.cert}, "db.internal", []*x509.CertPool{nil, nil}, false},
		{"a certificate of another CA", []*x509.Certificate{leafOf(hostCA, "db.internal")}, "db.internal", []*x509.CertPool{dbCA.pool, nil}, false},
		{"another certificate", []*x509.Certificate{leafOf(dbCA, "db.internal")}, "db.internal", []*x509.CertPool{dbCA.pool, nil}, true},
		{"the first, its chain forgotten", []*x509.Certificate{leaf}, "db.internal", []*x509.CertPool{dbCA.pool, nil}, false},
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

// TestCheckedServerWithoutItsCA: when the cluster's CA is replaced, a server
// that was reached before is so no more.
func TestCheckedServerWithoutItsCA(t *testing.T) {
	var pool atomic.Pointer[x509.CertPool]
	pool.Store(dbCA.pool)
	r := newRig(t, func(r *rig) { r.server.Roots = pool.Load })
	for range 2 {
		conn, err := r.connect("alice")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close(context.Background())
		r.result()
	}
	pool.Store(newAuthority("databases").pool)
	_, err := r.connect("alice")
	wantFatal(t, err, stateUnableToConnect, "is not trusted")
}

func BenchmarkCheckedServer(b *testing.B) {
	chain := []*x509.Certificate{must(x509.ParseCertificate(dbCA.pair("server", "db.internal").Certificate[0]))}
	for _, name := range []string{"new", "checked"} {
		b.Run(name, func(b *testing.B) {
			var s Server
			b.ReportAllocs()
			for b.Loop() {
				if name == "new" {
					s.checked.last.Store(nil)
				}
				if err := s.trusts(chain, "db.internal", []*x509.CertPool{dbCA.pool, nil}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
