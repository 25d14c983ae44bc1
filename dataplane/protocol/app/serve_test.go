package app

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/test/deaf"
)

// TestRequest: who asks is told as it is, whatever the client says of itself.
func TestRequest(t *testing.T) {
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			srv, got := application(t, ok)
			r := newRig(t, Target{URI: srv.URL, Headers: []Header{
				{"X-Email", func(id sallyport.Identity) []string { return id.Traits["email"] }},
				{"X-Missing", func(sallyport.Identity) []string { return nil }},
				{"X-Broken", func(sallyport.Identity) []string { return []string{"a\r\nb: c", "good"} }},
			}})
			c := r.client(protocol)
			resp, body := r.get(c, "/a%2fb/../c?q=1&r=;2", func(q *http.Request) {
				q.Header.Set("Accept", "x/y")
				q.Header.Set("X-Email", "mallory@example.com")
				q.Header.Set("X-Missing", "mine")
				q.Header.Set("Cookie", "a=1; __Host-sallyport-session=secret; b=2")
				q.Header.Set("Origin", "https://"+appHost)
				q.Header.Set("Referer", "https://"+appHost+"/page")
			})
			if resp.StatusCode != 200 || body != "ok" {
				t.Fatalf("%s %q", resp.Status, body)
			}
			in := got.last(t)
			host := strings.TrimPrefix(srv.URL, "http://")
			if in.Host != host || in.RequestURI != "/a%2fb/../c?q=1&r=;2" {
				t.Errorf("asked %q for %q", in.Host, in.RequestURI)
			}
			for name, want := range map[string]string{
				"Accept": "x/y", "X-Email": "alice@example.com", "X-Missing": "", "X-Broken": "good", "Cookie": "a=1; b=2",
				"X-Forwarded-For": "203.0.113.9", "X-Real-Ip": "203.0.113.9", "X-Forwarded-Host": appHost, "X-Forwarded-Proto": "https",
				"Origin": srv.URL, "Referer": srv.URL + "/page",
			} {
				if v := in.Header[name]; strings.Join(v, "|") != want {
					t.Errorf("%s: %q, want %q", name, v, want)
				}
			}
			c.CloseIdleConnections()
			r.finished.Wait()
			if len(r.ended) != 1 || r.ended[0]["requests"] != int64(1) || r.ended[0]["tx"] != int64(2) {
				t.Errorf("ends %v", r.ended)
			}
			asked := r.named("app.session.request")
			if len(asked) != 1 || asked[0].Code != "T2009I" || asked[0].Fields["path"] != "/a%2fb/../c" || asked[0].Fields["raw_query"] != "q=1&r=;2" ||
				asked[0].Fields["status_code"] != int64(200) || asked[0].Fields["method"] != "GET" {
				t.Errorf("events %v", asked)
			}
			if start := r.named("app.session.start"); len(start) != 1 || start[0].Code != "T2007I" || start[0].Fields["app_name"] != "web" || start[0].Fields["app_public_addr"] != "web."+cluster {
				t.Errorf("start %v", start)
			}
		})
	}
}

// TestA35_Spellings: identity headers in every spelling, named in Connection,
// by HTTP/1.1, HTTP/2 and on a WebSocket's handshake.
func TestA35_Spellings(t *testing.T) {
	srv, got := application(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(418) })
	set := []Header{{"X-Webauth-User", func(id sallyport.Identity) []string { return []string{id.Name} }}}
	names := []string{
		"X-Forwarded-For", "x-forwarded-for", "X_Forwarded_For", "X-FORWARDED-USER", "X-Forwarded_Email", "Forwarded", "X-Real-IP", "x_real_ip",
		"Remote-User", "REMOTE_USER", "remote_user", "X-Remote-User", "X-Auth-Request-User", "X_Auth_Request_Email", "X-WebAuth-User", "x_webauth_user", "X-Webauth_user",
		"Teleport-Jwt-Assertion", "teleport_jwt_assertion", "Sallyport-Jwt-Assertion", "SALLYPORT_ANYTHING", "Cf-Access-Jwt-Assertion", "X-Goog-IAP-JWT-Assertion",
		"X-Pomerium-Jwt-Assertion", "X-Original-URL", "X-Rewrite-Url", "X-HTTP-Method-Override", "X-Authentik-Username", "Ssl-Client-Verify",
		"X.Forwarded.For", "X~WebAuth~User", "x!webauth.user", "Remote.User", "Teleport.Jwt.Assertion", "X-Forwarded.Email",
	}
	check := func(t *testing.T) {
		t.Helper()
		in := got.last(t)
		for name, values := range in.Header {
			for _, v := range values {
				if strings.Contains(v, "evil") {
					t.Errorf("%s: %s arrived", name, v)
				}
			}
		}
		if v := in.Header["X-Webauth-User"]; !slices.Equal(v, []string{"alice"}) {
			t.Errorf("X-Webauth-User: %q, want ours alone", v)
		}
		if v := in.Header["X-Forwarded-For"]; !slices.Equal(v, []string{"203.0.113.9"}) {
			t.Errorf("X-Forwarded-For: %q, want ours alone", v)
		}
	}
	r := newRig(t, Target{URI: srv.URL, Headers: set})
	for _, protocol := range []string{"http/1.1", "h2"} {
		c := r.client(protocol)
		for _, name := range names {
			t.Run(protocol+" "+name, func(t *testing.T) {
				r.get(c, "/", func(q *http.Request) {
					q.Header[name] = []string{"evil", "evil"}
				})
				check(t)
			})
		}
	}
	for _, how := range []string{"Connection: " + strings.Join(names, ", ") + "\r\n", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: X-Webauth-User, X-Forwarded-For, Upgrade\r\nUpgrade: websocket\r\n"} {
		t.Run(strings.Fields(how)[1], func(t *testing.T) {
			head := "GET / HTTP/1.1\r\nHost: " + appHost + "\r\n" + how
			for _, name := range names {
				head += name + ": evil\r\n"
			}
			if out := r.raw(head + "Connection: close\r\n\r\n"); !strings.HasPrefix(out, "418") {
				t.Fatal(out)
			}
			check(t)
		})
	}
}

