package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/relay"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// strangersWorld is a gateway whose port takes all carriers, with an agent by hand.
func strangersWorld(t *testing.T, loops []relay.Loop, wait time.Duration) (*gateway, *handAgent, string) {
	t.Helper()
	g := startGateway(t, newAuthority(t), loops, func(c *HubConfig) {
		c.Loops = loops
		c.Bounds = Bounds{HelloWait: wait, Carried: 2, LeaseWait: 10 * time.Millisecond}
	})
	addr := onePort(t, g)
	a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
	g.come(t)
	return g, a, addr
}

// upgrade makes a WebSocket as an agent does.
func upgrade(t *testing.T, addr string, header http.Header, mode websocket.CompressionMode) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, "wss://"+addr+UpgradePath, &websocket.DialOptions{
		HTTPHeader: header, CompressionMode: mode,
		HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}}},
	})
	if c != nil {
		t.Cleanup(func() { c.CloseNow() })
	}
	return c, resp, err
}

// wantSocketClosed fails unless the gateway ends the WebSocket without a message
// that says anything: an empty one is the end of its direction.
func wantSocketClosed(t *testing.T, name string, c *websocket.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, b, err := c.Read(ctx)
	if err == nil && len(b) == 0 {
		_, b, err = c.Read(ctx)
	}
	if err == nil || ctx.Err() != nil {
		t.Errorf("%s: read %q, %v; want the end", name, b, err)
	}
}

func wantNothingHeld(t *testing.T, g *gateway) {
	t.Helper()
	eventually(t, "nothing held", func() bool {
		s := g.hub.Status()
		return s.Carried == 0 && s.Parked == 0 && s.HalfOpen == 0
	})
}

// TestCarriedStrangers: the carriers ask for the same proof as plain TCP does,
// and a page in a browser, other messages and compression get nothing.
func TestCarriedStrangers(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g, a, addr := strangersWorld(t, loops, patience)
		good, at := a.hello()
		forged := append([]byte(nil), good...)
		forged[HelloSize-1] ^= 1
		unknown := AppendDataHello(nil, DataHello{Tunnel: newID(), Counter: at.Counter}, a.keys.agent)
		for name, b := range map[string][]byte{
			"forged": forged, "unknown tunnel": unknown, "HTTP": []byte("GET / HTTP/1.1\r\n\r\n"), "an alert": {21, 3, 3, 0, 2, 2, 40},
			"a claim of 2 GiB": {0x7f, 0xff, 0xff, 0xff},
		} {
			c, _, err := upgrade(t, addr, nil, websocket.CompressionDisabled)
			check0(t, err)
			check0(t, c.Write(t.Context(), websocket.MessageBinary, b))
			wantSocketClosed(t, name, c)
		}
		c, _, err := upgrade(t, addr, nil, websocket.CompressionDisabled)
		check0(t, err)
		check0(t, c.Write(t.Context(), websocket.MessageText, good))
		wantSocketClosed(t, "text", c)
		if _, resp, err := upgrade(t, addr, http.Header{"Origin": {"https://" + addr}}, websocket.CompressionDisabled); err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
			t.Errorf("a browser's page: %v", err)
		}
		wantNothingHeld(t, g)
		eventually(t, "all counted", func() bool { return g.hub.Status().Counters["carried_refused"] >= 6 }) // after the client has seen the end
		s := g.hub.Status()
		if s.Counters["park_forged"] != 1 || s.Counters["park_unknown_tunnel"] != 1 || s.Counters["parked"] != 0 {
			t.Errorf("counters: %v", s.Counters)
		}
	})
}

// TestA147_NoDecompression: a WebSocket of an agent has no compression, whatever
// it asks for: nothing that it sends grows here.
func TestA147_NoDecompression(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g, _, addr := strangersWorld(t, loops, patience)
		c, resp, err := upgrade(t, addr, nil, websocket.CompressionContextTakeover)
		check0(t, err)
		if got := resp.Header.Get("Sec-WebSocket-Extensions"); got != "" {
			t.Errorf("granted: %q", got)
		}
		c.CloseNow()
		// One message that is larger than any of ours is not waited for.
		c, _, err = upgrade(t, addr, nil, websocket.CompressionDisabled)
		check0(t, err)
		go func() {
			_ = c.Write(context.Background(), websocket.MessageBinary, append([]byte(Magic), make([]byte, 1<<20)...))
		}()
		wantSocketClosed(t, "a large message", c)
		wantNothingHeld(t, g)
	})
}

