package profile

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// Credentials are a profile's, loaded.
type Credentials struct {
	Profile  Profile
	TLS      tls.Certificate
	Identity sallyport.Identity
	Roots    *x509.CertPool
}

// Settled runs read, and when that fails once more while nobody changes the home
// directory: the files of a login are replaced one by one, and a reader between two
// of them met a key and the certificate of another. What is not there is not waited
// for. Not to be called inside Locked.
func (d Dir) Settled(read func() error) error {
	first := read()
	if first == nil || errors.Is(first, fs.ErrNotExist) || errors.Is(first, ErrNotLoggedIn) {
		return first
	}
	var second error
	if err := d.Locked(func() error { second = read(); return nil }); err != nil {
		return first // a home that cannot be changed is not being changed
	}
	return second
}

// Credentials reads the TLS side of a profile: enough for status, listing, dialing.
// Not to be called inside Locked.
func (d Dir) Credentials(f Profile) (c *Credentials, err error) {
	err = d.Settled(func() (err error) {
		c, err = d.credentials(f)
		return err
	})
	return c, err
}

func (d Dir) credentials(f Profile) (*Credentials, error) {
	cert, err := tls.LoadX509KeyPair(d.KeyPath(f, ".crt"), d.KeyPath(f, ".key"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotLoggedIn
	}
	if err != nil {
		return nil, problem(sallyport.ErrInvalid, "the keys of this profile cannot be read: "+err.Error(), "sally login --proxy="+f.WebProxyAddr)
	}
	id, err := identity.FromX509(cert.Leaf)
	if err != nil {
		return nil, problem(sallyport.ErrInvalid, "the certificate of this profile: "+err.Error(), "sally login --proxy="+f.WebProxyAddr)
	}
	roots, err := readPool(d.CAsPath(f))
	if err != nil {
		return nil, err
	}
	return &Credentials{Profile: f, TLS: cert, Identity: id, Roots: roots}, nil
}

func readPool(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	found := false
	pool := x509.NewCertPool()
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		pool.AddCert(c)
		found = true
	}
	if !found {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	return pool, nil
}

// SSHSigner is the profile's SSH key with its certificate.
func (d Dir) SSHSigner(f Profile) (ssh.Signer, *ssh.Certificate, error) {
	key, err := os.ReadFile(d.KeyPath(f, ""))
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := d.SSHCertificate(f)
	if err != nil {
		return nil, nil, err
	}
	signer, err = ssh.NewCertSigner(cert, signer)
	return signer, cert, err
}

// SSHCertificate is the profile's SSH certificate without its key.
func (d Dir) SSHCertificate(f Profile) (*ssh.Certificate, error) {
	line, err := os.ReadFile(d.SSHCertPath(f))
	if err != nil {
		return nil, err
	}
	return parseCertificate(line, d.SSHCertPath(f))
}

// SSHCertificate is the one in the file, which has that name.
func (i *IdentityFile) SSHCertificate(file string) (*ssh.Certificate, error) {
	return parseCertificate(i.SSHCert, file)
}

func parseCertificate(line []byte, file string) (*ssh.Certificate, error) {
	pub, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok {
		return nil, fmt.Errorf("%s: not a certificate", file)
	}
	return cert, nil
}
