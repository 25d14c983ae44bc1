package tunnel

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
)

// maxProxyAnswer bounds the head of a proxy's answer.
const maxProxyAnswer = 16 << 10

// dialFunc makes TCP connections.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// connectBy reaches an address by way of an HTTP proxy: CONNECT, RFC 9110,
// section 9.3.6. What follows belongs to whoever is at the address.
func connectBy(ctx context.Context, dial dialFunc, proxy *url.URL, address string) (net.Conn, error) {
	conn, err := dialProxy(ctx, dial, proxy)
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	if err := askProxy(ctx, conn, proxy, address); err != nil {
		conn.Close()
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	return conn, nil
}

func dialProxy(ctx context.Context, dial dialFunc, proxy *url.URL) (net.Conn, error) {
	ports := map[string]string{"http": "80", "https": "443"}
	port := proxy.Port()
	if port == "" {
		port = ports[proxy.Scheme]
	}
	if ports[proxy.Scheme] == "" {
		return nil, fmt.Errorf("scheme %q: only http and https", proxy.Scheme)
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil || proxy.Scheme == "http" {
		return conn, err
	}
	tc := tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), MinVersion: tls.VersionTLS12})
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

// askProxy says CONNECT and hears yes. Nothing behind the answer is read.
func askProxy(ctx context.Context, conn net.Conn, proxy *url.URL, address string) error {
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	r := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		r.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := r.Write(conn); err != nil {
		return err
	}
	in := bufio.NewReader(io.LimitReader(conn, maxProxyAnswer))
	resp, err := http.ReadResponse(in, r) // what follows a yes is no body, and is not closed
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("CONNECT %s: %s", address, resp.Status)
	}
	if in.Buffered() > 0 { // a gateway never speaks first
		return errors.New("the proxy has sent more than its answer")
	}
	return conn.SetDeadline(time.Time{})
}
