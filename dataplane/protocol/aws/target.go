package aws

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	dialTimeout    = 10 * time.Second
	headerTimeout  = 15 * time.Minute // a function that is called may run so long
	upstreamIdle   = 90 * time.Second
	upstreamSpares = 2
	maxHead        = 64 << 10
	copyBuffer     = 32 << 10
)

// consoles are the addresses that stand for AWS itself, as configurations of
// Teleport have them.
var consoles = [...]string{"console.aws.amazon.com", "console.amazonaws.cn", "console.amazonaws-us-gov.com"}

const consoleURI = "https://console.aws.amazon.com"

// IsConsole says that a URI is AWS's console, which stands for AWS's endpoints.
func IsConsole(uri string) bool {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Port() != "" && u.Port() != "443" {
		return false
	}
	host := strings.ToLower(u.Hostname())
	return slices.ContainsFunc(consoles[:], func(c string) bool {
		return host == c || strings.HasSuffix(host, "."+c) // us-east-1.console.aws.amazon.com
	})
}

// Target is where requests go, and which do.
type Target struct {
	// URI is that of a server that speaks as AWS does, http://host:port or
	// https://host:port, or of AWS's console: then each goes to AWS's own endpoint.
	URI string

	Roots      *x509.CertPool // believed for https; nil: those of the system
	ServerName string         // that the certificate must have; "": the host's
	Insecure   bool           // the certificate is not checked

	Services []string // by their names in signatures; empty: all
	Regions  []string // empty: all

	Proxy func(*http.Request) (*url.URL, error) // nil: none
}

// Check says what is wrong with a target.
func (t Target) Check() error {
	if IsConsole(t.URI) {
		return nil
	}
	return CheckURL(t.URI)
}

// CheckURL says why a URL cannot be that of a server.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("%q is neither http://host:port nor https://host:port", text)
	case u.User != nil:
		return fmt.Errorf("a URL of a server holds no user and no password")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || u.Path != "" && u.Path != "/":
		return fmt.Errorf("%q: a URL of a server has no path, no query and no fragment", text)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		return forbidden(ip, true)
	}
	return nil
}

// endpoint is one place to send a request to.
type endpoint struct {
	scheme, host, region string
}

// endpoint finds the place for a request that was signed for a service and a
// region, or says why there is none.
func (t *Target) endpoint(service, region, operation string) (endpoint, error) {
	if len(t.Services) > 0 && !slices.Contains(t.Services, service) {
		return endpoint{}, fmt.Errorf("service %q is not among those that this application serves", service)
	}
	if !IsConsole(t.URI) {
		u, err := url.Parse(t.URI)
		if err != nil {
			return endpoint{}, err
		}
		return endpoint{u.Scheme, u.Host, region}, t.regional(region)
	}
	at, err := locate(service, region, operation)
	if err != nil {
		return endpoint{}, err
	}
	return endpoint{"https", at.host, at.region}, t.regional(at.region)
}

func (t *Target) regional(region string) error {
	if len(t.Regions) > 0 && !slices.Contains(t.Regions, region) {
		return fmt.Errorf("region %q is not among those that this application serves", region)
	}
	return nil
}

// transport makes the connections of one session.
func (t *Target) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, ControlContext: t.control}
	return &http.Transport{
		DialContext: dialer.DialContext, Proxy: t.Proxy,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: t.Roots, ServerName: t.ServerName, InsecureSkipVerify: t.Insecure},
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: headerTimeout, ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost: upstreamSpares, IdleConnTimeout: upstreamIdle, DisableCompression: true, MaxResponseHeaderBytes: maxHead,
		ReadBufferSize: copyBuffer, WriteBufferSize: copyBuffer,
	}
}

// STSClient asks STS at a URL, "" for AWS's own: each answer has an end, and the
// addresses that are never dialed are not. On the target's host it is known as the
// target is; elsewhere the system knows it, and the way is by the proxy, if any.
func (t *Target) STSClient(at string, proxy func(*http.Request) (*url.URL, error)) *http.Client {
	u := &Target{URI: consoleURI, Proxy: proxy}
	if at != "" {
		u.URI = at
	}
	if !IsConsole(t.URI) && hostname(u.URI) == hostname(t.URI) {
		u = &Target{URI: at, Roots: t.Roots, ServerName: t.ServerName, Insecure: t.Insecure, Proxy: t.Proxy}
	}
	return &http.Client{Transport: u.transport(), Timeout: stsAnswer,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func hostname(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Hostname())
}

// CheckSTS says why a URL cannot be that of an STS: what it answers are keys.
func CheckSTS(text string) error {
	if err := CheckURL(text); err != nil || strings.HasPrefix(strings.ToLower(text), "https:") {
		return err
	}
	host := hostname(text)
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.Unmap().IsLoopback() {
		return nil
	}
	return fmt.Errorf("%q: keys pass by http on this machine only; an STS elsewhere is at https", text)
}

// control looks at the very address that is dialed, after names have been resolved.
func (t *Target) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%q is not an address", address)
	}
	return forbidden(a.Addr(), t.Proxy != nil || !IsConsole(t.URI))
}

// Addresses where machines of clouds are told their secrets, besides those that are
// link-local (169.254.169.254, fe80::a9fe:a9fe).
var metadata = [...]netip.Addr{netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd00:ec2::23"), netip.MustParseAddr("fd20:ce::254"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16")}

// forbidden says why an address is never dialed. This machine itself may be what
// the configuration names; AWS's endpoints are never there.
func forbidden(a netip.Addr, here bool) error {
	a = a.Unmap().WithZone("")
	switch {
	case a.IsLinkLocalUnicast(), a.IsMulticast(), a.IsUnspecified(), slices.Contains(metadata[:], a):
		return fmt.Errorf("%s is not the address of a server of AWS", a)
	case a.IsLoopback() && !here:
		return fmt.Errorf("%s is this machine", a)
	}
	return nil
}
