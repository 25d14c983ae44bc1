package signed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"google.golang.org/protobuf/proto"
)

func authority(t testing.TB, curve elliptic.Curve, isCA bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: isCA, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestVerify(t *testing.T) {
	ca, key := authority(t, elliptic.P256(), true)
	other, otherKey := authority(t, elliptic.P256(), true)
	leaf, leafKey := authority(t, elliptic.P256(), false)
	big384, key384 := authority(t, elliptic.P384(), true)
	both := []*x509.Certificate{other, ca}

	good, err := Make(ca, key, Snapshot, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := Make(other, otherKey, Snapshot, []byte("payload"))
	forged.KeyId = KeyID(ca)
	byLeaf, _ := Make(leaf, leafKey, Snapshot, []byte("payload"))
	by384, _ := Make(big384, key384, Snapshot, []byte("payload"))
	change := func(f func(m *sallyportv1.Signed)) *sallyportv1.Signed {
		m := proto.Clone(good).(*sallyportv1.Signed)
		f(m)
		return m
	}
	for _, c := range []struct {
		name   string
		cas    []*x509.Certificate
		domain Domain
		m      *sallyportv1.Signed
		want   string
	}{
		{"good", both, Snapshot, good, ""},
		{"good, only CA", both[1:], Snapshot, good, ""},
		{"for another purpose", both, Assignment, good, "wrong signature"},
		{"unknown purpose", both, "x", good, "unknown purpose"},
		{"unknown CA", both[:1], Snapshot, good, "does not have"},
		{"no CA", nil, Snapshot, good, "does not have"},
		{"nothing", both, Snapshot, nil, "does not have"},
		{"by another key under this name", both, Snapshot, forged, "wrong signature"},
		{"by a leaf", []*x509.Certificate{leaf}, Snapshot, byLeaf, "does not have"},
		{"by another curve", []*x509.Certificate{big384}, Snapshot, by384, "P-256"},
		{"payload changed", both, Snapshot, change(func(m *sallyportv1.Signed) { m.Payload[0] ^= 1 }), "wrong signature"},
		{"payload moved over the boundary", both, Snapshot, change(func(m *sallyportv1.Signed) { m.Payload = m.Payload[1:] }), "wrong signature"},
		{"signature cut", both, Snapshot, change(func(m *sallyportv1.Signed) { m.Signature = m.Signature[1:] }), "wrong signature"},
		{"no signature", both, Snapshot, change(func(m *sallyportv1.Signed) { m.Signature = nil }), "wrong signature"},
		{"signature with a tail", both, Snapshot, change(func(m *sallyportv1.Signed) { m.Signature = append(m.Signature, 0) }), "wrong signature"},
		{"huge signature", both, Snapshot, change(func(m *sallyportv1.Signed) { m.Signature = make([]byte, 1<<20) }), "too large"},
		{"no key id", both, Snapshot, change(func(m *sallyportv1.Signed) { m.KeyId = "" }), "does not have"},
		{"key id in upper case", both, Snapshot, change(func(m *sallyportv1.Signed) { m.KeyId = strings.ToUpper(m.KeyId) }), "does not have"},
	} {
		err := Verify(c.cas, c.domain, c.m)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := Make(ca, key, "other/1", nil); err == nil {
		t.Error("signed for an unknown purpose")
	}
}

// FuzzVerify: nothing but the one message that was signed verifies.
func FuzzVerify(f *testing.F) {
	ca, key := authority(f, elliptic.P256(), true)
	good, err := Make(ca, key, Assignment, []byte("payload"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.Payload, good.Signature)
	f.Add([]byte("payloae"), good.Signature)
	f.Add([]byte{}, []byte{0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00})
	f.Fuzz(func(t *testing.T, payload, sig []byte) {
		err := Verify([]*x509.Certificate{ca}, Assignment, &sallyportv1.Signed{Payload: payload, Signature: sig, KeyId: good.KeyId})
		if err == nil && string(payload) != "payload" {
			t.Errorf("%q verifies", payload)
		}
	})
}
