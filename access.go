package sallyport

import (
	"net/netip"
	"time"
)

// Action is what a session does with a resource beyond reaching it.
type Action string

const (
	ActionConnect       Action = "connect"       // open a session at all
	ActionForwardAgent  Action = "forward-agent" // ssh-agent forwarding
	ActionForwardLocal  Action = "forward-local" // ssh -L, -D, -W
	ActionForwardRemote Action = "forward-remote"
	ActionX11           Action = "x11"
	ActionFileCopy      Action = "file-copy" // scp, sftp
)

// AccessRequest is one question to the role evaluator.
type AccessRequest struct {
	Identity   Identity
	Resource   Resource
	Action     Action
	Login      string // nodes
	DBUser     string // databases
	DBName     string
	AWSRole    string // applications at AWS: the ARN of the role
	ClientAddr netip.Addr
	Now        time.Time
}

// Options are the options of all roles that the identity holds, merged: each by
// its own rule, the minimum, any, or all.
type Options struct {
	MaxSessionTTL         time.Duration
	ClientIdleTimeout     time.Duration // 0: none
	DisconnectExpiredCert bool
	MaxSessions           int64 // 0: unlimited
	ForwardAgent          bool
	PortForwardLocal      bool
	PortForwardRemote     bool
	X11Forwarding         bool
	FileCopy              bool
	StrictLock            bool
}

// Decision is the answer. The zero value denies.
type Decision struct {
	Allowed  bool
	Role     string // the role that granted or denied; "" when none matched
	Reason   string // for the authenticated subject and the audit log: a fact, lower case
	Options  Options
	Kube     KubeGrant // Kubernetes clusters: what may be asked of it
	Revision uint64    // of the policy that decided
	// Fleeting says that the answer depends on time, address or MFA and must
	// not be cached.
	Fleeting bool
}