// TestToken: the application gets the token of the certificate that was shown,
// whatever the client says; without a token there is no header.
func TestToken(t *testing.T) {
	srv, got := application(t, ok)
	r := newRig(t, Target{URI: srv.URL, Headers: []Header{{"Authorization", func(id sallyport.Identity) []string {
		if len(id.Traits["jwt"]) == 0 {
			return nil
		}
		return []string{"Bearer " + id.Traits["jwt"][0]}
	}}}})
	r.id.Traits = map[string][]string{"jwt": {"mine"}}
	var fail error
	r.server.Token = func(_ context.Context, app string, c *x509.Certificate) (string, error) {
		return app + "-" + c.Subject.CommonName, fail
	}
	ask := func(q *http.Request) {
		q.Header.Set("Teleport-Jwt-Assertion", "evil")
		q.Header.Set("Authorization", "Bearer evil")
	}
	for _, protocol := range []string{"http/1.1", "h2"} {
		fail = nil
		r.get(r.client(protocol), "/", ask)
		for name, want := range map[string]string{"Teleport-Jwt-Assertion": "web-x", "Sallyport-Jwt-Assertion": "web-x", "Authorization": "Bearer web-x"} {
			if v := got.last(t).Header[name]; !slices.Equal(v, []string{want}) {
				t.Errorf("%s: %q, want %q", name, v, want)
			}
		}
		fail = errors.New("no contact")
		r.get(r.client(protocol), "/", ask)
		for _, name := range []string{"Teleport-Jwt-Assertion", "Sallyport-Jwt-Assertion", "Authorization"} {
			if v := got.last(t).Header[name]; len(v) > 0 {
				t.Errorf("%s: %q without a token", name, v)
			}
		}
	}
}

// TestTrailers: what is taken out of a head does not come behind the body.
func TestTrailers(t *testing.T) {
	srv, got := application(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	r := newRig(t, Target{URI: srv.URL})
	r.raw("POST / HTTP/1.1\r\nHost: " + appHost + "\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: Teleport-Jwt-Assertion\r\n\r\n1\r\nx\r\n0\r\nTeleport-Jwt-Assertion: evil\r\n\r\n")
	if in := got.last(t); len(in.Trailer) > 0 {
		t.Errorf("trailers %v", in.Trailer)
	}
}

// TestA61_Misdirected: a request for another name than the connection's gets 421,
// and nobody is asked about it.
func TestA61_Misdirected(t *testing.T) {
	srv, got := application(t, ok)
	r := newRig(t, Target{URI: srv.URL})
	for _, protocol := range []string{"http/1.1", "h2"} {
		for host, want := range map[string]int{
			appHost: 200, appHost + ":8443": 200, strings.ToUpper(appHost): 200,
			"other.app.gw.test": 421, "web.gw.test": 421, "gw.test": 421, appHost + ".": 421, "127.0.0.1": 421, appHost + ":x": 421, "x@" + appHost: 421, "x" + appHost: 421, "x." + appHost: 421,
		} {
			t.Run(protocol+" "+host, func(t *testing.T) {
				before := got.count()
				resp, err := r.client(protocol).Do(&http.Request{Method: "GET", URL: mustURL(t, "https://"+appHost+"/"), Host: host})
				if err != nil {
					if want == 421 && got.count() == before {
						return // refused by the client's own or the server's parser
					}
					t.Fatal(err)
				}
				resp.Body.Close()
				bad := resp.StatusCode != want && !(want == 421 && resp.StatusCode == 400)
				if bad || (want != 200) != (got.count() == before) {
					t.Errorf("%s; the application saw %d requests", resp.Status, got.count()-before)
				}
			})
		}
	}
	if n := len(r.named("app.session.start")); n != 6 {
		t.Errorf("%d sessions began, want one for each good request", n)
	}
}

// TestInward: the application's own origin is written for the one that the client
// sees, and for no other that begins like it.
func TestInward(t *testing.T) {
	const outer, inner = "web.gw.test", "http://10.0.0.1"
	for in, want := range map[string]string{
		"https://web.gw.test":            inner,
		"https://WEB.gw.test/a?b":        inner + "/a?b",
		"https://web.gw.test.evil.com/a": "https://web.gw.test.evil.com/a",
		"https://web.gw.test:8443/a":     "https://web.gw.test:8443/a",
		"http://web.gw.test/a":           "http://web.gw.test/a",
	} {
		h := http.Header{"Referer": {in}, "Origin": {in}}
		inward(h, outer, inner)
		origin := in
		if in == "https://"+outer {
			origin = inner
		}
		if h.Get("Referer") != want || h.Get("Origin") != origin {
			t.Errorf("%s: referer %s, origin %s", in, h.Get("Referer"), h.Get("Origin"))
		}
	}
}

// TestWebName: a browser's certificate is for the name that the browser sees.
func TestWebName(t *testing.T) {
	srv, _ := application(t, ok)
	r := newRig(t, Target{URI: srv.URL})
	r.id.Usage = sallyport.UsageWeb
	for host, want := range map[string]int{"web.gw.test": 200, appHost: 421, "other.gw.test": 421} {
		resp, _ := r.get(r.client("h2"), "/", func(q *http.Request) { q.Host = host })
		if resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", host, resp.Status, want)
		}
	}
}