// TestA147_AgentAsksForNone: nor does the agent offer to unpack what a gateway, or
// somebody on the way, sends it.
func TestA147_AgentAsksForNone(t *testing.T) {
	asked := make(chan http.Header, 1)
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header
		http.Error(w, "no", http.StatusForbidden)
	}))
	defer web.Close()
	a := newAgent(t.Context(), AgentConfig{
		Dial: (&net.Dialer{}).DialContext,
		TLS:  func(string) (*tls.Config, error) { return &tls.Config{ServerName: "gw.test"}, nil },
	})
	l := &link{agent: a, addr: web.Listener.Addr().String()}
	if conn, _, err := l.dialWebSocket(t.Context(), l.addr, false); err == nil {
		conn.Close()
		t.Fatal("a refusal was taken for a WebSocket")
	}
	h := receive(t, asked)
	if got := h.Values("Sec-WebSocket-Extensions"); h.Get("Upgrade") != "websocket" || len(got) != 0 {
		t.Errorf("asked for %q by %v", got, h)
	}
}

// TestCarriedBound: no more are carried than allowed, and each gives its place back.
func TestCarriedBound(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g, a, addr := strangersWorld(t, loops, patience)
		for range 2 {
			var held []*websocket.Conn
			for range 2 {
				c, _, err := upgrade(t, addr, nil, websocket.CompressionDisabled)
				check0(t, err)
				b, _ := a.hello()
				check0(t, c.Write(t.Context(), websocket.MessageBinary, b))
				held = append(held, c)
			}
			eventually(t, "two carried", func() bool { return g.hub.Status().Parked == 2 })
			c, _, err := upgrade(t, addr, nil, websocket.CompressionDisabled)
			check0(t, err)
			b, _ := a.hello()
			check0(t, c.Write(t.Context(), websocket.MessageBinary, b))
			wantSocketClosed(t, "the third", c)
			for _, c := range held {
				c.CloseNow()
			}
			wantNothingHeld(t, g)
		}
		if n := g.hub.Status().Counters["carried_full"]; n != 2 {
			t.Errorf("carried_full: %d", n)
		}
	})
}

// TestCarriedAnswer: who asks is told that the connection is parked, with a proof
// that is good for this connection only.
func TestCarriedAnswer(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g, a, addr := strangersWorld(t, loops, patience)
		at := Binding{a.tunnel, a.counter.Add(1)}
		c, err := net.Dial("tcp", addr)
		check0(t, err)
		defer c.Close()
		_, err = c.Write(AppendDataHello(nil, DataHello{at.Tunnel, at.Counter, true}, a.keys.agent))
		check0(t, err)
		b := make([]byte, AnswerSize)
		check0(t, c.SetReadDeadline(time.Now().Add(patience)))
		_, err = io.ReadFull(c, b)
		check0(t, err)
		check0(t, CheckAnswer(b, at, a.keys.gateway))
		for name, bad := range map[string]error{
			"another connection": CheckAnswer(b, Binding{at.Tunnel, at.Counter + 1}, a.keys.gateway),
			"another tunnel":     CheckAnswer(b, Binding{newID(), at.Counter}, a.keys.gateway),
			"another key":        CheckAnswer(b, at, a.keys.agent),
			"a byte less":        CheckAnswer(b[1:], at, a.keys.gateway),
		} {
			if bad == nil {
				t.Errorf("good for %s, too", name)
			}
		}
		eventually(t, "parked", func() bool { return g.hub.Status().Parked == 1 })
		if g.hub.Status().Tunnels[0].Carrier != string(CarrierTCP) {
			t.Error("it came by TCP")
		}
	})
}

// TestProxy: with an HTTP proxy in the way the agent asks it by CONNECT, for
// control and data connections; what the proxy may not have it does not get.
func TestProxy(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		g := startGateway(t, ca, loops, func(c *HubConfig) { c.DataAddress, c.Loops, c.Bounds.LeaseWait = "", loops, patience })
		gw := onePort(t, g)
		asked := make(chan string, 1000)
		proxy := startProxy(t, gw, asked)
		u := &url.URL{Scheme: "http", Host: proxy, User: url.UserPassword("office", "secret")}
		startAgent(t, ca, []string{"gw.example:443"}, func(c *AgentConfig) {
			c.Proxy = func(string) (*url.URL, error) { return u, nil }
			c.answerWait = func(Carrier) time.Duration { return patience }
		})
		g.come(t)
		g.warm(t)
		for range 5 {
			if got := receive(t, asked); got != "gw.example:443 Basic b2ZmaWNlOnNlY3JldA==" {
				t.Errorf("the proxy was asked for %q", got)
			}
		}
		conform(t, g)
		if s := g.hub.Status(); s.Tunnels[0].Carrier != string(CarrierTCP) {
			t.Errorf("carrier %q: CONNECT passes everything", s.Tunnels[0].Carrier)
		}
	})
}

