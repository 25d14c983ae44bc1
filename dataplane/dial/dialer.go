package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/identity"
)

// DefaultTimeout is how long one connection may take to be ready.
const DefaultTimeout = 30 * time.Second

// Dialer connects through one gateway. Its methods may be called concurrently.
type Dialer struct {
	Proxy   string // the gateway, host:port
	Cluster string

	// Roots are the cluster's host CAs. Pins take their place when they are
	// nil: a CA in the chain that is shown must have one of them ("sha256:…").
	// A web origin (h2, http/1.1) with neither is checked by the system's CAs.
	Roots *x509.CertPool
	Pins  []string

	// Certificate is the user's, asked for at each connection; nil for none.
	Certificate func() (*tls.Certificate, error)

	// HTTPSProxy and NoProxy are the values of the environment variables of
	// these names: an HTTP proxy to go through by CONNECT, and where not to.
	HTTPSProxy, NoProxy string

	Timeout time.Duration                                                     // 0: DefaultTimeout
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Now     func() time.Time                                                  // nil: time.Now

	// Ended says that something on the way ends TLS, if that is known: connections go
	// inside a WebSocket at once. Otherwise the first one finds out.
	Ended bool

	found atomic.Bool // that
}

// DialResource connects to a resource's agent and returns the stream inside
// its TLS; protocol is the id to ask for, "" for none. Streams of kind tcp with
// alpn.TCP1 have passed the agent's greeting. The error is a *sallyport.Problem.
func (d *Dialer) DialResource(ctx context.Context, kind sallyport.Kind, name, protocol string) (net.Conn, error) {
	if !alpn.ValidLabel(name) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "resource " + quote(name) + ": not a name that a resource can have", Hint: "sally ls"}
	}
	cfg, err := d.config(protocol)
	if err != nil {
		return nil, err
	}
	cfg.ServerName = alpn.ServerName(string(kind), name, d.Cluster)
	cfg.VerifyConnection = func(cs tls.ConnectionState) error { return d.verifyHost(cs, cfg.ServerName) }
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	conn, err := d.tls(ctx, cfg)
	if err != nil {
		return nil, resourceProblem(err, name, protocol)
	}
	if kind == sallyport.KindTCP && protocol == alpn.TCP1 {
		if err := greeted(ctx, conn); err != nil {
			conn.Close()
			return nil, resourceProblem(err, name, protocol)
		}
	}
	return conn, nil
}

// DialALPN connects to a service of the cluster itself: auth for
// sallyport-auth/1 and sallyport-join/1, a gateway for its own ids, the web
// origin for h2 and http/1.1. The error is a *sallyport.Problem.
func (d *Dialer) DialALPN(ctx context.Context, protocol string) (net.Conn, error) {
	cfg, err := d.config(protocol)
	if err != nil {
		return nil, err
	}
	cfg.ServerName = d.Cluster
	switch protocol {
	case alpn.Join1:
		cfg.Certificates = nil
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return d.verifyPeer(cs, sallyport.KindAuth) }
	case alpn.Auth1:
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return d.verifyPeer(cs, sallyport.KindAuth) }
	case alpn.Tunnel1, alpn.Gateway1:
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return d.verifyPeer(cs, sallyport.KindGateway) }
	case alpn.HTTP2, alpn.HTTP11:
		cfg.Certificates = nil // people are known there by their cookies
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return d.verifyHost(cs, d.Cluster) }
	default:
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "protocol " + quote(protocol) + " is not one of the cluster's own"}
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	conn, err := d.tls(ctx, cfg)
	if err != nil {
		return nil, serviceProblem(err, d.Proxy)
	}
	return conn, nil
}

// DialRaw connects to the gateway's port and sends nothing: for programs that
// speak TLS themselves. The error is a *sallyport.Problem.
func (d *Dialer) DialRaw(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	return d.tcp(ctx)
}

// config is what all connections share. The chain is checked in
// VerifyConnection, by what the connection is for; each caller sets it.
func (d *Dialer) config(protocol string) (*tls.Config, error) {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, InsecureSkipVerify: true,
		VerifyConnection: func(tls.ConnectionState) error { return errors.New("nothing to check the server by") },
	}
	if protocol != "" {
		cfg.NextProtos = []string{protocol}
	}
	if d.Certificate == nil {
		return cfg, nil
	}
	cert, err := d.Certificate()
	if err != nil {
		return nil, err
	}
	if p := d.expired(cert); p != nil {
		return nil, p
	}
	cfg.Certificates = []tls.Certificate{*cert}
	return cfg, nil
}

