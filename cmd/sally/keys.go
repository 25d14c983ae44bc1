package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// keyPair is what a login makes: one key for SSH, one for TLS. They never
// leave this machine.
type keyPair struct {
	ssh ed25519.PrivateKey
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

// saveLogin writes what a login brought, in tsh's layout.
func (p *program) saveLogin(f profile.Profile, k keyPair, m *sallyportv1.LoginResponse) error {
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
		{p.home.KeyPath(f, ""), pem.EncodeToMemory(sshKey)},
		{p.home.KeyPath(f, ".pub"), append(line, '\n')},
		{p.home.KeyPath(f, ".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: tlsKey})},
		{p.home.KeyPath(f, ".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.GetTlsCertificate()})},
		{p.home.SSHCertPath(f), append(bytes.TrimSpace(m.GetSshCertificate()), '\n')},
		{p.home.CAsPath(f), cas},
	}
	for _, file := range files {
		if err := profile.WriteFile(file.path, file.data); err != nil {
			return err
		}
	}
	if err := p.setKnownHosts(f, known); err != nil {
		return err
	}
	return p.home.Save(f)
}

// authorities returns the host CAs as PEM and as known_hosts lines.
func authorities(f profile.Profile, list []*sallyportv1.Authority) (cas []byte, known []string, err error) {
	for _, a := range list {
		if a.GetKind() != "host" {
			continue
		}
		for _, der := range a.GetCertificates() {
			if _, err := x509.ParseCertificate(der); err != nil {
				return nil, nil, fmt.Errorf("the cluster's CA: %w", err)
			}
			cas = append(cas, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		for _, wire := range a.GetSshPublicKeys() {
			pub, err := ssh.ParsePublicKey(wire)
			if err != nil {
				return nil, nil, fmt.Errorf("the cluster's SSH CA: %w", err)
			}
			known = append(known, fmt.Sprintf("@cert-authority %s,%s,*.%s %s type=host",
				f.Name(), f.Cluster, f.Cluster, bytes.TrimSpace(ssh.MarshalAuthorizedKey(pub))))
		}
	}
	if len(cas) == 0 || len(known) == 0 {
		return nil, nil, errors.New("the gateway did not tell the cluster's CA")
	}
	return cas, known, nil
}

// setKnownHosts replaces the cluster's lines and keeps all others.
func (p *program) setKnownHosts(f profile.Profile, lines []string) error {
	old, err := os.ReadFile(p.home.KnownHosts())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mine := fmt.Sprintf("@cert-authority %s,%s,", f.Name(), f.Cluster)
	var out []string
	for line := range strings.Lines(string(old)) {
		if !strings.HasPrefix(line, mine) {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	out = append(out, lines...)
	if len(out) == 0 {
		return os.Remove(p.home.KnownHosts())
	}
	return profile.WriteFile(p.home.KnownHosts(), []byte(strings.Join(out, "\n")+"\n"))
}

// agentComment marks our keys in ssh-agent, so that only they are removed.
func agentComment(f profile.Profile) string {
	return strings.Join([]string{"sallyport", f.Name(), f.Cluster, f.User}, ":")
}

// addToAgent gives the key to ssh-agent until the certificate ends. Without an
// agent it is an error only when the user asked for it.
func (p *program) addToAgent(f profile.Profile, k keyPair, m *sallyportv1.LoginResponse) error {
	if p.AddKeysToAgent == "no" {
		return nil
	}
	a, closer, err := sshAgent()
	if err != nil {
		if p.AddKeysToAgent == "auto" {
			return nil
		}
		return problem(sallyport.ErrUnavailable, "no ssh-agent can be reached: "+err.Error(), "start ssh-agent, or use --add-keys-to-agent=no")
	}
	defer closer()
	if err := removeFromAgent(a, f); err != nil {
		return err
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(m.GetSshCertificate())
	if err != nil {
		return err
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok {
		return errors.New("the gateway sent no SSH certificate")
	}
	life := uint32(max(1, time.Until(m.GetExpires().AsTime()).Seconds()))
	return a.Add(agent.AddedKey{PrivateKey: &k.ssh, Certificate: cert, Comment: agentComment(f), LifetimeSecs: life})
}

func sshAgent() (agent.ExtendedAgent, func() error, error) {
	path := os.Getenv("SSH_AUTH_SOCK")
	if path == "" {
		return nil, nil, errors.New("SSH_AUTH_SOCK is not set")
	}
	conn, err := net.DialTimeout("unix", path, 2*time.Second)
	if err != nil {
		return nil, nil, err
	}
	return agent.NewClient(conn), conn.Close, nil
}

func removeFromAgent(a agent.ExtendedAgent, f profile.Profile) error {
	keys, err := a.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Comment == agentComment(f) {
			if err := a.Remove(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeLogin deletes a profile's keys, its agent entries and itself.
func (p *program) removeLogin(f profile.Profile) error {
	if a, closer, err := sshAgent(); err == nil {
		defer closer()
		if err := removeFromAgent(a, f); err != nil {
			return err
		}
	}
	err := errors.Join(
		os.RemoveAll(p.home.KeyDir(f)),
		os.Remove(filepath.Join(string(p.home), f.Name()+".yaml")),
	)
	if known := p.setKnownHosts(f, nil); !errors.Is(known, fs.ErrNotExist) {
		err = errors.Join(err, known)
	}
	if current, cerr := os.ReadFile(filepath.Join(string(p.home), "current-profile")); cerr == nil && strings.TrimSpace(string(current)) == f.Name() {
		err = errors.Join(err, os.Remove(filepath.Join(string(p.home), "current-profile")))
	}
	return err
}

// loadValid is load for the profile that the flags name, and refuses one that has ended.
func (p *program) loadValid() (*credentials, error) {
	f, err := p.selected()
	if err != nil {
		return nil, err
	}
	c, err := p.home.Credentials(f)
	if err != nil {
		return nil, err
	}
	if !time.Now().Before(c.Identity.NotAfter) {
		return nil, problem(sallyport.ErrUnauthorized, "your certificate ended at "+c.Identity.NotAfter.Local().Format(time.DateTime), "sally login --proxy="+f.WebProxyAddr)
	}
	if p.Cluster != "" && p.Cluster != f.Cluster {
		return nil, problem(sallyport.ErrNotFound, fmt.Sprintf("cluster %q is not known here", p.Cluster), "sally clusters")
	}
	return &credentials{c}, nil
}

// selected is the profile that --proxy names, else the current one.
func (p *program) selected() (profile.Profile, error) {
	if p.ProxyAddr == "" {
		return p.home.Load("")
	}
	addr, err := profile.Address(p.ProxyAddr)
	if err != nil {
		return profile.Profile{}, err
	}
	host, _, _ := net.SplitHostPort(addr)
	f, err := p.home.Load(host)
	if err != nil {
		return profile.Profile{}, problem(sallyport.ErrUnauthorized, "Not logged in to "+addr+".", "sally login --proxy="+addr)
	}
	return f, nil
}
