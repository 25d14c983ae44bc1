package tcp

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// gate stands for the door.
type gate struct {
	denial  *sallyport.Problem
	options sallyport.Options
	written chan error         // how it went to write the start down; nil: well, at once
	locked  *sallyport.Problem // ends the session before it is opened, once the target is reached

	mu     sync.Mutex
	use    session.Use
	ended  map[string]any
	cancel context.CancelCauseFunc
}

func newGate() *gate { return &gate{} }

func (g *gate) Admit(sallyport.Identity, netip.AddrPort) *sallyport.Problem { return nil }

func (g *gate) Open(ctx context.Context, c *session.Candidate, use session.Use) (*session.Session, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.use = use
	if g.denial != nil {
		return nil, g.denial
	}
	sctx, cancel := context.WithCancelCause(ctx)
	g.cancel = cancel
	if g.written != nil {
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			use.Meanwhile(sctx)
		}()
		if err := <-g.written; err != nil {
			cancel(err)
			<-returned
			return nil, err
		}
		if g.locked != nil {
			<-returned
			cancel(g.locked)
		}
	}
	return &session.Session{
		ID: "s1", Context: sctx, Options: g.options, Resource: c.Resource,
		Cancel: func(p *sallyport.Problem) { cancel(p) },
		End: func(fields map[string]any) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.ended = fields
			cancel(context.Canceled)
		},
	}, nil
}

// pair is two ends of a real TCP connection.
func pair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	for _, conn := range []net.Conn{c, s} {
		conn.SetDeadline(time.Now().Add(time.Minute))
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// target accepts one connection and gives it to serve.
func target(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		serve(c.(*net.TCPConn))
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// run serves one client and returns its end and the verdict.
func run(t testing.TB, g *gate, address, protocol string) (*net.TCPConn, <-chan error) {
	t.Helper()
	client, conn := pair(t)
	c := &session.Candidate{Identity: sallyport.Identity{Name: "alice", Cluster: "gw.test"}, Gate: g, ALPN: protocol,
		Resource: sallyport.Resource{Kind: sallyport.KindTCP, Name: "echo", Address: address, Labels: map[string]string{"env": "prod"}}}
	errs := make(chan error, 1)
	go func() {
		err := new(Server).Serve(t.Context(), c, conn)
		conn.Close()
		errs <- err
	}()
	return client, errs
}

func echo(c *net.TCPConn) { io.Copy(c, c); c.CloseWrite() }

// TestBothWays moves enough to fill every buffer, ends one half, and reads the
// rest from the other.
func TestBothWays(t *testing.T) {
	for _, protocol := range []string{Protocol, "", "imap"} {
		t.Run("by "+protocol, func(t *testing.T) {
			g := newGate()
			client, errs := run(t, g, target(t, echo), protocol)
			if protocol == Protocol {
				b := make([]byte, 1)
				if _, err := io.ReadFull(client, b); err != nil || b[0] != greetOpen {
					t.Fatalf("greeting %v, %v", b, err)
				}
			}
			data := make([]byte, 8<<20)
			rand.Read(data)
			go func() {
				client.Write(data)
				client.CloseWrite()
			}()
			got, err := io.ReadAll(client)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Fatalf("%d of %d bytes came back, %v", len(got), len(data), err)
			}
			if err := <-errs; err != nil {
				t.Error(err)
			}
			if g.ended["rx"] != int64(len(data)) || g.ended["tx"] != int64(len(data)) || g.ended["error"] != nil {
				t.Errorf("end fields %v", g.ended)
			}
			if g.use.Start.Code != "T2007I" || g.use.Denied.Code != "T2007E" || g.use.End.Code != "T2011I" || g.use.Start.Fields["app_name"] != "echo" || g.use.Start.Fields["app_public_addr"] != "echo.tcp.gw.test" {
				t.Errorf("events %+v", g.use)
			}
		})
	}
}

// TestNothingBeforeTheStart: the target is dialed while the session's start is on
// its way to the disk, and not a byte passes when it does not arrive there, or when a lock came meanwhile.
func TestNothingBeforeTheStart(t *testing.T) {
	reached, heard := make(chan struct{}, 1), make(chan string, 1)
	begin := func(g *gate) (*net.TCPConn, <-chan error) {
		client, errs := run(t, g, target(t, func(c *net.TCPConn) {
			io.WriteString(c, "hello")
			reached <- struct{}{}
			b, _ := io.ReadAll(c)
			heard <- string(b)
		}), "")
		io.WriteString(client, "x")
		client.CloseWrite()
		<-reached
		return client, errs
	}
	g := newGate()
	g.written = make(chan error)
	client, errs := begin(g)
	g.written <- &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "audit spool cannot be written"}
	if err := <-errs; !errors.Is(err, sallyport.ErrUnavailable) {
		t.Error(err)
	}
	if b, _ := io.ReadAll(client); len(b) != 0 {
		t.Errorf("the client was told %q", b)
	}
	if got := <-heard; got != "" {
		t.Errorf("the target heard %q", got)
	}

	g.locked = sallyport.Denied("lock in force", "")
	client, errs = begin(g)
	g.written <- nil
	if err := <-errs; !errors.Is(err, sallyport.ErrDenied) {
		t.Error(err)
	}
	if b, _ := io.ReadAll(client); len(b) != 0 {
		t.Errorf("a locked client was told %q", b)
	}
	if got := <-heard; got != "" {
		t.Errorf("the target heard %q of a locked client", got)
	}

	g.locked = nil
	client, errs = begin(g)
	g.written <- nil
	if got := <-heard; got != "x" {
		t.Errorf("the target heard %q", got)
	}
	if b, err := io.ReadAll(client); string(b) != "hello" || err != nil {
		t.Errorf("the client was told %q, %v", b, err)
	}
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

// TestTargetEndsFirst: the other half stays open.
func TestTargetEndsFirst(t *testing.T) {
	heard := make(chan string, 1)
	addr := target(t, func(c *net.TCPConn) {
		io.WriteString(c, "bye")
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		heard <- string(b)
	})
	client, errs := run(t, newGate(), addr, "")
	if b, err := io.ReadAll(client); string(b) != "bye" || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	io.WriteString(client, "and good night")
	client.CloseWrite()
	if got := <-heard; got != "and good night" {
		t.Errorf("target heard %q", got)
	}
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

func TestDenied(t *testing.T) {
	g := newGate()
	g.denial = sallyport.Denied("access to tcp echo denied: no role allows it", strings.Repeat("ü", 600))
	client, errs := run(t, g, "127.0.0.1:1", Protocol)
	b, err := io.ReadAll(client)
	if err != nil || !bytes.HasPrefix(b, append([]byte{greetRefused, 0, 44}, g.denial.Fact...)) {
		t.Errorf("told %q, %v", b, err)
	}
	if n := 1 + 2 + 44 + 2 + maxText; len(b) != n {
		t.Errorf("%d bytes, want %d", len(b), n)
	}
	if err := <-errs; !errors.Is(err, sallyport.ErrDenied) {
		t.Error(err)
	}
	client, errs = run(t, g, "127.0.0.1:1", "")
	if b, err := io.ReadAll(client); len(b) != 0 || err != nil {
		t.Errorf("a client without greetings was told %q, %v", b, err)
	}
	<-errs
}

func TestTargetDown(t *testing.T) {
	g := newGate()
	client, errs := run(t, g, "127.0.0.1:1", Protocol) // a port that nobody is given
	b, err := io.ReadAll(client)
	if err != nil || !bytes.Contains(b, []byte("the target does not answer")) || bytes.Contains(b, []byte("127.0.0.1")) {
		t.Errorf("told %q, %v", b, err)
	}
	if err := <-errs; !errors.Is(err, sallyport.ErrUnavailable) {
		t.Error(err)
	}
	if g.ended["error"] == nil {
		t.Errorf("end fields %v", g.ended)
	}
}

// TestTargetByName: targets may have DNS names, and a URI's scheme.
func TestTargetByName(t *testing.T) {
	_, port, err := net.SplitHostPort(target(t, echo))
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "echo.internal:"+port {
			t.Errorf("dialed %q", address)
		}
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
	}}
	client, conn := pair(t)
	c := &session.Candidate{Gate: newGate(), Resource: sallyport.Resource{Name: "echo", Address: "tcp://echo.internal:" + port}}
	errs := make(chan error, 1)
	go func() { errs <- s.Serve(t.Context(), c, conn) }()
	io.WriteString(client, "x")
	client.CloseWrite()
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

// TestTargetResets: a stream that broke is not taken for one that ended.
func TestTargetResets(t *testing.T) {
	addr := target(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	})
	g := newGate()
	client, errs := run(t, g, addr, "")
	io.WriteString(client, "x")
	if err := <-errs; !errors.Is(err, session.ErrCut) {
		t.Errorf("got %v", err)
	}
	if g.ended["error"] == nil {
		t.Errorf("end fields %v", g.ended)
	}
}

