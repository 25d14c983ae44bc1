package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// serverCredentials are what a cluster would have signed.
func serverCredentials(t *testing.T) credentials {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stub"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, server, server, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for suffix, data := range map[string][]byte{".crt": cert, ".key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), ".cas": cert} {
		if err := os.WriteFile(filepath.Join(dir, "db"+suffix), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := databaseCredentials(dir, filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestStub: a real client logs in by its certificate, and nobody without one.
func TestStub(t *testing.T) {
	c := serverCredentials(t)
	s, err := startStub(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	w := &world{databases: c}
	cfg, err := w.directly(s.addr())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "select 1").ReadAll(); err != nil {
		t.Error(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	cfg.TLSConfig.Certificates = nil
	if err := session(t.Context(), cfg); err == nil {
		t.Error("a client without a certificate logged in")
	}
}
