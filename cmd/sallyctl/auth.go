package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const databaseKeyBits = 2048 // some databases' TLS libraries take nothing but RSA

type authCmd struct {
	Export authExportCmd `cmd:"" help:"Print the public half of a certificate authority."`
	Sign   authSignCmd   `cmd:"" help:"Issue a certificate for a database server."`
}

type authExportCmd struct {
	Type string `name:"type" required:"" enum:"user,host,db,tls-user,tls-host,openssh" help:"user and host: SSH public keys; tls-user, tls-host, db: X.509 certificates."`
}

// Run prints PEM, or SSH lines.
func (c *authExportCmd) Run(p *program) error {
	api, err := p.admin()
	if err != nil {
		return err
	}
	m, err := call(p, api.ExportAuthorities, &sallyportv1.ExportAuthoritiesRequest{})
	if err != nil {
		return err
	}
	kind, tls := strings.CutPrefix(c.Type, "tls-")
	tls = tls || c.Type == "db"
	for _, a := range m.GetAuthorities() {
		if a.GetKind() != kind {
			continue
		}
		if !tls {
			return printSSH(p, a.GetSshPublicKeys())
		}
		_, err := p.stdout.Write(certificates(a.GetCertificates()))
		return err
	}
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: fmt.Sprintf("this cluster has no %s authority", c.Type)}
}

func printSSH(p *program, keys [][]byte) error {
	for _, wire := range keys {
		k, err := ssh.ParsePublicKey(wire)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(p.stdout, "cert-authority %s\n", bytes.TrimSpace(ssh.MarshalAuthorizedKey(k))); err != nil {
			return err
		}
	}
	return nil
}

func certificates(ders [][]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

type authSignCmd struct {
	Format string        `name:"format" required:"" enum:"db" help:"db: files for a PostgreSQL, MariaDB, MySQL, Redis or Valkey server."`
	Host   []string      `name:"host" required:"" help:"Names and addresses that agents reach the server by."`
	Out    string        `name:"out" short:"o" required:"" help:"Name of the files: OUT.key, OUT.crt, OUT.cas."`
	TTL    time.Duration `name:"ttl" default:"2160h" help:"Life of the certificate."`
	RSA    bool          `name:"rsa" help:"Make an RSA key, for servers that need one."`
}

// Run makes a key here, has its public half signed, and writes three files.
func (c *authSignCmd) Run(p *program) error {
	ttl, err := lifeSeconds(c.TTL)
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	pub, key, err := c.key()
	if err != nil {
		return err
	}
	m, err := call(p, api.SignDatabaseServer, &sallyportv1.SignDatabaseServerRequest{TlsPublicKey: pub, Hosts: c.Host, TtlSeconds: ttl})
	if err != nil {
		return err
	}
	// Each file is replaced whole: what others may read or hold open of an older one
	// is not written into. The key comes last: with it the three belong together.
	for _, file := range []struct {
		suffix string
		data   []byte
	}{
		{".cas", certificates(m.GetClientAuthorities())},
		{".crt", certificates([][]byte{m.GetCertificate()})},
		{".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})},
	} {
		if err := profile.WriteFile(c.Out+file.suffix, file.data); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(p.stdout, `Wrote %[1]s.key, %[1]s.crt and %[1]s.cas; the certificate ends at %[2]s.

postgresql.conf:
  ssl = on
  ssl_cert_file = '%[1]s.crt'
  ssl_key_file = '%[1]s.key'
  ssl_ca_file = '%[1]s.cas'
pg_hba.conf:
  hostssl all all ADDRESS-OF-THE-AGENT/32 cert

MariaDB or MySQL, section [mysqld]:
  ssl_cert = %[1]s.crt
  ssl_key = %[1]s.key
  ssl_ca = %[1]s.cas
and for each user:
  CREATE USER 'NAME' REQUIRE SUBJECT '/CN=NAME';

Redis or Valkey:
  port 0
  tls-port 6379
  tls-cert-file %[1]s.crt
  tls-key-file %[1]s.key
  tls-ca-cert-file %[1]s.cas
  tls-auth-clients yes
and from Redis 8.6 and Valkey 9 on:
  tls-auth-clients-user CN
  user default off
  user NAME on resetpass ~* &* +@all
before, with nothing but the agent's roles between users:
  user default off
  user NAME on nopass ~* &* +@all
`, c.Out, m.GetExpires().AsTime().Format(time.DateTime))
	return err
}

func (c *authSignCmd) key() (public, private []byte, err error) {
	if c.RSA {
		k, err := rsa.GenerateKey(rand.Reader, databaseKeyBits)
		if err != nil {
			return nil, nil, err
		}
		return encodeKey(k, k.Public())
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	return encodeKey(k, k.Public())
}

func encodeKey(private, public any) (pub, key []byte, err error) {
	if pub, err = x509.MarshalPKIXPublicKey(public); err != nil {
		return nil, nil, err
	}
	key, err = x509.MarshalPKCS8PrivateKey(private)
	return pub, key, err
}
