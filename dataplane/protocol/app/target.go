package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/oneconn"
)

const (
	dialTimeout    = 10 * time.Second
	headerTimeout  = 5 * time.Minute // from the end of a request to the head of its answer
	upstreamIdle   = 90 * time.Second
	upstreamSpares = 8 // idle connections of one certificate's holder
	pingAfter      = 15 * time.Second
	pingWithin     = 5 * time.Second
	maxHead        = 64 << 10 // bytes of a head, of requests and of answers
)

// Target is an application, as its agent reaches it.
type Target struct {
	// URI is http://host:port, https://host:port or unix:/path. A path of the
	// first two is where visitors of "/" are sent.
	URI string

	Roots      *x509.CertPool // believed for https; nil: those of the system
	ServerName string         // that the certificate must have; "": the host of URI
	Insecure   bool           // the certificate is not checked

	Headers   []Header // set on each request, in place of what the client says
	Redirects []string // hosts besides URI's whose redirects lead back to the application
}

// Header is one header that is set on each request. Without values it is only
// taken out.
type Header struct {
	Name   string
	Values func(id sallyport.Identity) []string
}

// place is a target that has been understood.
type place struct {
	scheme, host  string // of the URL that requests are made for
	path          string // where "/" leads; "" for nowhere else
	socket        string // Unix socket; "" for TCP to host
	certificate   *tls.Config
	redirects     []string                             // with ports
	overridesHost func(id sallyport.Identity) []string // Host by configuration; nil: that of the URI
	headers       []Header
}

// Check says what is wrong with a target.
func (t Target) Check() error {
	_, err := t.place()
	return err
}

func (t Target) place() (*place, error) {
	p := &place{}
	if err := p.locate(t.URI); err != nil {
		return nil, err
	}
	if p.scheme == "https" {
		name := t.ServerName
		if name == "" {
			name = hostOf(p.host)
		}
		p.certificate = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: t.Roots, ServerName: name, InsecureSkipVerify: t.Insecure}
	}
	for _, h := range t.Headers {
		if err := CheckHeader(h.Name); err != nil {
			return nil, err
		}
		if strings.EqualFold(h.Name, "Host") {
			p.overridesHost = h.Values
			continue
		}
		p.headers = append(p.headers, Header{Name: http.CanonicalHeaderKey(h.Name), Values: h.Values})
	}
	p.redirects = append(p.redirects, withPort(p.host, p.scheme))
	for _, r := range t.Redirects {
		u, err := url.Parse("//" + r)
		if err != nil || u.Host != r || u.Hostname() == "" {
			return nil, fmt.Errorf("%q is not a host, nor host:port", r)
		}
		// Without a port it is the host by either scheme.
		if u.Port() == "" {
			p.redirects = append(p.redirects, withPort(r, "http"), withPort(r, "https"))
			continue
		}
		p.redirects = append(p.redirects, strings.ToLower(r))
	}
	return p, nil
}

func (p *place) locate(uri string) error {
	if path, ok := strings.CutPrefix(uri, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%q: the path of a socket begins with /", uri)
		}
		p.scheme, p.host, p.socket = "http", "localhost", path
		return nil
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("%q is none of http://host:port, https://host:port, unix:/path", uri)
	case u.User != nil:
		return fmt.Errorf("the URI of an application holds no user and no password")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return fmt.Errorf("%q: a URI of an application has no query and no fragment", uri)
	}
	p.scheme, p.host = u.Scheme, u.Host
	if u.Path != "/" {
		p.path = u.EscapedPath()
	}
	return nil
}

// CheckHeader says why a header cannot be configured: its name is none, or it
// belongs to the framing of messages or to us.
func CheckHeader(name string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("%q is not the name of a header", name)
	}
	switch n := fold(name); {
	case slices.Contains([]string{"connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive", "proxy-connection", "cookie"}, n):
		return fmt.Errorf("header %s is not for configurations to set", name)
	case ours(n):
		return fmt.Errorf("header %s is set by this program alone", name)
	}
	return nil
}

// transport makes the connections of one certificate's holder, or of one session.
func (p *place) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if p.socket != "" {
				network, address = "unix", p.socket
			}
			return dialer.DialContext(ctx, network, address)
		},
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: headerTimeout, ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost: upstreamSpares, IdleConnTimeout: upstreamIdle, MaxConnsPerHost: oneconn.MaxStreams + upstreamSpares,
		DisableCompression: true, MaxResponseHeaderBytes: maxHead, ForceAttemptHTTP2: true,
		HTTP2:          &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingWithin}, // one that is dead is found, and left
		ReadBufferSize: copyBuffer, WriteBufferSize: copyBuffer,
	}
	if p.certificate != nil {
		t.TLSClientConfig = p.certificate.Clone()
	}
	return t
}

// hostOf is a host without its port.
func hostOf(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
}

// withPort writes a host in lower case and with the port that it means.
func withPort(hostport, scheme string) string {
	hostport = strings.ToLower(hostport)
	if _, _, err := net.SplitHostPort(hostport); err == nil {
		return hostport
	}
	port := "80"
	if scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(hostOf(hostport), port)
}
