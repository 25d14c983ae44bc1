package ssh

import (
	"bytes"
	"crypto/rsa"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
)

const (
	hintLogin = `run "sally login" for a new certificate`

	// Bounds of RSA: below is factored, above is only a way to make us work.
	minRSA = 2048 // bits
	maxRSA = 8192
)

// Names in certificates (PROTOCOL.certkeys).
const (
	optionSource   = "source-address"
	optionForce    = "force-command"
	extensionPTY   = "permit-pty"
	maxSourceItems = 64
	maxPrincipals  = 256 // as SSHKEY_CERT_MAX_PRINCIPALS of sshd
)

// certificateCheck is one question: may the holder of key be login, from addr?
type certificateCheck struct {
	cluster string
	cas     [][]byte // wire form of the keys that may sign user certificates
	login   string
	addr    netip.Addr
	now     time.Time
}

// run checks all that the certificate itself says, never more permissive than
// sshd with TrustedUserCAKeys. It does not prove that the client has the key.
func (q certificateCheck) run(key ssh.PublicKey) (*ssh.Certificate, *sallyport.Problem) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, sallyport.Denied(fmt.Sprintf("this host takes user certificates of cluster %s, not plain keys", q.cluster), hintLogin)
	}
	for _, step := range []func(*ssh.Certificate) *sallyport.Problem{
		q.checkType, q.checkAuthority, q.checkAlgorithms, q.checkOptions, q.checkPrincipals, q.checkTime, q.checkSignature,
	} {
		if p := step(cert); p != nil {
			return nil, p
		}
	}
	return cert, nil
}

func (q certificateCheck) checkType(cert *ssh.Certificate) *sallyport.Problem {
	if cert.CertType != ssh.UserCert {
		return sallyport.Denied("the certificate is not a user certificate", hintLogin)
	}
	return nil
}

// checkAuthority compares keys, byte for byte, and takes no certificate for a
// key: signatures by certificates do not exist (PROTOCOL.certkeys; threat A01).
func (q certificateCheck) checkAuthority(cert *ssh.Certificate) *sallyport.Problem {
	foreign := sallyport.Denied(fmt.Sprintf("the certificate is not signed by a user CA of cluster %s", q.cluster), hintLogin)
	if cert.Key == nil || cert.SignatureKey == nil || cert.Signature == nil {
		return foreign
	}
	for _, k := range []ssh.PublicKey{cert.Key, cert.SignatureKey} {
		if _, nested := k.(*ssh.Certificate); nested {
			return foreign
		}
	}
	signer := cert.SignatureKey.Marshal()
	if len(signer) == 0 || !slices.ContainsFunc(q.cas, func(ca []byte) bool { return bytes.Equal(ca, signer) }) {
		return foreign
	}
	if bytes.Equal(cert.Key.Marshal(), signer) {
		return foreign // a CA's key signs, it does not log in
	}
	return nil
}

// checkAlgorithms refuses SHA-1 signatures of the CA and keys out of bounds,
// as CASignatureAlgorithms and RequiredRSASize do (sshd_config(5)).
func (q certificateCheck) checkAlgorithms(cert *ssh.Certificate) *sallyport.Problem {
	if !slices.Contains(keyAlgorithms(), cert.Signature.Format) {
		return sallyport.Denied(fmt.Sprintf("the certificate is signed by %s, which is not accepted", printable(cert.Signature.Format, 64)), hintLogin)
	}
	for _, k := range []ssh.PublicKey{cert.Key, cert.SignatureKey} {
		public, ok := k.(ssh.CryptoPublicKey)
		if !ok {
			continue // security keys: their curve is fixed
		}
		if r, ok := public.CryptoPublicKey().(*rsa.PublicKey); ok && (r.N.BitLen() < minRSA || r.N.BitLen() > maxRSA) {
			return sallyport.Denied(fmt.Sprintf("RSA keys of %d bits are not accepted", r.N.BitLen()), hintLogin)
		}
	}
	return nil
}

// checkOptions: every critical option restricts, so one that is not enforced
// here refuses the certificate.
func (q certificateCheck) checkOptions(cert *ssh.Certificate) *sallyport.Problem {
	for name, value := range cert.CriticalOptions {
		switch {
		case name == optionForce:
			return sallyport.Denied("certificates with a forced command are not served by this version", "")
		case name != optionSource:
			return sallyport.Denied(fmt.Sprintf("critical option %q of the certificate is not known", printable(name, 64)), "")
		case !sourceAllowed(value, q.addr):
			return sallyport.Denied("the certificate is bound to another address", hintLogin)
		}
	}
	return nil
}

// sourceAllowed reads a list of addresses and prefixes as sshd does: one
// malformed entry refuses (addr_match_cidr_list in OpenSSH's addrmatch.c).
func sourceAllowed(list string, addr netip.Addr) bool {
	entries := strings.Split(list, ",")
	if !addr.IsValid() || len(entries) > maxSourceItems {
		return false
	}
	allowed := false
	for _, entry := range entries {
		prefix, ok := parseSource(entry)
		if !ok {
			return false
		}
		allowed = allowed || prefix.Contains(addr.Unmap())
	}
	return allowed
}

func parseSource(entry string) (netip.Prefix, bool) {
	if addr, err := netip.ParseAddr(entry); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	prefix, err := netip.ParsePrefix(entry)
	return prefix, err == nil && prefix == prefix.Masked()
}

// checkPrincipals: an empty list is nobody (CVE-2024-7594), a pattern is only
// itself.
func (q certificateCheck) checkPrincipals(cert *ssh.Certificate) *sallyport.Problem {
	if len(cert.ValidPrincipals) == 0 {
		return sallyport.Denied("the certificate names no logins", hintLogin)
	}
	if len(cert.ValidPrincipals) > maxPrincipals {
		return sallyport.Denied(fmt.Sprintf("the certificate names more than %d logins", maxPrincipals), hintLogin)
	}
	if q.login == "" || !slices.Contains(cert.ValidPrincipals, q.login) {
		return sallyport.Denied(fmt.Sprintf("the certificate does not allow login %q", printable(q.login, maxLogin)),
			`"sally status" shows the logins that it allows`)
	}
	return nil
}

// checkTime also refuses certificates without an end: nothing would ever end
// their sessions.
func (q certificateCheck) checkTime(cert *ssh.Certificate) *sallyport.Problem {
	now := uint64(max(q.now.Unix(), 0))
	switch {
	case cert.ValidBefore == ssh.CertTimeInfinity:
		return sallyport.Denied("the certificate never expires", hintLogin)
	case now < cert.ValidAfter:
		return sallyport.Denied("the certificate is not valid yet", "check the clocks of this host and of the cluster")
	case now >= cert.ValidBefore:
		return sallyport.Denied("the certificate has expired", hintLogin)
	}
	return nil
}

// checkSignature comes last: it is the only step that costs.
func (q certificateCheck) checkSignature(cert *ssh.Certificate) *sallyport.Problem {
	checker := ssh.CertChecker{
		SupportedCriticalOptions: []string{optionSource},
		Clock:                    func() time.Time { return q.now },
	}
	if err := checker.CheckCert(q.login, cert); err != nil {
		return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "the certificate's signature does not verify", Hint: hintLogin, Cause: err}
	}
	return nil
}

// keyAlgorithms are the signatures accepted from users and from their CAs:
// those of SSH's today, without SHA-1 and DSA.
func keyAlgorithms() []string {
	return []string{
		ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256,
		ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
	}
}