// startProxy leads every CONNECT to one address.
func startProxy(t *testing.T, to string, asked chan<- string) string {
	t.Helper()
	_, addr := startMiddlebox(t, to, "proxy", func(m *middlebox) {
		m.ask = func(c net.Conn, first []byte) (net.Conn, bool) {
			in := bufio.NewReader(io.MultiReader(strings.NewReader(string(first)), c))
			r, err := http.ReadRequest(in)
			if err != nil || r.Method != http.MethodConnect {
				return nil, false
			}
			asked <- r.Host + " " + r.Header.Get("Proxy-Authorization")
			_, err = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
			return readConn{c, in}, err == nil
		}
	})
	return addr
}

// TestProxyRefuses: what a proxy says is bounded, and a no is told without the
// password.
func TestProxyRefuses(t *testing.T) {
	for name, answer := range map[string]string{
		"no":              "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
		"no HTTP":         "SSH-2.0-x\r\n",
		"no end":          "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 100),
		"more than a yes": "HTTP/1.1 200 OK\r\n\r\nhello",
		"nothing":         "",
	} {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			if _, err := http.ReadRequest(bufio.NewReader(there)); err == nil {
				_, _ = io.WriteString(there, answer)
			}
		}()
		dial := func(context.Context, string, string) (net.Conn, error) { return here, nil }
		u := &url.URL{Scheme: "http", Host: "proxy.example:3128", User: url.UserPassword("office", "secret")}
		conn, err := connectBy(t.Context(), dial, u, "gw.example:443")
		if err == nil {
			conn.Close()
			t.Errorf("%s: taken for a yes", name)
			continue
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the password is in %q", name, err)
		}
	}
	if _, err := connectBy(t.Context(), nil, &url.URL{Scheme: "socks5", Host: "proxy.example:1080"}, "gw.example:443"); err == nil {
		t.Error("socks5 was taken for HTTP")
	}
}

// TestRemembersWay: an agent whose data connections needed a carrier begins with
// it when it comes again.
func TestRemembersWay(t *testing.T) {
	a := newAgent(t.Context(), AgentConfig{})
	l := &link{agent: a, addr: "gw.test:443"}
	if got := fmt.Sprint(l.order()); got != "[tcp tls websocket]" {
		t.Errorf("at first: %s", got)
	}
	for by, want := range map[Carrier]string{CarrierTLS: "[tls tcp websocket]", CarrierWebSocket: "[websocket tcp tls]", CarrierTCP: "[tcp tls websocket]"} {
		a.learn(l.addr, func(w *way) { w.data = by })
		if got := fmt.Sprint(l.order()); got != want {
			t.Errorf("after %s: %s, want %s", by, got, want)
		}
	}
	a.known[l.addr] = way{data: CarrierTLS, control: CarrierWebSocket, since: time.Now().Add(-2 * knownFor)}
	if got := fmt.Sprint(l.order()); got != "[tcp tls websocket]" {
		t.Errorf("after a long time: %s", got)
	}
}

// TestInnerStrangersAreCheap: the first byte of TLS inside a WebSocket was
// answered with a pair, two descriptors more than strangers are counted with.
func TestInnerStrangersAreCheap(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g, _, addr := strangersWorld(t, loops, patience)
		const n = 10
		var all []net.Conn
		for range n {
			c, _, err := upgrade(t, addr, nil, websocket.CompressionDisabled)
			check0(t, err)
			all = append(all, websocket.NetConn(t.Context(), c, websocket.MessageBinary))
		}
		before := openFiles()
		asked, show := make(chan bool, n), make(chan bool)
		cfg := g.ca.client(g.ca.issue(t, sallyport.KindAgent, agent2ID))
		cert := cfg.Certificates[0]
		cfg.Certificates = nil
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked <- true
			<-show
			return &cert, nil
		}
		hands := make(chan error, n)
		var conns []*tls.Conn
		for _, c := range all {
			conn := tls.Client(c, cfg)
			conns = append(conns, conn)
			go func() { hands <- conn.Handshake() }()
		}
		for range n {
			receive(t, asked) // the gateway has answered
		}
		if more := openFiles() - before; more > 0 {
			t.Errorf("%d strangers in their handshakes take %d descriptors more", n, more)
		}
		close(show)
		for range n {
			check0(t, receive(t, hands))
		}
		hello := &tunnelv1.Hello{AgentId: agent2ID, Assignment: assigned(1, "tcp/other")}
		check0(t, putControl(conns[0], &tunnelv1.Control{Message: &tunnelv1.Control_Hello{Hello: hello}}, patience))
		if m, err := ReadControl(conns[0]); m.GetWelcome() == nil {
			t.Errorf("%v, %v; want a welcome", m, err)
		}
	})
}

