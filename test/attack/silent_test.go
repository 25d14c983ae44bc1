package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

var sslRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}

// upgradeRequest is an agent's that gets through by a WebSocket.
const upgradeRequest = "GET /sallyport/tunnel HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"

// connectRequest is a client's that gets through by a WebSocket.
var connectRequest = strings.Replace(upgradeRequest, "/sallyport/tunnel", "/sallyport/connect", 1)

var gssRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30}

// helloFor is the ClientHello that Go's client sends.
func helloFor(t testing.TB, name string, protocols ...string) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer ours.Close()
		tls.Client(ours, &tls.Config{ServerName: name, NextProtos: protocols, InsecureSkipVerify: true}).HandshakeContext(ctx)
	})
	defer wg.Wait()
	defer cancel()
	head := make([]byte, 5)
	if _, err := io.ReadFull(theirs, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(theirs, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// dialFrom connects from one of loopback's many addresses, so that what one
// test does is not held against another's source.
func (d *demo) dialFrom(t testing.TB, source string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: callWait, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}).Dial("tcp", d.Proxy)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// untilClosed reads until the other end closes, and says how long that took.
func untilClosed(conn net.Conn, most time.Duration) (got []byte, took time.Duration, err error) {
	began := time.Now()
	conn.SetReadDeadline(began.Add(most))
	got, err = io.ReadAll(io.LimitReader(conn, 1<<20))
	took = time.Since(began)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return got, took, errors.New("still open")
	}
	return got, took, nil
}

