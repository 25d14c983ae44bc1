package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
)

const (
	// SSHExtensionName is the extension that carries the identity
	// (PROTOCOL.certkeys: names of private extensions end in "@" and a domain).
	SSHExtensionName = "identity@sallyport"

	// sourceAddress is the one critical option that we enforce.
	sourceAddress = "source-address"

	maxPrincipal = 255 // bytes
)

// SSHValue encodes an identity for the extension SSHExtensionName. Principals
// are left out: they are the certificate's own.
func SSHValue(id sallyport.Identity) (string, error) {
	id.Principals = nil
	message, err := encode(id)
	return string(message), err
}

// FromSSH is the identity that a verified user certificate states. The caller
// has checked the signature against the user CA, and checks the time; Cluster
// it compares with its own. Nothing is accepted that OpenSSH's sshd refuses.
func FromSSH(cert *ssh.Certificate) (sallyport.Identity, error) {
	if cert.CertType != ssh.UserCert {
		return sallyport.Identity{}, fmt.Errorf("not a user certificate")
	}
	if err := checkSSHKeys(cert); err != nil {
		return sallyport.Identity{}, err
	}
	message, found := cert.Extensions[SSHExtensionName]
	if !found {
		return sallyport.Identity{}, fmt.Errorf("user certificate without an identity")
	}
	id, err := decode([]byte(message))
	if err != nil {
		return sallyport.Identity{}, err
	}
	if id.Kind != sallyport.KindUser || id.Name != cert.KeyId {
		return sallyport.Identity{}, fmt.Errorf("certificate names two holders: key id %q and %s %q", cert.KeyId, id.Kind, id.Name)
	}
	if id.Principals, err = principals(cert.ValidPrincipals); err != nil {
		return sallyport.Identity{}, err
	}
	if id.PinnedAddr, err = pin(id.PinnedAddr, cert.CriticalOptions); err != nil {
		return sallyport.Identity{}, err
	}
	if id.NotBefore, id.NotAfter, err = validity(cert); err != nil {
		return sallyport.Identity{}, err
	}
	sum := sha256.Sum256(cert.Marshal())
	id.Serial = strconv.FormatUint(cert.Serial, 10)
	id.Fingerprint = hex.EncodeToString(sum[:])
	return id, nil
}

// checkSSHKeys refuses certificates in place of keys: a chain of SSH
// certificates does not exist (PROTOCOL.certkeys), so whoever builds one wants
// a signature to be taken for another's.
func checkSSHKeys(cert *ssh.Certificate) error {
	if cert.Key == nil || cert.SignatureKey == nil {
		return fmt.Errorf("certificate without a key")
	}
	for _, key := range []ssh.PublicKey{cert.Key, cert.SignatureKey} {
		if _, nested := key.(*ssh.Certificate); nested {
			return fmt.Errorf("certificate within a certificate")
		}
	}
	return nil
}

// principals are the certificate's own. An empty list would mean "anybody" to
// some readers (CVE-2024-7594), a pattern or a list within one could mean it.
func principals(list []string) ([]string, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("certificate without principals")
	}
	if len(list) > maxPrincipals {
		return nil, fmt.Errorf("%d principals, at most %d allowed", len(list), maxPrincipals)
	}
	for _, p := range list {
		if !ValidPrincipal(p) {
			return nil, fmt.Errorf("principal %q: not a login", p)
		}
	}
	return append([]string(nil), list...), nil
}

// ValidPrincipal says whether a certificate may have p among its principals. What
// makes principals of roles and traits leaves out what this refuses: one of them
// would spoil the certificate.
func ValidPrincipal(p string) bool {
	return p != "" && len(p) <= maxPrincipal && utf8.ValidString(p) && !strings.ContainsFunc(p, notInPrincipal)
}

func notInPrincipal(r rune) bool {
	return unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune(`,*?!"'/`, r)
}

// pin reads the critical options. Each of them restricts, so an unknown one
// refuses the certificate; source-address must be the one pinned address.
func pin(pinned string, options map[string]string) (string, error) {
	for name, value := range options {
		if name != sourceAddress {
			return "", fmt.Errorf("critical option %q is not known", name)
		}
		addr, err := singleAddr(value)
		if err != nil {
			return "", err
		}
		if pinned != "" && pinned != addr {
			return "", fmt.Errorf("pinned to %s and to %s", pinned, addr)
		}
		pinned = addr
	}
	return pinned, nil
}

// singleAddr takes an address, or a prefix that holds one.
func singleAddr(s string) (string, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		prefix, perr := netip.ParsePrefix(s)
		if perr != nil || !prefix.IsSingleIP() {
			return "", fmt.Errorf("source-address %q: want one address", s)
		}
		addr = prefix.Addr()
	}
	if s := addr.String(); validAddr(s) {
		return s, nil
	}
	return "", fmt.Errorf("source-address %q: not a plain address", s)
}

// validity refuses certificates without an end.
func validity(cert *ssh.Certificate) (from, to time.Time, err error) {
	if cert.ValidAfter > math.MaxInt64 || cert.ValidBefore > math.MaxInt64 || cert.ValidBefore <= cert.ValidAfter {
		return from, to, fmt.Errorf("certificate without a proper period of validity")
	}
	return time.Unix(int64(cert.ValidAfter), 0), time.Unix(int64(cert.ValidBefore), 0), nil
}
