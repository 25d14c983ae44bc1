package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"

	"github.com/sallyport/sallyport"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

//lint:file-ignore SA1019 net/http speaks HTTP/2 by the protocol id h2 alone; ours are sallyport-auth/1 and sallyport-join/1

// TestPinnedAddress: a certificate that is bound to an address is good where
// the address is known and right.
func TestPinnedAddress(t *testing.T) {
	w := the()
	pin := func(addr string) *tls.Certificate {
		_, cert := w.user(t, func(id *sallyport.Identity) { id.PinnedAddr = addr }, "access")
		return cert
	}
	v4, v6, local := pin("192.0.2.10"), pin("2001:db8::1"), pin("127.0.0.1")
	for name, c := range map[string]struct {
		door door
		want string // "" for good
	}{
		"right":                     {door{protocol: protocolAuth, cert: v4, from: "192.0.2.10:4711"}, ""},
		"right, IPv6":               {door{protocol: protocolAuth, cert: v6, from: "[2001:db8::1]:4711"}, ""},
		"another":                   {door{protocol: protocolAuth, cert: v4, from: "192.0.2.11:4711"}, "another address"},
		"no header":                 {door{protocol: protocolAuth, cert: v4}, "cannot see"},
		"TCP":                       {door{protocol: protocolAuth, cert: v4, address: w.tcp}, "cannot see"},
		"TCP, the peer's own":       {door{protocol: protocolAuth, cert: local, address: w.tcp}, "cannot see"},
		"not pinned, no header":     {byAuth(pin("")), ""},
		"not pinned, TCP":           {door{protocol: protocolAuth, cert: pin(""), address: w.tcp}, ""},
		"not pinned, any header":    {door{protocol: protocolAuth, cert: pin(""), from: "198.51.100.1:1"}, ""},
		"loopback by the gateway":   {door{protocol: protocolAuth, cert: local, from: "127.0.0.1:1"}, ""},
		"loopback by another route": {door{protocol: protocolAuth, cert: local, from: "10.0.0.1:1"}, "another address"},
	} {
		_, err := sallyportv1connect.NewAccessServiceClient(w.http(t, c.door), base).WhoAmI(t.Context(), connect.NewRequest(&sallyportv1.WhoAmIRequest{}))
		if c.want == "" && err != nil || c.want != "" && (connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestProxyHeader: the header is read on the Unix socket only, and is what the
// audit log has.
func TestProxyHeader(t *testing.T) {
	w := the()
	if _, err := w.dial(t.Context(), door{protocol: protocolJoin, address: w.tcp, from: "192.0.2.99:1"}); err == nil {
		t.Error("TCP: a PROXY header was taken")
	}
	k := newKeyPair(t)
	c := sallyportv1connect.NewJoinServiceClient(w.http(t, door{protocol: protocolJoin, from: "192.0.2.99:1"}), base)
	_, err := c.Join(t.Context(), connect.NewRequest(&sallyportv1.JoinRequest{Token: strings.Repeat("x", 40), Roles: []string{"agent"}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
	codeIs(t, "join", err, connect.CodeUnauthenticated)
	all := w.events(t, "instance.join")
	if len(all) == 0 || all[len(all)-1].Addr != "192.0.2.99:1" {
		t.Errorf("recorded: %+v", all)
	}
}

// TestClientAddrHeader: who is no gateway may not speak for visitors, and a
// gateway's request with the header is never the gateway's own.
func TestClientAddrHeader(t *testing.T) {
	w := the()
	_, user := w.user(t, nil, "editor")
	_, agent := w.host(t, sallyport.KindAgent)
	_, gateway := w.host(t, sallyport.KindGateway)
	for name, c := range map[string]struct {
		door   door
		status int
	}{
		"user":             {visitor(user, "192.0.2.1:1"), http.StatusForbidden},
		"user, empty":      {visitor(user, ""), http.StatusForbidden},
		"agent":            {visitor(agent, "192.0.2.1:1"), http.StatusForbidden},
		"join":             {door{protocol: protocolJoin, header: map[string]string{clientAddrHeader: "192.0.2.1:1"}}, http.StatusForbidden},
		"admin":            {door{header: map[string]string{clientAddrHeader: "192.0.2.1:1"}}, http.StatusForbidden},
		"gateway":          {visitor(gateway, "192.0.2.1:1"), http.StatusOK},
		"gateway, empty":   {visitor(gateway, ""), http.StatusBadRequest},
		"gateway, no port": {visitor(gateway, "192.0.2.1"), http.StatusBadRequest},
		"gateway, garbage": {visitor(gateway, "@"), http.StatusBadRequest},
		"without":          {byAuth(gateway), http.StatusNotFound}, // pages are for visitors
	} {
		resp, err := w.http(t, c.door).Get(c.door.base() + "/")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || c.status == http.StatusOK && string(body) != "page for 192.0.2.1" {
			t.Errorf("%s: %s %q, want %d", name, resp.Status, body, c.status)
		}
	}
	h := FromWeb(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("two addresses went on") }))
	r, _ := http.NewRequestWithContext(WithCaller(t.Context(), Caller{Identity: sallyport.Identity{Kind: sallyport.KindGateway}}), http.MethodGet, "/", nil)
	r.Header[clientAddrHeader] = []string{"192.0.2.1:1", "192.0.2.2:1"}
	h.ServeHTTP(discard{}, r)
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// TestAdminSocket: root and the owner are let in, by the kernel's word.
func TestAdminSocket(t *testing.T) {
	w := the()
	if _, err := w.localAdmin(t).ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{})); err != nil {
		t.Errorf("as ourselves: %v", err)
	}
	for _, c := range []struct {
		uid   uint32
		owner int
		ok    bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1001, 1000, false}, {1000, 0, false}, {1<<32 - 1, -1, false}} {
		name, err := adminName(c.uid, c.owner)
		if (err == nil) != c.ok || c.ok && name != fmt.Sprint(c.uid) {
			t.Errorf("uid %d with owner %d: %q %v", c.uid, c.owner, name, err)
		}
	}
	// The same handler on a TCP port lets nobody in: there is no kernel's word.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- ServeAdmin(ctx, ln, w.handler) }()
	tr := &http.Transport{}
	_, err = sallyportv1connect.NewAdminServiceClient(&http.Client{Transport: tr}, "http://"+ln.Addr().String()).ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{}))
	codeIs(t, "by TCP", err, connect.CodeUnauthenticated)
	tr.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// pipes is a listener whose connections are pipes, for the time of a bubble.
type pipes struct {
	once   sync.Once
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes {
	return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

// inBubble serves the listener with a clock that tests move, set to the present.
func inBubble(t *testing.T, behind bool, f func(t *testing.T, p *pipes)) {
	serveInBubble(t, the().listener(behind), f) // the world is made outside
}

func serveInBubble(t *testing.T, l *Listener, f func(t *testing.T, p *pipes)) {
	present := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(present))
		ctx, cancel := context.WithCancel(t.Context())
		p, done := newPipes(), make(chan struct{})
		go func() {
			defer close(done)
			l.Serve(ctx, p)
		}()
		f(t, p)
		cancel()
		<-done
	})
}

