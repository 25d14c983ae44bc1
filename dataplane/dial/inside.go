package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/carrier"
)

// Where something on the way ends TLS, a load balancer or a proxy that inspects,
// its certificate is not the one to be believed, and it knows none of the cluster's
// protocol ids. The connection then travels inside a WebSocket on the gateway's web
// origin, with its own TLS from end to end.
//
//	handshake ─ done ─▶ the connection
//	    └─ failed ─▶ who ends TLS there? ─ the gateway ─▶ the failure
//	                         └─ somebody else ─▶ WebSocket ─▶ handshake inside

// errNotEnded: nobody on the way ends TLS, so there is nothing to go around.
var errNotEnded = errors.New("the gateway itself ends TLS there")

// Inside reaches the port of a gateway inside a WebSocket, through the HTTP proxy
// that HTTPS_PROXY and NO_PROXY name. own says whether a chain is one of the
// cluster's own CAs: then nobody on the way ends TLS, and Inside fails. ctx bounds
// the making only.
func Inside(ctx context.Context, addr string, own func(chain []*x509.Certificate) bool) (net.Conn, error) {
	under, err := ByEnvironment(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn, err := inside(ctx, under, addr, own)
	if err != nil {
		under.Close()
		return nil, fmt.Errorf("inside a WebSocket to %s: %w", addr, err)
	}
	return conn, nil
}

// inside leaves under to its caller when it fails.
func inside(ctx context.Context, under net.Conn, addr string, own func([]*x509.Certificate) bool) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	outer := tls.Client(under, &tls.Config{
		ServerName: host, MinVersion: tls.VersionTLS12, NextProtos: []string{alpn.HTTP11, alpn.Pinned1},
		InsecureSkipVerify: true, // nothing is believed of it: what is inside has TLS of its own
	})
	if err := outer.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if own(outer.ConnectionState().PeerCertificates) {
		return nil, errNotEnded
	}
	socket, err := carrier.Upgrade(ctx, outer, host, carrier.ConnectPath)
	if err != nil {
		return nil, err
	}
	far, near, err := carrier.ConnPair()
	if err != nil {
		socket.Abort()
		return nil, err
	}
	go carrier.Pump(context.Background(), socket, near) // ends with either end
	return &carried{far, under}, nil
}

// carried is the end of a pair; what is known of the way is the connection's
// around it.
type carried struct {
	*carrier.PairEnd
	under net.Conn
}

// LocalAddr is that of the connection around it.
func (c *carried) LocalAddr() net.Addr { return c.under.LocalAddr() }

// RemoteAddr is that of the connection around it.
func (c *carried) RemoteAddr() net.Addr { return c.under.RemoteAddr() }

// own says whether a chain leads to the cluster's CAs.
func (d *Dialer) own(chain []*x509.Certificate) bool {
	roots, err := d.roots(tls.ConnectionState{PeerCertificates: chain})
	if err != nil || roots == nil {
		return false
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: d.now()})
	return err == nil
}
