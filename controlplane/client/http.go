package client

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"

	"golang.org/x/net/http2"
)

//lint:file-ignore SA1019 net/http's own Transport takes a TLS connection for HTTP/2 by the protocol id h2 alone; ours are sallyport-auth/1 and sallyport-join/1

// HTTP returns a client that speaks HTTP/2 to auth by the given protocol id,
// whatever host its requests name. Use BaseURL for that.
func (d *Dialer) HTTP(protocol string) *http.Client {
	return &http.Client{Transport: &http2.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			return d.Dial(ctx, protocol)
		},
		ReadIdleTimeout:    pingAfter,
		PingTimeout:        pingTimeout,
		DisableCompression: true,
	}}
}

// BaseURL is the base of every call by Dialer.HTTP: the name is never resolved.
const BaseURL = "https://auth.sallyport.internal"