// TestClientBreaks: what breaks on the client's side is a reset at the target.
func TestClientBreaks(t *testing.T) {
	heard := make(chan error, 1)
	addr := target(t, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		heard <- err
	})
	client, errs := run(t, newGate(), addr, Protocol)
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	client.SetLinger(0)
	client.Close()
	if err := <-heard; err == nil {
		t.Error("the target took it for an end")
	}
	if err := <-errs; !errors.Is(err, session.ErrCut) {
		t.Errorf("got %v", err)
	}
}

// TestLock: a session that must end lets go of both ends at once, in the middle
// of whatever they do.
func TestLock(t *testing.T) {
	heard := make(chan error, 1)
	addr := target(t, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		heard <- err
	})
	g := newGate()
	client, errs := run(t, g, addr, Protocol)
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	g.cancel(sallyport.Denied("lock in force", ""))
	if err := <-errs; !errors.Is(err, session.ErrCut) || !strings.Contains(err.Error(), "lock in force") {
		t.Errorf("got %v", err)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client is still connected: %v", err)
	}
	if err := <-heard; err == nil {
		t.Error("the target took it for an end")
	}
}

// TestClientGoesFirst: what the client has sent already goes to the target before
// anything is read from there. The scheduler may decide otherwise once in a while.
func TestClientGoesFirst(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const tries = 100
	first := 0
	for range tries {
		var order []string
		var mu sync.Mutex
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, what)
		}
		client := &said{text: strings.NewReader("hello"), note: func(string) {}}
		target := &said{text: strings.NewReader(""), note: note}
		if err := new(Server).join(t.Context(), client, target, new(traffic)); err != nil {
			t.Fatal(err)
		}
		if order[0] == "write" {
			first++
		}
	}
	if first < tries/2 {
		t.Errorf("%d of %d times", first, tries)
	}
}

// said is an end that has said all that it will.
type said struct {
	net.Conn
	text *strings.Reader
	note func(what string)
}

func (s *said) Read(p []byte) (int, error)  { s.note("read"); return s.text.Read(p) }
func (s *said) Write(p []byte) (int, error) { s.note("write"); return len(p), nil }
func (s *said) CloseWrite() error           { return nil }
