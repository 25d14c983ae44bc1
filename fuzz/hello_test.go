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

// reading is what crypto/tls reads of a hello; ok is false when it reads none.
type reading struct {
	name      string
	protocols []string
	ok        bool
}

// theirs is what crypto/tls reads from the same bytes.
func theirs(b []byte) (r reading) {
	config := &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		r = reading{info.ServerName, info.SupportedProtos, true}
		return nil, errRead
	}}
	err := tls.Server(script{bytes.NewReader(b)}, config).HandshakeContext(context.Background())
	r.ok = r.ok && errors.Is(err, errRead)
	return r
}

// goHello is what crypto/tls sends first.
func goHello(f testing.TB, config *tls.Config) []byte {
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
	for _, b := range clientHellos(f) {
		f.Add(b, uint16(0))
		f.Add(b, uint16(16))
	}
	for _, name := range []string{"orders.db.gw.test", "GW.test", "", "xn--bcher-kva.example", "a.b.", "10.0.0.1", "::1"} {
		for _, protocols := range [][]string{nil, {"h2", "http/1.1"}, {"postgresql"}, {alpn.Auth1}} {
			f.Add(askFor(name, protocols), uint16(0))
		}
	}
	short := goHello(f, &tls.Config{ServerName: "a.gw.test", MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}})
	f.Add(short, uint16(1))
	for i := range 40 { // the lengths and types at the front, bent
		b := bytes.Clone(short)
		b[i%len(b)] ^= 1
		f.Add(b, uint16(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		if size > 0 {
			b = cutAt(messageOf(b), int(size))
		}
		checkHello(t, b)
	})
}

// FuzzHelloFields is FuzzClientHello with inputs that choose the fields of a
// hello instead of its bytes, and so get deeper.
func FuzzHelloFields(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x02\x01\x00"))
	f.Add([]byte("\x03\x01\x00\x02\x01\x00\x00\x05\x00\x04"))
	f.Fuzz(func(t *testing.T, in []byte) { checkHello(t, chosenHello(&dice{in})) })
}

// TestRandomHellos is FuzzHelloFields without coverage, for many more inputs.
func TestRandomHellos(t *testing.T) {
	atRandom(t, 64, func(t *testing.T, in []byte) { checkHello(t, chosenHello(&dice{in})) })
}

// checkHello holds our reading of b against crypto/tls's.
func checkHello(t *testing.T, b []byte) {
	t.Helper()
	var h alpn.Hello
	need, err := h.Parse(b)
	r := theirs(b)
	switch {
	case err != nil:
		var fault alpn.Fault
		if !errors.As(err, &fault) {
			t.Fatalf("%v is not a fault", err)
		}
		if r.ok && !refusedOnPurpose(fault, r, b) {
			t.Fatalf("%v, crypto/tls reads %q %q", err, r.name, r.protocols)
		}
	case need > 0:
		if r.ok {
			t.Fatalf("needs %d of %d, crypto/tls reads %q", need, len(b), r.name)
		}
	default:
		sameAsTheirs(t, &h, r, b)
	}
}

// sameAsTheirs: what we read, crypto/tls reads too. Where it refuses the hello
// for what does not concern routes, it is asked again with the two extensions
// that do and nothing else.
func sameAsTheirs(t *testing.T, h *alpn.Hello, r reading, b []byte) {
	t.Helper()
	if !r.ok {
		r = theirs(bare(b))
	}
	name, protocols := r.name, r.protocols
	if !r.ok {
		t.Fatalf("read %q %q, crypto/tls nothing", h.ServerName(), h.Protocols())
	}
	switch got := string(h.ServerName()); {
	case h.Address():
		if addr, err := netip.ParseAddr(name); err != nil || addr.Zone() != "" || got != "" {
			t.Fatalf("an address and %q, crypto/tls %q", got, name)
		}
	case got != strings.ToLower(name):
		t.Fatalf("name %q, crypto/tls %q", got, name)
	}
	if !slices.Equal(h.Protocols(), protocols) {
		t.Fatalf("protocols %q, crypto/tls %q", h.Protocols(), protocols)
	}
	for _, id := range protocols {
		if !h.Offers(id) || h.Offers(id+"x") != slices.Contains(protocols, id+"x") {
			t.Fatalf("protocols %q, and offers other ones", protocols)
		}
	}
}

// bare is a hello with the same server name and protocol list, as they are
// written, and nothing else that a server could refuse.
func bare(b []byte) []byte {
	_, all := extensionsOf(wholeOf(messageOf(b)))
	ours := slices.DeleteFunc(all, func(e extension) bool { return e.kind != 0 && e.kind != 16 })
	return cutAt(handHello(ours...), maxRecord)
}

// sizeOf is the length of a handshake message, its header included.
func sizeOf(message []byte) int {
	return 4 + (int(message[1])<<16 | int(message[2])<<8 | int(message[3]))
}

// wholeOf cuts off what stands behind a handshake message.
func wholeOf(message []byte) []byte { return message[:sizeOf(message)] }

// refusedOnPurpose says that crypto/tls reads a hello that we have a reason to
// refuse for: a name that is no host name; more of anything than the bounds;
// records of other kinds before the hello, which no client sends; a session id
// longer than TLS allows, or no compression method at all.
func refusedOnPurpose(why alpn.Fault, r reading, b []byte) bool {
	switch why {
	case alpn.FaultName:
		addr, err := netip.ParseAddr(r.name)
		_, host := alpn.NormalName(r.name)
		return !host && (err != nil || addr.Zone() != "")
	case alpn.FaultRecord:
		return otherRecords(b)
	}
	if why == alpn.FaultLarge && len(b) > alpn.MaxHello {
		return true
	}
	head, all := extensionsOf(wholeOf(messageOf(b)))
	if why == alpn.FaultLarge {
		return len(r.protocols) > 32 || len(strings.Join(r.protocols, "x")) >= 512 || len(all) > 128
	}
	session := int(head[4+2+32])
	suites := head[4+2+32+1+session:]
	compression := suites[2+int(suites[0])<<8+int(suites[1]):]
	return session > 32 || compression[0] == 0
}

// otherRecords says that something else than a handshake record of TLS stands
// before the end of the hello.
func otherRecords(b []byte) bool {
	for message := []byte(nil); len(message) < 4 || len(message) < sizeOf(message); {
		if len(b) < 5 {
			return false
		}
		if b[0] != 22 || b[1] != 3 {
			return true
		}
		n := min(5+int(b[3])<<8+int(b[4]), len(b))
		message, b = append(message, b[5:n]...), b[n:]
	}
	return false
}
