package fuzz

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
)

// script is a connection that plays bytes to a server and forgets its answers.
type script struct{ in io.Reader }

func (s script) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s script) Write(b []byte) (int, error)      { return len(b), nil }
func (s script) Close() error                     { return nil }
func (s script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s script) SetDeadline(time.Time) error      { return nil }
func (s script) SetReadDeadline(time.Time) error  { return nil }
func (s script) SetWriteDeadline(time.Time) error { return nil }

var (
	errRead  = errors.New("the hello has been read")
	errShort = errors.New("the hello is not whole")
)

// theirs is what crypto/tls reads from the same bytes; ok is false when it reads
// no hello.
func theirs(b []byte) (name string, protocols []string, ok bool) {
	config := &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		name, protocols, ok = info.ServerName, info.SupportedProtos, true
		return nil, errRead
	}}
	err := tls.Server(script{bytes.NewReader(b)}, config).HandshakeContext(context.Background())
	return name, protocols, ok && errors.Is(err, errRead)
}

// goHello is what crypto/tls sends first.
func goHello(f *testing.F, config *tls.Config) []byte {
	f.Helper()
	var sent bytes.Buffer
	_ = tls.Client(writerConn{script{strings.NewReader("")}, &sent}, config).Handshake()
	b := sent.Bytes()
	if len(b) < 5 {
		f.Fatal("crypto/tls wrote no hello")
	}
	return b[:5+int(b[3])<<8+int(b[4])]
}

// writerConn keeps what is written.
type writerConn struct {
	script
	w io.Writer
}

func (c writerConn) Write(b []byte) (int, error) { return c.w.Write(b) }

// FuzzClientHello: the border is a ClientHello on the public port; the oracle is
// crypto/tls, which ends TLS behind it. Whatever we route must be what the far
// end reads: the same name, the same protocols. What we refuse and it reads is
// one of the strictnesses named in refusedOnPurpose.
func FuzzClientHello(f *testing.F) {
	for _, name := range []string{"orders.db.gw.test", "GW.test", "", "xn--bcher-kva.example"} {
		for _, protocols := range [][]string{nil, {"h2", "http/1.1"}, {"postgresql"}, {alpn.Auth1}} {
			f.Add(goHello(f, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols}), uint16(0))
		}
	}
	short := goHello(f, &tls.Config{ServerName: "a.gw.test", MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}})
	f.Add(short, uint16(1))
	f.Add(short, uint16(16))
	for i := range 40 { // the lengths and types at the front, bent
		b := bytes.Clone(short)
		b[i%len(b)] ^= 1
		f.Add(b, uint16(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		if size > 0 {
			b = recorded(b, int(size))
		}
		var h alpn.Hello
		need, err := h.Parse(b)
		name, protocols, ok := theirs(b)
		switch {
		case err != nil:
			if ok && !refusedOnPurpose(name, protocols, b) {
				t.Fatalf("%v, crypto/tls reads %q %q", err, name, protocols)
			}
		case need > 0:
			if ok {
				t.Fatalf("needs %d of %d, crypto/tls reads %q", need, len(b), name)
			}
		case ok:
			got := string(h.ServerName())
			if !h.Address() && got != strings.ToLower(name) {
				t.Fatalf("name %q, crypto/tls %q", got, name)
			}
			if h.Address() {
				if _, err := netip.ParseAddr(name); err != nil || got != "" {
					t.Fatalf("an address, crypto/tls %q", name)
				}
			}
			if !slices.Equal(h.Protocols(), protocols) {
				t.Fatalf("protocols %q, crypto/tls %q", h.Protocols(), protocols)
			}
		}
	})
}

// refusedOnPurpose names what crypto/tls reads and we refuse: names that are no
// host names, records that a client has no reason to send before its hello, and
// more of anything than the bounds.
func refusedOnPurpose(name string, protocols []string, b []byte) bool {
	if _, ok := alpn.NormalName(name); !ok && name != "" {
		if _, err := netip.ParseAddr(name); err != nil || strings.Contains(name, "%") {
			return true
		}
	}
	total := 0
	for _, p := range protocols {
		total += 1 + len(p)
	}
	if len(protocols) > 32 || total > 512 || len(b) > alpn.MaxHello {
		return true
	}
	odd := false
	rest := b
	for len(rest) >= 5 {
		n := 5 + int(rest[3])<<8 + int(rest[4])
		odd = odd || rest[0] != 22 || rest[1] != 3
		rest = rest[min(n, len(rest)):]
	}
	return odd || oddHello(b)
}

// oddHello: what crypto/tls does not look at in a hello, or bounds otherwise: a
// session id of more than 32 bytes, no compression method, too many extensions.
func oddHello(b []byte) bool {
	var message []byte
	for len(b) >= 5 {
		n := min(5+int(b[3])<<8+int(b[4]), len(b))
		message = append(message, b[5:n]...)
		b = b[n:]
	}
	if len(message) < 39 {
		return true
	}
	session := int(message[38])
	rest := message[min(39+session, len(message)):]
	if session > 32 || len(rest) < 2 {
		return true
	}
	suites := int(rest[0])<<8 | int(rest[1])
	rest = rest[min(2+suites, len(rest)):]
	if len(rest) == 0 || rest[0] == 0 {
		return true
	}
	rest = rest[min(1+int(rest[0]), len(rest)):]
	count := 0
	for rest = rest[min(2, len(rest)):]; len(rest) >= 4; count++ {
		rest = rest[min(4+(int(rest[2])<<8|int(rest[3])), len(rest)):]
	}
	return count > 128
}

// recorded takes one record's message and cuts it into records of size bytes.
func recorded(b []byte, size int) []byte {
	if len(b) < 5 {
		return b
	}
	var out []byte
	for message := b[5:]; len(message) > 0; {
		n := min(size, len(message), 1<<14)
		out = append(out, b[0], b[1], b[2], byte(n>>8), byte(n))
		out = append(out, message[:n]...)
		message = message[n:]
	}
	return out
}
