package ca

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

func TestIssueUser(t *testing.T) {
	k := openKeys(t)
	_, tlsPub := tlsKey(t)
	sshPub, sshLine := sshKey(t)
	before := time.Now()
	got, err := k.IssueUser(UserRequest{Identity: alice(), TLSKey: tlsPub, SSHKey: sshLine, TTL: time.Hour,
		Permit: Permit{PTY: true, PortForwarding: true}})
	after := time.Now()
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, got.X509)
	id, err := identity.VerifyPeer([]*x509.Certificate{cert}, identity.Want{Roots: k.Pool(User), Cluster: cluster,
		Kinds: []sallyport.IdentityKind{sallyport.KindUser}, Usage: x509.ExtKeyUsageClientAuth, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	facts := cmpopts.IgnoreFields(sallyport.Identity{}, "Serial", "Fingerprint", "NotBefore", "NotAfter")
	if d := cmp.Diff(alice(), id, facts); d != "" {
		t.Errorf("X.509: %s", d)
	}
	if !cert.NotAfter.Equal(got.NotAfter) || got.NotAfter.After(after.Add(time.Hour+time.Second)) || got.NotAfter.Before(before.Add(time.Hour-time.Second)) {
		t.Errorf("ends at %v, told %v", cert.NotAfter, got.NotAfter)
	}
	if least, most := before.Sub(cert.NotBefore), after.Sub(cert.NotBefore); least > 62*time.Second || most < 59*time.Second {
		t.Errorf("begins %v to %v ago", least, most)
	}
	if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(cert.DNSNames)+len(cert.IPAddresses) > 0 || cert.IsCA {
		t.Errorf("uses %v, names %v", cert.ExtKeyUsage, cert.DNSNames)
	}

	c := parseSSH(t, got.SSH)
	sid, err := identity.FromSSH(c)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(alice(), sid, facts); d != "" {
		t.Errorf("SSH: %s", d)
	}
	checker := ssh.CertChecker{SupportedCriticalOptions: []string{"source-address"},
		IsUserAuthority: func(a ssh.PublicKey) bool {
			return string(a.Marshal()) == string(k.Authority(User).SSHKeys[0].Marshal())
		}}
	if err := checker.CheckCert("alice", c); err != nil {
		t.Error(err)
	}
	if err := checker.CheckCert("bob", c); err == nil {
		t.Error("good for another login")
	}
	delete(c.Permissions.Extensions, identity.SSHExtensionName)
	want := ssh.Permissions{CriticalOptions: map[string]string{"source-address": "192.0.2.1/32"},
		Extensions: map[string]string{"permit-pty": "", "permit-port-forwarding": ""}}
	if d := cmp.Diff(want, c.Permissions, cmpopts.IgnoreFields(ssh.Permissions{}, "ExtraData")); d != "" {
		t.Error(d)
	}
	if string(c.Key.Marshal()) != string(sshPub.Marshal()) || c.Serial == 0 || c.KeyId != "alice" {
		t.Errorf("serial %d, key id %q", c.Serial, c.KeyId)
	}
}

func TestIssueUserLimits(t *testing.T) {
	k := openKeys(t)
	_, tlsPub := tlsKey(t)
	_, sshLine := sshKey(t)
	ask := func(change func(r *UserRequest)) UserRequest {
		r := UserRequest{Identity: alice(), TLSKey: tlsPub, SSHKey: sshLine, TTL: time.Hour}
		change(&r)
		return r
	}
	for name, r := range map[string]UserRequest{
		"A14 another cluster":     ask(func(r *UserRequest) { r.Identity.Cluster = "evil.example.com" }),
		"A14 cluster below":       ask(func(r *UserRequest) { r.Identity.Cluster = "a." + cluster }),
		"a host":                  ask(func(r *UserRequest) { r.Identity.Kind = sallyport.KindAgent }),
		"nobody":                  ask(func(r *UserRequest) { r.Identity = sallyport.Identity{} }),
		"no name":                 ask(func(r *UserRequest) { r.Identity.Name = "" }),
		"name with a slash":       ask(func(r *UserRequest) { r.Identity.Name = "a/b" }),
		"13 hours":                ask(func(r *UserRequest) { r.TTL = MaxUserTTL + 1 }),
		"no time":                 ask(func(r *UserRequest) { r.TTL = 0 }),
		"ended already":           ask(func(r *UserRequest) { r.Identity.NotAfter = time.Now().Add(-time.Second) }),
		"no key":                  ask(func(r *UserRequest) { r.TLSKey, r.SSHKey = nil, nil }),
		"garbage for a TLS key":   ask(func(r *UserRequest) { r.TLSKey = []byte("x") }),
		"garbage for an SSH key":  ask(func(r *UserRequest) { r.SSHKey = []byte("x") }),
		"principal with comma":    ask(func(r *UserRequest) { r.Identity.Principals = []string{"a,root"} }),
		"principal that matches":  ask(func(r *UserRequest) { r.Identity.Principals = []string{"*"} }),
		"empty principal":         ask(func(r *UserRequest) { r.Identity.Principals = []string{""} }),
		"web by SSH":              ask(func(r *UserRequest) { r.Identity.Usage = sallyport.UsageWeb }),
		"web without a gateway":   ask(func(r *UserRequest) { r.Identity.Usage, r.SSHKey, r.TTL = sallyport.UsageWeb, nil, time.Minute }),
		"unknown usage":           ask(func(r *UserRequest) { r.Identity.Usage, r.SSHKey = "any", nil }),
		"pinned to a network":     ask(func(r *UserRequest) { r.Identity.PinnedAddr = "10.0.0.0/8" }),
		"role with a line break":  ask(func(r *UserRequest) { r.Identity.Roles = []string{"a\nb"} }),
		"A27 very long trait":     ask(func(r *UserRequest) { r.Identity.Traits = map[string][]string{"t": {strings.Repeat("x", 5000)}} }),
		"A27 very many roles":     ask(func(r *UserRequest) { r.Identity.Roles = slices.Repeat([]string{"r"}, 2000) }),
		"A27 very many resources": ask(func(r *UserRequest) { r.Identity.AllowedResources = slices.Repeat([]string{"/c/node/x"}, 2000) }),
	} {
		if got, err := k.IssueUser(r); !errors.Is(err, sallyport.ErrInvalid) || got.X509 != nil || got.SSH != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	r := ask(func(r *UserRequest) { r.Identity.Principals = nil })
	got, err := k.IssueUser(r)
	if err != nil || got.SSH != nil || got.X509 == nil {
		t.Errorf("without principals: SSH certificate %q, %v", got.SSH, err)
	}
	end := time.Now().Add(time.Minute).Truncate(time.Second)
	got, err = k.IssueUser(ask(func(r *UserRequest) { r.Identity.NotAfter = end }))
	if err != nil || !got.NotAfter.Equal(end) || !parse(t, got.X509).NotAfter.Equal(end) || parseSSH(t, got.SSH).ValidBefore != uint64(end.Unix()) {
		t.Errorf("bounded by the identity: ends %v, %v", got.NotAfter, err)
	}
	web := ask(func(r *UserRequest) {
		r.Identity.Usage, r.Identity.BoundTo, r.SSHKey = sallyport.UsageWeb, "spiffe://"+cluster+"/gateway/"+hostID, nil
		r.TTL = MaxWebTTL
	})
	if _, err := k.IssueUser(web); err != nil {
		t.Errorf("web: %v", err)
	}
	web.TTL++
	if _, err := k.IssueUser(web); err == nil {
		t.Error("web for longer than ten minutes")
	}
}

func TestPublicKeys(t *testing.T) {
	ec := func(c elliptic.Curve) any {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	modulus := func(bits int) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return n.Add(n, big.NewInt(12345))
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		pub  any
		ok   bool
	}{
		{"P-256", ec(elliptic.P256()), true},
		{"P-384", ec(elliptic.P384()), true},
		{"P-521", ec(elliptic.P521()), false},
		{"Ed25519", ed, true},
		{"RSA 2048", &rsa.PublicKey{N: modulus(2048), E: 65537}, true},
		{"RSA 4096", &rsa.PublicKey{N: modulus(4096), E: 65537}, true},
		{"RSA 1024", &rsa.PublicKey{N: modulus(1024), E: 65537}, false},
		{"RSA 2047", &rsa.PublicKey{N: modulus(2047), E: 65537}, false},
		{"RSA 4097", &rsa.PublicKey{N: modulus(4097), E: 65537}, false},
		{"RSA 8192", &rsa.PublicKey{N: modulus(8192), E: 65537}, false},
		{"RSA exponent 3", &rsa.PublicKey{N: modulus(2048), E: 3}, false},
		{"RSA exponent even", &rsa.PublicKey{N: modulus(2048), E: 65538}, false},
		{"RSA modulus even", &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537}, false},
	} {
		if _, err := ParseTLSKey(pkixDER(t, c.pub)); (err == nil) != c.ok {
			t.Errorf("TLS %s: %v", c.name, err)
		}
		if c.name == "RSA modulus even" {
			continue
		}
		key, err := ssh.NewPublicKey(c.pub)
		if err != nil {
			t.Fatal(c.name, err)
		}
		if _, err := ParseSSHKey(ssh.MarshalAuthorizedKey(key)); (err == nil) != c.ok {
			t.Errorf("SSH %s: %v", c.name, err)
		}
	}
	_, line := sshKey(t)
	cert := &ssh.Certificate{Key: mustKey(t, line), CertType: ssh.UserCert}
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]string{
		"empty":         "",
		"two keys":      string(line) + string(line),
		"options":       `command="x" ` + string(line),
		"a certificate": string(ssh.MarshalAuthorizedKey(cert)),
		"too long":      strings.TrimSpace(string(line)) + " " + strings.Repeat("x", maxSSHKey),
		"a hardware key": "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIJhA4OxmeqkHm2GW2Gm2GZ0Dyj" +
			"WqKgUSVWjlaFGjVcC5AAAABHNzaDo=",
	} {
		if _, err := ParseSSHKey([]byte(l)); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := pkixDER(t, ec(elliptic.P256()))
	for name, der := range map[string][]byte{"empty": nil, "cut": good[:50], "tail": append(slices.Clone(good), 0), "long": make([]byte, maxTLSKey+1)} {
		if _, err := ParseTLSKey(der); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mustKey(t testing.TB, line []byte) ssh.PublicKey {
	t.Helper()
	k, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// FuzzParseTLSKey: what is accepted is of an allowed kind.
func FuzzParseTLSKey(f *testing.F) {
	_, der := tlsKey(f)
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		pub, err := ParseTLSKey(der)
		if err == nil && weakness(pub) != "" {
			t.Errorf("accepted %T", pub)
		}
	})
}

// FuzzParseSSHKey: what is accepted is a plain key that is written and read the same.
func FuzzParseSSHKey(f *testing.F) {
	_, line := sshKey(f)
	f.Add(line)
	f.Add([]byte("no-pty " + string(line)))
	f.Fuzz(func(t *testing.T, line []byte) {
		pub, err := ParseSSHKey(line)
		if err != nil {
			return
		}
		again, err := ParseSSHKey(ssh.MarshalAuthorizedKey(pub))
		if err != nil || string(again.Marshal()) != string(pub.Marshal()) {
			t.Errorf("%q: %v", line, err)
		}
	})
}

// TestA66_OwnCA: random serials without repeats, only the names and uses that
// a holder has, nothing beyond its cluster, small and quickly verified.
func TestA66_OwnCA(t *testing.T) {
	seen := make(map[string]bool)
	var bits int
	for range 100_000 {
		n := serial()
		if n.Sign() <= 0 || n.BitLen() > 128 || seen[n.String()] {
			t.Fatalf("serial %v", n)
		}
		seen[n.String()] = true
		bits = max(bits, n.BitLen())
	}
	if bits != 128 {
		t.Errorf("serials have %d bits", bits)
	}
	k := openKeys(t)
	for _, a := range k.Authorities() {
		c := a.Certificates[0]
		if !c.IsCA || !c.MaxPathLenZero || c.KeyUsage&x509.KeyUsageCertSign == 0 || c.SerialNumber.BitLen() < 64 || len(c.ExtKeyUsage) == 0 {
			t.Errorf("%s CA: path length %d, usage %v", a.Kind, c.MaxPathLen, c.KeyUsage)
		}
		if a.Kind != Database && (!c.PermittedDNSDomainsCritical || !slices.Equal(c.PermittedURIDomains, []string{cluster})) {
			t.Errorf("%s CA: not constrained to the cluster: %v", a.Kind, c.PermittedURIDomains)
		}
	}
	for name, leaf := range leaves(t, k) {
		c := leaf.cert
		if c.SerialNumber.BitLen() > 128 || c.SerialNumber.BitLen() < 64 || c.IsCA || len(c.Raw) > 10<<10 {
			t.Errorf("%s: serial of %d bits, CA %v, %d bytes", name, c.SerialNumber.BitLen(), c.IsCA, len(c.Raw))
		}
		if leaf.ca != Host && leaf.ca != Database && len(c.DNSNames) > 0 {
			t.Errorf("%s: DNS names %v", name, c.DNSNames)
		}
		if (len(c.URIs) == 1) != leaf.identity {
			t.Errorf("%s: URIs %v", name, c.URIs)
		}
		if len(c.EmailAddresses) > 0 {
			t.Errorf("%s: email addresses", name)
		}
	}
}

// TestA28_OnlyOwnNames: no way leads to a certificate of the host CA for a
// name that is not the holder's.
func TestA28_OnlyOwnNames(t *testing.T) {
	k := openKeys(t)
	_, pub := tlsKey(t)
	_, sshLine := sshKey(t)
	for _, name := range []string{
		"", cluster, "node." + cluster, "a." + cluster, "*.node." + cluster, "a.b.node." + cluster, "a.other." + cluster,
		"A.node." + cluster, "a.node." + cluster + ".", "a.node.evil.example.com", "a.node.x" + cluster, ".node." + cluster,
		"a.node", "auth.node." + cluster, "a b.node." + cluster, "a\x00.node." + cluster, "-a.node." + cluster,
		"a.node." + cluster + "," + cluster, strings.Repeat("a", 64) + ".node." + cluster, "127.0.0.1",
	} {
		if _, err := k.IssueResource(pub, name); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("resource %q: %v", name, err)
		}
	}
	for _, kind := range resourceKinds() {
		name := k.ServerName(kind, "a-1")
		got, err := k.IssueResource(pub, name)
		if err != nil {
			t.Fatal(err)
		}
		c := parse(t, got.X509)
		if !slices.Equal(c.DNSNames, []string{name}) || len(c.IPAddresses)+len(c.URIs) > 0 || c.Subject.CommonName != "" ||
			!slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
			t.Errorf("%s: names %v, uses %v", name, c.DNSNames, c.ExtKeyUsage)
		}
	}
	agent, err := k.IssueHost(HostRequest{Kind: sallyport.KindAgent, ID: hostID, TLSKey: pub, SSHKey: sshLine, NodeNames: []string{"db1"}})
	if err != nil {
		t.Fatal(err)
	}
	if c := parse(t, agent.X509); len(c.DNSNames)+len(c.IPAddresses) > 0 || len(c.URIs) != 1 {
		t.Errorf("agent's certificate has names %v %v", c.DNSNames, c.URIs)
	}
	want := []string{hostID, hostID + "." + cluster, hostID + ".node." + cluster, "db1", "db1." + cluster, "db1.node." + cluster}
	c := parseSSH(t, agent.SSH)
	if d := cmp.Diff(want, c.ValidPrincipals); d != "" || c.CertType != ssh.HostCert || c.KeyId != hostID {
		t.Errorf("type %d, key id %s: %s", c.CertType, c.KeyId, d)
	}
	gw := netip.MustParseAddr("192.0.2.9")
	gateway, err := k.IssueHost(HostRequest{Kind: sallyport.KindGateway, ID: hostID, TLSKey: pub, SSHKey: sshLine, Addresses: []netip.Addr{gw}})
	if err != nil {
		t.Fatal(err)
	}
	// The jump server's: the cluster, and no name that a node could have.
	c = parseSSH(t, gateway.SSH)
	if d := cmp.Diff([]string{cluster, gw.String()}, c.ValidPrincipals); d != "" || c.CertType != ssh.HostCert || c.KeyId != hostID {
		t.Errorf("gateway: type %d, key id %s: %s", c.CertType, c.KeyId, d)
	}
	for name, r := range map[string]HostRequest{
		"a user":               {Kind: sallyport.KindUser, ID: hostID, TLSKey: pub},
		"local admin":          {Kind: sallyport.KindLocalAdmin, ID: hostID, TLSKey: pub},
		"no kind":              {ID: hostID, TLSKey: pub},
		"no id":                {Kind: sallyport.KindAgent, TLSKey: pub},
		"a name for an id":     {Kind: sallyport.KindAgent, ID: "db1", TLSKey: pub},
		"id in upper case":     {Kind: sallyport.KindAgent, ID: strings.ToUpper(hostID), TLSKey: pub},
		"id with braces":       {Kind: sallyport.KindAgent, ID: "{" + hostID + "}", TLSKey: pub},
		"agent with address":   {Kind: sallyport.KindAgent, ID: hostID, TLSKey: pub, Addresses: []netip.Addr{gw}},
		"gateway as node":      {Kind: sallyport.KindGateway, ID: hostID, TLSKey: pub, NodeNames: []string{"x"}},
		"node with reserved":   {Kind: sallyport.KindAgent, ID: hostID, TLSKey: pub, SSHKey: sshLine, NodeNames: []string{"auth"}},
		"node with dots":       {Kind: sallyport.KindAgent, ID: hostID, TLSKey: pub, SSHKey: sshLine, NodeNames: []string{"a.b"}},
		"node with wildcard":   {Kind: sallyport.KindAgent, ID: hostID, TLSKey: pub, SSHKey: sshLine, NodeNames: []string{"*"}},
		"node without a name":  {Kind: sallyport.KindAgent, ID: hostID, TLSKey: pub, SSHKey: sshLine, NodeNames: []string{""}},
		"A27 very many names":  {Kind: sallyport.KindAgent, ID: hostID, TLSKey: pub, SSHKey: sshLine, NodeNames: slices.Repeat([]string{"a"}, 1000)},
		"A27 many addresses":   {Kind: sallyport.KindGateway, ID: hostID, TLSKey: pub, Addresses: slices.Repeat([]netip.Addr{gw}, 1000)},
		"garbage for a key":    {Kind: sallyport.KindAgent, ID: hostID, TLSKey: []byte("x")},
		"garbage for SSH key":  {Kind: sallyport.KindAgent, ID: hostID, TLSKey: pub, SSHKey: []byte("x")},
		"somebody's, in quote": {Kind: sallyport.KindAgent, ID: hostID + "/../" + hostID, TLSKey: pub},
	} {
		if got, err := k.IssueHost(r); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v %v", name, got.NotAfter, err)
		}
	}
}

