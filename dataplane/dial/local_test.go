package dial

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

var (
	sslRequest = []byte{0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f}
	gssRequest = []byte{0, 0, 0, 8, 4, 0xd2, 0x16, 0x30}
	cancel     = []byte{0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e, 0, 1, 0, 2, 9, 9, 9, 9}
)

func startup() []byte {
	body := "\x00\x03\x00\x00user\x00alice\x00\x00"
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)
}

// loopback is a real TCP pair.
func loopback(t testing.TB) (a, b *net.TCPConn) {
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
	for _, conn := range []net.Conn{c, s} {
		conn.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { conn.Close() })
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// proxy runs a local proxy to dial; the returned function connects to it.
func proxy(t *testing.T, p *LocalProxy, dial func(context.Context) (net.Conn, error)) func() *net.TCPConn {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.Listener, p.Dial = l, dial
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() *net.TCPConn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}
}

// to gives the far ends of what is dialed.
func to(t *testing.T) (func(context.Context) (net.Conn, error), <-chan *net.TCPConn) {
	far := make(chan *net.TCPConn, 8)
	return func(context.Context) (net.Conn, error) {
		a, b := loopback(t)
		far <- b
		return a, nil
	}, far
}

func TestListen(t *testing.T) {
	for _, bad := range []string{"0.0.0.0:0", ":0", "192.0.2.1:0", "localhost:0", "[::]:0", "127.0.0.1", ""} {
		if l, err := Listen(bad); err == nil {
			l.Close()
			t.Errorf("%q was opened", bad)
		}
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Listen(l.Addr().String())
	problem(t, err, sallyport.ErrUnavailable, "address already in use")
}

func TestLocalProxyBothWays(t *testing.T) {
	dial, far := to(t)
	local := proxy(t, &LocalProxy{}, dial)()
	remote := <-far
	data := make([]byte, 4<<20)
	rand.Read(data)
	go func() {
		local.Write(data)
		local.CloseWrite()
	}()
	if got, err := io.ReadAll(remote); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// The other half is still open.
	io.WriteString(remote, "answer")
	remote.CloseWrite()
	if got, err := io.ReadAll(local); err != nil || string(got) != "answer" {
		t.Errorf("%q %v", got, err)
	}
}

// TestBrokenIsNotEnded: a reset on one side is a reset on the other.
func TestBrokenIsNotEnded(t *testing.T) {
	dial, far := to(t)
	local := proxy(t, &LocalProxy{}, dial)()
	remote := <-far
	remote.SetLinger(0)
	remote.Close()
	if _, err := io.ReadAll(local); err == nil {
		t.Error("a broken stream was taken for one that ended")
	}
}

func TestPostgresPreamble(t *testing.T) {
	tests := []struct {
		name string
		send [][]byte
		says string // what comes back before the stream
		want []byte // what the other side gets first; nil: nothing, and an error comes back unless it is TLS
	}{
		{"startup at once", [][]byte{startup()}, "", startup()},
		{"ssl", [][]byte{sslRequest, startup()}, "N", startup()},
		{"gss and ssl", [][]byte{gssRequest, sslRequest, startup()}, "NN", startup()},
		{"ssl and gss", [][]byte{sslRequest, gssRequest, startup()}, "NN", startup()},
		{"cancel", [][]byte{cancel}, "", cancel},
		{"ssl and cancel", [][]byte{sslRequest, cancel}, "N", cancel},
		{"ssl twice", [][]byte{sslRequest, sslRequest}, "N", nil},
		{"direct TLS", [][]byte{{0x16, 3, 1, 2, 0, 1, 0, 1}}, "", nil},
		{"protocol 2.0", [][]byte{append([]byte{0, 0, 1, 40, 0, 2, 0, 0}, make([]byte, 288)...)}, "", nil},
		{"a start without a user", [][]byte{{0, 0, 0, 9, 0, 3, 0, 0, 0}}, "", nil},
		{"garbage", [][]byte{[]byte("GET / HTTP/1.1\r\n")}, "", nil},
		{"a length of 4 GiB", [][]byte{{0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0}}, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dial, far := to(t)
			local := proxy(t, &LocalProxy{Postgres: true}, dial)()
			answered := ""
			for i, b := range tt.send {
				local.Write(b)
				if i < len(tt.says) {
					var a [1]byte
					if _, err := io.ReadFull(local, a[:]); err != nil {
						t.Fatal(err)
					}
					answered += string(a[:])
				}
			}
			if answered != tt.says {
				t.Errorf("answered %q, want %q", answered, tt.says)
			}
			if tt.want == nil {
				// Clients were told of a broken connection, and not why.
				b, err := io.ReadAll(local)
				if told := err == nil && bytes.HasPrefix(b, []byte("E")) && bytes.Contains(b, []byte("C08P01\x00")); told == (tt.name == "direct TLS") {
					t.Errorf("told %q, %v", b, err)
				}
				if len(far) != 0 {
					t.Error("dialed")
				}
				return
			}
			remote := <-far
			got := make([]byte, len(tt.want))
			if _, err := io.ReadFull(remote, got); err != nil || !bytes.Equal(got, tt.want) {
				t.Errorf("%q %v", got, err)
			}
			io.WriteString(remote, "R")
			remote.Close()
			if b, _ := io.ReadAll(local); string(b) != "R" {
				t.Errorf("back came %q", b)
			}
		})
	}
}

