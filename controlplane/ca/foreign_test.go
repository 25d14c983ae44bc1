package ca

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
)

func run(t *testing.T, name string, args ...string) (string, bool) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		peers.Missing(t, name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err == nil
}

func pemFile(t *testing.T, certs ...*x509.Certificate) string {
	t.Helper()
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	path := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestA67_OpenSSL: what stock clients and databases verify with agrees with us
// about CA, use and name.
func TestA67_OpenSSL(t *testing.T) {
	k := openKeys(t)
	all := leaves(t, k)
	cas := make(map[Kind]string)
	for _, kind := range Kinds() {
		cas[kind] = pemFile(t, k.Authority(kind).Certificates...)
	}
	for name, l := range all {
		file := pemFile(t, l.cert)
		for kind, ca := range cas {
			for purpose, good := range map[string]bool{"sslclient": l.client, "sslserver": l.server} {
				out, ok := run(t, "openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", ca, "-purpose", purpose, file)
				if want := kind == l.ca && good; ok != want {
					t.Errorf("%s by the %s CA for %s: %v\n%s", name, kind, purpose, ok, out)
				}
			}
		}
	}
	for _, c := range []struct {
		leaf, flag, name string
		want             bool
	}{
		{"resource", "-verify_hostname", "orders.db." + cluster, true},
		{"resource", "-verify_hostname", "other.db." + cluster, false},
		{"resource", "-verify_hostname", cluster, false},
		{"gateway", "-verify_hostname", cluster, true},
		{"gateway", "-verify_hostname", "grafana." + cluster, true},
		{"gateway", "-verify_hostname", "orders.db." + cluster, false},
		{"gateway", "-verify_ip", "127.0.0.1", true},
		{"gateway", "-verify_ip", "127.0.0.2", false},
	} {
		out, ok := run(t, "openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", cas[Host], "-purpose", "sslserver",
			c.flag, c.name, pemFile(t, all[c.leaf].cert))
		if ok != c.want {
			t.Errorf("%s for %s: %v\n%s", c.leaf, c.name, ok, out)
		}
	}
}

// TestSSHKeygen: OpenSSH reads what we issue.
func TestSSHKeygen(t *testing.T) {
	k := openKeys(t)
	_, line := sshKey(t)
	user, err := k.IssueUser(UserRequest{Identity: alice(), SSHKey: line, TTL: time.Hour, Permit: Permit{PTY: true}})
	if err != nil {
		t.Fatal(err)
	}
	node, err := k.IssueNode(hostID, line, []string{"db1"})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		cert []byte
		want []string
	}{
		"user": {user.SSH, []string{"user certificate", `Key ID: "alice"`, "root", "source-address 192.0.2.1/32", "permit-pty", "identity@sallyport"}},
		"host": {node, []string{"host certificate", hostID, "db1.node." + cluster}},
	} {
		path := filepath.Join(t.TempDir(), "key-cert.pub")
		if err := os.WriteFile(path, c.cert, 0o600); err != nil {
			t.Fatal(err)
		}
		out, ok := run(t, "ssh-keygen", "-L", "-f", path)
		for _, w := range c.want {
			if !ok || !strings.Contains(out, w) {
				t.Errorf("%s: %q is missing in\n%s", what, w, out)
			}
		}
	}
	if _, err := k.IssueResource(nil, "orders.db."+cluster); err == nil {
		t.Error("issued without a key")
	}
}
