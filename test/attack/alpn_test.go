package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
)

// meeting is how a server looks to a client: the alert, or the protocol and
// whose certificate.
func (d *demo) meeting(t testing.TB, source, name string, protocols []string, certs ...tls.Certificate) string {
	t.Helper()
	conn := d.dialFrom(t, source)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(callWait))
	var leaf *x509.Certificate
	lacks := false // a certificate that the server asks for
	config := &tls.Config{ServerName: name, NextProtos: protocols, Certificates: certs, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error { leaf = cs.PeerCertificates[0]; return nil }}
	if len(certs) == 0 {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			lacks = true
			return &tls.Certificate{}, nil
		}
	}
	tc := tls.Client(conn, config)
	err := tc.HandshakeContext(context.Background())
	if err == nil && lacks {
		// In TLS 1.3 the server's complaint about it comes after that.
		if _, rerr := tc.Read(make([]byte, 1)); rerr != nil && !errors.Is(rerr, os.ErrDeadlineExceeded) && !errors.Is(rerr, io.EOF) {
			err = rerr
		}
	}
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "remote error":
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	case err != nil:
		return err.Error()
	}
	who := "nobody"
	if len(leaf.URIs) > 0 {
		who = strings.Split(strings.TrimPrefix(leaf.URIs[0].String(), "spiffe://"+d.Cluster+"/"), "/")[0]
	} else if len(leaf.DNSNames) > 0 {
		who = leaf.DNSNames[0]
	}
	return tc.ConnectionState().NegotiatedProtocol + " by " + who
}

// TestA62_Names is the table of names and protocols of the design, from outside.
func TestA62_Names(t *testing.T) {
	d := target(t)
	d.leavesNothing(t)
	db, node, tcp := d.serverName("db"), d.serverName("node"), d.serverName("tcp")
	p := func(list ...string) []string { return list }
	const unknown, noProtocol, needed = "unrecognized name", "no application protocol", "certificate required"
	type row struct {
		name      string
		protocols []string
		want      string
	}
	rows := []row{
		{d.Cluster, p("h2"), "h2 by gateway"}, {d.Cluster, p("http/1.1"), "http/1.1 by gateway"}, {d.Cluster, nil, " by gateway"}, {"", p("h2"), "h2 by gateway"},
		{d.Cluster, p("sallyport-auth/1"), needed}, {"", p("sallyport-auth/1"), needed}, {d.Cluster, p("sallyport-join/1"), "sallyport-join/1 by auth"},
		{d.Cluster, p("sallyport-tunnel/1"), needed}, {"", p("sallyport-tunnel/1"), needed},
		{d.Cluster, p("sallyport-gateway/1"), noProtocol}, {d.Cluster, p("sallyport-store/1"), noProtocol},
		{d.Cluster, p("sallyport-ssh/1"), noProtocol}, {d.Cluster, p("sallyport-db/1"), noProtocol}, {d.Cluster, p("sallyport-auth/2"), noProtocol},
		{d.Cluster, p("postgresql"), noProtocol}, {d.Cluster, p("acme-tls/1"), noProtocol}, {d.Cluster, p("ssh"), noProtocol},
		{node, p("sallyport-ssh/1"), needed}, {node, p("http/1.1"), noProtocol}, {node, p("h2"), noProtocol}, {node, nil, noProtocol}, {node, p("postgresql"), noProtocol}, {node, p("sallyport-db/1"), noProtocol},
		{node, p("sallyport-auth/1"), noProtocol}, {node, p("sallyport-tunnel/1"), noProtocol}, {node, p("sallyport-join/1"), noProtocol},
		{tcp, p("sallyport-tcp/1"), needed}, {tcp, nil, needed}, {tcp, p("http/1.1"), noProtocol}, {tcp, p("h2"), noProtocol}, {tcp, p("sallyport-ssh/1"), noProtocol}, {tcp, p("acme-tls/1"), noProtocol},
		{"nowhere.db." + d.Cluster, p("postgresql"), unknown}, {"nowhere.node." + d.Cluster, p("sallyport-ssh/1"), unknown},
		{"nowhere.example.com", p("h2"), unknown}, {"node." + d.Cluster, p("h2"), unknown}, {"a.b.c.d." + d.Cluster, nil, unknown},
		{strings.ToUpper(node), p("sallyport-ssh/1"), needed},
		// A label below the cluster is an application's; which there are is for those who have logged in.
		{"x." + d.Cluster, p("h2"), "h2 by gateway"}, {"x." + d.Cluster, p("http/1.1"), "http/1.1 by gateway"}, {"x." + d.Cluster, p("sallyport-ssh/1"), noProtocol},
		{"evil" + d.Cluster, p("h2"), unknown},
	}
	if db[0] != '.' {
		for want, lists := range map[string][][]string{
			needed:     {p("postgresql"), p("sallyport-db/1"), nil},
			noProtocol: {p("http/1.1"), p("h2", "http/1.1"), p("sallyport-ssh/1"), p("sallyport-auth/1")},
		} {
			for _, list := range lists {
				rows = append(rows, row{db, list, want})
			}
		}
	}
	for i, row := range rows {
		if got := d.meeting(t, net.IPv4(127, 8, byte(i), 1).String(), row.name, row.protocols); got != row.want {
			t.Errorf("%q %q: %s, want %s", row.name, row.protocols, got, row.want)
		}
	}
}