// TestOwnTLSPasses: without Postgres nothing is answered here: a program's own
// SSLRequest goes to the gateway.
func TestOwnTLSPasses(t *testing.T) {
	dial, far := to(t)
	local := proxy(t, &LocalProxy{}, dial)()
	local.Write(sslRequest)
	got := make([]byte, 8)
	if _, err := io.ReadFull(<-far, got); err != nil || !bytes.Equal(got, sslRequest) {
		t.Errorf("%q %v", got, err)
	}
}

func TestDialFails(t *testing.T) {
	fail := func(context.Context) (net.Conn, error) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "resource orders: unknown or no live agent", Hint: "sally ls"}
	}
	local := proxy(t, &LocalProxy{Postgres: true}, fail)()
	local.Write(startup())
	b, err := io.ReadAll(local)
	if err != nil || len(b) == 0 || b[0] != 'E' || !bytes.Contains(b, []byte("Mresource orders: unknown or no live agent\x00")) || !bytes.Contains(b, []byte("Hsally ls\x00")) {
		t.Errorf("told %q, %v", b, err)
	}
	far := make(chan struct{})
	local = proxy(t, &LocalProxy{}, func(ctx context.Context) (net.Conn, error) {
		<-far
		return fail(ctx)
	})()
	close(far)
	if b, err := io.ReadAll(local); err == nil || len(b) != 0 {
		t.Errorf("told %q, %v", b, err)
	}
}

// TestKubeDialFails: kubectl was told of an unexpected end of the stream, and not that
// its login had ended.
func TestKubeDialFails(t *testing.T) {
	for _, c := range []struct {
		err    error
		method string
		code   int
		reason string
		says   string
	}{
		{&sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "your \"certificate\" ended", Hint: "sally login"}, "POST", 401, "Unauthorized", `your "certificate" ended (sally login)`},
		{sallyport.Denied("not you", ""), "GET", 403, "Forbidden", "not you"},
		{&sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no live agent"}, "GET", 503, "ServiceUnavailable", "no live agent"},
		{errors.New("10.0.0.1: refused"), "GET", 503, "ServiceUnavailable", "the cluster cannot be reached"},
		{sallyport.Denied("not you", ""), "HEAD", 403, "", ""},
	} {
		dial := proxy(t, &LocalProxy{Kube: true}, func(context.Context) (net.Conn, error) { return nil, c.err })
		client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return dial(), nil }}}
		r, err := http.NewRequest(c.method, "http://kube/api/v1/pods", strings.NewReader(strings.Repeat("x", 1<<20)))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Errorf("%v: %v", c.err, err)
			continue
		}
		var status struct {
			Kind, APIVersion, Status, Message, Reason string
			Code                                      int
		}
		if b, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != c.code || answer.ContentLength < 0 || !answer.Close {
			t.Errorf("%v: %s %q, %v", c.err, answer.Status, b, err)
		} else if c.method == "HEAD" {
			continue
		} else if err := json.Unmarshal(b, &status); err != nil || status.Kind != "Status" || status.APIVersion != "v1" || status.Status != "Failure" ||
			status.Code != c.code || status.Reason != c.reason || status.Message != c.says || answer.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%v: %q, %v", c.err, b, err)
		}
	}
	local := proxy(t, &LocalProxy{Kube: true}, func(context.Context) (net.Conn, error) { return nil, sallyport.Denied("not you", "") })()
	local.Write(bytes.Repeat([]byte("x"), 2*kubeHead))
	if b, err := io.ReadAll(local); err == nil || len(b) != 0 {
		t.Errorf("a request without an end: told %q, %v", b, err)
	}
}

