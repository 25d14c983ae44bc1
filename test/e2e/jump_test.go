package e2e

import (
	"bytes"
	"crypto/rand"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// jumpConfig is the configuration for a machine without sally.
func (p *person) jumpConfig(t testing.TB) string {
	t.Helper()
	file := filepath.Join(p.home, "jump_config")
	if err := os.WriteFile(file, []byte(p.run("sally", "config", "--jump")), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// testJump is what a machine without sally does: stock OpenSSH, through the
// gateway's jump server.
func testJump(t *testing.T, d *demo, p *person) {
	stock := newPerson(t)
	config := p.jumpConfig(t)
	if b, err := os.ReadFile(config); err != nil || bytes.Contains(b, []byte("ProxyCommand")) {
		t.Fatalf("%s\n%v", b, err)
	}
	node := d.name("node") + "." + d.Cluster
	at := login(t) + "@" + node
	if r := stock.try("", "ssh", "-F", config, at, "echo stock; exit 5"); r.code != 5 || r.stdout != "stock\n" {
		t.Errorf("ProxyJump of the configuration: %+v", r)
	}

	// By hand, with the files alone.
	name := func(pattern string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(p.home, ".sally", pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %q, %v", pattern, found, err)
		}
		return found[0]
	}
	hand := filepath.Join(stock.home, "hand") // a file: of the command line's options the jump host gets none
	text := "IdentitiesOnly yes\nIdentityFile " + name("keys/*/"+d.User) + "\nCertificateFile " + name("keys/*/"+d.User+"-ssh/*-cert.pub") + "\nUserKnownHostsFile " + name("known_hosts") + "\n"
	if err := os.WriteFile(hand, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(d.Proxy)
	if err != nil {
		t.Fatal(err)
	}
	jump := "whoever@" + host + ":" + port
	if r := stock.try("", "ssh", "-F", hand, "-J", jump, at, "id -un"); r.code != 0 || strings.TrimSpace(r.stdout) != login(t) {
		t.Errorf("-J: %+v", r)
	}
	if r := stock.try("", "ssh", "-F", hand, "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=10", "-J", jump, at, "sleep 3.5; echo alive"); r.stdout != "alive\n" {
		t.Errorf("keep-alives: %+v", r)
	}
	blob := make([]byte, 3<<20+17)
	rand.Read(blob)
	file := filepath.Join(stock.home, "file")
	if err := os.WriteFile(file, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	there := filepath.Join(t.TempDir(), "there")
	for _, argv := range [][]string{{"-J", jump, file, at + ":" + there}, {"-O", "-J", jump, at + ":" + there, file + ".back"}} {
		stock.run("scp", append([]string{"-F", hand}, argv...)...)
	}
	if got, err := os.ReadFile(file + ".back"); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("scp -J: %d bytes came back, %v", len(got), err)
	}

	for what, row := range map[string]struct {
		argv []string
		says string
	}{
		"an address":          {[]string{"-J", jump, login(t) + "@127.0.0.1", "id"}, "leads to its nodes only"},
		"another port":        {[]string{"-J", jump, "-p", port, at, "id"}, "leads to its nodes only"},
		"another name":        {[]string{"-J", jump, login(t) + "@example.com", "id"}, "leads to its nodes only"},
		"no such node":        {[]string{"-J", jump, login(t) + "@nowhere." + d.Cluster, "id"}, "node nowhere is unknown, or no agent that serves it is connected"},
		"a shell there":       {[]string{"-p", port, "whoever@" + host, "id"}, "this is a jump server, which has no shell"},
		"a forward":           {[]string{"-p", port, "-W", d.Proxy, "whoever@" + host}, "leads to its nodes only"},
		"a login not allowed": {[]string{"-J", jump, "no-such-login@" + node, "id"}, "no-such-login"},
		"-R there":            {[]string{"-p", port, "-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", "whoever@" + host}, "remote port forwarding failed"},
	} {
		if r := stock.try("", "ssh", append([]string{"-F", hand}, row.argv...)...); r.code != 255 || !strings.Contains(r.stderr, row.says) {
			t.Errorf("%s: %+v, not %q", what, r, row.says)
		}
	}
	stranger := filepath.Join(stock.home, "stranger")
	stock.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger)
	if r := stock.try("", "ssh", "-F", "none", "-o", "IdentitiesOnly=yes", "-i", stranger, "-o", "UserKnownHostsFile="+name("known_hosts"), "-p", port, "whoever@"+host); r.code != 255 || !strings.Contains(r.stderr, "Permission denied (publickey)") {
		t.Errorf("a plain key: %+v", r)
	}
}
