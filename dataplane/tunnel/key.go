package tunnel

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/identity"
)

// exporterLabel is the label of RFC 8446, section 7.5 (experimental labels
// begin with EXPORTER).
const exporterLabel = "EXPORTER-sallyport-tunnel"

// Directions, as the exporter's context has them.
const (
	dirAgent   = 1 // agent to gateway: data hellos
	dirGateway = 2 // gateway to agent: open frames
)

// keys are what a tunnel's data connections are authenticated by. They live in
// memory only, as long as the control connection that they come from.
type keys struct {
	agent   Key // data hellos
	gateway Key // open frames
}

// deriveKeys is K_dir = TLS-Exporter(label, version || dir || tunnel id, 32).
func deriveKeys(cs tls.ConnectionState, tunnel ID) (k keys, err error) {
	if k.agent, err = deriveKey(cs, dirAgent, tunnel); err != nil {
		return keys{}, err
	}
	k.gateway, err = deriveKey(cs, dirGateway, tunnel)
	return k, err
}

func deriveKey(cs tls.ConnectionState, dir byte, tunnel ID) (Key, error) {
	context := append([]byte{version, dir}, tunnel[:]...)
	b, err := cs.ExportKeyingMaterial(exporterLabel, context, len(Key{}))
	if err != nil {
		return Key{}, fmt.Errorf("tunnel key: %w", err)
	}
	return Key(b), nil
}

func newID() (id ID) {
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return id
}

// peerID reads who is at the other end of a control connection from the
// certificate that the TLS layer verified. It is the id in
// spiffe://<cluster>/<kind>/<id>; cluster "" stands for any.
func peerID(cs tls.ConnectionState, kind sallyport.IdentityKind, cluster string) (string, error) {
	if cs.Version != tls.VersionTLS13 {
		return "", errors.New("control connection: not TLS 1.3")
	}
	if cs.NegotiatedProtocol != alpn.Tunnel1 {
		return "", fmt.Errorf("control connection: protocol %q, want %q", cs.NegotiatedProtocol, alpn.Tunnel1)
	}
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return "", errors.New("control connection: no certificate")
	}
	return certificateID(cs.PeerCertificates[0], kind, cluster)
}

func certificateID(leaf *x509.Certificate, kind sallyport.IdentityKind, cluster string) (string, error) {
	if len(leaf.URIs) != 1 {
		return "", fmt.Errorf("peer certificate: %d URI names, want one SPIFFE id", len(leaf.URIs))
	}
	k, c, id, err := identity.ParseURI(leaf.URIs[0])
	if err != nil {
		return "", fmt.Errorf("peer certificate: %w", err)
	}
	if k != kind {
		return "", fmt.Errorf("peer certificate: kind %q, want %q", k, kind)
	}
	if cluster != "" && c != cluster {
		return "", fmt.Errorf("peer certificate: cluster %q, want %q", c, cluster)
	}
	return id, nil
}
