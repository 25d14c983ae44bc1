package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net/url"
	"os"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// who is what a login is made of.
type who struct {
	user, proxy, cluster string
	from, until          time.Time
}

func alice() who {
	now := time.Now().Truncate(time.Second)
	return who{"alice", "gw.test:8443", "gw.test", now.Add(-time.Minute), now.Add(12*time.Hour - 30*time.Second)}
}

// answer is what auth answers to a login, by throw-away CAs.
func (w who) answer(k keyPair) (*sallyportv1.LoginResponse, error) {
	id := sallyport.Identity{
		Kind: sallyport.KindUser, Name: w.user, Cluster: w.cluster, Roles: []string{"access", "dba"},
		Principals: []string{"root", "ubuntu"}, Traits: map[string][]string{"db_users": {"reader"}, "logins": {"root", "ubuntu"}},
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: w.from, NotAfter: w.until.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	ext, err := identity.Extension(id)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: w.user}, NotBefore: w.from, NotAfter: w.until,
		URIs: []*url.URL{identity.URI(sallyport.KindUser, w.cluster, w.user)}, ExtraExtensions: []pkix.Extension{ext}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, k.tls.Public(), caKey)
	if err != nil {
		return nil, err
	}
	line, hostCA, err := w.sshCertificate(k, id)
	if err != nil {
		return nil, err
	}
	return &sallyportv1.LoginResponse{User: w.user, TlsCertificate: der, SshCertificate: line, Expires: timestamppb.New(w.until),
		Authorities: []*sallyportv1.Authority{{Kind: "host", Certificates: [][]byte{caDER}, SshPublicKeys: [][]byte{hostCA}}}}, nil
}

func (w who) sshCertificate(k keyPair, id sallyport.Identity) (line, authority []byte, err error) {
	_, caKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.NewSignerFromKey(caKey)
	if err != nil {
		return nil, nil, err
	}
	pub, err := ssh.NewPublicKey(k.ssh.Public())
	if err != nil {
		return nil, nil, err
	}
	value, err := identity.SSHValue(id)
	if err != nil {
		return nil, nil, err
	}
	cert := &ssh.Certificate{Key: pub, Serial: 3, CertType: ssh.UserCert, KeyId: w.user, ValidPrincipals: id.Principals,
		ValidAfter: uint64(w.from.Unix()), ValidBefore: uint64(w.until.Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": "", identity.SSHExtensionName: value}}}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		return nil, nil, err
	}
	return ssh.MarshalAuthorizedKey(cert), signer.PublicKey().Marshal(), nil
}

// login does what "sally login" does with auth's answer.
func (p *program) login(w who) (profile.Profile, error) {
	f := p.profileOf(w)
	k, err := newKeyPair()
	if err != nil {
		return f, err
	}
	m, err := w.answer(k)
	if err != nil {
		return f, err
	}
	return f, p.saveLogin(f, k, m)
}

func (p *program) profileOf(w who) profile.Profile {
	return profile.Profile{WebProxyAddr: w.proxy, SSHProxyAddr: w.proxy, User: w.user, Cluster: w.cluster, TLSRouting: true, AuthConnector: "local"}
}

// newProgram is a program with a home of its own and nobody's agent.
func newProgram(t *testing.T) *program {
	t.Helper()
	t.Setenv("SSH_AUTH_SOCK", "")
	t.Setenv("HOME", t.TempDir())
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	return &program{globals: globals{AddKeysToAgent: "auto"}, ctx: context.Background(), stdin: null, stdout: io.Discard, stderr: io.Discard, home: profile.Dir(t.TempDir()), self: "/usr/bin/sally"}
}

// TestLoginStays: a login that is good already becomes the current one, for the
// cluster that it is for.
func TestLoginStays(t *testing.T) {
	p := newProgram(t)
	other := alice()
	other.proxy, other.cluster = "other.test:443", "other.test"
	for _, w := range []who{other, alice()} {
		if _, err := p.login(w); err != nil {
			t.Fatal(err)
		}
	}
	p.ProxyAddr = "other.test"
	if _, _, err := (&loginCmd{ClusterName: "gw.test"}).target(p); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("a cluster that is not there: %v", err)
	}
	if f, _ := p.home.Current(); f.Name() != "gw.test" {
		t.Errorf("now at %s", f.Name())
	}
	if _, done, err := (&loginCmd{ClusterName: "other.test"}).target(p); err != nil || !done {
		t.Fatal(done, err)
	}
	if f, _ := p.home.Current(); f.Name() != "other.test" {
		t.Errorf("still at %s", f.Name())
	}
}
