package access

import (
	"context"
	"crypto/tls"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// What the door wants from elsewhere. controlplane/client and controlplane/rbac
// meet these; cmd joins them. All methods may be called concurrently and none
// may ask the network, except DatabaseCertificate.

// Snapshot gives the newest verified view.
type Snapshot interface {
	// Trust returns the newest view. The error is a *sallyport.Problem of
	// kind ErrStaleSnapshot when there is none or it is too old to decide on;
	// the view is returned beside it when there is one.
	Trust() (*sallyport.Trust, error)

	// Changed returns a channel that is closed at the next change of the view.
	Changed() <-chan struct{}
}

// Decider answers access requests from the newest view of the roles.
type Decider interface {
	Decide(r sallyport.AccessRequest) sallyport.Decision
}

// Events is the audit spool.
type Events = session.Sink

// Credentials are the agent's own keys and certificates.
type Credentials interface {
	// ServerCertificate is the one to show for a server name, in lower case.
	// It returns an error of kind sallyport.ErrNotFound when auth has not
	// assigned that name to this agent.
	ServerCertificate(serverName string) (*tls.Certificate, error)

	// DatabaseCertificate is the client certificate for a user of a database,
	// from memory or disk; auth is asked only when there is none, or in the
	// background when it is past half its life.
	DatabaseCertificate(ctx context.Context, database, user string) (*tls.Certificate, error)
}
