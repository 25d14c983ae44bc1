package kube

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"testing"
)

// onePod is an answer as kubectl gets it.
func onePod(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, podA)
}

// BenchmarkRequest is a request on a connection that is kept.
func BenchmarkRequest(b *testing.B) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		b.Run(protocol, func(b *testing.B) {
			r := newRig(b, onePod)
			benchmarkGet(b, r.client(protocol))
		})
	}
	b.Run("direct h2", func(b *testing.B) {
		r := newRig(b, onePod)
		target, err := url.Parse(r.api.URL)
		if err != nil {
			b.Fatal(err)
		}
		client := r.api.Client()
		client.Transport = rewriting{client.Transport, target}
		benchmarkGet(b, client)
	})
}

// rewriting sends requests to the API server itself.
type rewriting struct {
	http.RoundTripper
	target *url.URL
}

func (r rewriting) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Scheme, req.URL.Host = r.target.Scheme, r.target.Host
	return r.RoundTripper.RoundTrip(req)
}

func benchmarkGet(b *testing.B, c *http.Client) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		res, err := c.Get("http://kube/api/v1/namespaces/dev/pods/a")
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}

// BenchmarkConnection is a request on a connection of its own; the door's TLS is
// not in it.
func BenchmarkConnection(b *testing.B) {
	b.Run("h2", func(b *testing.B) {
		r := newRig(b, onePod)
		b.ReportAllocs()
		for b.Loop() {
			oneRequest(b, r, "h2")
		}
	})
	b.Run("http/1.1", func(b *testing.B) {
		r := newRig(b, onePod)
		b.ReportAllocs()
		for b.Loop() {
			conn, served := r.dial("http/1.1")
			io.WriteString(conn, "GET /api/v1/namespaces/dev/pods/a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			io.Copy(io.Discard, conn)
			conn.Close()
			<-served
		}
	})
}

// oneRequest is a client of its own, as one kubectl is.
func oneRequest(b *testing.B, r *rig, protocol string) {
	b.Helper()
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(protocol == "h2")
	p.SetHTTP1(protocol != "h2")
	ended := make(chan struct{})
	tr := &http.Transport{Protocols: p, DialContext: func(context.Context, string, string) (net.Conn, error) {
		conn, served := r.dial(protocol)
		go func() { <-served; close(ended) }()
		return conn, nil
	}}
	res, err := (&http.Client{Transport: tr}).Get("http://kube/api/v1/namespaces/dev/pods/a")
	if err != nil {
		b.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	tr.CloseIdleConnections()
	<-ended
}

const chunk = 32 << 10

// source switches protocols and sends without end.
func source(w http.ResponseWriter, hr *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
	rw.Flush()
	b := make([]byte, chunk)
	for {
		if _, err := conn.Write(b); err != nil {
			return
		}
	}
}

// BenchmarkStream is bytes of an exec: straight from the API server, and through
// with TLS on the client's side too.
func BenchmarkStream(b *testing.B) {
	const path = "/api/v1/namespaces/a/pods/b/exec"
	b.Run("direct", func(b *testing.B) {
		r := newRig(b, source)
		conn, err := tls.Dial("tcp", r.api.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		benchmarkStream(b, conn, path)
	})
	b.Run("through", func(b *testing.B) {
		r := newRig(b, source)
		plain, _ := r.dialTLS("http/1.1")
		defer plain.Close()
		benchmarkStream(b, plain, path)
	})
}

func benchmarkStream(b *testing.B, conn net.Conn, path string) {
	b.Helper()
	req, err := http.NewRequestWithContext(context.Background(), "POST", "http://kube"+path, nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "SPDY/3.1")
	dump, err := httputil.DumpRequestOut(req, false)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := conn.Write(dump); err != nil {
		b.Fatal(err)
	}
	br := bufio.NewReaderSize(conn, chunk)
	if res, err := http.ReadResponse(br, req); err != nil || res.StatusCode != 101 {
		b.Fatal(err, res)
	}
	b.SetBytes(chunk)
	for b.Loop() {
		if _, err := io.CopyN(io.Discard, br, chunk); err != nil {
			b.Fatal(err)
		}
	}
}

// dialTLS is dial with the door's TLS around it.
func (r *rig) dialTLS(protocol string) (net.Conn, chan struct{}) {
	r.t.Helper()
	cert := r.api.TLS.Certificates[0]
	r.wrap = func(c net.Conn) net.Conn {
		return tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true})
	}
	conn, served := r.dial(protocol)
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}), served
}
