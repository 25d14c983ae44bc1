package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"

	"github.com/sallyport/sallyport"
)

// OID is the object identifier of the private extension; doc.go says where it
// comes from.
func OID() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{2, 25, 56334, 36196, 26358, 18535, 48492, 17542, 6132, 17720, 1}
}

// Extension encodes an identity for a certificate's ExtraExtensions. The
// certificate's own facts (serial, fingerprint, validity) are left out.
func Extension(id sallyport.Identity) (pkix.Extension, error) {
	message, err := encode(id)
	if err != nil {
		return pkix.Extension{}, err
	}
	value, err := asn1.Marshal(message)
	if err != nil {
		return pkix.Extension{}, err
	}
	return pkix.Extension{Id: OID(), Value: value}, nil
}

// FromX509 is the identity that a verified certificate states. Users must have
// the extension and a common name equal to the name; hosts may have neither,
// and then have no roles. The caller has checked chain, purpose and time, and
// compares Cluster with its own.
func FromX509(cert *x509.Certificate) (sallyport.Identity, error) {
	if cert.IsCA {
		return sallyport.Identity{}, fmt.Errorf("certificate of an authority names no holder")
	}
	if len(cert.URIs) != 1 {
		return sallyport.Identity{}, fmt.Errorf("certificate has %d URI names, want one SPIFFE id", len(cert.URIs))
	}
	kind, cluster, name, err := ParseURI(cert.URIs[0])
	if err != nil {
		return sallyport.Identity{}, err
	}
	id, found, err := fromExtension(cert)
	if err != nil {
		return sallyport.Identity{}, err
	}
	if kind == sallyport.KindUser {
		if err := checkUserCertificate(cert, name, found); err != nil {
			return sallyport.Identity{}, err
		}
	}
	if !found {
		id = sallyport.Identity{Kind: kind, Cluster: cluster, Name: name}
	}
	if id.Kind != kind || id.Cluster != cluster || id.Name != name {
		return sallyport.Identity{}, fmt.Errorf("certificate names two holders: %s and %s",
			URI(kind, cluster, name), URI(id.Kind, id.Cluster, id.Name))
	}
	sum := sha256.Sum256(cert.Raw)
	id.Serial = cert.SerialNumber.String()
	id.Fingerprint = hex.EncodeToString(sum[:])
	id.NotBefore, id.NotAfter = cert.NotBefore, cert.NotAfter
	return id, nil
}

func checkUserCertificate(cert *x509.Certificate, name string, hasExtension bool) error {
	if !hasExtension {
		return fmt.Errorf("user certificate without an identity")
	}
	if cert.Subject.CommonName != name {
		return fmt.Errorf("user certificate: common name %q, name %q", cert.Subject.CommonName, name)
	}
	if len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 {
		return fmt.Errorf("user certificate of %q has the names of a host", name)
	}
	return nil
}

func fromExtension(cert *x509.Certificate) (id sallyport.Identity, found bool, err error) {
	oid := OID()
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oid) {
			continue
		}
		if found {
			return sallyport.Identity{}, false, fmt.Errorf("certificate has two identities")
		}
		found = true
		if id, err = fromValue(ext.Value); err != nil {
			return sallyport.Identity{}, false, err
		}
	}
	return id, found, nil
}

func fromValue(value []byte) (sallyport.Identity, error) {
	if len(value) > MaxEncoded+8 {
		return sallyport.Identity{}, fmt.Errorf("identity: %d bytes, at most %d allowed", len(value), MaxEncoded)
	}
	var message []byte
	rest, err := asn1.Unmarshal(value, &message)
	if err != nil {
		return sallyport.Identity{}, fmt.Errorf("identity: %w", err)
	}
	if len(rest) != 0 {
		return sallyport.Identity{}, fmt.Errorf("identity: %d bytes after its end", len(rest))
	}
	return decode(message)
}
