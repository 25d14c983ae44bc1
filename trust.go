package sallyport

import (
	"crypto/x509"
	"time"
)

// Trust is one immutable view of what the control plane has signed: the part
// that is needed to say who somebody is.
type Trust struct {
	Cluster  string
	Revision uint64
	IssuedAt time.Time

	UserCAs       []*x509.Certificate
	HostCAs       []*x509.Certificate
	DatabaseCAs   []*x509.Certificate
	SSHUserCAs    [][]byte // wire form of the public keys
	SSHHostCAs    [][]byte
	Locks         []Lock
	DatabaseUsers map[string][]string // per database: users worth a certificate in advance
}
