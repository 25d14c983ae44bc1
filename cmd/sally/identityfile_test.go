package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
)

// writeIdentity writes alice's login as --out does.
func writeIdentity(t *testing.T, p *program, o outputs, w who) {
	t.Helper()
	k, err := newSharedKey()
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.answer(k)
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.login(w)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.write(f, k, m); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(string(p.home)); err != nil { // the file must be enough
		t.Fatal(err)
	}
}

func TestIdentityFile(t *testing.T) {
	p := newProgram(t)
	o := outputs{Out: filepath.Join(t.TempDir(), "new", "id"), Format: "file"}
	writeIdentity(t, p, o, alice())
	if info, err := os.Stat(o.Out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	p.Identity, p.ProxyAddr = o.Out, "gw.test:8443"
	if err := p.useIdentity("ssh"); err != nil {
		t.Fatal(err)
	}
	c, err := p.loadValid()
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity.Name != "alice" || c.Profile.WebProxyAddr != "gw.test:8443" || c.Profile.Cluster != "gw.test" || len(c.Profile.CAPins) != 1 {
		t.Errorf("%+v", c.Credentials)
	}
	s, done, err := p.signer(c.Profile)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if cert, ok := s.PublicKey().(*ssh.Certificate); !ok || cert.CertType != ssh.UserCert {
		t.Errorf("the SSH key is %T", s.PublicKey())
	}
	if known, err := p.knownHosts(); err != nil || !strings.HasPrefix(string(known), "@cert-authority gw.test,gw.test,*.gw.test ") {
		t.Errorf("known hosts: %s, %v", known, err)
	}
	if _, err := os.Stat(string(p.home)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the profile directory was made: %v", err)
	}
}

func TestIdentityFileExpired(t *testing.T) {
	p, w := newProgram(t), alice()
	w.from, w.until = w.from.Add(-24*60*60*1e9), w.from.Add(-60*60*1e9)
	o := outputs{Out: filepath.Join(t.TempDir(), "id"), Format: "file"}
	writeIdentity(t, p, o, w)
	p.Identity, p.ProxyAddr = o.Out, "gw.test"
	if err := p.useIdentity("ls"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.loadValid(); !errors.Is(err, sallyport.ErrUnauthorized) || !strings.Contains(err.Error(), "ended") {
		t.Errorf("%v", err)
	}
}

// TestIdentityFormats: OpenSSH reads what is written for it.
func TestIdentityFormats(t *testing.T) {
	p, dir := newProgram(t), t.TempDir()
	for format, files := range map[string][]string{"openssh": {"openssh", "openssh-cert.pub"}, "tls": {"tls.key", "tls.crt", "tls.cas"}} {
		o := outputs{Out: filepath.Join(dir, format), Format: format}
		writeIdentity(t, p, o, alice())
		for _, name := range files {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		if err := o.check(); !errors.Is(err, sallyport.ErrExists) {
			t.Errorf("%s over a file that exists: %v", format, err)
		}
		if o.Overwrite = true; o.check() != nil {
			t.Errorf("%s with --overwrite: %v", format, o.check())
		}
	}
	key, err := os.ReadFile(filepath.Join(dir, "openssh"))
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(filepath.Join(dir, "openssh-cert.pub"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.ParsePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ssh.NewCertSigner(pub.(*ssh.Certificate), s); err != nil {
		t.Error(err)
	}
}

func TestIdentityFaults(t *testing.T) {
	t.Setenv("SALLY_PROXY", "")
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for argv, want := range map[string]string{
		"sally ls -i " + file:                                     "does not say where the gateway is",
		"sally ls --proxy=gw.test -i " + file:                     "is not an identity file: it has no key",
		"sally ls --proxy=gw.test -i " + file + "none":            "no such file",
		"sally config -i " + file:                                 "sally config does not work with an identity file",
		"sally db connect -i " + file + " orders":                 "sally db connect does not work",
		"sally login --proxy=gw.test -i " + file:                  "sally login does not work",
		"sally login --proxy=gw.test --format=openssh":            "--out, which is not given",
		"sally login --proxy=gw.test --out=x --format=kubernetes": `in the format "kubernetes"`,
		"sally login --proxy=gw.test --out=" + file:               file + " exists",
	} {
		err := newProgram(t).run(strings.Fields(argv))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", argv, err, want)
		}
	}
}