// ends waits for the other end to close and says how long that took.
func ends(c net.Conn) time.Duration {
	start := time.Now()
	io.Copy(io.Discard, c)
	return time.Since(start)
}

// TestAdminSocketAnswers: a request on a connection that was accepted before the end
// is answered, also when it comes after that; who asks nothing is not waited for.
func TestAdminSocketAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p, served := newPipes(), make(chan error, 1)
		go func() {
			served <- ServeAdmin(ctx, p, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "answer") }))
		}()
		late, idle, mute := p.dial(), p.dial(), p.dial()
		defer mute.Close()
		ask := func(c net.Conn) {
			t.Helper()
			go io.WriteString(c, "GET / HTTP/1.1\r\nHost: admin\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "answer" {
				t.Errorf("%q, %v", b, err)
			}
		}
		ask(idle)
		cancel()
		synctest.Wait()
		ended := time.Now()
		if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("one without a request is open: %v", err)
		}
		ask(late)
		if _, err := late.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("open after its answer: %v", err)
		}
		if err := <-served; err != nil || time.Since(ended) != adminGrace {
			t.Errorf("%v after %s", err, time.Since(ended))
		}
	})
}

// TestA32_Strangers: who does not end the handshake is gone after ten seconds.
func TestA32_Strangers(t *testing.T) {
	hello := helloBytes(t)
	proxy := "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
	for name, c := range map[string]struct {
		behind bool
		bytes  string
		most   time.Duration
	}{
		"silent":                   {false, "", handshakeTimeout},
		"one byte":                 {false, hello[:1], handshakeTimeout},
		"half a hello":             {false, hello[:len(hello)/2], handshakeTimeout},
		"a hello but its last":     {false, hello[:len(hello)-1], handshakeTimeout},
		"a hello and no more":      {false, hello, handshakeTimeout},
		"garbage":                  {false, "GET / HTTP/1.1\r\n\r\n", 0},
		"a record of 64 KiB":       {false, "\x16\x03\x01\xff\xff", 0},
		"behind: silent":           {true, "", handshakeTimeout},
		"behind: half a header":    {true, proxy[:9], handshakeTimeout},
		"behind: header, silent":   {true, proxy, handshakeTimeout},
		"behind: header, half":     {true, proxy + hello[:9], handshakeTimeout},
		"behind: header, garbage":  {true, proxy + "garbage ", 0},
		"behind: garbage header":   {true, "PROXY garbage\r\n", 0},
		"behind: header and again": {true, proxy + proxy, 0},
		"behind: v2, huge":         {true, "\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff", handshakeTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, c.behind, func(t *testing.T, p *pipes) {
				conn := p.dial()
				defer conn.Close()
				go conn.Write([]byte(c.bytes))
				if took := ends(conn); took > c.most {
					t.Errorf("closed after %v, want %v", took, c.most)
				}
			})
		})
	}
}

