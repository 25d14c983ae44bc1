package ca

import (
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// HostTTL is the life of all certificates of hosts and of what they serve;
// they are renewed at half of it.
const HostTTL = 7 * 24 * time.Hour

const maxNames = 64

// HostRequest asks for the certificates of an agent, a gateway or auth itself.
type HostRequest struct {
	Kind sallyport.IdentityKind // agent, gateway, auth
	ID   string                 // UUID

	TLSKey []byte // PKIX DER
	SSHKey []byte // authorized_keys line; none: no SSH certificate

	// NodeNames are the node names that inventory has given to this agent, in
	// the SSH certificate. One DNS label each.
	NodeNames []string
	// Addresses are the public addresses of a gateway or of auth.
	Addresses []netip.Addr
}

// IssueHost issues the certificates by which a host proves who it is. An
// agent's names nothing but its own id; a gateway's and auth's also the cluster.
// A gateway's names the level below, too, where browsers find applications
// (<app>.<cluster>): it is what it shows them without a public one. That is no
// resource's name, of which each is two levels below (RFC 9525, section 6.3).
// A gateway is the cluster's SSH server too, under that name and no node's.
func (k *Keys) IssueHost(r HostRequest) (Certificates, error) {
	if err := checkHost(r); err != nil {
		return Certificates{}, err
	}
	pub, err := ParseTLSKey(r.TLSKey)
	if err != nil {
		return Certificates{}, err
	}
	out := Certificates{NotAfter: k.now().Add(HostTTL).Truncate(time.Second)}
	tmpl := k.leafTemplate(r.ID, out.NotAfter, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth)
	tmpl.URIs = []*url.URL{identity.URI(r.Kind, k.cluster, r.ID)}
	if r.Kind != sallyport.KindAgent {
		tmpl.DNSNames = []string{k.cluster}
		tmpl.IPAddresses = addresses(r.Addresses)
	}
	if r.Kind == sallyport.KindGateway {
		tmpl.DNSNames = append(tmpl.DNSNames, "*."+k.cluster)
	}
	if out.X509, err = k.sign(Host, tmpl, pub); err != nil {
		return Certificates{}, err
	}
	switch {
	case len(r.SSHKey) == 0:
	case r.Kind == sallyport.KindGateway:
		out.SSH, err = k.issueGateway(r)
	default:
		out.SSH, err = k.IssueNode(r.ID, r.SSHKey, r.NodeNames)
	}
	return out, err
}

// issueGateway issues the SSH host certificate of a gateway: for the cluster's
// name, and the addresses that its other certificate names.
func (k *Keys) issueGateway(r HostRequest) ([]byte, error) {
	principals := []string{k.cluster}
	for _, a := range r.Addresses {
		principals = append(principals, a.Unmap().String())
	}
	return k.issueSSHHost(r.ID, r.SSHKey, principals)
}

func checkHost(r HostRequest) error {
	switch {
	case r.Kind != sallyport.KindAgent && r.Kind != sallyport.KindGateway && r.Kind != sallyport.KindAuth:
		return refused("certificate of the host CA for a holder of kind " + string(r.Kind))
	case !validID(r.ID):
		return refused("host id is not a UUID in its plain form")
	case r.Kind != sallyport.KindAgent && len(r.NodeNames) > 0:
		return refused("node names are for agents")
	case r.Kind == sallyport.KindAgent && len(r.Addresses) > 0:
		return refused("addresses are for gateways")
	case len(r.Addresses) > maxNames:
		return refused("too many addresses in one certificate")
	}
	return nil
}

// IssueNode issues the SSH host certificate of an agent, for its id and for
// the node names that inventory has given to it: each as it is, below the
// cluster, and below node.<cluster>.
func (k *Keys) IssueNode(id string, sshKey []byte, nodeNames []string) ([]byte, error) {
	if !validID(id) {
		return nil, refused("host id is not a UUID in its plain form")
	}
	if len(nodeNames) > maxNames {
		return nil, refused("too many names in one certificate")
	}
	var principals []string
	for _, name := range append([]string{id}, nodeNames...) {
		if !validLabel(name) {
			return nil, refused("node name is not one free DNS label")
		}
		principals = append(principals, name, name+"."+k.cluster, name+"."+string(sallyport.KindNode)+"."+k.cluster)
	}
	return k.issueSSHHost(id, sshKey, principals)
}

func (k *Keys) issueSSHHost(id string, sshKey []byte, principals []string) ([]byte, error) {
	pub, err := ParseSSHKey(sshKey)
	if err != nil {
		return nil, err
	}
	cert := k.sshCertificate(id, principals, k.now().Add(HostTTL))
	cert.CertType, cert.Key = ssh.HostCert, pub
	if err := k.signSSH(Host, cert); err != nil {
		return nil, err
	}
	return ssh.MarshalAuthorizedKey(cert), nil
}

// IssueResource issues what an agent shows to clients for one resource:
// server use only, and exactly the one name <name>.<kind>.<cluster>.
func (k *Keys) IssueResource(tlsKey []byte, serverName string) (Certificates, error) {
	if !k.isResourceName(serverName) {
		return Certificates{}, refused("server name is not that of a resource of this cluster")
	}
	pub, err := ParseTLSKey(tlsKey)
	if err != nil {
		return Certificates{}, err
	}
	out := Certificates{NotAfter: k.now().Add(HostTTL).Truncate(time.Second)}
	tmpl := k.leafTemplate("", out.NotAfter, x509.ExtKeyUsageServerAuth)
	tmpl.DNSNames = []string{serverName}
	out.X509, err = k.sign(Host, tmpl, pub)
	return out, err
}

// ServerName is the name under which clients reach a resource.
func (k *Keys) ServerName(kind sallyport.Kind, name string) string {
	return name + "." + string(kind) + "." + k.cluster
}

func (k *Keys) isResourceName(s string) bool {
	rest, ok := strings.CutSuffix(s, "."+k.cluster)
	if !ok || len(s) > 253 {
		return false
	}
	name, kind, ok := strings.Cut(rest, ".")
	return ok && validLabel(name) && slices.Contains(resourceKinds(), sallyport.Kind(kind))
}

func resourceKinds() []sallyport.Kind {
	return []sallyport.Kind{sallyport.KindNode, sallyport.KindDatabase, sallyport.KindKube, sallyport.KindApp, sallyport.KindTCP, sallyport.KindDesktop}
}

func addresses(list []netip.Addr) []net.IP {
	var out []net.IP
	for _, a := range list {
		out = append(out, a.Unmap().AsSlice())
	}
	return out
}

func validID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id.String() == s
}

// validLabel takes one DNS label in lower case (RFC 1035, section 2.3.1, with
// digits in front allowed by RFC 1123) that is not reserved.
func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	switch s {
	case "node", "db", "kube", "tcp", "app", "desktop", "auth", "api", "www":
		return false
	}
	return true
}
