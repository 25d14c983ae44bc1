// Package signed makes and checks the control plane's signatures under
// snapshots and assignments. It is pure, so that agents and gateways can check
// what they are given without linking the CA or the store.
//
// A signature is ECDSA over P-256, ASN.1 form, by the key of a host CA, of
// SHA-256(domain || 0x00 || payload). The domain keeps what was signed for one
// purpose from being taken for another.
package signed

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// Domain says what a signature is good for.
type Domain string

const (
	Snapshot   Domain = "sallyport-snapshot/1"
	Assignment Domain = "sallyport-assignment/1"
	AuditHead  Domain = "sallyport-audit-head/1"
)

// Limits of what is looked at.
const (
	MaxPayload   = 64 << 20
	maxSignature = 128
)

// Make signs a payload; key is the key of the CA's certificate.
func Make(ca *x509.Certificate, key crypto.Signer, domain Domain, payload []byte) (*sallyportv1.Signed, error) {
	if err := known(domain); err != nil {
		return nil, err
	}
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("%s: payload of %d bytes, at most %d", domain, len(payload), MaxPayload)
	}
	sig, err := key.Sign(rand.Reader, digest(domain, payload), crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return &sallyportv1.Signed{Payload: payload, Signature: sig, KeyId: KeyID(ca)}, nil
}

// Verify checks that one of the CAs signed the message for this domain. Only
// when it returns nil may the payload be read. Whether the payload's own time,
// cluster and subject are right is the caller's to check.
func Verify(cas []*x509.Certificate, domain Domain, m *sallyportv1.Signed) error {
	if err := known(domain); err != nil {
		return err
	}
	if len(m.GetPayload()) > MaxPayload || len(m.GetSignature()) > maxSignature {
		return fmt.Errorf("%s: too large", domain)
	}
	for _, ca := range cas {
		if !ca.IsCA || KeyID(ca) != m.GetKeyId() {
			continue
		}
		key, ok := ca.PublicKey.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() {
			return fmt.Errorf("%s: the signer's key is not ECDSA P-256", domain)
		}
		if !ecdsa.VerifyASN1(key, digest(domain, m.GetPayload()), m.GetSignature()) {
			return fmt.Errorf("%s: wrong signature", domain)
		}
		return nil
	}
	return fmt.Errorf("%s: signed by a key that this cluster's host CA does not have", domain)
}

// KeyID names a CA's key: lower-case hex of SHA-256 over its SubjectPublicKeyInfo.
func KeyID(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func known(d Domain) error {
	if d != Snapshot && d != Assignment && d != AuditHead {
		return errors.New("signature for an unknown purpose")
	}
	return nil
}

func digest(domain Domain, payload []byte) []byte {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write([]byte{0})
	h.Write(payload)
	return h.Sum(nil)
}
