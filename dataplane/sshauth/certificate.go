package sshauth

import (
	"bytes"
	"crypto/rsa"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
)

const (
	// HintLogin is what to do about a certificate that is no good.
	HintLogin = `run "sally login" for a new certificate`

	// Bounds of RSA: below is factored, above is only a way to make us work.
	minRSA = 2048 // bits
	maxRSA = 8192
)

// Names in certificates (PROTOCOL.certkeys).
const (
	optionSource   = "source-address"
	optionForce    = "force-command"
	maxSourceItems = 64
	maxPrincipals  = 256 // as SSHKEY_CERT_MAX_PRINCIPALS of sshd
)

// Check is one question: may the holder of a certificate be Login, from Addr?
type Check struct {
	Cluster string
	CAs     [][]byte // wire form of the keys that may sign user certificates
	Login   string
	Addr    netip.Addr
	Now     time.Time

	// AnyLogin is for who gives nobody a login: the certificate must name one, and
	// no matter which. Login is not looked at.
	AnyLogin bool
}

// Run checks all that the certificate itself says, never more permissive than
// sshd with TrustedUserCAKeys. It does not prove that the client has the key.
func (q Check) Run(key ssh.PublicKey) (*ssh.Certificate, *sallyport.Problem) {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, q.plain()
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

// Ours checks only that a user CA has signed the certificate: who has proved to
// hold its key may be told what else is wrong with it, and is written down.
func (q Check) Ours(key ssh.PublicKey) *sallyport.Problem {
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return q.plain()
	}
	for _, step := range []func(*ssh.Certificate) *sallyport.Problem{q.checkType, q.checkAuthority, q.checkAlgorithms} {
		if p := step(cert); p != nil {
			return p
		}
	}
	// What the rest of the certificate says is made to hold.
	timeless := q
	timeless.Now = time.Unix(int64(min(cert.ValidAfter, 1<<62)), 0)
	if len(cert.ValidPrincipals) > 0 {
		timeless.Login = cert.ValidPrincipals[0]
	}
	return timeless.verify(cert, slices.Collect(maps.Keys(cert.CriticalOptions)))
}

func (q Check) plain() *sallyport.Problem {
	return sallyport.Denied(fmt.Sprintf("this host takes user certificates of cluster %s, not plain keys", q.Cluster), HintLogin)
}

func (q Check) checkType(cert *ssh.Certificate) *sallyport.Problem {
	if cert.CertType != ssh.UserCert {
		return sallyport.Denied("the certificate is not a user certificate", HintLogin)
	}
	return nil
}

// checkAuthority compares keys, byte for byte, and takes no certificate for a
// key: signatures by certificates do not exist (PROTOCOL.certkeys; threat A01).
func (q Check) checkAuthority(cert *ssh.Certificate) *sallyport.Problem {
	foreign := sallyport.Denied(fmt.Sprintf("the certificate is not signed by a user CA of cluster %s", q.Cluster), HintLogin)
	if cert.Key == nil || cert.SignatureKey == nil || cert.Signature == nil {
		return foreign
	}
	for _, k := range []ssh.PublicKey{cert.Key, cert.SignatureKey} {
		if _, nested := k.(*ssh.Certificate); nested {
			return foreign
		}
	}
	signer := cert.SignatureKey.Marshal()
	if len(signer) == 0 || !slices.ContainsFunc(q.CAs, func(ca []byte) bool { return bytes.Equal(ca, signer) }) {
		return foreign
	}
	if bytes.Equal(cert.Key.Marshal(), signer) {
		return foreign // a CA's key signs, it does not log in
	}
	return nil
}

// checkAlgorithms refuses SHA-1 signatures of the CA and keys out of bounds,
// as CASignatureAlgorithms and RequiredRSASize do (sshd_config(5)).
func (q Check) checkAlgorithms(cert *ssh.Certificate) *sallyport.Problem {
	if !slices.Contains(KeyAlgorithms(), cert.Signature.Format) {
		return sallyport.Denied(fmt.Sprintf("the certificate is signed by %s, which is not accepted", Printable(cert.Signature.Format, 64)), HintLogin)
	}
	for _, k := range []ssh.PublicKey{cert.Key, cert.SignatureKey} {
		public, ok := k.(ssh.CryptoPublicKey)
		if !ok {
			continue // security keys: their curve is fixed
		}
		if r, ok := public.CryptoPublicKey().(*rsa.PublicKey); ok && (r.N.BitLen() < minRSA || r.N.BitLen() > maxRSA) {
			return sallyport.Denied(fmt.Sprintf("RSA keys of %d bits are not accepted", r.N.BitLen()), HintLogin)
		}
	}
	return nil
}

// checkOptions: every critical option restricts, so one that is not enforced
// here refuses the certificate.
func (q Check) checkOptions(cert *ssh.Certificate) *sallyport.Problem {
	for name, value := range cert.CriticalOptions {
		switch {
		case name == optionForce:
			return sallyport.Denied("certificates with a forced command are not served by this version", "")
		case name != optionSource:
			return sallyport.Denied(fmt.Sprintf("critical option %q of the certificate is not known", Printable(name, 64)), "")
		case !sourceAllowed(value, q.Addr):
			return sallyport.Denied("the certificate is bound to another address", HintLogin)
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
func (q Check) checkPrincipals(cert *ssh.Certificate) *sallyport.Problem {
	if len(cert.ValidPrincipals) == 0 {
		return sallyport.Denied("the certificate names no logins", HintLogin)
	}
	if len(cert.ValidPrincipals) > maxPrincipals {
		return sallyport.Denied(fmt.Sprintf("the certificate names more than %d logins", maxPrincipals), HintLogin)
	}
	if q.AnyLogin {
		return nil
	}
	if q.Login == "" || !slices.Contains(cert.ValidPrincipals, q.Login) {
		return sallyport.Denied(fmt.Sprintf("the certificate does not allow login %q", Printable(q.Login, maxLogin)),
			`"sally status" shows the logins that it allows`)
	}
	return nil
}

// checkTime also refuses certificates without an end: nothing would ever end
// their sessions.
func (q Check) checkTime(cert *ssh.Certificate) *sallyport.Problem {
	now := uint64(max(q.Now.Unix(), 0))
	switch {
	case cert.ValidBefore == ssh.CertTimeInfinity:
		return sallyport.Denied("the certificate never expires", HintLogin)
	case now < cert.ValidAfter:
		return sallyport.Denied("the certificate is not valid yet", "check the clocks of this host and of the cluster")
	case now >= cert.ValidBefore:
		return sallyport.Denied("the certificate has expired", HintLogin)
	}
	return nil
}

// checkSignature comes last: it is the only step that costs.
func (q Check) checkSignature(cert *ssh.Certificate) *sallyport.Problem {
	return q.verify(cert, []string{optionSource})
}

func (q Check) verify(cert *ssh.Certificate, options []string) *sallyport.Problem {
	login := q.Login
	if q.AnyLogin && len(cert.ValidPrincipals) > 0 {
		login = cert.ValidPrincipals[0]
	}
	checker := ssh.CertChecker{
		SupportedCriticalOptions: options,
		Clock:                    func() time.Time { return q.Now },
	}
	if err := checker.CheckCert(login, cert); err != nil {
		return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "the certificate's signature does not verify", Hint: HintLogin, Cause: err}
	}
	return nil
}

// KeyAlgorithms are the signatures accepted from users and from their CAs:
// those of SSH's today, without SHA-1 and DSA.
func KeyAlgorithms() []string {
	return []string{
		ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256,
		ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
	}
}
