package dial

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/test/deaf"
)

// appProxy starts a proxy to an application whose agent is h.
func appProxy(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	far := httptest.NewServer(h)
	t.Cleanup(far.Close)
	return serveApp(t, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", far.Listener.Addr().String())
	})
}

func serveApp(t *testing.T, dial func(context.Context) (net.Conn, error)) string {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&AppProxy{Listener: l, Host: "web.app.gw.test", Dial: dial}).Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// ask sends a request with headers and returns the answer's status and text.
func ask(t *testing.T, method, addr string, header map[string]string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+addr+"/path?q", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range header {
		if name == "Host" {
			req.Host = v
		}
		req.Header.Set(name, v)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// TestAppProxy: requests name the application, and redirects come back here.
func TestAppProxy(t *testing.T) {
	addr := appProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "https://web.app.gw.test/next?x=1")
		fmt.Fprintf(w, "%s %s %s %s", r.Host, r.RequestURI, r.Header.Get("Origin"), r.Header.Get("Referer"))
	})
	resp, body := ask(t, "GET", addr, map[string]string{"Origin": "http://" + addr, "Referer": "http://" + addr + "/a"})
	if body != "web.app.gw.test /path?q https://web.app.gw.test https://web.app.gw.test/a" {
		t.Errorf("%s", body)
	}
	if l := resp.Header.Get("Location"); l != "http://"+addr+"/next?x=1" {
		t.Errorf("leads to %s", l)
	}
}

// TestAppProxyUntyped: an answer without a type gets none at this port.
func TestAppProxyUntyped(t *testing.T) {
	addr := appProxy(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.Header()["Content-Type"] = nil
		io.WriteString(w, "<html><script>1</script>")
	})
	resp, body := ask(t, "GET", addr, nil)
	if body != "<html><script>1</script>" || len(resp.Header["Content-Type"]) != 0 {
		t.Errorf("%q of type %q", body, resp.Header["Content-Type"])
	}
}

// TestAppProxyForeignPages: what a page of another site can make a browser send
// to this port goes no further.
func TestAppProxyForeignPages(t *testing.T) {
	reached := 0
	addr := appProxy(t, func(w http.ResponseWriter, r *http.Request) { reached++ })
	_, port, _ := net.SplitHostPort(addr)
	for name, c := range map[string]struct {
		method string
		header map[string]string
		want   int
	}{
		"plain":                 {"GET", nil, 200},
		"own page posts":        {"POST", map[string]string{"Origin": "http://" + addr}, 200},
		"curl posts":            {"POST", nil, 200},
		"localhost":             {"GET", map[string]string{"Host": "localhost:" + port}, 200},
		"another loopback":      {"GET", map[string]string{"Host": "[::1]:" + port}, 200},
		"rebound name":          {"GET", map[string]string{"Host": "evil.test:" + port}, 421},
		"rebound, like ours":    {"GET", map[string]string{"Host": "127.0.0.1.evil.test"}, 421},
		"foreign page posts":    {"POST", map[string]string{"Origin": "https://evil.test"}, 403},
		"foreign page, fetched": {"DELETE", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"sandboxed page posts":  {"POST", map[string]string{"Origin": "null"}, 403},
		"foreign page reads":    {"GET", map[string]string{"Origin": "https://evil.test"}, 403},
		"foreign page, by CORS": {"GET", fetched("cross-site", "cors", "empty"), 403},
		"preflight":             {"OPTIONS", fetched("cross-site", "cors", "empty"), 403},
		"foreign script":        {"GET", fetched("cross-site", "no-cors", "script"), 403},
		"foreign image":         {"HEAD", fetched("same-site", "no-cors", "image"), 403},
		"foreign frame":         {"GET", fetched("cross-site", "navigate", "iframe"), 403},
		"another port's frame":  {"GET", fetched("same-site", "navigate", "iframe"), 403},
		"foreign form":          {"POST", fetched("cross-site", "navigate", "document"), 403},
		"mode is not said":      {"GET", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"a link":                {"GET", fetched("cross-site", "navigate", "document"), 200},
		"a link, by a worker":   {"GET", fetched("cross-site", "navigate", "empty"), 200},
		"typed":                 {"GET", fetched("none", "navigate", "document"), 200},
		"own script":            {"DELETE", fetched("same-origin", "cors", "empty"), 200},
		"own frame":             {"GET", fetched("same-origin", "navigate", "iframe"), 200},
		"foreign WebSocket":     {"GET", map[string]string{"Origin": "https://evil.test", "Connection": "Upgrade", "Upgrade": "websocket"}, 403},
	} {
		before := reached
		if resp, body := ask(t, c.method, addr, c.header); resp.StatusCode != c.want || (c.want == 200) != (reached > before) {
			t.Errorf("%s: %s %q, reached %v", name, resp.Status, body, reached > before)
		}
	}
}

// fetched are the headers by which a browser says for what it asks.
func fetched(site, mode, dest string) map[string]string {
	return map[string]string{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
}

// TestAppProxyFramed: pages could be framed by any site, and read by it in browsers that
// do not say for what they ask. What the application itself demands stays.
func TestAppProxyFramed(t *testing.T) {
	addr := appProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'self'")
		w.Header().Set("Cross-Origin-Resource-Policy", "cross-origin")
	})
	resp, _ := ask(t, "GET", addr, nil)
	if got := resp.Header["Content-Security-Policy"]; !slices.Equal(got, []string{"default-src 'self'", "frame-ancestors 'self'"}) {
		t.Errorf("Content-Security-Policy %q", got)
	}
	if got := resp.Header["Cross-Origin-Resource-Policy"]; !slices.Equal(got, []string{"same-origin"}) {
		t.Errorf("Cross-Origin-Resource-Policy %q", got)
	}
}

// TestAppProxyFailure: the reason is told where the answer would stand.
func TestAppProxyFailure(t *testing.T) {
	why := &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "your login expired", Hint: "sally login"}
	addr := serveApp(t, func(context.Context) (net.Conn, error) { return nil, why })
	if resp, body := ask(t, "GET", addr, nil); resp.StatusCode != 502 || !strings.Contains(body, why.Fact) || !strings.Contains(body, why.Hint) {
		t.Errorf("%s %q", resp.Status, body)
	}
	addr = serveApp(t, func(context.Context) (net.Conn, error) { return nil, errors.New("secret detail") })
	if resp, body := ask(t, "GET", addr, nil); resp.StatusCode != 502 || strings.Contains(body, "secret") {
		t.Errorf("%s %q", resp.Status, body)
	}
}

