package ca

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

type leaf struct {
	ca       Kind
	cert     *x509.Certificate
	kind     sallyport.IdentityKind // of those with identity
	identity bool
	client   bool
	server   bool
}

// leaves issues one certificate of each sort.
func leaves(t *testing.T, k *Keys) map[string]leaf {
	t.Helper()
	_, pub := tlsKey(t)
	out := make(map[string]leaf)
	add := func(name string, l leaf, c Certificates, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		l.cert = parse(t, c.X509)
		l.identity = l.kind != ""
		out[name] = l
	}
	id := alice()
	id.PinnedAddr = ""
	c, err := k.IssueUser(UserRequest{Identity: id, TLSKey: pub, TTL: time.Hour})
	add("user", leaf{ca: User, kind: sallyport.KindUser, client: true}, c, err)
	for _, kind := range []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway, sallyport.KindAuth} {
		r := HostRequest{Kind: kind, ID: hostID, TLSKey: pub}
		if kind == sallyport.KindGateway {
			r.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
		c, err := k.IssueHost(r)
		add(string(kind), leaf{ca: Host, kind: kind, client: true, server: true}, c, err)
	}
	c, err = k.IssueResource(pub, "orders.db."+cluster)
	add("resource", leaf{ca: Host, server: true}, c, err)
	c, err = k.IssueDatabaseClient(pub, "app")
	add("database client", leaf{ca: Database, client: true}, c, err)
	c, err = k.IssueDatabaseServer(DatabaseServerRequest{TLSKey: pub, Names: []string{"localhost"}})
	add("database server", leaf{ca: Database, server: true}, c, err)
	return out
}

// TestA67_RoleSeparation is the full matrix: each sort of certificate against
// each CA, use, kind of holder and cluster. Only what is meant passes.
func TestA67_RoleSeparation(t *testing.T) {
	k := openKeys(t)
	other := openKeys(t) // another cluster's CAs, same name: a forger's
	kinds := []sallyport.IdentityKind{sallyport.KindUser, sallyport.KindAgent, sallyport.KindGateway, sallyport.KindAuth}
	for name, l := range leaves(t, k) {
		for _, ca := range Kinds() {
			for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageCodeSigning} {
				_, err := l.cert.Verify(x509.VerifyOptions{Roots: k.Pool(ca), KeyUsages: []x509.ExtKeyUsage{use}})
				want := ca == l.ca && (use == x509.ExtKeyUsageClientAuth && l.client || use == x509.ExtKeyUsageServerAuth && l.server)
				if (err == nil) != want {
					t.Errorf("%s by the %s CA for use %v: %v", name, ca, use, err)
				}
				if _, err := l.cert.Verify(x509.VerifyOptions{Roots: other.Pool(ca), KeyUsages: []x509.ExtKeyUsage{use}}); err == nil {
					t.Errorf("%s by the %s CA of others", name, ca)
				}
				for _, kind := range kinds {
					for _, c := range []string{cluster, "other.example.com"} {
						_, err := identity.VerifyPeer([]*x509.Certificate{l.cert}, identity.Want{Roots: k.Pool(ca), Cluster: c,
							Kinds: []sallyport.IdentityKind{kind}, Usage: use, Now: time.Now()})
						if wantID := want && l.identity && kind == l.kind && c == cluster; (err == nil) != wantID {
							t.Errorf("%s as %s of %s by the %s CA for use %v: %v", name, kind, c, ca, use, err)
						}
					}
				}
			}
		}
	}
}

