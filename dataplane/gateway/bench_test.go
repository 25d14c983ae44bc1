//go:build unix

package gateway

import (
	"net"
	"testing"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// BenchmarkRouted is one routed connection: connect, hello, the first byte of
// the far end, close. Client and far end are in it, so it is an ordering only;
// bench/ measures the gateway alone.
func BenchmarkRouted(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(b, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_, _ = conn.Write([]byte{22})
			conn.Close()
		}
	}()
	b.Cleanup(func() { l.Close(); <-done })
	r := newRig(b, newLoops(b, relay.NewDefault, 1), func(c *Config) {
		c.Static = []StaticRoute{{Match: alpn.Match{SNI: []string{"shop.example.com"}}, Upstreams: []string{l.Addr().String()}}}
	})
	hello := helloBytes(b, r.ca.client("shop.example.com", "h2"))
	b.ReportAllocs()
	for b.Loop() {
		conn, err := net.Dial("tcp", r.addr)
		check(b, err)
		_, err = conn.Write(hello)
		check(b, err)
		_, err = conn.Read(make([]byte, 1))
		check(b, err)
		check(b, conn.(*net.TCPConn).SetLinger(0))
		conn.Close()
	}
}