// TestAppProxyWebSocket: bytes both ways once the application has switched.
func TestAppProxyWebSocket(t *testing.T) {
	addr := appProxy(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(conn, rw)
	})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nOrigin: http://%s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", addr, addr)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	io.WriteString(conn, "ping")
	b := make([]byte, 4)
	if _, err := io.ReadFull(br, b); err != nil || string(b) != "ping" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestAppProxyRole: who reaches the port says nothing that agents take for sally's word.
func TestAppProxyRole(t *testing.T) {
	addr := appProxy(t, func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "Sallyport-") {
				t.Errorf("%s arrived", name)
			}
		}
		io.WriteString(w, "answer")
	})
	if resp, text := ask(t, "GET", addr, map[string]string{awsRoleHeader: awsTestRole, "sallyport-other": "x"}); resp.StatusCode != 200 || text != "answer" {
		t.Errorf("%s %q", resp.Status, text)
	}
}

// TestAppProxyWithoutInput: what an application still said on a WebSocket was lost
// when it took no more.
func TestAppProxyWithoutInput(t *testing.T) {
	const output = 4 << 20
	deafened, conns := make(chan struct{}), make(chan *deaf.Conn, 1)
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		<-deafened
		conn.Write(make([]byte, output))
	}))
	t.Cleanup(far.Close)
	addr := serveApp(t, func(ctx context.Context) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", far.Listener.Addr().String())
		far := deaf.New(conn)
		conns <- far
		return far, err
	})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", addr)
	br := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	reached := <-conns
	reached.Deafen()
	io.WriteString(conn, "input that nobody reads")
	<-reached.Noted()
	close(deafened)
	if n, err := io.Copy(io.Discard, br); n != output || err != nil {
		t.Errorf("%d bytes of %d, %v", n, output, err)
	}
}

// queue is a listener whose connections are made beforehand.
type queue struct {
	waiting chan net.Conn
	closing sync.Once
	closed  chan struct{}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.waiting:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.closing.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// TestAppProxyBound: as many local connections were accepted as came. Now the rest
// waits, a WebSocket counts as long as it lives, and the end of Serve does not wait.
func TestAppProxyBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, many = 2, 5
		q := &queue{waiting: make(chan net.Conn, many), closed: make(chan struct{})}
		var near []net.Conn
		for range many {
			a, b := net.Pipe()
			near = append(near, a)
			q.waiting <- b
		}
		ctx, cancel := context.WithCancel(t.Context())
		proxy := &AppProxy{Listener: q, Host: "web.app.gw.test", MaxConnections: most, Dial: func(context.Context) (net.Conn, error) {
			a, b := net.Pipe()
			go func() {
				defer b.Close()
				br := bufio.NewReader(b)
				if _, err := http.ReadRequest(br); err == nil {
					io.WriteString(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
					br.ReadByte() // its end is that of the WebSocket
				}
			}()
			return a, nil
		}}
		done := make(chan error, 1)
		go func() { done <- proxy.Serve(ctx) }()
		left := func(want int) {
			t.Helper()
			synctest.Wait()
			if n := len(q.waiting); n != want {
				t.Errorf("%d connections wait, want %d", n, want)
			}
		}
		left(many - most)
		near[0].Close()
		left(many - most - 1)
		go io.WriteString(near[1], "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if resp, err := http.ReadResponse(bufio.NewReader(near[1]), nil); err != nil || resp.StatusCode != 101 {
			t.Fatalf("%v, %v", resp, err)
		}
		left(many - most - 1)
		io.WriteString(near[1], "x")
		near[1].Close()
		left(many - most - 2)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, c := range near {
			c.Close()
		}
	})
}