// helloBytes is a whole ClientHello, as Go sends it.
func helloBytes(t *testing.T) string {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		defer theirs.Close()
		tls.Client(theirs, &tls.Config{ServerName: cluster, NextProtos: []string{protocolAuth}}).Handshake()
	}()
	buf := make([]byte, 16<<10)
	n, err := ours.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// TestA32_TooManyStrangers: the oldest stranger makes room, and who has shown a
// certificate stays.
func TestA32_TooManyStrangers(t *testing.T) {
	w := the()
	_, cert := w.user(t, nil, "access")
	inBubble(t, false, func(t *testing.T, p *pipes) {
		known := client(t, handshake(t, w, p, protocolAuth, cert))
		defer known.Close()
		var conns []net.Conn
		for range maxStrangers {
			conns = append(conns, p.dial())
		}
		synctest.Wait()
		late := client(t, handshake(t, w, p, protocolAuth, cert))
		defer late.Close()
		if took := ends(conns[0]); took != 0 {
			t.Errorf("the oldest was closed after %v", took)
		}
		if took := ends(conns[1]); took != handshakeTimeout {
			t.Errorf("the next was closed after %v", took)
		}
		for _, c := range conns {
			c.Close()
		}
		for name, c := range map[string]*http2.ClientConn{"known": known, "late": late} {
			if err := c.Ping(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestA32_TooManyOfOne: one user, also a locked one, took all places in seconds, and no
// host was told of a lock any more. Who has many has no more use for the oldest.
func TestA32_TooManyOfOne(t *testing.T) {
	w := the()
	name, many := w.user(t, nil, "access")
	another := w.certify(t, nil, name, "access") // the same user's
	_, agent := w.host(t, sallyport.KindAgent)
	l := w.listener(false)
	serveInBubble(t, l, func(t *testing.T, p *pipes) {
		answer := make(chan struct{})
		l.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-answer })
		var calls sync.WaitGroup
		call := func(c *http2.ClientConn) {
			calls.Go(func() {
				r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/", nil)
				if resp, err := c.RoundTrip(r); err != nil {
					t.Error(err)
				} else {
					resp.Body.Close()
				}
			})
			synctest.Wait()
		}
		open := func(cert *tls.Certificate) *http2.ClientConn {
			c := client(t, handshake(t, w, p, protocolAuth, cert))
			synctest.Wait()
			return c
		}
		alive := func(c *http2.ClientConn) bool { return c.Ping(t.Context()) == nil }
		first, second := open(many), open(many)
		call(first) // and it is not answered yet
		all := []*http2.ClientConn{first, second}
		for range maxPerCaller - 2 {
			all = append(all, open(many))
		}
		if !alive(second) {
			t.Error("closed while there was room")
		}
		late := open(another)
		if !alive(first) || !alive(late) || alive(second) {
			t.Errorf("one too many: the busy one is there: %v, the new one: %v, the oldest that is idle: %v", alive(first), alive(late), alive(second))
		}
		all = append(all, late)
		for _, c := range all {
			if c != first && c != second {
				call(c)
			}
		}
		if took := ends(handshake(t, w, p, protocolAuth, many)); took != 0 {
			t.Errorf("one too many while all are busy was closed after %v", took)
		}
		host := open(agent)
		if !alive(host) {
			t.Error("no room for a host")
		}
		close(answer)
		calls.Wait()
		for _, c := range append(all, host) {
			c.Close()
		}
		synctest.Wait()
		if len(l.callers) != 0 || l.users != 0 {
			t.Errorf("%d callers and %d users' connections are still counted", len(l.callers), l.users)
		}
	})
}

// TestRoomForHosts: however many connections people have, hosts have some.
func TestRoomForHosts(t *testing.T) {
	l := &Listener{}
	add := func(kind sallyport.IdentityKind, n int) (in int) {
		for i := range n {
			c := &fakeConn{}
			if l.add(c) && l.known(c, Caller{Identity: sallyport.Identity{Kind: kind, Name: fmt.Sprint(i / maxPerCaller)}}, &farewell{}) {
				in++
			} else {
				l.remove(c)
			}
		}
		return in
	}
	if n := add(sallyport.KindUser, maxConnections); n != maxUsers {
		t.Errorf("%d of people, want %d", n, maxUsers)
	}
	if n := add(sallyport.KindAgent, maxConnections); n != maxConnections-maxUsers {
		t.Errorf("%d of hosts beside them, want %d", n, maxConnections-maxUsers)
	}
	for c := range l.conns {
		l.remove(c)
	}
	if n := add(sallyport.KindGateway, maxConnections+1); n != maxConnections {
		t.Errorf("%d of hosts alone, want %d", n, maxConnections)
	}
}

type fakeConn struct {
	net.Conn
	_ byte // each has an address of its own
}

func (*fakeConn) Close() error { return nil }

// TestA32_NotStanding: who has a certificate and may call nothing has a stranger's place,
// and hears why.
func TestA32_NotStanding(t *testing.T) {
	w := the()
	name, locked := w.user(t, nil, "access")
	_, agent := w.host(t, sallyport.KindAgent)
	w.lock(t, `{"user":"`+name+`"}`)
	_, err := w.asUser(t, locked).WhoAmI(t.Context(), connect.NewRequest(&sallyportv1.WhoAmIRequest{}))
	if connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "you are locked") {
		t.Errorf("told: %v", err)
	}
	l := w.listener(false)
	l.Standing = func(ctx context.Context, c Caller) error {
		if c.Identity.Kind == sallyport.KindUser { // the view has him, so the store is not asked
			return w.server.Standing(ctx, c)
		}
		return nil
	}
	serveInBubble(t, l, func(t *testing.T, p *pipes) {
		mute := handshake(t, w, p, protocolAuth, locked)
		defer mute.Close()
		host := client(t, handshake(t, w, p, protocolAuth, agent))
		defer host.Close()
		synctest.Wait()
		if len(l.callers) != 1 || l.strangers.Len() != 1 {
			t.Errorf("%d callers and %d strangers, want one of each", len(l.callers), l.strangers.Len())
		}
		if took := ends(mute); took > joinTimeout {
			t.Errorf("closed after %v, want %v", took, joinTimeout)
		}
		if err := host.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func handshake(t *testing.T, w *world, p *pipes, protocol string, cert *tls.Certificate) *tls.Conn {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	c := tls.Client(p.dial(), cfg)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c
}

func client(t *testing.T, conn *tls.Conn) *http2.ClientConn {
	t.Helper()
	cc, err := (&http2.Transport{}).NewClientConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	return cc
}

// TestJoinConnectionsEnd: without a certificate a connection lives for one call.
func TestJoinConnectionsEnd(t *testing.T) {
	w := the()
	inBubble(t, false, func(t *testing.T, p *pipes) {
		idle := handshake(t, w, p, protocolJoin, nil)
		defer idle.Close()
		busy := handshake(t, w, p, protocolJoin, nil)
		defer busy.Close()
		go io.Copy(io.Discard, busy)
		cc := client(t, handshake(t, w, p, protocolJoin, nil))
		// A body that never ends.
		pr, pw := io.Pipe()
		defer pw.Close()
		start := time.Now()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, base+sallyportv1connect.JoinServiceJoinProcedure, pr)
		r.Header.Set("Content-Type", "application/proto")
		if resp, err := cc.RoundTrip(r); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if took := time.Since(start); took > joinTimeout {
			t.Errorf("a body without an end was read for %v", took)
		}
		cc.Close()
		ends(idle)
		if took := time.Since(start); took > joinTimeout {
			t.Errorf("an idle connection was closed after %v", took)
		}
	})
}

// TestConnectionEndsWithCertificate: an open connection is no way around the
// certificate's end.
func TestConnectionEndsWithCertificate(t *testing.T) {
	w := the()
	_, cert := w.user(t, nil, "access") // for a minute
	inBubble(t, false, func(t *testing.T, p *pipes) {
		c := client(t, handshake(t, w, p, protocolAuth, cert))
		defer c.Close()
		time.Sleep(30 * time.Second)
		if err := c.Ping(t.Context()); err != nil {
			t.Errorf("after 30 s: %v", err)
		}
		time.Sleep(30 * time.Second)
		if err := c.Ping(t.Context()); err == nil {
			t.Error("open after the certificate's end")
		}
	})
}

// TestServeEnds: with its context a listener ends, and all it holds.
func TestServeEnds(t *testing.T) {
	w := the()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	l := w.listener(true)
	go func() { done <- l.Serve(ctx, ln) }()
	conn, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection is still there: %v", err)
	}
	if len(l.conns) != 0 || l.strangers != nil && l.strangers.Len() != 0 {
		t.Errorf("%d connections are still counted", len(l.conns))
	}
}

// TestLastCalls: a connection whose certificate has ended, and whose timer stood still while
// the machine slept, was good for refusals only, and was kept.
func TestLastCalls(t *testing.T) {
	for name, end := range map[string]time.Time{"good": time.Now().Add(time.Hour), "ended": time.Now().Add(-time.Second)} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewUnstartedServer(lastCalls(end, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })))
			srv.EnableHTTP2 = true
			srv.StartTLS()
			defer srv.Close()
			others := 0
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
				if !i.Reused {
					others++
				}
			}})
			for n := 0; n < 20 || others < 2 && name == "ended" && n < 1000; n++ { // the word may come behind the next request
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusTeapot {
					t.Errorf("%s %s", resp.Proto, resp.Status)
				}
			}
			if kept := others == 1; kept != (name == "good") {
				t.Errorf("%d connections", others)
			}
		})
	}
}
