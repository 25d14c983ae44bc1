package redis

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

// BenchmarkBulk measures large values through the relay, and through two io.Copy
// over the same connections: what no relay between TLS and TLS can beat by much.
func BenchmarkBulk(b *testing.B) {
	value := bytes.Repeat([]byte("x"), 1<<20)
	set := appendCommand(nil, []byte("SET"), []byte("key"), value)
	got := append(fmt.Appendf(nil, "$%d\r\n", len(value)), append(value, "\r\n"...)...)
	small := bytes.Repeat([]byte("$16\r\n0123456789abcdef\r\n"), 64<<10)
	list := append(fmt.Appendf(nil, "*%d\r\n", 64<<10), small...)
	for _, way := range []struct {
		name  string
		in    bool
		bytes []byte
	}{{"SET", true, set}, {"GET", false, got}, {"LRANGE", false, list}} {
		for _, kind := range []string{"relay", "straight"} {
			b.Run(way.name+"/"+kind, func(b *testing.B) {
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
				if way.in {
					from, to = client, server
				}
				b.SetBytes(int64(len(way.bytes)))
				b.ReportAllocs()
				b.ResetTimer()
				go func() {
					for range b.N {
						from.Write(way.bytes)
					}
				}()
				if _, err := io.CopyN(io.Discard, to, int64(b.N)*int64(len(way.bytes))); err != nil {
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
		server: &Server{}, bounds: Bounds{}.withDefaults(), user: "alice", client: front, in: &inlet{conn: front, split: &splitter{}},
		sess: &session.Session{Emit: func(sallyport.Event) {}},
	}
	return newRelay(l, back, nil)
}

// BenchmarkCommand is one small command, without a database's work.
func BenchmarkCommand(b *testing.B) {
	get := appendCommand(nil, []byte("GET"), []byte("orders:42"))
	a := auditor{emit: func(sallyport.Event) {}, base: baseFields("orders", "db:6379", "alice"), script: 1 << 20}
	for _, what := range []string{"read", "recorded"} {
		b.Run(what, func(b *testing.B) {
			s := splitter{}
			b.ReportAllocs()
			for range b.N {
				s.add(copy(s.space(), get))
				c, err := s.next()
				if c == nil || err != nil {
					b.Fatal(c, err)
				}
				if what == "recorded" {
					a.see(c)
				}
			}
		})
	}
}

// BenchmarkPingPong is a command and its answer at a real server, through the
// relay and straight to it.
func BenchmarkPingPong(b *testing.B) {
	for _, kind := range []string{"relay", "straight"} {
		b.Run(kind, func(b *testing.B) {
			var conn net.Conn
			r := newRig(b)
			if kind == "relay" {
				c := r.as("alice")
				c.SetDeadline(database.Past().AddDate(1000, 0, 0))
				conn = c.Conn
			} else {
				conn = must(tls.Dial("tcp", r.server.Target.Address, &tls.Config{RootCAs: dbtest.DBCA.Pool, Certificates: []tls.Certificate{dbtest.DBCA.Pair("alice")}}))
				defer conn.Close()
			}
			get, buf := []byte("*2\r\n$3\r\nGET\r\n$7\r\nnothing\r\n"), make([]byte, 5)
			b.ReportAllocs()
			for b.Loop() {
				conn.Write(get)
				if _, err := io.ReadFull(conn, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