// TestDenied: a plain page with the reason.
func TestDenied(t *testing.T) {
	srv, got := application(t, ok)
	r := newRig(t, Target{URI: srv.URL})
	r.denial = sallyport.Denied("access to app web denied: no role <allows> it", "ask your administrator")
	for _, protocol := range []string{"http/1.1", "h2"} {
		resp, body := r.get(r.client(protocol), "/", nil)
		if resp.StatusCode != 403 || !strings.Contains(body, r.denial.Fact) || !strings.Contains(body, r.denial.Hint) ||
			!strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %v %q", resp.Status, resp.Header, body)
		}
	}
	if got.count() > 0 || len(r.named("app.session.start")) != 2 || r.named("app.session.start")[0].Code != "T2007E" {
		t.Errorf("%d requests, events %v", got.count(), r.events)
	}
}

// TestUnavailableOnce: where no session could start, the next request asks again.
func TestUnavailableOnce(t *testing.T) {
	srv, _ := application(t, ok)
	for _, protocol := range []string{"http/1.1", "h2"} {
		r := newRig(t, Target{URI: srv.URL})
		c := r.client(protocol)
		r.denial = &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the audit log takes no more events"}
		if resp, body := r.get(c, "/", nil); resp.StatusCode != 503 || !strings.Contains(body, r.denial.Fact) {
			t.Errorf("%s: %s %q", protocol, resp.Status, body)
		}
		r.mu.Lock()
		r.denial = nil
		r.mu.Unlock()
		if resp, body := r.get(c, "/", nil); resp.StatusCode != 200 {
			t.Errorf("%s, a moment later: %s %q", protocol, resp.Status, body)
		}
	}
}

// TestAnswers: redirects to inner names, cookies, and headers that would reach
// other origins.
func TestAnswers(t *testing.T) {
	var srv *httptest.Server
	srv, _ = application(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Set-Cookie", "plain=1; Path=/; HttpOnly")
		h.Add("Set-Cookie", "wide=1; Domain=gw.test; Secure")
		h.Add("Set-Cookie", "__Host-sallyport-session=fixed; Secure; Path=/")
		h.Add("Set-Cookie", "=__Host-Sallyport-session=fixed")
		h.Set("Alt-Svc", `h3=":443"`)
		h.Set("Clear-Site-Data", `"cookies"`)
		h.Set("Sallyport-Thing", "x")
		h.Set("Location", strings.ReplaceAll(r.URL.Query().Get("to"), "SELF", strings.TrimPrefix(srv.URL, "http://")))
		w.WriteHeader(302)
	})
	r := newRig(t, Target{URI: srv.URL, Redirects: []string{"inner.test", "inner.test:8080"}})
	c := r.client("h2")
	for to, want := range map[string]string{
		"/next": "/next", "next?x=1": "next?x=1", "http://SELF/a?b#c": "https://" + appHost + "/a?b#c", "//SELF/a": "https://" + appHost + "/a",
		"https://inner.test/": "https://" + appHost + "/", "http://INNER.test:8080/x": "https://" + appHost + "/x", "http://inner.test:81/": "http://inner.test:81/",
		"https://elsewhere.test/": "https://elsewhere.test/", "http://u:p@inner.test/": "https://" + appHost + "/", "http://inner.test.evil/": "http://inner.test.evil/",
	} {
		resp, _ := r.get(c, "/?to="+strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(to, "&", "%26"), "#", "%23"), "?", "%3F"), nil)
		if got := resp.Header.Get("Location"); got != want {
			t.Errorf("%s leads to %s, want %s", to, got, want)
		}
		if got := resp.Header["Set-Cookie"]; !slices.Equal(got, []string{"plain=1; Path=/; HttpOnly", "wide=1; Secure"}) {
			t.Errorf("cookies %q", got)
		}
		for _, name := range []string{"Alt-Svc", "Clear-Site-Data", "Sallyport-Thing"} {
			if resp.Header.Get(name) != "" {
				t.Errorf("%s passed", name)
			}
		}
	}
}

