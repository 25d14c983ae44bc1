package alpn

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"
)

// capture is a connection that keeps what is written and answers with the end.
type capture struct{ sent []byte }

func (c *capture) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *capture) Write(b []byte) (int, error)      { c.sent = append(c.sent, b...); return len(b), nil }
func (c *capture) Close() error                     { return nil }
func (c *capture) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *capture) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *capture) SetDeadline(time.Time) error      { return nil }
func (c *capture) SetReadDeadline(time.Time) error  { return nil }
func (c *capture) SetWriteDeadline(time.Time) error { return nil }

// goHello is what crypto/tls sends first.
func goHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	c := &capture{}
	_ = tls.Client(c, config).Handshake()
	// The failed handshake ends with an alert record, or with nothing.
	if len(c.sent) < recordHeader {
		t.Fatal("crypto/tls wrote no hello")
	}
	return c.sent[:recordHeader+int(c.sent[3])<<8+int(c.sent[4])]
}

func hello(t testing.TB, name string, protocols ...string) []byte {
	t.Helper()
	return goHello(t, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols})
}

// extension is one of a hello built by hand.
type extension struct {
	kind uint16
	data []byte
}

func vec8(b []byte) []byte { return append([]byte{byte(len(b))}, b...) }
func vec16(b []byte) []byte {
	return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)
}

func sniExtension(names ...string) extension {
	var list []byte
	for _, n := range names {
		list = append(list, 0)
		list = append(list, vec16([]byte(n))...)
	}
	return extension{0, vec16(list)}
}

func alpnExtension(ids ...string) extension {
	var list []byte
	for _, id := range ids {
		list = append(list, vec8([]byte(id))...)
	}
	return extension{16, vec16(list)}
}

// handHello is a ClientHello message, without records, written field by field.
func handHello(extensions ...extension) []byte {
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, vec8(nil)...)
	body = append(body, vec16([]byte{0x13, 0x01})...)
	body = append(body, vec8([]byte{0})...)
	var all []byte
	for _, e := range extensions {
		all = append(all, byte(e.kind>>8), byte(e.kind))
		all = append(all, vec16(e.data)...)
	}
	body = append(body, vec16(all)...)
	return append([]byte{1, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// records cuts a handshake message into records of at most size bytes.
func records(message []byte, size int) []byte {
	var out []byte
	for len(message) > 0 {
		n := min(size, len(message))
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out = append(out, message[:n]...)
		message = message[n:]
	}
	return out
}

// message is the handshake message of one record.
func message(record []byte) []byte { return record[recordHeader:] }
