package postgres

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

// BenchmarkCopy measures COPY through the relay, and through two io.Copy over
// the same connections: what no relay between TLS and TLS can beat by much.
func BenchmarkCopy(b *testing.B) {
	rows := bytes.Repeat(must((&pgproto3.CopyData{Data: bytes.Repeat([]byte("x"), 120)}).Encode(nil)), 63) // about 8 KiB, as the server writes
	for _, way := range []string{"out", "in"} {
		for _, kind := range []string{"relay", "straight"} {
			b.Run(way+"/"+kind, func(b *testing.B) {
				client, front := dbtest.Ends(b)
				back, server := dbtest.Ends(b)
				done := make(chan struct{})
				go func() {
					defer close(done)
					if kind == "relay" {
						r := benchRelay(front, back)
						r.Run(context.Background(), r)
					} else {
						dbtest.Straight(front, back)
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
	return newRelay(l, &backend{conn: back, r: bufio.NewReaderSize(back, 4<<10)})
}

// BenchmarkQuery is one small simple query, without a database's work.
func BenchmarkQuery(b *testing.B) {
	query := must((&pgproto3.Query{String: "select * from orders where id = 42"}).Encode(nil))
	a := auditor{emit: discard, base: baseFields("orders", "db:5432", "alice", "orders"), statement: 1 << 20}
	s := splitter{limit: 64 << 20}
	b.ReportAllocs()
	for range b.N {
		n := copy(s.Space(), query)
		if _, err := s.take(n, a.see); err != nil {
			b.Fatal(err)
		}
	}
}