// TestA67_WrongKeySigns lets each CA's key sign what belongs to another: even
// a process that mixes them up, or a thief of one of them, makes nothing that
// passes elsewhere.
func TestA67_WrongKeySigns(t *testing.T) {
	k := openKeys(t)
	leafKey, _ := tlsKey(t)
	for name, l := range leaves(t, k) {
		for _, ca := range Kinds() {
			a := k.all[ca][0]
			tmpl := *l.cert
			der, err := x509.CreateCertificate(rand.Reader, &tmpl, a.cert, leafKey.Public(), a.key)
			if err != nil {
				t.Fatal(err)
			}
			c := parse(t, der)
			_, err = c.Verify(x509.VerifyOptions{Roots: k.Pool(ca), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			switch {
			case ca == l.ca && err != nil:
				t.Errorf("%s signed by its own CA: %v", name, err)
			case ca == User && l.ca == Host && l.kind == "" && err == nil:
				// A DNS name under the user CA: its use must fail.
				_, err = c.Verify(x509.VerifyOptions{Roots: k.Pool(ca), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
				if err == nil {
					t.Errorf("%s: the user CA can name a server", name)
				}
			case ca == Database && l.identity && err == nil:
				t.Errorf("%s: the db CA can name an identity", name)
			}
			// No CA may sign for another cluster.
			tmpl = *l.cert
			if l.identity {
				tmpl.URIs = nil
				tmpl.URIs = append(tmpl.URIs, identity.URI(l.kind, "evil.example.com", "x"))
				if verifies(t, k, ca, &tmpl) {
					t.Errorf("%s of another cluster by the %s CA", name, ca)
				}
			}
			if ca == Host && len(l.cert.DNSNames) > 0 {
				tmpl.DNSNames = []string{"bank.example.org"}
				if verifies(t, k, ca, &tmpl) {
					t.Errorf("%s: the host CA can name other domains", name)
				}
			}
			// Nor may it have a subordinate.
			sub := *k.all[ca][0].cert
			sub.SerialNumber, sub.SubjectKeyId, sub.AuthorityKeyId = serial(), []byte("sub"), nil
			sub.Subject.CommonName = "sub"
			if subordinateWorks(t, k, ca, &sub, l.cert) {
				t.Errorf("%s by a subordinate of the %s CA", name, ca)
			}
		}
	}
}

func verifies(t *testing.T, k *Keys, ca Kind, tmpl *x509.Certificate) bool {
	t.Helper()
	key, _ := tlsKey(t)
	a := k.all[ca][0]
	tmpl.ExtraExtensions, tmpl.Extensions = nil, nil
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = parse(t, der).Verify(x509.VerifyOptions{Roots: k.Pool(ca), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

func subordinateWorks(t *testing.T, k *Keys, ca Kind, sub, tmpl *x509.Certificate) bool {
	t.Helper()
	subKey, _ := tlsKey(t)
	key, _ := tlsKey(t)
	a := k.all[ca][0]
	subDER, err := x509.CreateCertificate(rand.Reader, sub, a.cert, subKey.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	subCert := parse(t, subDER)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, subCert, key.Public(), subKey)
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	between.AddCert(subCert)
	_, err = parse(t, der).Verify(x509.VerifyOptions{Roots: k.Pool(ca), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// TestA67_SSH: user and host certificates are of two CAs and two types.
func TestA67_SSH(t *testing.T) {
	k := openKeys(t)
	_, sshLine := sshKey(t)
	user, err := k.IssueUser(UserRequest{Identity: alice(), SSHKey: sshLine, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	node, err := k.IssueNode(hostID, sshLine, []string{"db1"})
	if err != nil {
		t.Fatal(err)
	}
	byUser := func(p ssh.PublicKey) bool { return same(p, k.Authority(User).SSHKeys[0]) }
	byHost := func(p ssh.PublicKey) bool { return same(p, k.Authority(Host).SSHKeys[0]) }
	u, h := parseSSH(t, user.SSH), parseSSH(t, node)
	for _, c := range []struct {
		cert       *ssh.Certificate
		user, host bool
	}{{u, true, false}, {h, false, true}} {
		if got := byUser(c.cert.SignatureKey) && c.cert.CertType == ssh.UserCert; got != c.user {
			t.Errorf("%s: user %v", c.cert.KeyId, got)
		}
		if got := byHost(c.cert.SignatureKey) && c.cert.CertType == ssh.HostCert; got != c.host {
			t.Errorf("%s: host %v", c.cert.KeyId, got)
		}
	}
	if _, err := identity.FromSSH(h); err == nil {
		t.Error("a host certificate names a user")
	}
	checker := ssh.CertChecker{IsHostAuthority: func(p ssh.PublicKey, _ string) bool { return byHost(p) }}
	for _, name := range []string{hostID, "db1", "db1." + cluster, "db1.node." + cluster} {
		if err := checker.CheckHostKey(fmt.Sprintf("%s:22", name), nil, h); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"db2", cluster, "alice"} {
		if err := checker.CheckHostKey(fmt.Sprintf("%s:22", name), nil, h); err == nil {
			t.Errorf("good for %s", name)
		}
	}
	if err := checker.CheckHostKey("alice:22", nil, u); err == nil {
		t.Error("a user certificate is good for a host")
	}
}

func same(a, b ssh.PublicKey) bool { return string(a.Marshal()) == string(b.Marshal()) }