// TestHints: what an application says before its answer reaches no other origin
// either.
func TestHints(t *testing.T) {
	srv, _ := application(t, func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		for name, value := range map[string]string{"Link": "</a.css>; rel=preload", "Set-Cookie": "a=1; Domain=gw.test", "Clear-Site-Data": `"cookies"`,
			"Alt-Svc": `h3=":443"`, "Sallyport-Thing": "x"} {
			h.Set(name, value)
		}
		w.WriteHeader(http.StatusEarlyHints)
		clear(h)
		io.WriteString(w, "ok")
	})
	r := newRig(t, Target{URI: srv.URL})
	for _, protocol := range []string{"h2", "http/1.1"} {
		hints := make(chan textproto.MIMEHeader, 1)
		trace := &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			hints <- h
			return nil
		}}
		resp, body := r.get(r.client(protocol), "/", func(q *http.Request) {
			*q = *q.WithContext(httptrace.WithClientTrace(q.Context(), trace))
		})
		if resp.StatusCode != http.StatusOK || body != "ok" {
			t.Errorf("%s: %s %q", protocol, resp.Status, body)
		}
		select {
		case h := <-hints:
			want := textproto.MIMEHeader{"Link": {"</a.css>; rel=preload"}, "Set-Cookie": {"a=1"}}
			if !reflect.DeepEqual(h, want) {
				t.Errorf("%s: %q, want %q", protocol, h, want)
			}
		default:
			t.Errorf("%s: no hints have come", protocol)
		}
	}
}

// TestLargeAnswerHead: an answer with thousands of fields, hints or trailers ended the
// connection of HTTP/2, and what else ran on it. It alone is refused.
func TestLargeAnswerHead(t *testing.T) {
	fields := func(h http.Header, prefix string, n int) {
		for i := range n {
			h[fmt.Sprintf("%sX%d", prefix, i)] = []string{"v"}
		}
	}
	const many, few = 4000, 1000 // that are within 64 KiB as HTTP/1.1 writes them, and also as HTTP/2 counts them
	finish := make(chan struct{})
	end := sync.OnceFunc(func() { close(finish) })
	srv, _ := application(t, func(w http.ResponseWriter, q *http.Request) {
		switch q.URL.Path {
		case "/long":
			io.WriteString(w, "first ")
			w.(http.Flusher).Flush()
			<-finish
			io.WriteString(w, "last")
		case "/head":
			fields(w.Header(), "", many)
		case "/hints":
			fields(w.Header(), "", many)
			w.WriteHeader(http.StatusEarlyHints)
			clear(w.Header())
			io.WriteString(w, "ok")
		case "/trailers":
			io.WriteString(w, "ok")
			w.(http.Flusher).Flush()
			fields(w.Header(), http.TrailerPrefix, many*3/4)
		case "/announced":
			var names []string
			for i := range 10_000 { // a space more for each, on their way
				names = append(names, fmt.Sprintf("X%d", i))
			}
			w.Header().Set("Trailer", strings.Join(names, ","))
			io.WriteString(w, "ok")
		case "/few":
			fields(w.Header(), "", few)
			io.WriteString(w, "ok")
			w.(http.Flusher).Flush()
			fields(w.Header(), http.TrailerPrefix, few)
		}
	})
	r := newRig(t, Target{URI: srv.URL})
	defer end()
	c := r.client("h2")
	c.Transport.(*http.Transport).MaxResponseHeaderBytes = maxHead // as of gateways
	long, err := c.Get("https://" + appHost + "/long")
	if err != nil {
		t.Fatal(err)
	}
	defer long.Body.Close()
	for _, path := range []string{"/head", "/announced"} {
		if resp, body := r.get(c, path, nil); resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, errAnswerHead.Error()) {
			t.Errorf("%s: %s %q", path, resp.Status, body)
		}
	}
	if resp, body := r.get(c, "/hints", nil); resp.StatusCode != http.StatusOK || body != "ok" {
		t.Errorf("hints: %s %q", resp.Status, body)
	}
	if resp, body := r.get(c, "/few", nil); resp.StatusCode != http.StatusOK || body != "ok" || len(resp.Header) < few || len(resp.Trailer) != few {
		t.Errorf("few: %s %q, %d fields and %d trailers", resp.Status, body, len(resp.Header), len(resp.Trailer))
	}
	if resp, err := c.Get("https://" + appHost + "/trailers"); err != nil {
		t.Error(err)
	} else {
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("trailers: %q and %d trailers passed for a whole answer", b, len(resp.Trailer))
		}
		resp.Body.Close()
	}
	end()
	if b, err := io.ReadAll(long.Body); err != nil || string(b) != "first last" {
		t.Errorf("the other request: %q, %v", b, err)
	}
	if resp, _ := r.get(r.client("http/1.1"), "/head", nil); resp.StatusCode != http.StatusOK || len(resp.Header) < many {
		t.Errorf("HTTP/1.1: %s with %d fields", resp.Status, len(resp.Header))
	}
}

// TestUntyped: an answer without a type gets none on its way, also after hints: one
// that net/http guesses would make a page of what the application calls no page.
func TestUntyped(t *testing.T) {
	srv, _ := application(t, func(w http.ResponseWriter, q *http.Request) {
		h := w.Header()
		if q.URL.Path == "/hints" {
			w.WriteHeader(http.StatusEarlyHints)
		}
		h["Content-Type"] = nil
		h.Set("X-Content-Type-Options", "nosniff")
		io.WriteString(w, "<html><script>1</script>")
	})
	r := newRig(t, Target{URI: srv.URL})
	for _, protocol := range []string{"h2", "http/1.1"} {
		for _, path := range []string{"/", "/hints"} {
			resp, body := r.get(r.client(protocol), path, nil)
			if body != "<html><script>1</script>" || len(resp.Header["Content-Type"]) != 0 {
				t.Errorf("%s %s: %q of type %q", protocol, path, body, resp.Header["Content-Type"])
			}
		}
	}
}

