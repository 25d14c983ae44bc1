package dbtest

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// Door is a listener that does what gateway and door do, and clients that come to
// it. The fields are set before Open.
type Door struct {
	Protocol string // of the database orders
	ALPN     string
	Gate     session.Gate
	Refusal  *sallyport.Problem // of all clients; nil: none

	// Serve is the protocol's.
	Serve func(ctx context.Context, c *session.Candidate, conn net.Conn) error

	// Preamble is what comes before TLS; nil: nothing. It returns nil when no TLS
	// comes.
	Preamble func(conn net.Conn) net.Conn

	Addr string             // once it is open
	Stop context.CancelFunc // ends all sessions, as the agent does when it stops

	t       testing.TB
	context context.Context
	serving sync.WaitGroup
	ended   chan error // what each Serve returned
}

// hostCert is what clients see of an agent.
var hostCert = HostCA.Pair("orders.db", "127.0.0.1", "localhost")

// Open lets clients in until the test is over; all calls of Serve must have
// returned soon after.
func (d *Door) Open(t testing.TB) {
	d.t, d.ended = t, make(chan error, 64)
	d.context, d.Stop = context.WithCancel(context.Background())
	l := Must(net.Listen("tcp", "127.0.0.1:0"))
	d.Addr = l.Addr().String()
	d.serving.Go(func() { d.accept(l) })
	t.Cleanup(func() { d.close(l) })
}

func (d *Door) close(l net.Listener) {
	l.Close()
	d.Stop()
	done := make(chan struct{})
	go func() { d.serving.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		d.t.Errorf("Serve did not return\n%s", buf[:runtime.Stack(buf, true)])
	}
}

func (d *Door) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		d.serving.Go(func() { d.serve(conn) })
	}
}

// serve ends a client's TLS, by which it says who it is.
func (d *Door) serve(conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if d.Preamble != nil {
		if conn = d.Preamble(conn); conn == nil {
			return
		}
	}
	inner := tls.Server(conn, &tls.Config{
		Certificates: []tls.Certificate{hostCert},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: UserCA.Pool,
		NextProtos: []string{d.ALPN}, SessionTicketsDisabled: true,
	})
	if inner.Handshake() != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	name := inner.ConnectionState().PeerCertificates[0].Subject.CommonName
	d.ended <- d.Serve(d.context, &session.Candidate{
		Identity:   sallyport.Identity{Kind: sallyport.KindUser, Name: name, Cluster: "gw.example.com"},
		Resource:   sallyport.Resource{Kind: sallyport.KindDatabase, Name: "orders", Protocol: d.Protocol},
		ClientAddr: netip.MustParseAddrPort("192.0.2.1:1234"),
		Refusal:    d.Refusal,
		Gate:       d.Gate,
	}, inner)
}

// Result is what the next Serve that ends returned.
func (d *Door) Result() error {
	d.t.Helper()
	select {
	case err := <-d.ended:
		return err
	case <-time.After(patience):
		d.t.Fatal("Serve did not return")
		return nil
	}
}

// TLS is the configuration of a client with a user's certificate.
func (d *Door) TLS(who string) *tls.Config {
	return &tls.Config{
		RootCAs: HostCA.Pool, ServerName: "localhost",
		Certificates: []tls.Certificate{UserCA.Pair(who)}, NextProtos: []string{d.ALPN},
	}
}

// Dial is what a local proxy of alice's does.
func (d *Door) Dial(ctx context.Context) (net.Conn, error) {
	return (&tls.Dialer{Config: d.TLS("alice")}).DialContext(ctx, "tcp", d.Addr)
}

// Local is a port of alice's for programs that speak no TLS.
func (d *Door) Local() string {
	l := Must(net.Listen("tcp", "127.0.0.1:0"))
	d.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go d.forward(conn)
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (d *Door) forward(conn net.Conn) {
	defer conn.Close()
	inner, err := d.Dial(context.Background())
	if err != nil {
		return
	}
	defer inner.Close()
	go func() {
		io.Copy(inner, conn)
		inner.(*tls.Conn).CloseWrite()
	}()
	io.Copy(conn, inner)
}
