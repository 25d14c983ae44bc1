package dbtest

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// Ends returns the ends of a TLS connection over loopback, as between a client
// and an agent.
func Ends(t testing.TB) (client, server *tls.Conn) {
	l := Must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, _ := l.Accept()
		accepted <- conn
	}()
	client = tls.Client(Must(net.Dial("tcp", l.Addr().String())),
		&tls.Config{RootCAs: HostCA.Pool, ServerName: "localhost", DynamicRecordSizingDisabled: true})
	server = tls.Server(<-accepted, &tls.Config{Certificates: []tls.Certificate{hostCert}, DynamicRecordSizingDisabled: true})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.NetConn().Close(); server.NetConn().Close() })
	return client, server
}

// Straight copies between two connections: what no relay between TLS and TLS can
// beat by much.
func Straight(a, b net.Conn) {
	type plain struct{ io.Writer }
	type only struct{ io.Reader }
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.CopyBuffer(plain{a}, only{b}, make([]byte, 32<<10))
		a.Close()
	}()
	io.CopyBuffer(plain{b}, only{a}, make([]byte, 32<<10))
	b.Close()
	<-done
}
