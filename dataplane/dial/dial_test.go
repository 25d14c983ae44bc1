package dial

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/identity"
)

const (
	cluster  = "gw.test"
	patience = time.Minute // the most that anything may take, on a busy machine too
)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issue makes a certificate with the CA behind it, as auth shows it.
func (a *authority) issue(t testing.TB, kind sallyport.IdentityKind, names []string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: names,
		URIs:      []*url.URL{identity.URI(kind, cluster, "1")},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}
}

// server accepts connections until the test ends and gives each to serve.
func server(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// tlsServer ends TLS with a certificate and gives the stream to serve.
func tlsServer(t testing.TB, cfg *tls.Config, serve func(*tls.Conn)) string {
	return server(t, func(c net.Conn) {
		tc := tls.Server(c, cfg)
		if err := tc.Handshake(); err != nil {
			return
		}
		serve(tc)
		tc.CloseWrite()
		io.Copy(io.Discard, c)
	})
}

func echo(c *tls.Conn) { io.Copy(c, c) }

// problem checks the two faces of an error.
func problem(t *testing.T, err error, kind error, words string) {
	t.Helper()
	var p *sallyport.Problem
	if !errors.As(err, &p) || !errors.Is(err, kind) || !strings.Contains(p.Fact, words) {
		t.Errorf("got %v, want %v with %q", err, kind, words)
	}
}

func TestDialResource(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, sallyport.KindAgent, []string{"orders.db.gw.test"}, nil)
	addr := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{alpn.DB1}}, echo)
	d := &Dialer{Proxy: addr, Cluster: cluster, Roots: ca.pool()}
	conn, err := d.DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.DB1)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "hello")
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if b, err := io.ReadAll(conn); string(b) != "hello" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	conn.Close()

	other := &Dialer{Proxy: addr, Cluster: cluster, Roots: newAuthority(t).pool()}
	_, err = other.DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.DB1)
	problem(t, err, sallyport.ErrUnauthorized, "not who it should be")
	// One name's certificate is not good for another (A28).
	_, err = d.DialResource(t.Context(), sallyport.KindDatabase, "payroll", alpn.DB1)
	problem(t, err, sallyport.ErrUnauthorized, "not who it should be")
	_, err = d.DialResource(t.Context(), sallyport.KindDatabase, "orders", alpn.SSH1)
	problem(t, err, sallyport.ErrInvalid, "does not speak sallyport-ssh/1")
	for _, name := range []string{"", "a.b", "../x", "A", "a b", strings.Repeat("a", 64)} {
		_, err = d.DialResource(t.Context(), sallyport.KindDatabase, name, alpn.DB1)
		problem(t, err, sallyport.ErrInvalid, "not a name")
	}
}

// TestNoProtocolAgreed: a server that ignores ALPN is not spoken to.
func TestNoProtocolAgreed(t *testing.T) {
	ca := newAuthority(t)
	addr := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, sallyport.KindAgent, []string{"web.node.gw.test"}, nil)}}, echo)
	d := &Dialer{Proxy: addr, Cluster: cluster, Roots: ca.pool()}
	_, err := d.DialResource(t.Context(), sallyport.KindNode, "web", alpn.SSH1)
	problem(t, err, sallyport.ErrInvalid, "does not speak")
}

func TestGatewayAnswers(t *testing.T) {
	alert := func(a alpn.Alert) func(net.Conn) {
		return func(c net.Conn) {
			c.Read(make([]byte, 16<<10))
			r := a.Record()
			c.Write(r[:])
		}
	}
	tests := []struct {
		name  string
		serve func(net.Conn)
		kind  error
		words string
	}{
		{"unknown name", alert(alpn.UnrecognizedName), sallyport.ErrNotFound, "resource x: unknown or no live agent"},
		{"no protocol", alert(alpn.NoApplicationProtocol), sallyport.ErrInvalid, "does not speak"},
		{"other alert", alert(alpn.InternalError), sallyport.ErrUnauthorized, "refused"},
		{"end", func(c net.Conn) { c.Read(make([]byte, 16<<10)) }, sallyport.ErrUnavailable, "closed the connection"},
		{"HTTP", func(c net.Conn) { c.Read(make([]byte, 16<<10)); io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, sallyport.ErrUnavailable, "resource x"},
		{"nothing", func(c net.Conn) { io.Copy(io.Discard, c) }, sallyport.ErrUnavailable, "no answer in time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &Dialer{Proxy: server(t, tt.serve), Cluster: cluster, Roots: newAuthority(t).pool(), Timeout: patience}
			if tt.name == "nothing" {
				d.Timeout = 300 * time.Millisecond
			}
			_, err := d.DialResource(t.Context(), sallyport.KindTCP, "x", alpn.TCP1)
			problem(t, err, tt.kind, tt.words)
			if tt.name == "unknown name" {
				var p *sallyport.Problem
				if errors.As(err, &p); p.Hint != "sally ls" {
					t.Errorf("hint %q", p.Hint)
				}
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	d := &Dialer{Proxy: "127.0.0.1:1", Cluster: cluster} // a port that was free might be somebody's by now
	_, err := d.DialResource(t.Context(), sallyport.KindTCP, "x", "")
	problem(t, err, sallyport.ErrUnavailable, "cannot be reached: connection refused")
	_, err = d.DialRaw(t.Context())
	problem(t, err, sallyport.ErrUnavailable, "cannot be reached")
}

// TestRefusedCertificate: in TLS 1.3 the verdict comes with the first read.
func TestRefusedCertificate(t *testing.T) {
	ca := newAuthority(t)
	cfg := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, sallyport.KindAgent, []string{"orders.db.gw.test"}, nil)},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: newAuthority(t).pool()}
	addr := tlsServer(t, cfg, echo)
	user := ca.issue(t, sallyport.KindUser, nil, nil)
	d := &Dialer{Proxy: addr, Cluster: cluster, Roots: ca.pool(), Certificate: func() (*tls.Certificate, error) { return &user, nil }}
	conn, err := d.DialResource(t.Context(), sallyport.KindDatabase, "orders", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1))
	problem(t, err, sallyport.ErrUnauthorized, "your certificate was refused")
}

