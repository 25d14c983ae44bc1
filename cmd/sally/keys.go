package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// keyPair is what a login makes: one key for SSH, one for TLS. They never
// leave this machine.
type keyPair struct {
	ssh crypto.Signer
	tls *ecdsa.PrivateKey
}

func newKeyPair() (keyPair, error) {
	_, s, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return keyPair{}, err
	}
	t, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return keyPair{ssh: s, tls: t}, err
}

// public returns the authorized_keys line and the PKIX DER.
func (k keyPair) public() (line, der []byte, err error) {
	pub, err := ssh.NewPublicKey(k.ssh.Public())
	if err != nil {
		return nil, nil, err
	}
	der, err = x509.MarshalPKIXPublicKey(k.tls.Public())
	return bytes.TrimSpace(ssh.MarshalAuthorizedKey(pub)), der, err
}

// saveLogin writes what a login brought, in tsh's layout, and gives the key to
// ssh-agent. With --add-keys-to-agent=only the SSH key stays away from the disk;
// ssh-agent has it then before anything is written or removed, so that one that
// does not take it leaves the login before as it was.
func (p *program) saveLogin(f profile.Profile, k keyPair, m *sallyportv1.LoginResponse) error {
	if err := f.Check(); err != nil {
		return err
	}
	sshKey, err := ssh.MarshalPrivateKey(k.ssh, f.User)
	if err != nil {
		return err
	}
	tlsKey, err := x509.MarshalPKCS8PrivateKey(k.tls)
	if err != nil {
		return err
	}
	line, _, err := k.public()
	if err != nil {
		return err
	}
	cas, known, err := authorities(f, m.GetAuthorities())
	if err != nil {
		return err
	}
	files := []struct {
		path string
		data []byte
	}{
		{p.home.KeyPath(f, ".pub"), append(line, '\n')},
		{p.home.KeyPath(f, ".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: tlsKey})},
		{p.home.KeyPath(f, ".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.GetTlsCertificate()})},
		{p.home.SSHCertPath(f), append(bytes.TrimSpace(m.GetSshCertificate()), '\n')},
		{p.home.CAsPath(f), cas},
	}
	private, only := p.home.KeyPath(f, ""), p.AddKeysToAgent == "only"
	if only {
		if err := p.addToAgent(f, k, m); err != nil {
			return err
		}
		if err := os.Remove(private); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if err := profile.WriteFile(private, pem.EncodeToMemory(sshKey)); err != nil {
		return err
	}
	for _, file := range files {
		if err := profile.WriteFile(file.path, file.data); err != nil {
			return err
		}
	}
	if err := p.home.SetKnownHosts(f, known); err != nil {
		return err
	}
	if err := p.home.Save(f); err != nil || only {
		return err
	}
	return p.addToAgent(f, k, m)
}

// authorities returns the host CAs as PEM and as known_hosts lines. With pins
// one of the CAs must have one: what is kept is what the gateway is known by from
// now on, however the answer came here (--insecure).
func authorities(f profile.Profile, list []*sallyportv1.Authority) (cas []byte, known []string, err error) {
	var certs []*x509.Certificate
	for _, a := range list {
		if a.GetKind() != "host" {
			continue
		}
		for _, der := range a.GetCertificates() {
			ca, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, nil, fmt.Errorf("the cluster's CA: %w", err)
			}
			certs = append(certs, ca)
			cas = append(cas, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		for _, wire := range a.GetSshPublicKeys() {
			pub, err := ssh.ParsePublicKey(wire)
			if err != nil {
				return nil, nil, fmt.Errorf("the cluster's SSH CA: %w", err)
			}
			known = append(known, profile.KnownHostsLine(f, string(ssh.MarshalAuthorizedKey(pub))))
		}
	}
	if len(cas) == 0 || len(known) == 0 {
		return nil, nil, errors.New("the gateway did not tell the cluster's CA")
	}
	if len(f.CAPins) > 0 {
		if _, err := identity.PinnedRoots(certs, f.CAPins); err != nil {
			return nil, nil, &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "auth's answer: " + err.Error(),
				Hint: "compare --ca-pin with what sallyctl status on the auth host prints; nothing of the login was kept", Cause: err}
		}
	}
	return cas, known, nil
}

// loadValid is load for the profile that the flags name, and refuses one that has ended.
func (p *program) loadValid() (*credentials, error) {
	f, err := p.selected()
	if err != nil {
		return nil, err
	}
	c, err := p.credentials(f)
	if err != nil {
		return nil, err
	}
	if err := p.valid(&credentials{Credentials: c}); err != nil {
		return nil, err
	}
	if p.Cluster != "" && p.Cluster != f.Cluster {
		return nil, problem(sallyport.ErrNotFound, fmt.Sprintf("cluster %q is not known here", p.Cluster), "sally clusters")
	}
	return &credentials{Credentials: c}, nil
}

// valid says when a login has ended, and how to get another.
func (p *program) valid(c *credentials) error {
	if time.Now().Before(c.Identity.NotAfter) {
		return nil
	}
	hint := "sally login --proxy=" + c.Profile.WebProxyAddr
	if p.held != nil {
		hint += " --overwrite --out=" + shell.Word(p.held.path)
	}
	return problem(sallyport.ErrUnauthorized, "your certificate ended at "+c.Identity.NotAfter.Local().Format(time.DateTime), hint)
}

func (p *program) credentials(f profile.Profile) (*profile.Credentials, error) {
	if p.held != nil {
		return p.held.cred, nil
	}
	return p.home.Credentials(f)
}

// selected is the profile that --proxy names, else the current one, as the user that
// --user names: whoever has logged in there and not out again has his keys there.
func (p *program) selected() (profile.Profile, error) {
	f, err := p.lastAt()
	if err != nil || p.held != nil || p.User == "" || p.User == f.User {
		return f, err
	}
	last := f.User
	f.User = p.User
	if !profile.ValidName(f.User) {
		return profile.Profile{}, problem(errInvalid, fmt.Sprintf("%q cannot be a user's name", f.User), "")
	}
	if _, err := os.Stat(p.home.KeyPath(f, ".crt")); err != nil {
		return profile.Profile{}, problem(sallyport.ErrUnauthorized, fmt.Sprintf("user %q is not logged in at %s; %s is", p.User, f.WebProxyAddr, last),
			"sally login --proxy="+f.WebProxyAddr+" --user="+shell.Word(p.User))
	}
	return f, nil
}

// lastAt is the profile that --proxy names, else the current one, of whoever logged in
// there last.
func (p *program) lastAt() (profile.Profile, error) {
	if p.held != nil {
		return p.held.cred.Profile, nil
	}
	if p.ProxyAddr == "" {
		return p.home.Load("")
	}
	return p.home.Named(p.ProxyAddr)
}
