package client

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// origin is a gateway's web origin in front of auth.
func (w *world) origin(t *testing.T) (*httptest.Server, *Host) {
	t.Helper()
	g := w.host(t, w.config(t, sallyport.KindGateway))
	s := httptest.NewServer(WebOrigin(g.Dialer(), slog.New(slog.DiscardHandler)))
	t.Cleanup(s.Close)
	return s, g
}

// raw sends a request as it is written.
func raw(t *testing.T, s *httptest.Server, text string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return resp
}

// TestWebOriginPaths: what goes on to auth is what needs no login, and nothing
// that could be read in two ways.
func TestWebOriginPaths(t *testing.T) {
	w := the()
	s, _ := w.origin(t)
	ping := sallyportv1connect.PublicServicePingProcedure
	for line, want := range map[string]int{
		"GET /":                                200,
		"HEAD /":                               200,
		"GET /?q=1":                            200,
		"GET /claim/abc_DEF-123":               200,
		"GET /.well-known/jwks.json":           200,
		"POST /.well-known/jwks.json":          404,
		"GET /.well-known/other":               404,
		"POST /claim/abc":                      200,
		"GET /cli?port=1":                      200,
		"POST /cli":                            200,
		"POST /login/password":                 200,
		"POST /logout":                         200,
		"POST /sessions/end":                   200,
		"GET /device":                          200,
		"POST /device/decide":                  200,
		"GET /web/launch/wiki?challenge=x":     200,
		"GET /login":                           404,
		"GET /login/a/b":                       404,
		"GET /web/launch/":                     404,
		"GET /web/launch/a%2Fb":                404,
		"GET /web/launch/../x":                 404,
		"GET /sessions":                        404,
		"GET /sessions/":                       404,
		"GET /device/":                         404,
		"POST " + ping:                         415, // passed on, and not in a form that auth reads
		"GET http://evil.example.com/":         200, // an absolute form is still this origin's page
		"GET " + ping:                          404,
		"DELETE /":                             404,
		"OPTIONS /claim/abc":                   404,
		"TRACE /":                              404,
		"GET /claim/":                          404,
		"GET /claim":                           404,
		"GET /claim/a/b":                       404,
		"GET /claim/a%2Fb":                     404,
		"GET /claim/%61":                       404,
		"GET /claim/a.b":                       404,
		"GET /claim/..":                        404,
		"GET /claim/../":                       404,
		"GET //":                               404,
		"GET //claim/abc":                      404,
		"GET /./":                              404,
		"GET /%2e/":                            404,
		"GET /claim/%2e%2e/x":                  404,
		"GET /claim/abc%00":                    404,
		"GET /claim\\abc":                      404,
		"GET /favicon.ico":                     404,
		"GET /" + "sallyport.v1.PublicService": 404,
		"POST /sallyport.v1.PublicService/":    404,
		"POST /sallyport.v1.PublicService/../sallyport.v1.AdminService/ListUsers":     404,
		"POST /sallyport.v1.PublicService/%2e%2e/sallyport.v1.AdminService/ListUsers": 404,
		"POST /sallyport.v1.PublicService/..%2Fsallyport.v1.AdminService%2FListUsers": 404,
		"POST /sallyport.v1.PublicService//Ping":                                      404,
		"POST //sallyport.v1.PublicService/Ping":                                      404,
		"POST /sallyport.v1.PublicService%2FPing":                                     404,
		"POST /sallyport.v1.AdminService/ListUsers":                                   404,
		"POST /sallyport.v1.HostService/AppendEvents":                                 404,
		"POST /sallyport.v1.JoinService/Join":                                         404,
		"POST /sallyport.v1.AccessService/WhoAmI":                                     404,
	} {
		resp := raw(t, s, line+" HTTP/1.1\r\nHost: gw.example.com\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", line, resp.StatusCode, want)
		}
	}
}

// TestWebOriginCookies: of what a browser sends, auth gets the cookie of a web
// session and no other, whole or not at all.
func TestWebOriginCookies(t *testing.T) {
	w := the()
	s, _ := w.origin(t)
	for sent, want := range map[string]string{
		"a=b": "", "__Host-sallyport-session=abc-_1": "__Host-sallyport-session=abc-_1",
		"a=b; __Host-sallyport-session=abc; c=d":                            "__Host-sallyport-session=abc",
		"__host-sallyport-session=abc":                                      "",
		"__Host-sallyport-session=1; __Host-sallyport-session=2":            "__Host-sallyport-session=1; __Host-sallyport-session=2",
		"__Host-sallyport-session=" + strings.Repeat("x", maxWebCookie+1):   "",
		"__Host-sallyport-session-of-wiki=abc; x__Host-sallyport-session=d": "",
	} {
		resp := raw(t, s, "GET / HTTP/1.1\r\nHost: gw.example.com\r\nCookie: "+sent+"\r\n\r\n")
		resp.Body.Close()
		w.mu.Lock()
		seen := w.seen[len(w.seen)-1]
		w.mu.Unlock()
		if got := seen.Header.Get("Cookie"); got != want {
			t.Errorf("%.60q arrives as %q, want %q", sent, got, want)
		}
	}
}

