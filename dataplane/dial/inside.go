package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/carrier"
	"github.com/sallyport/sallyport/identity"
)

// Where something on the way ends TLS, a load balancer or a proxy that inspects,
// its certificate is not the one to be believed, and it knows none of the cluster's
// protocol ids. The connection then travels inside a WebSocket on the gateway's web
// origin, with its own TLS from end to end.
//
//	handshake ─ done ─▶ the connection
//	    └─ failed ─▶ who ends TLS there? ─ the gateway ─▶ the failure
//	                         └─ somebody else ─▶ WebSocket ─▶ handshake inside

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
	socket, err := carrier.DialSocket(ctx, under, carrier.Origin{Name: host, Path: carrier.ConnectPath, Own: own, Pinned: alpn.Pinned1})
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
	return err == nil && identity.LeadsTo(roots, chain, d.now())
}