// TestA62_NothingReflected: what a browser can be made to send comes back from
// no service that is not the web.
func TestA62_NothingReflected(t *testing.T) {
	d := target(t)
	d.leavesNothing(t)
	const canary = "<script>canary</script>"
	post := "POST /" + canary + " HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n" + canary + canary
	for i, name := range []string{d.serverName("node"), d.serverName("tcp"), d.serverName("db"), d.Cluster} {
		conn := d.dialFrom(t, net.IPv4(127, 8, 200, byte(1+i)).String())
		conn.SetDeadline(time.Now().Add(callWait))
		tc := tls.Client(conn, &tls.Config{ServerName: name, NextProtos: []string{"h2", "http/1.1"}, InsecureSkipVerify: true})
		io.WriteString(tc, post)
		b, _ := io.ReadAll(tc)
		if name != d.Cluster && len(b) > 0 || bytes.Contains(b, []byte(canary)) {
			t.Errorf("%s answers a browser: %.200q", name, b)
		}
		conn.Close()
	}
	for name, first := range map[string]string{"in clear": post, "to the SSH port": "SSH-2.0-" + canary + "\r\n"} {
		conn := d.dialFrom(t, "127.8.201.1")
		io.WriteString(conn, first)
		b, _, _ := untilClosed(conn, stage+slack)
		body := b
		if first[0] != 'S' {
			_, body, _ = bytes.Cut(b, []byte("\r\n\r\n")) // a redirect's Location says where to go again
		}
		if bytes.Contains(body, []byte(canary)) {
			t.Errorf("%s: %.200q", name, b)
		}
		conn.Close()
	}
}

// TestA60_NoTickets: nothing is resumed, so nothing is resumed elsewhere.
func TestA60_NoTickets(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	d.leavesNothing(t)
	for _, name := range []string{d.serverName("tcp"), d.serverName("node"), d.Cluster} {
		cache := tls.NewLRUClientSessionCache(8)
		for i := range 2 {
			conn := d.dialFrom(t, "127.8.202.1")
			conn.SetDeadline(time.Now().Add(callWait))
			cfg := &tls.Config{ServerName: name, InsecureSkipVerify: true, ClientSessionCache: cache, NextProtos: []string{"sallyport-auth/1"}}
			if name != d.Cluster {
				cfg.Certificates = []tls.Certificate{admin.tls}
				cfg.NextProtos = []string{map[bool]string{true: "sallyport-tcp/1", false: "sallyport-ssh/1"}[strings.Contains(name, ".tcp.")]}
			}
			if name == d.Cluster {
				cfg.Certificates = []tls.Certificate{admin.tls}
			}
			tc := tls.Client(conn, cfg)
			if err := tc.Handshake(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if cfg.NextProtos[0] == "sallyport-tcp/1" {
				io.WriteString(tc, "x")
			}
			if cfg.NextProtos[0] == "sallyport-ssh/1" {
				io.WriteString(tc, "SSH-2.0-x\r\n")
			}
			if cfg.NextProtos[0] == "sallyport-auth/1" {
				io.WriteString(tc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
			}
			tc.Read(make([]byte, 1)) // a ticket comes with the first bytes
			if tc.ConnectionState().DidResume {
				t.Errorf("%s: connection %d was resumed", name, i)
			}
			conn.Close()
		}
		if _, ok := cache.Get(name); ok {
			t.Errorf("%s hands out tickets", name)
		}
	}
}

// TestA63_EarlyBytes: what is sent before the answer to an SSLRequest was put
// there by somebody else; behind it nobody but PostgreSQL's clients get on.
func TestA63_EarlyBytes(t *testing.T) {
	d := target(t)
	d.leavesNothing(t)
	db := d.name("db")
	if db == "" {
		peers.Missing(t, "postgres")
	}
	hello := helloFor(t, d.serverName("db"))
	for name, b := range map[string][]byte{
		"SSLRequest and hello": append(bytes.Clone(sslRequest), hello...), "SSLRequest and a byte": append(bytes.Clone(sslRequest), 'x'),
		"two SSLRequests": append(bytes.Clone(sslRequest), sslRequest...), "GSSENCRequest and SSLRequest": append(bytes.Clone(gssRequest), sslRequest...),
	} {
		conn := d.dialFrom(t, "127.8.203.1")
		conn.Write(b)
		if got, _, err := untilClosed(conn, atOnce); err != nil || len(got) > 1 {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		conn.Close()
	}
	after := func(then []byte) []byte {
		conn := d.dialFrom(t, "127.8.203.2")
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(stage))
		conn.Write(sslRequest)
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conn.Write(then)
		got, _, err := untilClosed(conn, atOnce)
		if err != nil {
			return []byte("open")
		}
		return got
	}
	for name, then := range map[string][]byte{
		"SSLRequest again": sslRequest, "a cancel request": append([]byte{0, 0, 0, 16, 4, 210, 22, 46}, make([]byte, 8)...),
		"a startup in clear": []byte("\x00\x00\x00\x10\x00\x03\x00\x00user\x00x\x00\x00"), "HTTP": []byte("GET / HTTP/1.1\r\n\r\n"), "a data hello": append([]byte("SLYP\x01\x00"), make([]byte, 56)...),
		"PROXY": []byte("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n"),
	} {
		if got := after(then); len(got) > 0 {
			t.Errorf("after SSLRequest, %s: %q", name, got)
		}
	}
	for _, row := range []struct {
		name      string
		protocols []string
	}{{d.Cluster, []string{"h2"}}, {d.Cluster, []string{"sallyport-auth/1"}}, {d.Cluster, []string{"sallyport-tunnel/1"}}, {d.serverName("node"), []string{"sallyport-ssh/1"}}} {
		if got := after(helloFor(t, row.name, row.protocols...)); len(got) != 7 || got[0] != 21 {
			t.Errorf("after SSLRequest, a hello for %s %v: %q, want an alert", row.name, row.protocols, got)
		}
	}
}