// TestA74_Frames: what is no frame of RFC 6455, section 5, or none that may stand
// there, ends the WebSocket by the code for it or at once, and nothing is kept for
// the length that it tells.
func TestA74_Frames(t *testing.T) {
	onLoops(t, 1, func(t *testing.T, loops []relay.Loop) {
		g, a, addr := strangersWorld(t, loops, patience)
		hello, _ := a.hello()
		key := []byte{1, 2, 3, 4}
		masked := func(head []byte, payload []byte) []byte {
			b := append(append([]byte(nil), head...), key...)
			for i, c := range payload {
				b = append(b, c^key[i%4])
			}
			return b
		}
		long := func(first byte, length uint64) []byte {
			return binary.BigEndian.AppendUint64([]byte{first, 0x80 | 127}, length)
		}
		size := byte(len(hello))
		const cutOff = websocket.StatusCode(0) // section 7.1.7 lets a server choose
		for name, f := range map[string]struct {
			bytes []byte
			code  websocket.StatusCode
		}{
			"without a mask":           {append([]byte{0x82, size}, hello...), cutOff},
			"first reserved bit":       {masked([]byte{0x82 | 0x40, 0x80 | size}, hello), websocket.StatusProtocolError},
			"second reserved bit":      {masked([]byte{0x82 | 0x20, 0x80 | size}, hello), websocket.StatusProtocolError},
			"third reserved bit":       {masked([]byte{0x82 | 0x10, 0x80 | size}, hello), websocket.StatusProtocolError},
			"unknown data frame":       {masked([]byte{0x83, 0x80 | size}, hello), websocket.StatusProtocolError},
			"unknown control frame":    {masked([]byte{0x8b, 0x80}, nil), websocket.StatusProtocolError},
			"a ping in pieces":         {masked([]byte{0x09, 0x80 | 4}, hello[:4]), websocket.StatusProtocolError},
			"a ping of 126 bytes":      {masked([]byte{0x89, 0x80 | 126, 0, 126}, make([]byte, 126)), websocket.StatusProtocolError},
			"a ping of 2^62 bytes":     {masked(long(0x89, 1<<62), nil), websocket.StatusProtocolError},
			"a piece of nothing":       {masked([]byte{0x80, 0x80 | size}, hello), websocket.StatusProtocolError},
			"a message within another": {append(masked([]byte{0x02, 0x80 | 4}, hello[:4]), masked([]byte{0x82, 0x80 | size - 4}, hello[4:])...), websocket.StatusProtocolError},
			"2^63 bytes":               {masked(long(0x82, 1<<63), hello), cutOff},
			"-1 bytes":                 {masked(long(0x82, 1<<64-1), hello), cutOff},
			"a close of one byte":      {masked([]byte{0x88, 0x80 | 1}, []byte{3}), websocket.StatusProtocolError},
			"a close by no code":       {masked([]byte{0x88, 0x80 | 2}, []byte{0xff, 0xff}), websocket.StatusProtocolError},
		} {
			c := rawUpgrade(t, addr)
			_, err := c.Write(f.bytes)
			check0(t, err)
			if got := closeCode(t, c); got != f.code {
				t.Errorf("%s: closed by %d, want %d", name, got, f.code)
			}
			c.Close()
		}
		// A length of the largest that is one costs what comes, not what it says.
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for range 64 {
			c := rawUpgrade(t, addr)
			defer c.Close()
			_, err := c.Write(masked(long(0x82, 1<<63-1), []byte(Magic)))
			check0(t, err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
			t.Errorf("64 claims of 2^63-1 bytes: %d MiB", grown>>20)
		}
		if s := g.hub.Status(); s.Counters["parked"] != 0 {
			t.Errorf("counters: %v", s.Counters)
		}
	})
}

// rawUpgrade makes a WebSocket of which the test writes the frames.
func rawUpgrade(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	check0(t, err)
	t.Cleanup(func() { c.Close() })
	check0(t, c.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(c, "GET "+UpgradePath+" HTTP/1.1\r\nHost: "+addr+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	check0(t, err)
	// Nothing comes behind the head before something is sent.
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	check0(t, err)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the upgrade: %s", resp.Status)
	}
	return c
}

// closeCode is that of the close frame that comes next, 0 when the end does.
func closeCode(t *testing.T, c net.Conn) websocket.StatusCode {
	t.Helper()
	b := make([]byte, 4)
	n, err := io.ReadFull(c, b)
	switch {
	case err != nil && n == 0 && !errors.Is(err, os.ErrDeadlineExceeded):
		return 0
	case err != nil || b[0] != 0x88 || b[1] < 2:
		t.Errorf("read % x, %v; want a close frame or the end", b[:n], err)
		return -1
	}
	return websocket.StatusCode(binary.BigEndian.Uint16(b[2:]))
}