// TestA32_Silence: at every stage that a stranger can reach, whoever falls
// silent is closed within the stage's 10 seconds.
func TestA32_Silence(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	agent, _ := d.stolen(t, "agent")
	d.leavesNothing(t)
	raw := func(parts ...[]byte) func(net.Conn) (net.Conn, error) {
		return func(c net.Conn) (net.Conn, error) {
			_, err := c.Write(bytes.Join(parts, nil))
			return c, err
		}
	}
	// answered sends a preamble, takes the one byte of its answer, and goes on.
	answered := func(first, then []byte) func(net.Conn) (net.Conn, error) {
		return func(c net.Conn) (net.Conn, error) {
			c.SetReadDeadline(time.Now().Add(callWait))
			if _, err := c.Write(first); err != nil {
				return c, err
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return c, err
			}
			_, err := c.Write(then)
			return c, err
		}
	}
	handshake := func(cfg *tls.Config, then string) func(net.Conn) (net.Conn, error) {
		return func(c net.Conn) (net.Conn, error) {
			cfg.InsecureSkipVerify = true
			c.SetDeadline(time.Now().Add(callWait))
			tc := tls.Client(c, cfg)
			if err := tc.Handshake(); err != nil {
				return c, err
			}
			_, err := io.WriteString(tc, then)
			return tc, err
		}
	}
	mine := func(h *holder) []tls.Certificate { return []tls.Certificate{h.tls} }
	db, node, tcp := d.serverName("db"), d.serverName("node"), d.serverName("tcp")
	whole := helloFor(t, node, "sallyport-ssh/1")
	rows := []struct {
		name string
		do   func(net.Conn) (net.Conn, error)
	}{
		{"nothing", raw()},
		{"one byte of TLS", raw(whole[:1])},
		{"one byte of ours", raw([]byte("S"))},
		{"magic", raw([]byte("SLYP"))},
		{"data hello minus its last byte", raw([]byte("SLYP\x01\x00"), bytes.Repeat([]byte{7}, 55))},
		{"hello minus its last byte", raw(whole[:len(whole)-1])},
		{"half a request of HTTP", raw([]byte("GET / HTTP/1.1\r\nHost: x\r\n"))},
		{"half of an SSLRequest", raw(sslRequest[:7])},
		{"after SSLRequest", answered(sslRequest, nil)},
		{"after SSLRequest, one byte", answered(sslRequest, whole[:1])},
		{"after SSLRequest, hello minus its last byte", answered(sslRequest, helloFor(t, db)[:100])},
		{"after GSSENCRequest", answered(gssRequest, nil)},
		{"after GSSENCRequest, half of an SSLRequest", answered(gssRequest, sslRequest[:4])},
		{"PROXY line", raw([]byte("PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"))},
		{"half of a PROXY line", raw([]byte("PROXY TCP4 127."))},
		{"node: no more than a hello", raw(whole)},
		{"db: no more than a hello", raw(helloFor(t, db))},
		{"tcp: no more than a hello", raw(helloFor(t, tcp, "sallyport-tcp/1"))},
		{"auth: no more than a hello", raw(helloFor(t, d.Cluster, "sallyport-auth/1"))},
		{"join: no more than a hello", raw(helloFor(t, d.Cluster, "sallyport-join/1"))},
		{"tunnel: no more than a hello", raw(helloFor(t, d.Cluster, "sallyport-tunnel/1"))},
		{"web: no more than a hello", raw(helloFor(t, d.Cluster, "h2", "http/1.1"))},
		{"join: no request", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"sallyport-join/1"}}, "")},
		{"auth: no request", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"sallyport-auth/1"}, Certificates: mine(admin)}, "")},
		{"web: no request, http/1.1", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, "")},
		{"web: half a request, http/1.1", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, "GET / HTTP/1.1\r\nHost: x\r\n")},
		{"web: a WebSocket of an agent, and nothing", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, upgradeRequest)},
		{"web: a WebSocket, one byte of a frame", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, upgradeRequest+"\x82")},
		{"web: a WebSocket, half a data hello", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, upgradeRequest+"\x82\x84\x00\x00\x00\x00SLYP")},
		{"web: a WebSocket of a client, and nothing", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, connectRequest)},
		{"web: a WebSocket of a client, one byte of a frame", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, connectRequest+"\x82")},
		{"web: a WebSocket of a client, one byte of TLS", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, connectRequest+"\x82\x81\x00\x00\x00\x00\x16")},
		{"web: a WebSocket of a client, and the end of its direction", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"http/1.1"}}, connectRequest+"\x82\x80\x00\x00\x00\x00")},
		{"tunnel: half a data hello", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"sallyport-tunnel/1"}, Certificates: mine(agent)}, "SLYP\x01\x00")},
		{"web: no preface, h2", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"h2"}}, "")},
		{"tunnel: no hello", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"sallyport-tunnel/1"}, Certificates: mine(agent)}, "")},
		{"tunnel: half a hello", handshake(&tls.Config{ServerName: d.Cluster, NextProtos: []string{"sallyport-tunnel/1"}, Certificates: mine(agent)}, "\x00\x00\x10\x00x")},
		{"node: no version", handshake(&tls.Config{ServerName: node, NextProtos: []string{"sallyport-ssh/1"}, Certificates: mine(admin)}, "")},
		{"node: no key exchange", handshake(&tls.Config{ServerName: node, NextProtos: []string{"sallyport-ssh/1"}, Certificates: mine(admin)}, "SSH-2.0-x\r\n")},
		{"db: no startup", handshake(&tls.Config{ServerName: db, NextProtos: []string{"postgresql"}, Certificates: mine(admin)}, "")},
		{"db: half a startup", handshake(&tls.Config{ServerName: db, NextProtos: []string{"postgresql"}, Certificates: mine(admin)}, "\x00\x00\x00\x40\x00\x03\x00\x00user")},
	}
	// What has proved itself by a certificate may take longer, as sshd's grace.
	proven := map[string]time.Duration{"node: no version": 2 * time.Minute, "node: no key exchange": 2 * time.Minute}
	var wg sync.WaitGroup
	for i, row := range rows {
		if db[0] == '.' && row.name[:2] == "db" {
			continue
		}
		source := net.IPv4(127, 1, byte(i), 1).String()
		conn := d.dialFrom(t, source)
		wg.Go(func() {
			defer conn.Close()
			c, err := row.do(conn)
			if err != nil {
				if row.name != "PROXY line" && row.name != "half of a PROXY line" {
					t.Errorf("%s: %v", row.name, err)
				}
				return
			}
			most := stage + slack
			if longer := proven[row.name]; longer > 0 {
				most = longer
			}
			if _, took, err := untilClosed(c, most); err != nil {
				t.Errorf("%s: %v after %s", row.name, err, took)
			} else {
				t.Logf("%-45s closed after %s", row.name, took.Round(100*time.Millisecond))
			}
		})
	}
	wg.Wait()
}

// TestA32_Drip: a byte now and then does not move the deadline.
func TestA32_Drip(t *testing.T) {
	d := target(t)
	d.leavesNothing(t)
	hello := helloFor(t, d.serverName("node"), "sallyport-ssh/1")
	streams := map[string][]byte{
		"hello": hello, "PostgreSQL and hello": append(bytes.Clone(sslRequest), hello...),
		"HTTP": bytes.Repeat([]byte("GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), 4),
	}
	var wg sync.WaitGroup
	for name, b := range streams {
		conn := d.dialFrom(t, "127.2.0.1")
		wg.Go(func() {
			defer conn.Close()
			began := time.Now()
			over := make(chan struct{})
			go func() {
				defer close(over)
				io.Copy(io.Discard, conn)
			}()
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for _, c := range b {
				select {
				case <-over:
					if took := time.Since(began); took < time.Second {
						t.Errorf("%s: closed after %s, too early", name, took)
					}
					return
				case <-tick.C:
				}
				conn.Write([]byte{c})
				if time.Since(began) > stage+slack {
					t.Errorf("%s: still open after %s", name, time.Since(began))
					return
				}
			}
		})
	}
	wg.Wait()
}
