package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
)

// Bounds of what a stranger may hand in as a public key.
const (
	maxTLSKey  = 2 << 10 // DER
	maxSSHKey  = 4 << 10 // authorized_keys line
	minRSABits = 2048
	maxRSABits = 4096 // larger ones only cost time (CVE-2023-29409)
)

// ParseTLSKey reads a public key in PKIX DER form: ECDSA on P-256 or P-384,
// Ed25519, or RSA of 2048 to 4096 bits.
func ParseTLSKey(der []byte) (any, error) {
	if len(der) == 0 || len(der) > maxTLSKey {
		return nil, badKey("TLS", fmt.Sprintf("%d bytes", len(der)))
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, badKey("TLS", "not in PKIX form")
	}
	if fault := weakness(pub); fault != "" {
		return nil, badKey("TLS", fault)
	}
	return pub, nil
}

// ParseSSHKey reads one authorized_keys line without options, of the same
// kinds of keys.
func ParseSSHKey(line []byte) (ssh.PublicKey, error) {
	if len(line) == 0 || len(line) > maxSSHKey {
		return nil, badKey("SSH", fmt.Sprintf("%d bytes", len(line)))
	}
	pub, _, options, rest, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, badKey("SSH", "not an authorized_keys line")
	}
	if len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, badKey("SSH", "want one key without options")
	}
	if _, nested := pub.(*ssh.Certificate); nested {
		return nil, badKey("SSH", "a certificate is not a key")
	}
	plain, ok := pub.(ssh.CryptoPublicKey)
	if !ok {
		return nil, badKey("SSH", "type "+pub.Type()+" is not accepted")
	}
	if fault := weakness(plain.CryptoPublicKey()); fault != "" {
		return nil, badKey("SSH", fault)
	}
	switch pub.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoRSA:
		return pub, nil
	}
	return nil, badKey("SSH", "type "+pub.Type()+" is not accepted")
}

// weakness says why a key is not accepted, or nothing.
func weakness(pub any) string {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return "ECDSA on another curve than P-256 and P-384"
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Sprintf("RSA of %d bits: want %d to %d", n, minRSABits, maxRSABits)
		}
		if k.E < 65537 || k.E%2 == 0 || k.N.Bit(0) == 0 {
			return "RSA with a weak exponent or modulus"
		}
	default:
		return "this type is not accepted"
	}
	return ""
}

func badKey(what, fault string) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: what + " public key: " + fault,
		Hint: "use ECDSA P-256, P-384, Ed25519 or RSA 2048 to 4096"}
}