// TestEntrance: the path of the URI is where visitors of "/" go.
func TestEntrance(t *testing.T) {
	srv, got := application(t, ok)
	r := newRig(t, Target{URI: srv.URL + "/start/here"})
	c := r.client("http/1.1")
	if resp, _ := r.get(c, "/", nil); resp.StatusCode != 302 || resp.Header.Get("Location") != "/start/here" {
		t.Errorf("%s to %s", resp.Status, resp.Header.Get("Location"))
	}
	if resp, _ := r.get(c, "/x", nil); resp.StatusCode != 200 || got.last(t).RequestURI != "/x" {
		t.Errorf("%s, asked %s", resp.Status, got.last(t).RequestURI)
	}
}

// TestUpstreams: TLS with its own CA, without, and a Unix socket.
func TestUpstreams(t *testing.T) {
	cert := selfSigned(t)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(ok))
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	socket := filepath.Join(t.TempDir(), "app.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	local := &http.Server{Handler: http.HandlerFunc(ok)}
	go local.Serve(ln)
	t.Cleanup(func() { local.Close() })
	for name, c := range map[string]struct {
		target Target
		want   int
	}{
		"its CA":     {Target{URI: secure.URL, Roots: pool}, 200},
		"its name":   {Target{URI: secure.URL, Roots: pool, ServerName: "localhost"}, 200},
		"other name": {Target{URI: secure.URL, Roots: pool, ServerName: "other.test"}, 502},
		"unknown CA": {Target{URI: secure.URL}, 502},
		"unchecked":  {Target{URI: secure.URL, Insecure: true}, 200},
		"socket":     {Target{URI: "unix:" + socket}, 200},
		"nobody":     {Target{URI: "unix:" + socket + ".not"}, 502},
	} {
		r := newRig(t, c.target)
		if resp, body := r.get(r.client("http/1.1"), "/", nil); resp.StatusCode != c.want || c.want == 502 && !strings.Contains(body, "application web does not answer") {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
	}
}

// TestTargets: what a configuration may not say.
func TestTargets(t *testing.T) {
	for _, bad := range []Target{
		{URI: ""}, {URI: "ftp://x"}, {URI: "http://"}, {URI: "http://u:secret@x"}, {URI: "http://x/?a"}, {URI: "http://x#y"}, {URI: "unix:relative"}, {URI: "localhost:80"},
		{URI: "http://x", Redirects: []string{"http://y"}}, {URI: "http://x", Redirects: []string{""}},
		{URI: "http://x", Headers: []Header{{Name: "Connection"}}}, {URI: "http://x", Headers: []Header{{Name: "transfer_encoding"}}}, {URI: "http://x", Headers: []Header{{Name: "Sallyport-X"}}},
		{URI: "http://x", Headers: []Header{{Name: "bad name"}}}, {URI: "http://x", Headers: []Header{{Name: ""}}},
	} {
		err := bad.Check()
		if err == nil {
			t.Errorf("%+v was taken", bad)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%v tells a password", err)
		}
	}
}

// TestBodies: much more than any buffer, both ways at once, by both protocols.
func TestBodies(t *testing.T) {
	const size = 64 << 20
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%d %x", n, h.Sum(nil))
	})
	block := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	sum := sha256.New()
	for n := 0; n < size; n += len(block) {
		sum.Write(block)
	}
	want := fmt.Sprintf("%d %x", size, sum.Sum(nil))
	r := newRig(t, Target{URI: srv.URL})
	for _, protocol := range []string{"http/1.1", "h2"} {
		req, err := http.NewRequest("POST", "https://"+appHost+"/", io.LimitReader(endless(block), size))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.client(protocol).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != want {
			t.Errorf("%s: %s %s, want %s", protocol, resp.Status, b, want)
		}
	}
}

// endless repeats a block.
func endless(block []byte) io.Reader { return &repeat{block: block} }

type repeat struct {
	block []byte
	at    int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.block[r.at:])
	r.at = (r.at + n) % len(r.block)
	return n, nil
}

// TestStreams: events arrive one by one, while the answer goes on.
func TestStreams(t *testing.T) {
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) { testStream(t, protocol) })
	}
}

func testStream(t *testing.T, protocol string) {
	next := make(chan string)
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case s := <-next:
				io.WriteString(w, s)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	r := newRig(t, Target{URI: srv.URL})
	go func() { next <- "data: 0\n\n" }()
	resp, err := r.client(protocol).Get("https://" + appHost + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	br := bufio.NewReader(resp.Body)
	for i := range 3 {
		if i > 0 {
			next <- fmt.Sprintf("data: %d\n\n", i)
		}
		line, err := br.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("%s: %q, %v", protocol, line, err)
		}
		br.ReadString('\n')
	}
}

// wsServer answers a WebSocket's handshake and then echoes bytes.
func wsServer(t testing.TB) (*httptest.Server, *seen) {
	return application(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			ok(w, r)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(conn, rw)
	})
}

func upgrade(t testing.TB, conn *tls.Conn) *bufio.Reader {
	t.Helper()
	io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: "+appHost+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: https://"+appHost+"\r\n\r\n")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	return br
}

