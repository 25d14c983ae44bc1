package profile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// maxIdentityFile is far above what one with a hundred CAs has.
const maxIdentityFile = 1 << 20

// identityWait is how long who writes an identity file to a pipe may take, with what
// he asks a person.
const identityWait = time.Minute

// IdentityFile is a login in one file, in tsh's form: one key for SSH and TLS,
// its certificates, and the cluster's CAs. It takes no profile directory.
type IdentityFile struct {
	Key     []byte   // PEM
	SSHCert []byte   // authorized_keys line
	TLSCert []byte   // PEM
	Known   []string // lines of known_hosts
	CAs     []byte   // PEM
}

// Encode writes the parts in the order in which others read them.
func (i *IdentityFile) Encode() []byte {
	var b bytes.Buffer
	b.Write(i.Key)
	b.Write(append(bytes.TrimSpace(i.SSHCert), '\n'))
	b.Write(i.TLSCert)
	for _, line := range i.Known {
		b.WriteString(line + "\n")
	}
	b.Write(i.CAs)
	return b.Bytes()
}

// ReadIdentityFile reads one, of ours or of tsh. A file without the SSH
// certificate has it beside it, as OpenSSH wants it: FILE-cert.pub.
func ReadIdentityFile(path string) (*IdentityFile, error) {
	b, err := readBounded(path, identityWait)
	if err != nil {
		return nil, unreadableIdentity(path, err)
	}
	i, err := parseIdentity(b)
	if err != nil {
		return nil, notIdentity(path, err.Error())
	}
	if i.SSHCert == nil {
		if i.SSHCert, err = readBounded(path+"-cert.pub", identityWait); err != nil {
			return nil, notIdentity(path, "it has no SSH certificate")
		}
	}
	return i, nil
}

// readBounded reads a file of a bounded size. One that is a pipe, as a shell's
// <(command) is, has so long to say all; what nobody writes to is empty.
func readBounded(path string, within time.Duration) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO's opening does not wait for its writer
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.SetReadDeadline(time.Now().Add(within)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxIdentityFile+1))
	if err == nil && len(b) > maxIdentityFile {
		err = errors.New("the file is too large")
	}
	return b, err
}

// parseIdentity goes by lines: the first PEM block is the key, the second the
// certificate, later ones are CAs. What it does not know it passes over.
func parseIdentity(b []byte) (*IdentityFile, error) {
	i := &IdentityFile{}
	for len(b) > 0 {
		if bytes.HasPrefix(b, []byte("-----BEGIN ")) {
			block, rest := pem.Decode(b)
			if block == nil {
				return nil, errors.New("a PEM block is damaged")
			}
			i.take(block)
			b = rest
			continue
		}
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		i.takeLine(string(bytes.TrimSpace(line)))
		b = rest
	}
	switch {
	case i.Key == nil:
		return nil, errors.New("it has no key")
	case i.TLSCert == nil:
		return nil, errors.New("it has no TLS certificate")
	case i.CAs == nil:
		return nil, errors.New("it has no CA of the cluster")
	}
	return i, nil
}

func (i *IdentityFile) take(block *pem.Block) {
	text := pem.EncodeToMemory(block)
	switch {
	case i.Key == nil:
		i.Key = text
	case i.TLSCert == nil:
		i.TLSCert = text
	default:
		i.CAs = append(i.CAs, text...)
	}
}

func (i *IdentityFile) takeLine(line string) {
	kind, _, _ := strings.Cut(line, " ")
	switch {
	case kind == "@cert-authority":
		i.Known = append(i.Known, line)
	case strings.HasSuffix(kind, "-cert-v01@openssh.com") && i.SSHCert == nil:
		i.SSHCert = []byte(line + "\n")
	}
}

// Credentials are those of the file, at a gateway: the file does not say where
// that is.
func (i *IdentityFile) Credentials(path, proxy string) (*Credentials, error) {
	cert, err := tls.X509KeyPair(i.TLSCert, i.Key)
	if err != nil {
		return nil, notIdentity(path, err.Error())
	}
	id, err := identity.FromX509(cert.Leaf)
	if err != nil {
		return nil, notIdentity(path, err.Error())
	}
	f := Profile{WebProxyAddr: proxy, SSHProxyAddr: proxy, User: id.Name, Cluster: id.Cluster, TLSRouting: true, AuthConnector: "local"}
	if err := f.Check(); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for rest := i.CAs; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, notIdentity(path, err.Error())
		}
		roots.AddCert(c)
		f.CAPins = append(f.CAPins, identity.Pin(c))
	}
	return &Credentials{Profile: f, TLS: cert, Identity: id, Roots: roots}, nil
}

// Signer is the SSH key with its certificate.
func (i *IdentityFile) Signer(path string) (ssh.Signer, error) {
	key, err := ssh.ParsePrivateKey(i.Key)
	if err != nil {
		return nil, notIdentity(path, err.Error())
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(i.SSHCert)
	if err != nil {
		return nil, notIdentity(path, "its SSH certificate: "+err.Error())
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok {
		return nil, notIdentity(path, "it has no SSH certificate")
	}
	s, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return nil, notIdentity(path, err.Error())
	}
	return s, nil
}

func unreadableIdentity(path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errors.New("who writes it to this pipe does not come to an end")
	}
	return problem(sallyport.ErrInvalid, fmt.Sprintf("identity file %s: %v", path, err), "sally login --out=FILE writes one")
}

func notIdentity(path, why string) error {
	return problem(sallyport.ErrInvalid, fmt.Sprintf("%s is not an identity file: %s", path, why), "sally login --out=FILE writes one")
}