// expired saves a journey whose end is known.
func (d *Dialer) expired(cert *tls.Certificate) *sallyport.Problem {
	leaf := cert.Leaf
	if leaf == nil && len(cert.Certificate) > 0 {
		leaf, _ = x509.ParseCertificate(cert.Certificate[0])
	}
	if leaf == nil || d.now().Before(leaf.NotAfter) {
		return nil
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Hint: "log in with: sally login",
		Fact: "your login expired at " + leaf.NotAfter.UTC().Format(time.RFC3339)}
}

// tls makes the connection: TCP, then the handshake, both within ctx. Where
// something on the way ends TLS that is done inside a WebSocket, and from then on
// at once. What is said inside is the gateway's word, and the answer.
func (d *Dialer) tls(ctx context.Context, cfg *tls.Config) (*stream, error) {
	known := d.Ended || d.found.Load()
	if known {
		if raw, err := d.inside(ctx); err == nil {
			return handshake(ctx, raw, cfg)
		}
	}
	raw, err := d.tcp(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := handshake(ctx, raw, cfg)
	if err == nil || known || d.Dial != nil || ctx.Err() != nil {
		return conn, err
	}
	raw, ierr := d.inside(ctx)
	if ierr != nil {
		return nil, err
	}
	d.found.Store(true)
	return handshake(ctx, raw, cfg)
}

func (d *Dialer) inside(ctx context.Context) (net.Conn, error) {
	under, err := d.tcp(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := inside(ctx, under, d.Proxy, d.own)
	if err != nil {
		under.Close()
	}
	return conn, err
}

// handshake owns raw.
func handshake(ctx context.Context, raw net.Conn, cfg *tls.Config) (*stream, error) {
	under := &wire{Conn: raw}
	conn := &stream{tls.Client(under, cfg), under}
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	// A server without ALPN accepts any offer: what was asked for must have
	// been agreed on, or the bytes that follow are taken for another protocol's.
	if len(cfg.NextProtos) > 0 && conn.ConnectionState().NegotiatedProtocol != cfg.NextProtos[0] {
		conn.Close()
		return nil, errNoProtocol
	}
	return conn, nil
}

// tcp reaches the gateway's port, straight or through an HTTP proxy.
func (d *Dialer) tcp(ctx context.Context) (net.Conn, error) {
	via, err := d.httpProxy()
	if err != nil {
		return nil, err
	}
	if via != nil {
		return d.connect(ctx, via)
	}
	conn, err := d.dialer()(ctx, "tcp", d.Proxy)
	if err != nil {
		return nil, unreachable("gateway "+d.Proxy, err)
	}
	return conn, nil
}

func (d *Dialer) dialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.Dial != nil {
		return d.Dial
	}
	return (&net.Dialer{}).DialContext
}

func (d *Dialer) timeout() time.Duration {
	if d.Timeout > 0 {
		return d.Timeout
	}
	return DefaultTimeout
}

func (d *Dialer) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

// errUntrusted marks a server that is not who it should be.
var errUntrusted = errors.New("the server is not who it should be")

// verifyHost checks a server by a host name.
func (d *Dialer) verifyHost(cs tls.ConnectionState, host string) error {
	roots, err := d.roots(cs)
	if err != nil {
		return errors.Join(errUntrusted, err)
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err = cs.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: d.now()})
	if err != nil {
		return errors.Join(errUntrusted, err)
	}
	return nil
}

// verifyPeer checks a server by its SPIFFE id.
func (d *Dialer) verifyPeer(cs tls.ConnectionState, kind sallyport.IdentityKind) error {
	roots, err := d.roots(cs)
	if err != nil {
		return errors.Join(errUntrusted, err)
	}
	if roots == nil {
		return errors.Join(errUntrusted, errors.New("neither a CA nor a pin to check it by"))
	}
	_, err = identity.VerifyPeer(cs.PeerCertificates, identity.Want{
		Roots: roots, Cluster: d.Cluster, Kinds: []sallyport.IdentityKind{kind},
		Usage: x509.ExtKeyUsageServerAuth, Now: d.now(),
	})
	if err != nil {
		return errors.Join(errUntrusted, err)
	}
	return nil
}

// roots are the cluster's CAs; nil for the system's.
func (d *Dialer) roots(cs tls.ConnectionState) (*x509.CertPool, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("no certificate was shown")
	}
	if d.Roots != nil || len(d.Pins) == 0 {
		return d.Roots, nil
	}
	return identity.PinnedRoots(cs.PeerCertificates, d.Pins)
}