func TestIssueDatabase(t *testing.T) {
	k := openKeys(t)
	_, pub := tlsKey(t)
	for user, ok := range map[string]bool{"app": true, "App User": true, "ünïcode": true, strings.Repeat("a", 64): true,
		"": false, "a\x00b": false, "a\nb": false, "\xff": false, strings.Repeat("a", 65): false} {
		got, err := k.IssueDatabaseClient(pub, user)
		if (err == nil) != ok {
			t.Errorf("user %q: %v", user, err)
		}
		if err == nil && parse(t, got.X509).Subject.CommonName != user {
			t.Errorf("user %q: %v", user, parse(t, got.X509).Subject)
		}
	}
	lo := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		r  DatabaseServerRequest
		ok bool
	}{
		{DatabaseServerRequest{Names: []string{"localhost"}, Addresses: []netip.Addr{lo}}, true},
		{DatabaseServerRequest{Names: []string{"orders_1.Internal.corp", "*.db.corp"}}, true},
		{DatabaseServerRequest{Addresses: []netip.Addr{lo}}, true},
		{DatabaseServerRequest{}, false},
		{DatabaseServerRequest{Names: []string{""}}, false},
		{DatabaseServerRequest{Names: []string{"a b"}}, false},
		{DatabaseServerRequest{Names: []string{"*"}}, false},
		{DatabaseServerRequest{Names: []string{"a.*.b"}}, false},
		{DatabaseServerRequest{Names: []string{"x"}, TTL: -1}, false},
		{DatabaseServerRequest{Names: []string{"x"}, TTL: 20 * 365 * 24 * time.Hour}, false},
		{DatabaseServerRequest{Names: slices.Repeat([]string{"x"}, 65)}, false},
	} {
		c.r.TLSKey = pub
		got, err := k.IssueDatabaseServer(c.r)
		if (err == nil) != c.ok {
			t.Errorf("%v: %v", c.r.Names, err)
		}
		if err != nil {
			continue
		}
		cert := parse(t, got.X509)
		for _, name := range c.r.Names {
			if _, err := cert.Verify(x509.VerifyOptions{Roots: k.Pool(Database), DNSName: strings.Replace(name, "*", "x", 1)}); err != nil && !strings.Contains(name, "_") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestHandshake uses the certificates for what they are there for, with crypto/tls.
func TestHandshake(t *testing.T) {
	k := openKeys(t)
	serverKey, serverPub := tlsKey(t)
	userKey, userPub := tlsKey(t)
	server, err := k.IssueResource(serverPub, "orders.db."+cluster)
	if err != nil {
		t.Fatal(err)
	}
	user, err := k.IssueUser(UserRequest{Identity: alice(), TLSKey: userPub, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	client, agent := tlsPipe(t,
		&tls.Config{ServerName: "orders.db." + cluster, RootCAs: k.Pool(Host), MinVersion: tls.VersionTLS13,
			Certificates: []tls.Certificate{{Certificate: [][]byte{user.X509}, PrivateKey: userKey}}},
		&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{server.X509}, PrivateKey: serverKey}}, MinVersion: tls.VersionTLS13,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: k.Pool(User)})
	if client != nil || agent != nil {
		t.Errorf("client %v, agent %v", client, agent)
	}
}
