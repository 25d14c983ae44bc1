package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
	"github.com/sallyport/sallyport/identity"
)

const (
	cluster = "gw.example.com"
	hostID  = "0b5ad4b8-2dd6-4b7c-9d1f-3f5f2f6d2a10"
)

func openStore(t testing.TB) store.Store {
	t.Helper()
	s, err := etcd.OpenEmbedded(context.Background(), etcd.EmbeddedConfig{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := Open(context.Background(), config(t, openStore(t), keyFile(t)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func config(_ testing.TB, s store.Store, sealer Sealer) Config {
	return Config{Store: s, Sealer: sealer, Cluster: cluster}
}

func keyFile(t testing.TB) *FileKey {
	t.Helper()
	k, err := OpenKeyFile(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// tlsKey makes a key pair as a client would, and its PKIX form.
func tlsKey(t testing.TB) (crypto.Signer, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key, pkixDER(t, key.Public())
}

func pkixDER(t testing.TB, pub any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func sshKey(t testing.TB) (ssh.PublicKey, []byte) {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key, ssh.MarshalAuthorizedKey(key)
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parseSSH(t testing.TB, line []byte) *ssh.Certificate {
	t.Helper()
	pub, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := pub.(*ssh.Certificate)
	if !ok {
		t.Fatalf("%T is not a certificate", pub)
	}
	return c
}

func alice() sallyport.Identity {
	return sallyport.Identity{
		Kind: sallyport.KindUser, Name: "alice", Cluster: cluster,
		Roles: []string{"access"}, Traits: map[string][]string{"logins": {"alice"}}, Principals: []string{"alice", "root"},
		MFA: "phone", PinnedAddr: "192.0.2.1", LoginAddr: "192.0.2.1", ActiveRequests: []string{"r1"},
		AllowedResources: []string{"/" + cluster + "/node/n1"}, Generation: 3,
	}
}

func TestOpenMakesOnce(t *testing.T) {
	s, sealer := openStore(t), keyFile(t)
	const n = 4
	var all [n]*Keys
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var err error
			if all[i], err = Open(t.Context(), config(t, s, sealer)); err != nil {
				t.Errorf("open %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for i := 1; i < n; i++ {
		for _, kind := range Kinds() {
			a, b := all[0].Authority(kind), all[i].Authority(kind)
			if !a.Certificates[0].Equal(b.Certificates[0]) {
				t.Errorf("two auth processes have two %s CAs", kind)
			}
			if kind != Database && string(a.SSHKeys[0].Marshal()) != string(b.SSHKeys[0].Marshal()) {
				t.Errorf("two auth processes have two %s SSH CAs", kind)
			}
		}
	}
	if d := all[0].Authority(Database); len(d.SSHKeys) != 0 {
		t.Error("the db CA has an SSH key")
	}
}

// TestAtRest: nothing in the store opens without the key file, or elsewhere
// than where it was put.
func TestAtRest(t *testing.T) {
	s, sealer := openStore(t), keyFile(t)
	k, err := Open(t.Context(), config(t, s, sealer))
	if err != nil {
		t.Fatal(err)
	}
	items, _, err := s.List(t.Context(), "")
	if err != nil || len(items) != 4 {
		t.Fatal(len(items), err)
	}
	for _, it := range items {
		if it.Key == recordKey(tokens) {
			tokensAtRest(t, k, it.Value)
			continue
		}
		var rec record
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k.all[Kind(strings.TrimPrefix(it.Key, "ca/"))][0].key)
		if err != nil {
			t.Fatal(err)
		}
		secret := der[36:68] // RFC 5915: the scalar
		if bytes.Contains(rec.Keys[0].TLSKey, secret) || bytes.Contains(it.Value, secret) || len(rec.Keys[0].TLSKey) < len(der) {
			t.Errorf("%s holds a key in clear", it.Key)
		}
	}
	var p *sallyport.Problem
	if _, err = Open(t.Context(), config(t, s, keyFile(t))); !errors.As(err, &p) || !strings.Contains(p.Fact, "another key file") || p.Hint == "" {
		t.Errorf("with another key file: %v", err)
	}
	cfg := config(t, s, sealer)
	cfg.Cluster = "other.example.com"
	if _, err = Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "belongs to cluster") {
		t.Errorf("for another cluster: %v", err)
	}
	user, err := s.Get(t.Context(), "ca/user")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), store.Op{Key: "ca/host", Value: user.Value, Expect: store.Any}); err != nil {
		t.Fatal(err)
	}
	if _, err = Open(t.Context(), config(t, s, sealer)); err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("user CA's record put in place of the host CA's: %v", err)
	}
}

// tokensAtRest is the same for the keys that sign tokens.
func tokensAtRest(t *testing.T, k *Keys, value []byte) {
	t.Helper()
	var rec tokenRecord
	if err := json.Unmarshal(value, &rec); err != nil || len(rec.Keys) != 1 {
		t.Fatal(rec, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.tokens[0].key)
	if err != nil {
		t.Fatal(err)
	}
	secret := der[36:68]
	if bytes.Contains(rec.Keys[0], secret) || bytes.Contains(value, secret) || len(rec.Keys[0]) < len(der) {
		t.Error("the key for tokens is in clear")
	}
}

func TestClusterName(t *testing.T) {
	s, sealer := openStore(t), keyFile(t)
	for _, name := range []string{"", "GW.example.com", "gw.example.com.", "a/b", "a b", strings.Repeat("a", 64)} {
		cfg := config(t, s, sealer)
		cfg.Cluster = name
		if _, err := Open(t.Context(), cfg); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("cluster %q: %v", name, err)
		}
	}
	cfg := config(t, s, sealer)
	cfg.Cluster = "localhost" // the demo's
	k, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, pub := tlsKey(t)
	server, err := k.IssueHost(HostRequest{Kind: sallyport.KindGateway, ID: hostID, TLSKey: pub, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	resource, err := k.IssueResource(pub, "orders.db.localhost")
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{"localhost": server.X509, "127.0.0.1": server.X509, "grafana.localhost": server.X509, "orders.db.localhost": resource.X509} {
		if _, err := parse(t, der).Verify(x509.VerifyOptions{Roots: k.Pool(Host), DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostNames holds what hosts show against the names at which they are met. A
// gateway's certificate was not good for the applications that browsers find
// there, so browsers that knew the CA warned all the same.
func TestHostNames(t *testing.T) {
	k := openKeys(t)
	_, pub := tlsKey(t)
	certs := map[string]*x509.Certificate{}
	for _, kind := range []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway, sallyport.KindAuth} {
		r := HostRequest{Kind: kind, ID: hostID, TLSKey: pub}
		if kind != sallyport.KindAgent {
			r.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
		c, err := k.IssueHost(r)
		if err != nil {
			t.Fatal(err)
		}
		certs[string(kind)] = parse(t, c.X509)
	}
	resource, err := k.IssueResource(pub, "orders.db."+cluster)
	if err != nil {
		t.Fatal(err)
	}
	certs["resource"] = parse(t, resource.X509)
	for name, holders := range map[string][]string{
		cluster:                             {"gateway", "auth"},
		"127.0.0.1":                         {"gateway", "auth"},
		"grafana." + cluster:                {"gateway"},
		"orders.db." + cluster:              {"resource"},
		"grafana.app." + cluster:            nil,
		hostID + ".node." + cluster:         nil,
		"other." + cluster + ".example.com": nil,
	} {
		for holder, cert := range certs {
			_, err := cert.Verify(x509.VerifyOptions{Roots: k.Pool(Host), DNSName: name})
			if want := slices.Contains(holders, holder); (err == nil) != want {
				t.Errorf("%s: certificate of %s: %v", name, holder, err)
			}
		}
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	var keys [4]*FileKey
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = OpenKeyFile(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	sealed, err := keys[0].Seal("a", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if plain, err := k.Open("a", sealed); err != nil || string(plain) != "secret" {
			t.Errorf("processes that started at once have different keys: %q, %v", plain, err)
		}
	}
	if again, _ := keys[0].Seal("a", []byte("secret")); string(again) == string(sealed) {
		t.Error("equal values are sealed alike")
	}
	if _, err := keys[0].Open("b", sealed); err == nil {
		t.Error("opened under another name")
	}
	for i := range sealed {
		bad := append([]byte(nil), sealed...)
		bad[i] ^= 1
		if _, err := keys[0].Open("a", bad); err == nil {
			t.Errorf("opened with byte %d changed", i)
		}
		if _, err := keys[0].Open("a", sealed[:i]); err == nil {
			t.Errorf("opened when cut to %d", i)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyFile(path); err == nil || !strings.Contains(err.Error(), "read by others") {
		t.Errorf("key file that others can read: %v", err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyFile(path); err == nil || !strings.Contains(err.Error(), "does not hold a key") {
		t.Errorf("key file with something else: %v", err)
	}
}

func TestSign(t *testing.T) {
	k := openKeys(t)
	m, err := k.Sign(signed.Snapshot, []byte("body"))
	if err != nil {
		t.Fatal(err)
	}
	if err := signed.Verify(k.Authority(Host).Certificates, signed.Snapshot, m); err != nil {
		t.Error(err)
	}
	if "sha256:"+m.KeyId != k.Pins()[0] || k.Pins()[0] != identity.Pin(k.Authority(Host).Certificates[0]) {
		t.Errorf("key id %s, pins %v", m.KeyId, k.Pins())
	}
	for _, kind := range []Kind{User, Database} {
		if err := signed.Verify(k.Authority(kind).Certificates, signed.Snapshot, m); err == nil {
			t.Errorf("verified by the %s CA", kind)
		}
	}
	if _, err := k.Sign("other/1", nil); err == nil {
		t.Error("signed for an unknown purpose")
	}
}

func TestExpiredCA(t *testing.T) {
	k := openKeys(t)
	k.now = func() time.Time { return time.Now().Add(caLifetime - time.Hour) }
	_, pub := tlsKey(t)
	if _, err := k.IssueResource(pub, "a.tcp."+cluster); err == nil || !strings.Contains(err.Error(), "CA ends") {
		t.Errorf("certificate outlives its CA: %v", err)
	}
}
