package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
)

func sshKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sshSign gives the certificate as it arrives: marshalled and parsed again.
func sshSign(t *testing.T, change func(*ssh.Certificate)) *ssh.Certificate {
	t.Helper()
	value, err := SSHValue(alice())
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{
		Key: sshKey(t).PublicKey(), Serial: 9, CertType: ssh.UserCert, KeyId: alice().Name,
		ValidPrincipals: []string{"root", "alice"},
		ValidAfter:      uint64(now.Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{
			CriticalOptions: map[string]string{"source-address": "192.0.2.7/32"},
			Extensions:      map[string]string{SSHExtensionName: value, "permit-pty": ""},
		},
	}
	if change != nil {
		change(cert)
	}
	if err := cert.SignCert(rand.Reader, sshKey(t)); err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePublicKey(cert.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ssh.Certificate)
}

func TestFromSSH(t *testing.T) {
	got, err := FromSSH(sshSign(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := alice()
	want.Serial, want.Fingerprint = "9", got.Fingerprint
	want.NotBefore, want.NotAfter = now.Local(), now.Add(time.Hour).Local()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(got.Fingerprint) != 64 {
		t.Errorf("fingerprint %q", got.Fingerprint)
	}
}

func TestValidPin(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	for text, want := range map[string]bool{
		"sha256:" + zeros: true, "sha256:" + strings.Repeat("aF", 32): true,
		"": false, zeros: false, "sha256:": false, "sha1:" + zeros: false, "sha256:" + zeros[1:]: false, "sha256:" + zeros[2:]: false, "sha256:" + zeros + "00": false,
		"sha256:" + zeros[1:] + "g": false, " sha256:" + zeros: false, "sha256:" + zeros + "\n": false, "sha256:" + zeros + ",sha256:" + zeros: false, "SHA256:" + zeros: false,
	} {
		if got := ValidPin(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestFromSSHPin(t *testing.T) {
	unpinned := alice()
	unpinned.PinnedAddr = ""
	value, err := SSHValue(unpinned)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, value, option, want string
	}{
		{"by the option", value, "2001:db8::9", "2001:db8::9"},
		{"by a prefix of one", value, "2001:db8::9/128", "2001:db8::9"},
		{"by neither", value, "", ""},
	}
	for _, tt := range tests {
		cert := sshSign(t, func(c *ssh.Certificate) {
			c.Extensions[SSHExtensionName] = tt.value
			c.CriticalOptions = nil
			if tt.option != "" {
				c.CriticalOptions = map[string]string{"source-address": tt.option}
			}
		})
		id, err := FromSSH(cert)
		if err != nil || id.PinnedAddr != tt.want {
			t.Errorf("%s: pinned to %q, %v; want %q", tt.name, id.PinnedAddr, err, tt.want)
		}
	}
	// The option left out: the identity still says where the user may be.
	id, err := FromSSH(sshSign(t, func(c *ssh.Certificate) { c.CriticalOptions = nil }))
	if err != nil || id.PinnedAddr != "192.0.2.7" {
		t.Errorf("pinned to %q, %v", id.PinnedAddr, err)
	}
}

func TestA84_CertificateSemantics(t *testing.T) {
	option := func(name, value string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{name: value} }
	}
	principal := func(list ...string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.ValidPrincipals = list }
	}
	hostValue, err := SSHValue(sallyport.Identity{Kind: sallyport.KindAgent, Name: alice().Name, Cluster: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*ssh.Certificate){
		"host certificate":      func(c *ssh.Certificate) { c.CertType = ssh.HostCert },
		"unknown type":          func(c *ssh.Certificate) { c.CertType = 3 },
		"no principals":         principal(),
		"empty principal":       principal("root", ""),
		"wildcard principal":    principal("*"),
		"list in a principal":   principal("root,alice"),
		"principal with space":  principal("root alice"),
		"principal with NUL":    principal("root\x00"),
		"principal with escape": principal("\x1b[2J"),
		"principal not UTF-8":   principal("\xff"),
		"principal with slash":  principal("../root"),
		"force-command":         option("force-command", "id"),
		"verify-required":       option("verify-required", ""),
		"unknown option":        option("made-up@example.com", ""),
		"unknown with address":  option("made-up@example.com", "192.0.2.7"),
		"empty source-address":  option("source-address", ""),
		"two source-addresses":  option("source-address", "192.0.2.7,192.0.2.8"),
		"wide source-address":   option("source-address", "192.0.2.0/24"),
		"other source-address":  option("source-address", "192.0.2.8"),
		"no identity":           func(c *ssh.Certificate) { delete(c.Extensions, SSHExtensionName) },
		"empty identity":        func(c *ssh.Certificate) { c.Extensions[SSHExtensionName] = "" },
		"identity of a host":    func(c *ssh.Certificate) { c.Extensions[SSHExtensionName] = hostValue },
		"other key id":          func(c *ssh.Certificate) { c.KeyId = "root" },
		"no key id":             func(c *ssh.Certificate) { c.KeyId = "" },
		"no end":                func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity },
		"beyond time":           func(c *ssh.Certificate) { c.ValidBefore = math.MaxInt64 + 1 },
		"ends before it begins": func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			if id, err := FromSSH(sshSign(t, change)); err == nil {
				t.Errorf("taken as %+v", id)
			}
		})
	}
}

// TestA01_CertificateAsKey: a certificate in place of a key (CVE-2025-49825).
func TestA01_CertificateAsKey(t *testing.T) {
	inner := sshSign(t, nil)
	for name, change := range map[string]func(*ssh.Certificate){
		"signed by a certificate": func(c *ssh.Certificate) { c.SignatureKey = inner },
		"of a certificate":        func(c *ssh.Certificate) { c.Key = inner },
		"signed by nobody":        func(c *ssh.Certificate) { c.SignatureKey = nil },
	} {
		cert := *sshSign(t, nil)
		change(&cert)
		if id, err := FromSSH(&cert); err == nil {
			t.Errorf("%s: taken as %+v", name, id)
		}
	}
}