// TestWebOriginHeaders: a visitor's own word about addresses and credentials
// does not arrive, whatever tricks carry it.
func TestWebOriginHeaders(t *testing.T) {
	w := the()
	s, _ := w.origin(t)
	for _, headers := range []string{
		"Sallyport-Client-Addr: 198.51.100.9:1",
		"sallyport-client-addr: 198.51.100.9:1",
		"Sallyport-Client-Addr: 198.51.100.9:1\r\nSallyport-Client-Addr: 198.51.100.10:1",
		"Connection: Sallyport-Client-Addr",
		"Connection: close, Sallyport-Client-Addr\r\nSallyport-Client-Addr: 198.51.100.9:1",
		"Sallyport-Client-Addr:",
		"X-Forwarded-For: 198.51.100.9\r\nForwarded: for=198.51.100.9",
		"Upgrade: websocket\r\nConnection: Upgrade",
		"Cookie: a=b\r\nAuthorization: Bearer x",
	} {
		resp := raw(t, s, "GET / HTTP/1.1\r\nHost: gw.example.com\r\n"+headers+"\r\n\r\n")
		body := make([]byte, resp.ContentLength)
		if _, err := io.ReadFull(resp.Body, body); err != nil {
			t.Fatalf("%q: %v", headers, err)
		}
		if resp.StatusCode != 200 || string(body) != "page for 127.0.0.1" {
			t.Errorf("%q: %d %q", headers, resp.StatusCode, body)
		}
		w.mu.Lock()
		seen := w.seen[len(w.seen)-1]
		w.mu.Unlock()
		for _, h := range []string{clientAddrHeader, "Cookie", "Authorization", "Upgrade", "X-Forwarded-For", "Forwarded"} {
			if v, in := seen.Header[h]; in {
				t.Errorf("%q: %s arrives: %q", headers, h, v)
			}
		}
		if seen.Host != "gw.example.com" {
			t.Errorf("host %q", seen.Host)
		}
	}
}

// TestWebOriginBounds: large requests, unknown addresses, and auth away.
func TestWebOriginBounds(t *testing.T) {
	w := the()
	s, g := w.origin(t)
	resp, err := http.Post(s.URL+"/claim/abc", "application/x-www-form-urlencoded", strings.NewReader(strings.Repeat("x", maxWebRequest+1)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a large form: %s", resp.Status)
	}
	for _, addr := range []string{"", "@", "127.0.0.1", "pipe"} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = addr
		rec := httptest.NewRecorder()
		WebOrigin(g.Dialer(), slog.New(slog.DiscardHandler)).ServeHTTP(rec, r)
		if rec.Code != http.StatusForbidden {
			t.Errorf("from %q: %d", addr, rec.Code)
		}
	}
	c := sallyportv1connect.NewPublicServiceClient(http.DefaultClient, s.URL)
	if got, err := c.Ping(t.Context(), connect.NewRequest(&sallyportv1.PingRequest{})); err != nil || got.Msg.GetCluster() != cluster {
		t.Errorf("ping: %v", err)
	}
	if _, err := c.Login(t.Context(), connect.NewRequest(&sallyportv1.LoginRequest{User: strings.Repeat("x", 2*maxWebRequest)})); err == nil {
		t.Error("a login of 128 KiB went on")
	}
	w.gone(t)
	resp, err = http.Get(s.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("auth away: %s", resp.Status)
	}
	// A call was answered "503 Service Unavailable" and nothing else.
	_, err = c.Ping(t.Context(), connect.NewRequest(&sallyportv1.PingRequest{}))
	var p *sallyport.Problem
	if !errors.As(Problem(err), &p) || !errors.Is(p, sallyport.ErrUnavailable) || !strings.Contains(p.Fact, "control plane") || p.Hint != waitForAuth {
		t.Errorf("a call while auth is away: %#v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestWebOriginLastRequest: the connection went on behind a request that told a length
// beside chunks.
func TestWebOriginLastRequest(t *testing.T) {
	w := the()
	s, _ := w.origin(t)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	const head = "POST /login/password HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 3\r\n"
	for _, q := range []struct {
		text string
		last bool
	}{{head + "\r\na=b", false}, {head + "Transfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n", true}} {
		if _, err := io.WriteString(conn, q.text); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.Close != q.last {
			t.Errorf("%s, the last: %v, want %v", resp.Status, resp.Close, q.last)
		}
	}
}