// TestWebSocket: bytes both ways, counted and ended.
func TestWebSocket(t *testing.T) {
	srv, got := wsServer(t)
	r := newRig(t, Target{URI: srv.URL})
	conn := r.dial()
	br := upgrade(t, conn)
	if o := got.last(t).Header.Get("Origin"); o != srv.URL {
		t.Errorf("Origin %q", o)
	}
	for range 100 {
		io.WriteString(conn, "ping")
		b := make([]byte, 4)
		if _, err := io.ReadFull(br, b); err != nil || string(b) != "ping" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	conn.Close()
	r.finished.Wait()
	if len(r.ended) != 1 || r.ended[0]["rx"] != int64(400) || r.ended[0]["tx"].(int64) < 400 {
		t.Errorf("ends %v", r.ended)
	}
	if e := r.named("app.session.request"); len(e) != 1 || e[0].Fields["status_code"] != int64(101) || e[0].Fields["upgraded"] != true {
		t.Errorf("events %v", e)
	}
}

// TestWebSocketLastWords: what a client still said on a WebSocket was lost when it
// took no more.
func TestWebSocketLastWords(t *testing.T) {
	const input = 4 << 20
	say, heard := make(chan struct{}), make(chan int64, 1)
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		<-say
		io.WriteString(conn, "what nobody reads")
		n, _ := io.Copy(io.Discard, rw)
		heard <- n
	})
	r := newRig(t, Target{URI: srv.URL})
	var near *deaf.Conn
	r.wrap = func(c net.Conn) net.Conn {
		near = deaf.New(c)
		return near
	}
	conn := r.dial()
	upgrade(t, conn)
	near.Deafen()
	close(say)
	<-near.Noted()
	conn.Write(make([]byte, input)) // an error shows in what is heard
	conn.CloseWrite()
	if n := <-heard; n != input {
		t.Errorf("%d bytes of %d", n, input)
	}
	r.finished.Wait()
	if len(r.ended) != 1 || r.ended[0]["rx"] != int64(input) {
		t.Errorf("ends %v", r.ended)
	}
}

// TestUpgrades: only WebSockets leave HTTP; a server that switches unasked, or
// to another protocol, gets nobody's bytes (A122).
func TestUpgrades(t *testing.T) {
	for _, asked := range []string{"h2c", "TLS/1.0", "spdy/3.1"} {
		srv, got := application(t, ok)
		r := newRig(t, Target{URI: srv.URL})
		out := r.raw("GET / HTTP/1.1\r\nHost: " + appHost + "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: " + asked + "\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nGET /second HTTP/1.1\r\nHost: " + appHost + "\r\nConnection: close\r\n\r\n")
		if out != "200 ok\n200 ok\n" || got.count() != 2 || got.all[0].Header.Get("Upgrade") != "" || got.all[0].Header.Get("Http2-Settings") != "" {
			t.Errorf("%s: %q, headers %v", asked, out, got.all[0].Header)
		}
	}
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\nsmuggled")
	})
	r := newRig(t, Target{URI: srv.URL})
	for _, head := range []string{"Connection: close\r\n", "Connection: Upgrade, close\r\nUpgrade: websocket\r\n"} {
		if out := r.raw("GET / HTTP/1.1\r\nHost: " + appHost + "\r\n" + head + "\r\n"); !strings.HasPrefix(out, "502") {
			t.Errorf("%q: %q", head, out)
		}
	}
}

// TestLock: a session that ends cuts what runs, and so that it can be told from
// what ended by itself.
func TestLock(t *testing.T) {
	why := sallyport.Denied("lock targeting User:\"alice\" is in force", "")
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "some")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	for _, protocol := range []string{"http/1.1", "h2"} {
		r := newRig(t, Target{URI: srv.URL})
		resp, err := r.client(protocol).Get("https://" + appHost + "/")
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := io.ReadFull(resp.Body, b); err != nil {
			t.Fatal(err)
		}
		r.end(why)
		if rest, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: the answer ended with %q as if it were whole", protocol, rest)
		}
		resp.Body.Close()
		r.finished.Wait()
		if len(r.ended) != 1 {
			t.Errorf("%s: %d ends", protocol, len(r.ended))
		}
	}
	ws, _ := wsServer(t)
	r := newRig(t, Target{URI: ws.URL})
	conn := r.dial()
	br := upgrade(t, conn)
	r.end(why)
	if _, err := br.ReadByte(); err == nil {
		t.Error("the WebSocket goes on")
	}
	r.finished.Wait()
}

// TestIdle: what the application sends does not keep a session alive.
func TestIdle(t *testing.T) {
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			io.WriteString(w, "tick")
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(time.Millisecond):
			}
		}
	})
	var resp *http.Response
	for limit := 50 * time.Millisecond; resp == nil; limit *= 2 { // a busy machine begins no answer within the first
		r := newRig(t, Target{URI: srv.URL})
		r.options.ClientIdleTimeout = limit
		var err error
		if resp, err = r.client("h2").Get("https://" + appHost + "/"); err != nil && limit > patience/4 {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended as if it were whole, or not at all: %v", err)
	}
	resp.Body.Close()
}

