package sallyport

import "time"

// IdentityKind says what sort of holder a certificate names. It is the first
// path segment of the SPIFFE id: spiffe://<cluster>/<kind>/<name>.
type IdentityKind string

const (
	KindUser       IdentityKind = "user"        // a person
	KindAgent      IdentityKind = "agent"       // a process next to resources
	KindGateway    IdentityKind = "gateway"     // a process that owns the public port
	KindAuth       IdentityKind = "auth"        // the control plane itself
	KindLocalAdmin IdentityKind = "local-admin" // root or the owner of data_dir, by the admin socket; never in a certificate
)

// Usage restricts what a certificate may be used for. The zero value restricts nothing.
type Usage string

// UsageWeb marks a certificate that a gateway holds on behalf of a browser.
// The door takes it only for web protocols and only from that gateway.
const UsageWeb Usage = "web"

// Identity is who a verified certificate says its holder is. It is built only
// by package identity, from a certificate whose chain has been checked, and is
// never changed afterwards: slices and maps are shared and read-only.
type Identity struct {
	Kind    IdentityKind
	Name    string // user name; for hosts the UUID
	Cluster string

	Roles      []string
	Traits     map[string][]string
	Principals []string // OS logins the certificate was issued for

	MFA              string   // id of the device that was used at login; "" without
	PinnedAddr       string   // IP address the certificate is bound to; "" for any
	LoginAddr        string   // IP address the login came from
	AllowedResources []string // "/<cluster>/<kind>/<name>"; empty for all
	ActiveRequests   []string // ids of approved access requests
	Usage            Usage
	BoundTo          string // usage=web: SPIFFE id of the gateway that holds it
	DisallowReissue  bool
	Generation       uint64 // counts re-issues of a renewable certificate

	// The certificate's own facts; not part of the extension.
	Serial      string // decimal
	Fingerprint string // lower-case hex of SHA-256 over the DER (X.509) or wire form (SSH)
	NotBefore   time.Time
	NotAfter    time.Time
}
