package dbtest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// Reach is a protocol whose server is dialed while the session's start is being
// written.
type Reach struct {
	// Serve serves a client by the server at an address, which has a certificate
	// of DBCA.
	Serve func(ctx context.Context, addr string, c *session.Candidate, conn net.Conn) error

	Preamble func(server net.Conn) error           // the server's part before TLS; nil: none
	Login    func(client net.Conn) (string, error) // as alice; returns what the client is told

	// What the client is told: that the start cannot be written, and that alice is
	// locked.
	Unwritten, Locked string
}

// NothingBeforeTheStart: the server is there already, and hears nothing but TLS,
// when the session's start cannot be written down, or a lock came meanwhile.
func (r Reach) NothingBeforeTheStart(t *testing.T) {
	t.Run("unwritten", func(t *testing.T) { r.nothingHeard(t, unwritten{NewGate()}, r.Unwritten, sallyport.ErrUnavailable) })
	t.Run("locked", func(t *testing.T) { r.nothingHeard(t, locked{NewGate()}, r.Locked, sallyport.ErrDenied) })
}

// unwritten is a gate that allows, and whose disk fails once the protocol has
// done what it may do meanwhile.
type unwritten struct{ *Gate }

func (u unwritten) Open(ctx context.Context, _ *session.Candidate, use session.Use) (*session.Session, error) {
	use.Meanwhile(ctx)
	return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "audit spool cannot be written"}
}

// locked is a gate behind which a lock comes while the start is being written.
type locked struct{ *Gate }

func (l locked) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	use.Meanwhile(ctx)
	s, err := l.Gate.Open(ctx, c, use)
	l.Lock()
	return s, err
}

func (r Reach) nothingHeard(t *testing.T, gate session.Gate, answer string, kind error) {
	l := Must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	heard, cert := make(chan error, 1), DBCA.Pair("server", "127.0.0.1")
	go func() { heard <- r.listen(l, cert) }()

	in := Must(net.Listen("tcp", "127.0.0.1:0"))
	defer in.Close()
	client := Must(net.Dial("tcp", in.Addr().String()))
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	served, conn := make(chan error, 1), Must(in.Accept())
	go func() {
		served <- r.Serve(t.Context(), l.Addr().String(), &session.Candidate{Gate: gate, Resource: sallyport.Resource{Name: "orders"}}, conn)
	}()
	if told, err := r.Login(client); err != nil || told != answer {
		t.Errorf("the client was told %q, %v; want %q", told, err, answer)
	}
	client.Close()
	if err := <-served; !errors.Is(err, kind) {
		t.Error(err)
	}
	if err := <-heard; err != nil {
		t.Error(err)
	}
}

// listen is the server for one connection. An error is why there was no TLS, or
// what came by it.
func (r Reach) listen(l net.Listener, cert tls.Certificate) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if r.Preamble != nil {
		if err := r.Preamble(conn); err != nil {
			return err
		}
	}
	tc := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
	if err := tc.Handshake(); err != nil {
		return err
	}
	if b, _ := io.ReadAll(tc); len(b) != 0 {
		return errors.New("the server was told " + string(b))
	}
	return nil
}