// TestStop: ending the proxy ends what it carries, whatever state it is in.
func TestStop(t *testing.T) {
	dial, far := to(t)
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	p := &LocalProxy{Listener: l, Dial: dial, Postgres: true, MaxConnections: 2}
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	var conns []net.Conn
	for range 3 { // one carried, one in its preamble, one waiting for its turn
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		if len(conns) == 1 {
			c.Write(startup())
			<-far
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for i, c := range conns {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

func TestPipe(t *testing.T) {
	near, far := loopback(t)
	go func() {
		b, _ := io.ReadAll(far)
		io.WriteString(far, strings.ToUpper(string(b)))
		far.Close()
	}()
	var out bytes.Buffer
	if err := Pipe(strings.NewReader("ssh-2.0"), &out, near); err != nil || out.String() != "SSH-2.0" {
		t.Errorf("%q %v", out.String(), err)
	}
	if _, err := near.Write([]byte{0}); err == nil {
		t.Error("still open")
	}
}

// TestPipeEndsWithTheOtherSide: a program that says no more is not waited for.
func TestPipeEndsWithTheOtherSide(t *testing.T) {
	near, far := loopback(t)
	in, typing := io.Pipe()
	defer typing.Close()
	go func() {
		io.WriteString(far, "bye")
		far.Close()
	}()
	var out bytes.Buffer
	if err := Pipe(in, &out, near); err != nil || out.String() != "bye" {
		t.Errorf("%q %v", out.String(), err)
	}
}

// FuzzPostgres: whatever a local program sends first, at most one packet is
// read, of a bounded size, and it is whole.
func FuzzPostgres(f *testing.F) {
	f.Add(startup())
	f.Add(cancel)
	f.Add(sslRequest)
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		packet, _, err := readPostgres(r)
		if err == nil && (!bytes.Equal(packet, in[:len(packet)]) || r.Len() != len(in)-len(packet)) {
			t.Fatalf("%q of %q", packet, in)
		}
		if len(in)-r.Len() > 10000 {
			t.Fatal("read too much")
		}
	})
}

// TestReasonIsHeard: a program that spoke before it read found a broken connection, and
// not the reason that was on it.
func TestReasonIsHeard(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				dir, err := os.MkdirTemp("/tmp", "sp") // a socket's path is short
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir) })
				addr = dir + "/s"
			}
			l, err := net.Listen(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- (&LocalProxy{Listener: l, Redis: true, linger: patience, Dial: func(context.Context) (net.Conn, error) {
					return nil, sallyport.Denied("not you", "")
				}}).Serve(ctx)
			}()
			local, err := net.Dial(network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer local.Close()
			local.SetDeadline(time.Now().Add(patience))
			// More than a queue holds: it is read, or the connection is broken.
			if _, err := local.Write(make([]byte, 4<<20)); err != nil {
				t.Errorf("said to nobody: %v", err)
			}
			if b, err := io.ReadAll(local); err != nil || !strings.Contains(string(b), "not you") {
				t.Errorf("%q, %v", b, err)
			}
			local.Close()
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
