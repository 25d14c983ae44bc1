package app

import (
	"bytes"
	"crypto/tls"
	"net"
	"testing"
)

// BenchmarkRequest is one small request on connections that are kept, with TLS on
// both sides, to an application that does nothing.
func BenchmarkRequest(b *testing.B) {
	cert := selfSigned(b)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\n\r\nok")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go exchange(c, answer)
		}
	}()
	r := newRig(b, Target{URI: "https://" + l.Addr().String(), Insecure: true})
	conn := r.dial()
	ask := []byte("GET /some/path?with=query HTTP/1.1\r\nHost: " + appHost + "\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n")
	in := make([]byte, 4<<10)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := conn.Write(ask); err != nil {
			b.Fatal(err)
		}
		for n := 0; !bytes.HasSuffix(in[:n], []byte("ok")); {
			m, err := conn.Read(in[n:])
			if n += m; err != nil {
				b.Fatal(err)
			}
		}
	}
	b.StopTimer()
	conn.Close()
	r.finished.Wait()
}

// exchange answers each request that comes in one piece.
func exchange(c net.Conn, answer []byte) {
	defer c.Close()
	in := make([]byte, 8<<10)
	for {
		if _, err := c.Read(in); err != nil {
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}