// TestTruncation: an end of TCP that TLS did not announce is not an end.
func TestTruncation(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, sallyport.KindAgent, []string{"x.tcp.gw.test"}, nil)
	addr := server(t, func(c net.Conn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		io.WriteString(tc, "half of it")
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	})
	d := &Dialer{Proxy: addr, Cluster: cluster, Roots: ca.pool()}
	conn, err := d.DialResource(t.Context(), sallyport.KindTCP, "x", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); string(b) != "half of it" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q %v", b, err)
	}
}

func TestExpiredLogin(t *testing.T) {
	user := newAuthority(t).issue(t, sallyport.KindUser, nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	d := &Dialer{Proxy: "192.0.2.1:443", Cluster: cluster, Certificate: func() (*tls.Certificate, error) { return &user, nil },
		Dial: func(context.Context, string, string) (net.Conn, error) {
			t.Error("dialed with an expired login")
			return nil, errors.New("no")
		}}
	_, err := d.DialResource(t.Context(), sallyport.KindTCP, "x", "")
	problem(t, err, sallyport.ErrUnauthorized, "your login expired at")
}

func TestDialALPN(t *testing.T) {
	ca := newAuthority(t)
	pin := identity.Pin(ca.cert)
	tests := []struct {
		name     string
		kind     sallyport.IdentityKind
		protocol string
		d        *Dialer
		ok       bool
	}{
		{"auth by pool", sallyport.KindAuth, alpn.Auth1, &Dialer{Roots: ca.pool()}, true},
		{"auth by pin", sallyport.KindAuth, alpn.Join1, &Dialer{Pins: []string{pin}}, true},
		{"auth by a wrong pin", sallyport.KindAuth, alpn.Join1, &Dialer{Pins: []string{"sha256:00"}}, false},
		{"auth by nothing", sallyport.KindAuth, alpn.Join1, &Dialer{}, false},
		{"A67 agent in place of auth", sallyport.KindAgent, alpn.Auth1, &Dialer{Roots: ca.pool()}, false},
		{"A67 gateway in place of auth", sallyport.KindGateway, alpn.Join1, &Dialer{Pins: []string{pin}}, false},
		{"A67 auth in place of a gateway", sallyport.KindAuth, alpn.Gateway1, &Dialer{Roots: ca.pool()}, false},
		{"web by pool", sallyport.KindGateway, alpn.HTTP11, &Dialer{Roots: ca.pool()}, true},
		{"web by pin", sallyport.KindGateway, alpn.HTTP2, &Dialer{Pins: []string{pin}}, true},
		{"web by the system's CAs", sallyport.KindGateway, alpn.HTTP11, &Dialer{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cert := ca.issue(t, tt.kind, []string{cluster}, nil)
			d := tt.d
			d.Proxy, d.Cluster = tlsServer(t, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{tt.protocol}}, func(*tls.Conn) {}), cluster
			conn, err := d.DialALPN(t.Context(), tt.protocol)
			if tt.ok != (err == nil) {
				t.Fatalf("error %v, want ok %v", err, tt.ok)
			}
			if err == nil {
				conn.Close()
				return
			}
			problem(t, err, sallyport.ErrUnauthorized, "not who it should be")
		})
	}
	_, err := (&Dialer{Proxy: "127.0.0.1:1", Cluster: cluster}).DialALPN(t.Context(), "made-up/1")
	problem(t, err, sallyport.ErrInvalid, "not one of the cluster's own")
}

// connectProxy is an HTTP proxy that answers CONNECT.
func connectProxy(t *testing.T, answer func(c net.Conn, req *http.Request)) string {
	return server(t, func(c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil || req.Method != http.MethodConnect {
			return
		}
		answer(c, req)
	})
}

