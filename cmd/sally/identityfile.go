package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// heldIdentity is the login that --identity names, in place of a profile's.
type heldIdentity struct {
	path string
	file *profile.IdentityFile
	cred *profile.Credentials
}

// withoutProfile are the commands that an identity file is enough for. The
// others read or write the profile directory.
var withoutProfile = []string{"ls", "ssh", "scp", "status", "proxy", "db ls", "kube ls", "tcp", "clusters", "version", "completion", "env"}

// useIdentity reads the file that --identity names.
func (p *program) useIdentity(command string) error {
	if p.Identity == "" {
		return nil
	}
	if !slices.ContainsFunc(withoutProfile, func(c string) bool { return command == c || strings.HasPrefix(command, c+" ") }) {
		return problem(errInvalid, fmt.Sprintf("sally %s does not work with an identity file", command),
			"sally ls, ssh, scp and proxy do: for a database, sally proxy db --identity=FILE NAME")
	}
	if p.ProxyAddr == "" {
		return problem(errInvalid, "an identity file does not say where the gateway is", "give --proxy=HOST[:PORT], or set SALLY_PROXY")
	}
	addr, err := profile.Address(p.ProxyAddr)
	if err != nil {
		return err
	}
	if info, err := os.Stat(p.Identity); err == nil && othersMayRead(info) {
		fmt.Fprintf(p.stderr, "WARNING: %s holds a key and can be read by others (mode %04o): chmod 600\n", fail.Clean(p.Identity), info.Mode().Perm())
	}
	file, err := profile.ReadIdentityFile(p.Identity)
	if err != nil {
		return err
	}
	cred, err := file.Credentials(p.Identity, addr)
	if err != nil {
		return err
	}
	p.held = &heldIdentity{p.Identity, file, cred}
	return nil
}

// outputs is what --out and --format ask for.
type outputs struct {
	Out       string `name:"out" short:"o" placeholder:"FILE" help:"Write the login to a file and keep it nowhere else; --identity takes it."`
	Format    string `name:"format" short:"f" default:"file" placeholder:"FORMAT" help:"Of --out: file, openssh (FILE and FILE-cert.pub) or tls (FILE.key, FILE.crt, FILE.cas)."`
	Overwrite bool   `name:"overwrite" negatable:"" help:"Let --out replace files."`
}

func (o outputs) check() error {
	if o.Out == "" {
		if o.Format != "file" {
			return problem(errInvalid, "--format is the form of --out, which is not given", "sally login --out=FILE --format="+o.Format)
		}
		return nil
	}
	names := o.names()
	if names == nil {
		return problem(errInvalid, fmt.Sprintf("this version writes no identity files in the format %q", o.Format), "--format=file, openssh or tls")
	}
	for _, name := range names {
		if _, err := os.Lstat(name); !o.Overwrite && !errors.Is(err, fs.ErrNotExist) {
			return &sallyport.Problem{Kind: sallyport.ErrExists, Fact: name + " exists", Hint: "use --overwrite to replace it"}
		}
	}
	return nil
}

// names are the files to write, nil for a format that is not known.
func (o outputs) names() []string {
	switch o.Format {
	case "file":
		return []string{o.Out}
	case "openssh":
		return []string{o.Out, o.Out + "-cert.pub"}
	case "tls":
		return []string{o.Out + ".key", o.Out + ".crt", o.Out + ".cas"}
	}
	return nil
}

// newSharedKey is one key for SSH and TLS, as identity files have it.
func newSharedKey() (keyPair, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return keyPair{ssh: k, tls: k}, err
}

// write writes the login, each file 0600 and whole.
func (o outputs) write(f profile.Profile, k keyPair, m *sallyportv1.LoginResponse) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.tls)
	if err != nil {
		return err
	}
	cas, known, err := authorities(f, m.GetAuthorities())
	if err != nil {
		return err
	}
	id := &profile.IdentityFile{
		Key:     pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		SSHCert: append(bytes.TrimSpace(m.GetSshCertificate()), '\n'),
		TLSCert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.GetTlsCertificate()}),
		Known:   known, CAs: cas,
	}
	var parts [][]byte
	switch o.Format {
	case "openssh":
		key, err := ssh.MarshalPrivateKey(k.ssh, f.User)
		if err != nil {
			return err
		}
		parts = [][]byte{pem.EncodeToMemory(key), id.SSHCert}
	case "tls":
		parts = [][]byte{id.Key, id.TLSCert, id.CAs}
	default:
		parts = [][]byte{id.Encode()}
	}
	for n, name := range o.names() {
		if err := profile.WriteFile(name, parts[n]); err != nil {
			return err
		}
	}
	return nil
}