// TestA71_Ambiguous: one request here is one there, or none. What two readers
// could frame differently is refused, or arrives with one framing.
func TestA71_Ambiguous(t *testing.T) {
	var mu sync.Mutex
	var bodies []string
	srv, got := application(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		mu.Lock()
		bodies = append(bodies, r.Method+" "+r.RequestURI+" "+string(b))
		mu.Unlock()
	})
	r := newRig(t, Target{URI: srv.URL})
	host := "Host: " + appHost + "\r\n"
	for name, c := range map[string]struct {
		text   string
		refuse bool // by 400 and the like, with nothing sent on
	}{
		"two lengths":         {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", true},
		"length with plus":    {"POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello", true},
		"negative length":     {"POST / HTTP/1.1\r\n" + host + "Content-Length: -5\r\n\r\nhello", true},
		"length list":         {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 5\r\n\r\nhello", true},
		"hex length":          {"POST / HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\nhello", true},
		"unknown coding":      {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", true},
		"coding twice":        {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", true},
		"coding list":         {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", true},
		"coding vertical tab": {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", true},
		"space before colon":  {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", true},
		"fold at start":       {"GET / HTTP/1.1\r\n " + host + "\r\n", true},
		"two hosts":           {"GET / HTTP/1.1\r\n" + host + "Host: evil\r\n\r\n", true},
		"no host":             {"GET / HTTP/1.1\r\n\r\n", true},
		"nul in header":       {"GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", true},
		"cr in header":        {"GET / HTTP/1.1\r\n" + host + "X: a\rb: c\r\n\r\n", true},
		"absolute elsewhere":  {"GET http://evil/ HTTP/1.1\r\n" + host + "\r\n", true},
		"connect":             {"CONNECT " + appHost + ":443 HTTP/1.1\r\n" + host + "\r\n", true},
		"connect elsewhere":   {"CONNECT evil:22 HTTP/1.1\r\nHost: evil:22\r\n\r\n", true},
		"HTTP/1.0":            {"GET / HTTP/1.0\r\n" + host + "\r\n", true},
		"HTTP/2.0 in clear":   {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true},
		"star":                {"GET * HTTP/1.1\r\n" + host + "\r\n", true},
		"chunk size bare LF":  {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n", true},
		"chunk size sign":     {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", true},
		"huge head":           {"GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("a", 2*maxHead) + "\r\n\r\n", true},
		// RFC 9112, section 6.3: the coding counts, and the connection ends.
		"coding and length": {"POST /one HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", false},
		"chunk extension":   {"POST /one HTTP/1.1\r\n" + host + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5;x=\"\r\nhello\r\n0\r\n\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			before := got.count()
			bodies = nil
			out := r.raw(c.text)
			n := got.count() - before
			mu.Lock()
			defer mu.Unlock()
			if c.refuse && (len(bodies) > 0 || len(out) > 0 && out[0] != '4' && out[0] != '5') {
				t.Errorf("answered %q, the application got %q", out, bodies)
			}
			if !c.refuse && !slices.Equal(bodies, []string{"POST /one hello"}) {
				t.Errorf("the application got %d: %q", n, bodies)
			}
		})
	}
}

// TestBodyOfNobody: a body whose chunks nobody can read was laid at the application's
// door: 502, it does not answer.
func TestBodyOfNobody(t *testing.T) {
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	r := newRig(t, Target{URI: srv.URL})
	for _, chunks := range []string{"zz\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n-1\r\n\r\n"} {
		out := r.raw("POST / HTTP/1.1\r\nHost: " + appHost + "\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
		if !strings.HasPrefix(out, "400 ") || !strings.Contains(out, "the body of the request") {
			t.Errorf("%q: %q", chunks, out)
		}
	}
}

// TestA71_Unclear: HTTP/2 carries what HTTP/1.1 cannot write down. A query with a space
// went on to the application, as the end of the request's line.
func TestA71_Unclear(t *testing.T) {
	srv, got := application(t, func(w http.ResponseWriter, r *http.Request) {})
	r := newRig(t, Target{URI: srv.URL})
	before := got.count()
	if resp, _ := r.get(r.client("h2"), "/", func(q *http.Request) { q.URL.RawQuery = "two HTTP/1.0" }); resp.StatusCode != http.StatusBadRequest || got.count() != before {
		t.Errorf("%s, the application has got %d", resp.Status, got.count()-before)
	}
	for name, c := range map[string]struct {
		method, target string
		length         []string
		host           []string
		unclear        bool
	}{
		"plain":             {method: "GET", target: "/a?b=c"},
		"OPTIONS *":         {method: "OPTIONS", target: "*"},
		"a length":          {method: "POST", target: "/", length: []string{"5"}},
		"another length":    {method: "POST", target: "/", length: []string{"6"}, unclear: true},
		"no number":         {method: "POST", target: "/", length: []string{"+5"}, unclear: true},
		"two lengths":       {method: "POST", target: "/", length: []string{"5", "5"}, unclear: true},
		"a method's space":  {method: "GET /two", target: "/", unclear: true},
		"no method":         {target: "/", unclear: true},
		"a target's space":  {method: "GET", target: "/?a b", unclear: true},
		"a target's line":   {method: "GET", target: "/?a\r\nb", unclear: true},
		"a whole address":   {method: "GET", target: "https://web.gw.test/", unclear: true},
		"no slash":          {method: "GET", target: "a", unclear: true},
		"Host":              {method: "GET", target: "/", host: []string{"web"}, unclear: true},
		"delete in a query": {method: "GET", target: "/?\x7f", unclear: true},
	} {
		q := &http.Request{Method: c.method, RequestURI: c.target, ProtoMajor: 2, Header: http.Header{}, ContentLength: 5}
		if c.length != nil {
			q.Header["Content-Length"] = c.length
		}
		if c.host != nil {
			q.Header["Host"] = c.host
		}
		if got := Unclear(q); got != c.unclear {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestConnections: a connection to the application serves one certificate's holder
// only, whatever the number of his own (A36).
func TestConnections(t *testing.T) {
	var mu sync.Mutex
	users := map[string]map[string]bool{} // remote address: cookies seen there
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if users[r.RemoteAddr] == nil {
			users[r.RemoteAddr] = map[string]bool{}
		}
		users[r.RemoteAddr][r.Header.Get("Who")] = true
		io.WriteString(w, r.Header.Get("Who"))
	})
	r := newRig(t, Target{URI: srv.URL})
	var all sync.WaitGroup
	var holder *rig
	for i := range 8 {
		if i%2 == 0 {
			holder = r.as(selfSigned(t))
		}
		who := fmt.Sprint("user", i/2)
		c := holder.client([]string{"http/1.1", "h2"}[i%2])
		all.Go(func() {
			for range 50 {
				req, _ := http.NewRequest("GET", "https://"+appHost+"/", nil)
				req.Header.Set("Who", who)
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if string(b) != who {
					t.Errorf("%s got the answer of %s", who, b)
				}
			}
		})
	}
	all.Wait()
	for addr, who := range users {
		if len(who) != 1 {
			t.Errorf("connection %s served %v", addr, who)
		}
	}
}

// TestA147_Packed: what an application has packed is passed as it is, and not
// unpacked here; it is not asked to pack what its client has not.
func TestA147_Packed(t *testing.T) {
	const packed = "no gzip, and nobody here looks"
	srv, asked := application(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		io.WriteString(w, packed)
	})
	r := newRig(t, Target{URI: srv.URL})
	for _, protocol := range []string{"http/1.1", "h2"} {
		resp, body := r.get(r.client(protocol), "/", nil)
		if got := resp.Header.Get("Content-Encoding"); got != "gzip" || body != packed {
			t.Errorf("%s: %q in %q", protocol, body, got)
		}
		if got := asked.last(t).Header["Accept-Encoding"]; len(got) > 0 {
			t.Errorf("%s: the application was asked for %q", protocol, got)
		}
	}
}

// TestSlow: an application that breaks off is not taken for one that is done.
func TestBroken(t *testing.T) {
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("x", 100<<10))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	r := newRig(t, Target{URI: srv.URL})
	for _, protocol := range []string{"http/1.1", "h2"} {
		resp, err := r.client(protocol).Get("https://" + appHost + "/")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Errorf("%s: half an answer passed for a whole one", protocol)
		}
		resp.Body.Close()
	}
}

// TestGone: a client that goes away takes its request to the application along.
func TestGone(t *testing.T) {
	gone := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
		close(gone)
	})
	r := newRig(t, Target{URI: srv.URL})
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+appHost+"/", nil)
	if _, err := r.client("h2").Do(req); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the application still works for nobody")
	}
}

// TestDrip: what an application said slowly of an answer whose length it had told came
// when there were 4 KiB of it, or at its end.
func TestDrip(t *testing.T) {
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const piece, pieces = "a piece\n", 3
			next := make(chan struct{})
			srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(pieces*len(piece)))
				w.(http.Flusher).Flush()
				for range pieces {
					select {
					case <-next:
						io.WriteString(w, piece)
						w.(http.Flusher).Flush()
					case <-r.Context().Done():
						return
					}
				}
			})
			r := newRig(t, Target{URI: srv.URL})
			resp, err := r.client(protocol).Get("https://" + appHost + "/") // the head alone
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			for i := range pieces {
				next <- struct{}{}
				got := make([]byte, len(piece))
				if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
					t.Fatalf("piece %d: %q, %v", i, got, err)
				}
			}
			if n, err := io.Copy(io.Discard, resp.Body); n != 0 || err != nil {
				t.Errorf("%d bytes more, %v", n, err)
			}
		})
	}
}

// TestBodiless: a 304 or 204 with a length passed with it over HTTP/2, where clients
// miss the body.
func TestBodiless(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				q, err := http.ReadRequest(bufio.NewReader(c))
				if err == nil {
					fmt.Fprintf(c, "HTTP/1.1 %s \r\nContent-Length: 4\r\nEtag: \"x\"\r\nConnection: close\r\n\r\n", q.URL.Path[1:])
				}
			}()
		}
	}()
	r := newRig(t, Target{URI: "http://" + l.Addr().String()})
	for _, protocol := range []string{"http/1.1", "h2"} {
		for _, status := range []int{http.StatusNotModified, http.StatusNoContent} {
			resp, err := r.client(protocol).Get(fmt.Sprintf("https://%s/%d", appHost, status))
			if err != nil {
				t.Fatalf("%s: %d: %v", protocol, status, err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || len(b) != 0 || resp.StatusCode != status || resp.Header.Get("Etag") != `"x"` || resp.Header.Get("Content-Length") != "" {
				t.Errorf("%s: %s, %v, %q, %v", protocol, resp.Status, resp.Header, b, err)
			}
		}
	}
}