func TestHTTPProxy(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, sallyport.KindAgent, []string{"orders.db.gw.test"}, nil)
	addr := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{cert}}, echo)
	via := connectProxy(t, func(c net.Conn, req *http.Request) {
		user, password, ok := (&http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}).BasicAuth()
		if req.Host != "gateway.test:443" || !ok || user != "me" || password != "secret" {
			t.Errorf("asked for %s as %s:%s", req.Host, user, password)
		}
		to, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer to.Close()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
		go func() {
			io.Copy(to, c)
			to.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(c, to)
	})
	d := &Dialer{Proxy: "gateway.test:443", Cluster: cluster, Roots: ca.pool(), HTTPSProxy: "http://me:secret@" + via}
	conn, err := d.DialResource(t.Context(), sallyport.KindDatabase, "orders", "")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "x")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	conn.Close()

	d.NoProxy, d.Timeout = "gateway.test", time.Second
	d.Dial = func(_ context.Context, _, addr string) (net.Conn, error) {
		if addr != "gateway.test:443" {
			t.Errorf("dialed %s", addr)
		}
		return nil, errors.New("no")
	}
	_, err = d.DialRaw(t.Context())
	problem(t, err, sallyport.ErrUnavailable, "gateway gateway.test:443 cannot be reached")
}

// TestA32_HTTPProxy: a proxy that misbehaves holds nobody up and adds no bytes.
func TestA32_HTTPProxy(t *testing.T) {
	tests := []struct {
		name   string
		answer string
		words  string
	}{
		{"refuses", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "refused the way to gateway.test:443: 403 Forbidden"},
		{"sends more", "HTTP/1.1 200 OK\r\n\r\nand more", "more than its answer"},
		{"is something else", "SSH-2.0-x\r\n", "does not answer as an HTTP proxy"},
		{"never ends", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 64<<10), "cannot be reached"},
		{"is silent", "", "no answer in time"},
		{"stops half way", "HTTP/1.1 200 O", "cannot be reached"},
	}
	waits := func(answer string) bool { return answer == "" || strings.HasSuffix(answer, "200 O") }
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			via := connectProxy(t, func(c net.Conn, _ *http.Request) {
				io.WriteString(c, tt.answer)
				if waits(tt.answer) {
					io.Copy(io.Discard, c)
				}
			})
			d := &Dialer{Proxy: "gateway.test:443", Cluster: cluster, HTTPSProxy: "http://me:secret@" + via, Timeout: patience}
			if waits(tt.answer) {
				d.Timeout = 300 * time.Millisecond
			}
			_, err := d.DialRaw(t.Context())
			problem(t, err, sallyport.ErrUnavailable, tt.words)
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
	d := &Dialer{Proxy: "gateway.test:443", HTTPSProxy: "socks5://me:secret@proxy.test"}
	_, err := d.DialRaw(t.Context())
	problem(t, err, sallyport.ErrInvalid, "HTTPS_PROXY is not")
}

func TestGreeting(t *testing.T) {
	text := func(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }
	tests := []struct {
		name, in, words, left string
	}{
		{"open", "\x00data", "", "data"},
		{"refused", "\x01" + text("no") + text("ask") + "left", "no", "left"},
		{"unknown", "\x02", "malformed", ""},
		{"empty fact", "\x01" + text("") + text("ask"), "malformed", ""},
		{"escape", "\x01" + text("\x1b[2J") + text(""), "malformed", "\x00\x00"},
		{"not UTF-8", "\x01" + text("\xff") + text(""), "malformed", "\x00\x00"},
		{"too long", "\x01\x04\x01" + strings.Repeat("x", 1025), "malformed", strings.Repeat("x", 1025)},
		{"cut", "\x01\x00\x05abc", "unexpected EOF", ""},
		{"end", "", "EOF", ""},
	}
	for _, tt := range tests {
		r := strings.NewReader(tt.in)
		err := readGreeting(r)
		if (err == nil) != (tt.words == "") || err != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if left, _ := io.ReadAll(r); string(left) != tt.left {
			t.Errorf("%s: %q left, want %q", tt.name, left, tt.left)
		}
	}
}

// FuzzGreeting: any bytes are open, a refusal with words, or an error; never
// more is read than the greeting.
func FuzzGreeting(f *testing.F) {
	f.Add([]byte("\x00x"))
	f.Add([]byte("\x01\x00\x02no\x00\x03ask"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := strings.NewReader(string(in))
		err := readGreeting(r)
		if err == nil && (len(in) == 0 || in[0] != greetOpen || r.Len() != len(in)-1) {
			t.Fatalf("open by %q, %d left", in, r.Len())
		}
		if len(in)-r.Len() > 1+2+maxText+2+maxText {
			t.Fatal("read too much")
		}
	})
}
