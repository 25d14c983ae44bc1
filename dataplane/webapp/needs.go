package webapp

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"time"
)

// Desk is what auth says of sessions. Its errors are *sallyport.Problem:
// ErrUnauthorized for a code or session that is not good, or not any more,
// ErrDenied and ErrNotFound for what a user may not, anything else when auth
// cannot be asked. It may be called concurrently.
type Desk interface {
	Redeem(ctx context.Context, c Code) (Grant, error)
	Renew(ctx context.Context, q Question) (Grant, error)
	End(ctx context.Context, session, app string) error
}

// Code is what a browser brings back from its login.
type Code struct {
	Code, Verifier, App string
	Key                 []byte // to be certified; PKIX, DER
	Client              netip.Addr
}

// Question asks whether a session is good.
type Question struct {
	Session, App string
	Key          []byte // to be certified; nil for no certificate
	Client       netip.Addr
	Quiet        bool // nothing has come from the browser since the last one: it does not count as use
}

// Grant is auth's yes.
type Grant struct {
	Session     string // the cookie's value; only of Redeem
	User        string
	Roles       []string
	Traits      map[string][]string
	Certificate []byte    // DER; nil when none was asked for
	Expires     time.Time // of the certificate
	Ends        time.Time // of the web session, at the latest; zero: auth did not say
}

// Dialer makes a TLS connection to an agent that serves an application, with cfg,
// for a browser at an address. Its end is at the latest that of ctx.
type Dialer func(ctx context.Context, app string, browser netip.AddrPort, cfg *tls.Config) (net.Conn, error)
