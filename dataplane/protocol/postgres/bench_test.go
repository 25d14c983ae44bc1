package postgres

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// tlsPair returns the ends of a TLS connection over loopback.
func tlsPair(b testing.TB) (client, server *tls.Conn) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, _ := l.Accept()
		accepted <- conn
	}()
	client = tls.Client(must(net.Dial("tcp", l.Addr().String())),
		&tls.Config{RootCAs: hostCA.pool, ServerName: "localhost", DynamicRecordSizingDisabled: true})
	server = tls.Server(<-accepted, &tls.Config{Certificates: []tls.Certificate{hostCert}, DynamicRecordSizingDisabled: true})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.NetConn().Close(); server.NetConn().Close() })
	return client, server
}

// BenchmarkCopy measures COPY through the relay, and through two io.Copy over
// the same connections: what no relay between TLS and TLS can beat by much.
func BenchmarkCopy(b *testing.B) {
	rows := bytes.Repeat(must((&pgproto3.CopyData{Data: bytes.Repeat([]byte("x"), 120)}).Encode(nil)), 63) // about 8 KiB, as the server writes
	for _, way := range []string{"out", "in"} {
		for _, kind := range []string{"relay", "straight"} {
			b.Run(way+"/"+kind, func(b *testing.B) {
				client, front := tlsPair(b)
				back, server := tlsPair(b)
				done := make(chan struct{})
				go func() {
					defer close(done)
					if kind == "relay" {
						benchRelay(front, back).run(context.Background())
					} else {
						straight(front, back)
					}
				}()
				from, to := server, client
				if way == "in" {
					from, to = client, server
				}
				b.SetBytes(int64(len(rows)))
				b.ReportAllocs()
				b.ResetTimer()
				go func() {
					for range b.N {
						from.Write(rows)
					}
				}()
				if _, err := io.CopyN(io.Discard, to, int64(b.N)*int64(len(rows))); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				client.NetConn().Close()
				server.NetConn().Close()
				<-done
			})
		}
	}
}

func benchRelay(front, back *tls.Conn) *relay {
	l := &live{
		server: &Server{}, bounds: Bounds{}.withDefaults(), first: &startup{}, client: front,
		sess: &session.Session{Emit: func(sallyport.Event) {}},
	}
	return newRelay(l, &database{conn: back, r: bufio.NewReaderSize(back, 4<<10)})
}

func straight(a, b net.Conn) {
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

// BenchmarkQuery is one small simple query, without a database's work.
func BenchmarkQuery(b *testing.B) {
	query := must((&pgproto3.Query{String: "select * from orders where id = 42"}).Encode(nil))
	a := auditor{emit: discard, base: baseFields("orders", "db:5432", "alice", "orders"), statement: 1 << 20}
	s := splitter{limit: 64 << 20}
	b.ReportAllocs()
	for range b.N {
		n := copy(s.space(), query)
		if _, err := s.take(n, a.see); err != nil {
			b.Fatal(err)
		}
	}
}
