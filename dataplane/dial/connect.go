package dial

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/sallyport/sallyport"
)

// maxConnectHeader bounds what an HTTP proxy may say before the tunnel begins.
const maxConnectHeader = 16 << 10

// httpProxy is the HTTP proxy on the way to the gateway, or nil.
func (d *Dialer) httpProxy() (*url.URL, error) {
	if d.HTTPSProxy == "" {
		return nil, nil
	}
	cfg := httpproxy.Config{HTTPSProxy: d.HTTPSProxy, NoProxy: d.NoProxy}
	via, err := cfg.ProxyFunc()(&url.URL{Scheme: "https", Host: d.Proxy})
	if err != nil || via != nil && via.Scheme != "http" && via.Scheme != "https" {
		// The value may hold a password, and so may the error.
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "HTTPS_PROXY is not an http:// or https:// address",
			Hint: "for example HTTPS_PROXY=http://proxy.example.com:3128"}
	}
	return via, nil
}

// ByEnvironment reaches a gateway's port, through the HTTP proxy that HTTPS_PROXY
// and NO_PROXY name. It is the dial function of who speaks TLS with the gateway
// himself; network is "tcp". The error is a *sallyport.Problem.
func ByEnvironment(ctx context.Context, _, addr string) (net.Conn, error) {
	env := httpproxy.FromEnvironment()
	return (&Dialer{Proxy: addr, HTTPSProxy: env.HTTPSProxy, NoProxy: env.NoProxy}).DialRaw(ctx)
}

// connect reaches the gateway through an HTTP proxy (RFC 9110, section 9.3.6).
func (d *Dialer) connect(ctx context.Context, via *url.URL) (net.Conn, error) {
	what := "HTTP proxy " + via.Host
	conn, err := d.dialer()(ctx, "tcp", withPort(via))
	if err != nil {
		return nil, unreachable(what, err)
	}
	// The deadline covers TLS with the proxy and its answer; it is lifted when
	// the tunnel stands.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	tunnel, err := d.ask(ctx, conn, via)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		var p *sallyport.Problem
		if errors.As(err, &p) {
			return nil, p
		}
		return nil, unreachable(what, err)
	}
	return tunnel, nil
}

// ask speaks to the proxy on conn and returns the tunnel.
func (d *Dialer) ask(ctx context.Context, conn net.Conn, via *url.URL) (net.Conn, error) {
	if via.Scheme == "https" {
		tc := tls.Client(conn, &tls.Config{ServerName: via.Hostname(), MinVersion: tls.VersionTLS12})
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = tc
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: d.Proxy}, Host: d.Proxy, Header: http.Header{}}
	if u := via.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	br := bufio.NewReader(io.LimitReader(conn, maxConnectHeader))
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, errors.New("it does not answer as an HTTP proxy")
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Hint: "set NO_PROXY to go around it",
			Fact: fmt.Sprintf("HTTP proxy %s refused the way to %s: %d %s", via.Host, d.Proxy, resp.StatusCode, http.StatusText(resp.StatusCode))}
	}
	// The gateway speaks after us. Bytes that are here already are the proxy's
	// own and must not be taken for the gateway's.
	if br.Buffered() > 0 {
		return nil, errors.New("it sent more than its answer")
	}
	return conn, nil
}

func withPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "https" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return net.JoinHostPort(u.Hostname(), "80")
}
