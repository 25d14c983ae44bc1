package webapp

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/test/deaf"
)

const wiki = "https://wiki." + cluster

// cookies are those that an answer sets, by name.
func cookies(resp *http.Response) map[string]*http.Cookie {
	out := map[string]*http.Cookie{}
	for _, c := range resp.Cookies() {
		out[c.Name] = c
	}
	return out
}

// TestLogin goes the whole way once, also where the application has a service
// worker that passes on what the browser asks for.
func TestLogin(t *testing.T) {
	for _, dest := range []string{"document", "empty"} {
		t.Run(dest, func(t *testing.T) { testLogin(t, dest) })
	}
}

// loginIn is the cookie of a login that an answer begins.
func loginIn(resp *http.Response) *http.Cookie {
	for _, c := range resp.Cookies() {
		if strings.HasPrefix(c.Name, loginCookie) && c.MaxAge > 0 {
			return c
		}
	}
	return nil
}

func testLogin(t *testing.T, dest string) {
	r := newRig(t)
	c := r.client("wiki."+cluster, "h2")
	led := func(q *http.Request, site string) {
		q.Header.Set("Sec-Fetch-Site", site)
		q.Header.Set("Sec-Fetch-Mode", "navigate")
		q.Header.Set("Sec-Fetch-Dest", dest)
	}
	resp, _ := r.ask(c, "GET", wiki+":8443/page?x=1", func(q *http.Request) { led(q, "cross-site") })
	launch, err := url.Parse(resp.Header.Get("Location"))
	login := loginIn(resp)
	if err != nil || resp.StatusCode != http.StatusFound || login == nil {
		t.Fatalf("%s %v %v", resp.Status, resp.Header, err)
	}
	verifier, _, _ := strings.Cut(login.Value, ".")
	sum := sha256.Sum256([]byte(verifier))
	if launch.Host != cluster+":8443" || launch.Path != "/web/launch/wiki" || launch.Query().Get("challenge") != b64.EncodeToString(sum[:]) ||
		launch.Query().Get("from") != "127.0.0.1" || len(launch.Query()) != 2 {
		t.Errorf("led to %s", launch)
	}
	if !login.HttpOnly || !login.Secure || login.SameSite != http.SameSiteLaxMode || login.Path != "/" || login.Domain != "" {
		t.Errorf("cookie %v", login)
	}
	code := strings.Repeat("c", codeSize)
	r.set(func() { r.codes[code] = Code{Verifier: verifier, App: "wiki"} })
	resp, _ = r.ask(c, "GET", wiki+":8443/.sallyport/callback?code="+code, func(q *http.Request) {
		q.AddCookie(login)
		led(q, "same-site")
	})
	session := cookies(resp)[sessionCookie]
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/page?x=1" || session == nil || cookies(resp)[login.Name].MaxAge >= 0 {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	if !session.HttpOnly || !session.Secure || session.SameSite != http.SameSiteLaxMode || session.Path != "/" || session.Domain != "" {
		t.Errorf("cookie %v", session)
	}
	resp, body := r.ask(c, "GET", wiki+":8443/page?x=1", func(q *http.Request) {
		q.AddCookie(&http.Cookie{Name: "theirs", Value: "1"})
		with(session.Value)(q)
		q.AddCookie(login)
	})
	if want := `wiki for ann, access: GET /page?x=1 cookies=["theirs=1"]`; resp.StatusCode != http.StatusOK || body != want {
		t.Errorf("%s %q, want %q", resp.Status, body, want)
	}
	if got := len(r.questions); got != 0 {
		t.Errorf("auth was asked %d times about what it had just said", got)
	}
}

// TestA73_CodeElsewhere: a code is good with the verifier of its browser, for its
// application, once; everything else makes no session.
func TestA73_CodeElsewhere(t *testing.T) {
	verifier, other := strings.Repeat("v", codeSize), strings.Repeat("w", codeSize)
	code := strings.Repeat("c", codeSize)
	for name, tt := range map[string]struct {
		app, login, query string
		used, left        bool // the code: before, and afterwards
	}{
		"another browser":     {app: "wiki", login: other + ".Lw", query: "code=" + code},
		"no login begun":      {app: "wiki", query: "code=" + code},
		"another application": {app: "blog", login: verifier + ".Lw", query: "code=" + code},
		"twice":               {app: "wiki", login: verifier + ".Lw", query: "code=" + code, used: true},
		"two codes":           {app: "wiki", login: verifier + ".Lw", query: "code=" + code + "&code=" + code, left: true},
		"no code":             {app: "wiki", login: verifier + ".Lw", query: "", left: true},
		"a long code":         {app: "wiki", login: verifier + ".Lw", query: "code=" + code + "c", left: true},
		"no verifier":         {app: "wiki", login: "." + ".Lw", query: "code=" + code},
		"another's challenge": {app: "wiki", login: other + ".Lw", query: "code=" + code + "&challenge=" + challengeOf(verifier)},
		"two challenges":      {app: "wiki", login: verifier + ".Lw", query: "code=" + code + "&challenge=" + challengeOf(verifier) + "&challenge=" + challengeOf(other)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if !tt.used {
				r.set(func() { r.codes[code] = Code{Verifier: verifier, App: "wiki"} })
			}
			c := r.client(tt.app+"."+cluster, "h2")
			resp, body := r.ask(c, "GET", "https://"+tt.app+"."+cluster+"/.sallyport/callback?"+tt.query, func(q *http.Request) {
				if tt.login != "" {
					q.AddCookie(&http.Cookie{Name: loginCookie, Value: tt.login})
				}
			})
			if resp.StatusCode != http.StatusForbidden || cookies(resp)[sessionCookie] != nil || !strings.Contains(body, "not good here") {
				t.Errorf("%s %v\n%s", resp.Status, resp.Header, body)
			}
			if got := resp.Header.Get("Cross-Origin-Opener-Policy"); got != "same-origin" {
				t.Errorf("who opened the window may look into it: %q", got)
			}
			if got := resp.Header.Get("Strict-Transport-Security"); got != "max-age=31536000" {
				t.Errorf("the next visit may begin without TLS: %q", got)
			}
			r.set(func() {
				if _, left := r.codes[code]; left != tt.left {
					t.Errorf("the code is still good: %v, want %v", left, tt.left)
				}
			})
		})
	}
}

// TestA73_CodeByScript: the end of a login is a page that the browser is led to. A
// script of the application that asks for it gets no session, and the code stays.
func TestA73_CodeByScript(t *testing.T) {
	verifier, code := strings.Repeat("v", codeSize), strings.Repeat("c", codeSize)
	r := newRig(t)
	r.set(func() { r.codes[code] = Code{Verifier: verifier, App: "wiki"} })
	for _, method := range []string{"GET", "HEAD", "POST"} {
		for _, mode := range []string{"cors", "no-cors", "navigate"} {
			if method == "GET" && mode == "navigate" {
				continue
			}
			resp, _ := r.ask(r.client("wiki."+cluster, "h2"), method, wiki+"/.sallyport/callback?code="+code, func(q *http.Request) {
				q.AddCookie(&http.Cookie{Name: loginCookie, Value: verifier + ".Lw"})
				q.Header.Set("Sec-Fetch-Site", "same-origin")
				q.Header.Set("Sec-Fetch-Mode", mode)
				q.Header.Set("Sec-Fetch-Dest", "empty")
			})
			if resp.StatusCode != http.StatusMethodNotAllowed || cookies(resp)[sessionCookie] != nil {
				t.Errorf("%s, %s: %s %v", method, mode, resp.Status, resp.Header)
			}
		}
	}
	r.set(func() {
		if _, left := r.codes[code]; !left {
			t.Error("the code is used up")
		}
	})
}

// TestA71_Misdirected: a request is served on a connection of its own host only.
func TestA71_Misdirected(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	for _, protocol := range []string{"h2", "http/1.1"} {
		for host, want := range map[string]int{
			"wiki." + cluster: 200, "WIKI." + cluster + ":8443": 200, "blog." + cluster: 421, cluster: 421, "wiki.app." + cluster: 421, "127.0.0.1": 421,
			"wiki." + cluster + ".evil.test": 421, "wiki." + cluster + ":http": 421, "wiki." + cluster + ".": 421, "": 421,
		} {
			if host == "" && protocol == "h2" {
				continue // Go's client puts the address there
			}
			resp, _ := r.ask(r.client("wiki."+cluster, protocol), "GET", wiki+"/", func(q *http.Request) {
				with(session)(q)
				if q.Host = host; host == "" {
					q.Host, q.URL.Host = "x", "x"
				}
			})
			if resp.StatusCode != want {
				t.Errorf("%s, host %q: %s, want %d", protocol, host, resp.Status, want)
			}
		}
	}
	for _, name := range []string{"app." + cluster, "auth." + cluster, cluster} {
		if resp, _ := r.ask(r.client(name, "h2"), "GET", "https://"+name+"/", with(session)); resp.StatusCode != 421 {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}

// TestA72_ForeignPages: what a page of another origin can make a browser send.
func TestA72_ForeignPages(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	type h map[string]string
	link := func(site string) h {
		return h{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
	}
	own, other := wiki, "https://blog."+cluster
	for name, tt := range map[string]struct {
		method  string
		headers h
		want    int
	}{
		"own page":            {"GET", h{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 200},
		"own form":            {"POST", h{"Sec-Fetch-Site": "same-origin", "Origin": own}, 200},
		"own frame":           {"GET", h{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 200},
		"typed":               {"GET", link("none"), 200},
		"link, same site":     {"GET", link("same-site"), 200},
		"link, cross site":    {"GET", link("cross-site"), 200},
		"link, by own worker": {"GET", h{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "empty"}, 200},
		"form, by own worker": {"POST", h{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "empty"}, 403},
		"form, same site":     {"POST", link("same-site"), 403},
		"form, cross site":    {"POST", link("cross-site"), 403},
		"fetch, same site":    {"GET", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Origin": other}, 403},
		"blind, same site":    {"GET", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "empty"}, 403},
		"image":               {"GET", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403},
		"script":              {"GET", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403},
		"frame, same site":    {"GET", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403},
		"object":              {"GET", h{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "object"}, 403},
		"preflight":           {"OPTIONS", h{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Origin": other, "Access-Control-Request-Method": "PUT"}, 403},
		"an unknown word":     {"GET", h{"Sec-Fetch-Site": "near", "Sec-Fetch-Mode": "cors"}, 403},
		"old, own form":       {"POST", h{"Origin": own}, 200},
		"old, foreign form":   {"POST", h{"Origin": other}, 403},
		"old, null":           {"POST", h{"Origin": "null"}, 403},
		"old, by http":        {"POST", h{"Origin": "http://wiki." + cluster}, 403},
		"old, another port":   {"POST", h{"Origin": own + ":8443"}, 403},
		"old, says nothing":   {"POST", h{}, 403},
		"old, delete":         {"DELETE", h{}, 403},
		"old, foreign fetch":  {"GET", h{"Origin": other}, 403},
		"old, link":           {"GET", h{}, 200},
		"socket, no origin":   {"GET", h{"Upgrade": "websocket", "Connection": "Upgrade"}, 403},
		"socket, foreign":     {"GET", h{"Upgrade": "websocket", "Connection": "Upgrade", "Origin": other, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "websocket"}, 403},
		"socket, foreign old": {"GET", h{"Upgrade": "websocket", "Connection": "Upgrade", "Origin": other}, 403},
		"socket, lying":       {"GET", h{"Upgrade": "websocket", "Connection": "Upgrade", "Origin": other, "Sec-Fetch-Site": "same-origin"}, 403},
	} {
		before := len(r.arrived())
		resp, _ := r.ask(r.client("wiki."+cluster, "http/1.1"), tt.method, wiki+"/x", func(q *http.Request) {
			q.AddCookie(&http.Cookie{Name: sessionCookie, Value: session})
			for name, value := range tt.headers {
				q.Header.Set(name, value)
			}
		})
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %s, want %d", name, resp.Status, tt.want)
		}
		if tt.want == 403 && len(r.arrived()) != before {
			t.Errorf("%s: the request has arrived", name)
		}
	}
}

// TestA72_TwoWords: who says twice where a request comes from is not believed, and a
// socket is no link, whatever else its request says.
func TestA72_TwoWords(t *testing.T) {
	link := http.Header{"Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"navigate"}, "Sec-Fetch-Dest": {"document"}}
	for name, tt := range map[string]struct {
		change func(http.Header)
		want   bool
	}{
		"link":           {func(http.Header) {}, false},
		"two sites":      {func(h http.Header) { h["Sec-Fetch-Site"] = []string{"same-origin", "cross-site"} }, true},
		"two modes":      {func(h http.Header) { h["Sec-Fetch-Mode"] = []string{"navigate", "cors"} }, true},
		"two places":     {func(h http.Header) { h["Sec-Fetch-Dest"] = []string{"document", "image"} }, true},
		"socket":         {func(h http.Header) { h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"} }, true},
		"upgrade to h2c": {func(h http.Header) { h["Connection"] = []string{"keep-alive, upgrade"} }, true},
		"two origins":    {func(h http.Header) { delete(h, "Sec-Fetch-Site"); h["Origin"] = []string{wiki, wiki} }, true},
	} {
		r := &http.Request{Method: http.MethodGet, Host: "wiki." + cluster, Header: link.Clone()}
		tt.change(r.Header)
		if got := foreign(r); got != tt.want {
			t.Errorf("%s: foreign %v, want %v", name, got, tt.want)
		}
	}
}

// TestA73_Headers: what an application says of other origins, or of ours, stays
// behind; and so does what is ours of what a browser sends.
func TestA73_Headers(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		h := w.Header()
		h["Set-Cookie"] = []string{"a=1; Domain=" + cluster, sessionCookie + "=evil; Path=/; Secure", loginCookie + "=evil", "__host-SALLYPORT-app=evil", "=" + sessionCookie + "=evil", "b=2"}
		h.Set("Clear-Site-Data", `"cookies"`)
		h.Set("Alt-Svc", `h3=":443"`)
		h.Set("Content-Security-Policy", "default-src 'self'")
		h.Set("Cross-Origin-Resource-Policy", "cross-origin")
		fmt.Fprintf(w, "%q", q.Header["Cookie"])
	})
	r.serve("mail", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Frame-Options", "DENY") })
	if resp, _ := r.ask(r.client("mail."+cluster, "h2"), "GET", "https://mail."+cluster+"/", with(r.know("mail"))); resp.Header.Get("Content-Security-Policy") != "frame-ancestors 'none'" {
		t.Errorf("in no frame: %q", resp.Header["Content-Security-Policy"])
	}
	resp, body := r.ask(r.client("wiki."+cluster, "h2"), "GET", wiki+"/", func(q *http.Request) {
		q.Header.Set("Cookie", "x=1; "+sessionCookie+"="+session+"; __host-sallyport-APP=2; y=3")
		q.Header.Set("Sec-Fetch-Site", "same-origin")
	})
	if body != `["x=1; y=3"]` {
		t.Errorf("the application got %s", body)
	}
	if got := resp.Header["Set-Cookie"]; !slices.Equal(got, []string{"a=1", "b=2"}) {
		t.Errorf("cookies %q", got)
	}
	for name, want := range map[string][]string{"Clear-Site-Data": nil, "Alt-Svc": nil, "Cross-Origin-Resource-Policy": {"same-origin"}, "Origin-Agent-Cluster": {"?1"},
		"Content-Security-Policy": {"default-src 'self'", "frame-ancestors 'self'"}} {
		if got := resp.Header[name]; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestA147_Packed: what an application has packed is not unpacked on its way to the
// browser, nor asked for.
func TestA147_Packed(t *testing.T) {
	const packed = "no gzip, and nobody here looks"
	r := newRig(t)
	session := r.know("wiki")
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		if got := q.Header["Accept-Encoding"]; len(got) > 0 {
			t.Errorf("asked for %q", got)
		}
		w.Header().Set("Content-Encoding", "gzip")
		io.WriteString(w, packed)
	})
	resp, body := r.ask(r.client("wiki."+cluster, "h2"), "GET", wiki+"/", with(session))
	if got := resp.Header.Get("Content-Encoding"); got != "gzip" || body != packed {
		t.Errorf("%q in %q", body, got)
	}
}

// TestCookieOfAnother: a cookie opens the application that it is for.
func TestCookieOfAnother(t *testing.T) {
	r := newRig(t)
	session, own := r.know("blog"), r.know("wiki")
	for name, change := range map[string]func(*http.Request){
		"of another application": with(session), "unknown": with(cookie(77)), "short": with("x"),
		"twice":   func(q *http.Request) { with(own)(q); with(own)(q) },
		"letters": with(strings.Repeat("*", sessionSize)),
	} {
		resp, _ := r.ask(r.client("wiki."+cluster, "h2"), "POST", wiki+"/", change)
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	if got := r.arrived(); len(got) != 0 {
		t.Errorf("arrived: %q", got)
	}
}

// TestStreams: events pass when they are sent, a WebSocket lives, both beyond the
// deadlines of strangers; and both end with the session, without a request.
func TestStreams(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			testStreams(t, protocol)
		})
	}
}

// strangersDeadline is one that a test lets pass.
const strangersDeadline = 10 * time.Second

func testStreams(t *testing.T, protocol string) {
	r := newRigWith(t, strangersDeadline)
	session := r.know("wiki")
	more := make(chan string, 2)
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/socket" {
			c, err := websocket.Accept(w, q, nil)
			if err != nil {
				return
			}
			defer c.CloseNow()
			for {
				kind, b, err := c.Read(q.Context())
				if err != nil || c.Write(q.Context(), kind, b) != nil {
					return
				}
			}
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case line := <-more:
				io.WriteString(w, "data: "+line+"\n\n")
				w.(http.Flusher).Flush()
			case <-q.Context().Done():
				return
			}
		}
	})
	c := r.client("wiki."+cluster, protocol)
	c.Timeout = 0
	q, err := http.NewRequest("GET", wiki+"/events", nil)
	check(t, err)
	with(session)(q)
	answers := make(chan *http.Response, 1)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		resp, err := c.Do(q)
		if err != nil {
			t.Error(err)
		}
		answers <- resp
	})
	more <- "first"
	resp := <-answers
	if resp == nil {
		t.FailNow()
	}
	lines := bufio.NewScanner(resp.Body)
	next := func() string {
		for lines.Scan() {
			if lines.Text() != "" {
				return lines.Text()
			}
		}
		return "over"
	}
	if got := next(); got != "data: first" {
		t.Fatalf("%q", got)
	}
	socketHost := r.client("wiki."+cluster, "http/1.1")
	socketHost.Timeout = 0
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	ws, _, err := websocket.Dial(ctx, wiki+"/socket", &websocket.DialOptions{HTTPClient: socketHost,
		HTTPHeader: http.Header{"Origin": {wiki}, "Cookie": {sessionCookie + "=" + session}}})
	check(t, err)
	check(t, ws.Write(ctx, websocket.MessageText, []byte("me")))
	if _, b, err := ws.Read(ctx); err != nil || string(b) != "me" {
		t.Fatalf("%q %v", b, err)
	}
	if got := r.server.Upgraded(); got != 1 {
		t.Errorf("%d WebSockets", got)
	}
	time.Sleep(strangersDeadline + time.Second/2)
	more <- "second"
	if got := next(); got != "data: second" {
		t.Fatalf("after the deadlines: %q", got)
	}
	check(t, ws.Write(ctx, websocket.MessageText, []byte("again")))
	if _, b, err := ws.Read(ctx); err != nil || string(b) != "again" {
		t.Fatalf("after the deadlines: %q %v", b, err)
	}
	r.set(func() { delete(r.good, session) })
	if got := next(); got != "over" {
		t.Errorf("after the end: %q", got)
	}
	if _, b, err := ws.Read(ctx); err == nil {
		t.Errorf("after the end: %q", b)
	}
	cancel()
	ws.CloseNow()
	resp.Body.Close()
	tasks.Wait()
	eventually(t, "no WebSocket", func() bool { return r.server.Upgraded() == 0 })
	if resp, _ := r.ask(r.client("wiki."+cluster, "h2"), "POST", wiki+"/", with(session)); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("after the end: %s", resp.Status)
	}
}

// TestHints: what an application says before its answer reaches no other origin
// either.
func TestHints(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	r.serve("wiki", func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		for name, value := range map[string]string{"Link": "</a.css>; rel=preload", "Set-Cookie": "a=1; Domain=gw.test", "Clear-Site-Data": `"cookies"`,
			"Alt-Svc": `h3=":443"`, "Sallyport-Thing": "x"} {
			h.Set(name, value)
		}
		w.WriteHeader(http.StatusEarlyHints)
		clear(h)
		io.WriteString(w, "ok")
	})
	for _, protocol := range []string{"h2", "http/1.1"} {
		hints := make(chan textproto.MIMEHeader, 1)
		trace := &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			hints <- h
			return nil
		}}
		resp, body := r.ask(r.client("wiki."+cluster, protocol), "GET", wiki+"/", func(q *http.Request) {
			with(session)(q)
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

// TestUntyped: an answer without a type reaches the browser without one, so that
// nothing that an application stores becomes a page by a guess of ours.
func TestUntyped(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	r.serve("wiki", func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		w.Header().Set("X-Content-Type-Options", "nosniff")
		io.WriteString(w, "<html><script>1</script>")
	})
	for _, protocol := range []string{"h2", "http/1.1"} {
		resp, body := r.ask(r.client("wiki."+cluster, protocol), "GET", wiki+"/", with(session))
		if body != "<html><script>1</script>" || len(resp.Header["Content-Type"]) != 0 {
			t.Errorf("%s: %q of type %q", protocol, body, resp.Header["Content-Type"])
		}
	}
}

// TestQuiet: a stream that nobody sends to does not keep a session alive.
func TestQuiet(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		<-q.Context().Done()
	})
	q, err := http.NewRequest("GET", wiki+"/", nil)
	check(t, err)
	with(session)(q)
	resp, err := r.client("wiki."+cluster, "h2").Do(q)
	check(t, err)
	defer resp.Body.Close()
	r.now.Add(int64(askAfter))
	loud := func() (loud, quiet int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, q := range r.questions {
			if q.Quiet {
				quiet++
			} else {
				loud++
			}
		}
		return loud, quiet
	}
	eventually(t, "two questions that do not count as use", func() bool {
		r.now.Add(int64(time.Second))
		_, quiet := loud()
		return quiet >= 2
	})
	if n, _ := loud(); n > 2 { // the first, and the one after the request
		t.Errorf("%d questions count as use", n)
	}
}

// cut waits until an answer that is under way is cut off, by the server.
func cut(t *testing.T, resp *http.Response) {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(resp.Body)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("what ran has ended well")
		}
	case <-time.After(patience):
		t.Error("what ran goes on")
		resp.Body.Close()
		<-ended
	}
}

// TestRoles: who gets other roles gets another certificate, and what ran by the
// old one ends.
func TestRoles(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	c.Timeout = 0 // it would cut what the server is to cut
	if _, body := r.ask(c, "GET", wiki+"/", with(session)); !strings.Contains(body, "ann, access:") {
		t.Fatal(body)
	}
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		w.(http.Flusher).Flush()
		<-q.Context().Done()
	})
	q, err := http.NewRequest("GET", wiki+"/", nil)
	check(t, err)
	with(session)(q)
	resp, err := c.Do(q)
	check(t, err)
	defer resp.Body.Close()
	r.set(func() { r.roles = []string{"auditor"} })
	cut(t, resp)
	r.serve("wiki", nil)
	r.set(func() { delete(r.apps, "wiki") })
	if _, body := r.ask(c, "GET", wiki+"/", with(session)); !strings.Contains(body, "ann, auditor:") {
		t.Error(body)
	}
}

// TestRenew: a certificate is renewed before it ends, and what runs goes on.
func TestRenew(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	r.ask(c, "GET", wiki+"/", with(session))
	r.ask(c, "GET", wiki+"/", with(session))
	if got := r.dials.Load(); got != 1 {
		t.Errorf("%d connections for two requests", got)
	}
	pass, gone := make(chan struct{}), make(chan struct{})
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		w.(http.Flusher).Flush()
		select {
		case <-pass:
			io.WriteString(w, "to the end")
		case <-q.Context().Done():
			close(gone)
		}
	})
	q, err := http.NewRequest("GET", wiki+"/", nil)
	check(t, err)
	with(session)(q)
	resp, err := c.Do(q)
	check(t, err)
	defer resp.Body.Close()
	r.now.Add(int64(6 * time.Minute))
	eventually(t, "another certificate", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.questions) > 1 && r.questions[len(r.questions)-1].Key != nil
	})
	r.set(func() { delete(r.apps, "wiki") })
	eventually(t, "a connection by another certificate", func() bool { // which may be on its way from auth
		_, body := r.ask(c, "GET", wiki+"/", with(session))
		return strings.Contains(body, "ann") && r.dials.Load() == 2
	})
	if _, body := r.ask(c, "GET", wiki+"/", with(session)); !strings.Contains(body, "ann") || r.dials.Load() != 2 {
		t.Errorf("%q, %d connections", body, r.dials.Load())
	}
	close(pass)
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "to the end" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestRolesAfterRenew: what runs by a certificate that has been renewed since ends
// too when the roles change.
func TestRolesAfterRenew(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	c.Timeout = 0
	resp := r.run(c, session)
	defer resp.Body.Close()
	r.set(func() { delete(r.apps, "wiki") })
	r.now.Add(int64(6 * time.Minute))
	eventually(t, "a connection by another certificate", func() bool {
		_, body := r.ask(c, "GET", wiki+"/", with(session))
		return strings.Contains(body, "ann, access:") && r.dials.Load() == 2
	})
	r.set(func() { r.roles = []string{"auditor"} })
	cut(t, resp)
}

// TestRolesWithoutCertificate: nothing goes on by the old roles where auth tells of
// others and gives no certificate for them.
func TestRolesWithoutCertificate(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	c.Timeout = 0
	resp := r.run(c, session)
	defer resp.Body.Close()
	r.set(func() { r.roles, r.uncertified = []string{"auditor"}, errors.New("nobody can sign") })
	cut(t, resp)
	if resp, body := r.ask(c, "GET", wiki+"/", with(session)); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s %q", resp.Status, body)
	}
	r.set(func() { r.uncertified = nil; delete(r.apps, "wiki") })
	if _, body := r.ask(c, "GET", wiki+"/", with(session)); !strings.Contains(body, "ann, auditor:") {
		t.Error(body)
	}
}

// TestCertificateEnds: what runs ended with the last certificate while auth was away.
// Now it goes on for an hour from the last yes or the last use, and not beyond the web
// session; nothing new begins.
func TestCertificateEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		ends   time.Duration // of the web session, from now
		unused time.Duration // before auth says yes for the last time
		lives  time.Duration
	}{
		"an hour":             {12 * time.Hour, 0, 59 * time.Minute},
		"the session's end":   {30 * time.Minute, 0, 29 * time.Minute},
		"an hour without use": {12 * time.Hour, 30 * time.Minute, 29 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.set(func() { r.ends = r.server.now().Add(tt.ends) })
			session := r.know("wiki")
			c := r.client("wiki."+cluster, "h2")
			c.Timeout = 0
			resp := r.run(c, session)
			defer resp.Body.Close()
			if tt.unused > 0 {
				first := r.only().expires()
				r.now.Add(int64(tt.unused))
				eventually(t, "auth says yes again", func() bool { return r.only().expires().After(first) })
			}
			r.set(func() { r.refusal = errors.New("no way to auth") })
			r.now.Add(int64(tt.lives))
			r.unanswered()
			if n := len(r.server.sessions.list()); n != 1 {
				t.Fatalf("%d sessions after %v without auth", n, tt.lives)
			}
			if err := r.only().may.Err(); err != nil {
				t.Fatal("what runs has ended:", err)
			}
			if resp, body := r.ask(c, "GET", wiki+"/new", with(session)); resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("something new: %s %q", resp.Status, body)
			}
			r.now.Add(int64(2 * time.Minute))
			cut(t, resp)
		})
	}
}

// TestCertificateAnew: auth is back after the certificate has ended. What ran goes on
// where the session is good, and ends where it is not, or the user may do other things.
func TestCertificateAnew(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(r *rig)
		lives  bool
	}{
		"good":        {func(*rig) {}, true},
		"ended":       {func(r *rig) { clear(r.good) }, false},
		"locked":      {func(r *rig) { r.refusal = denied() }, false},
		"other roles": {func(r *rig) { r.roles = []string{"auditor"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			session := r.know("wiki")
			c := r.client("wiki."+cluster, "h2")
			c.Timeout = 0
			resp := r.run(c, session)
			defer resp.Body.Close()
			r.set(func() { r.refusal = errors.New("no way to auth") })
			r.now.Add(int64(20 * time.Minute))
			r.unanswered()
			r.set(func() {
				r.refusal = nil
				tt.change(r)
			})
			if !tt.lives {
				cut(t, resp)
				return
			}
			eventually(t, "there is a certificate", func() bool { return r.only().sound() })
			if err := r.only().may.Err(); err != nil {
				t.Error("what ran has ended:", err)
			}
		})
	}
}

// TestAuthSlow: an answer that took longer than 2 s was no answer. The certificate ended
// and all that ran by it, and of a session that was over nobody was told.
func TestAuthSlow(t *testing.T) {
	begin := func(t *testing.T) (*rig, string, *http.Response) {
		r := newRig(t)
		r.server.patience = time.Nanosecond
		session := r.know("wiki")
		c := r.client("wiki."+cluster, "h2")
		c.Timeout = 0
		resp := r.run(c, session)
		r.set(func() { r.lag = askKnown + time.Second })
		return r, session, resp
	}
	t.Run("yes", func(t *testing.T) {
		r, _, resp := begin(t)
		defer resp.Body.Close()
		one := r.only()
		first := one.expires()
		r.now.Add(int64(renewBefore + time.Minute))
		eventually(t, "there is another certificate", func() bool { return one.expires().After(first) })
		if err := one.may.Err(); err != nil {
			t.Error("what ran has ended:", err)
		}
	})
	t.Run("no", func(t *testing.T) {
		r, _, resp := begin(t)
		defer resp.Body.Close()
		r.set(func() { clear(r.good) })
		r.now.Add(int64(time.Minute))
		cut(t, resp)
	})
	t.Run("other roles", func(t *testing.T) {
		r, session, resp := begin(t)
		defer resp.Body.Close()
		r.set(func() {
			r.lag, r.roles = 0, []string{"auditor"}
			delete(r.apps, "wiki")
		})
		asked, answer := r.hold(func(q Question) bool { return q.Key != nil })
		r.now.Add(int64(time.Minute))
		<-asked // auth has said that the roles are others
		done := make(chan string)
		go func() {
			_, body := r.ask(r.client("wiki."+cluster, "h2"), "GET", wiki+"/", with(session))
			done <- body
		}()
		select {
		case body := <-done:
			t.Errorf("passed on by the roles of before: %q", body)
			close(answer)
		case <-time.After(time.Second): // it waits: whatever is too fast has shown by now
			close(answer)
			if body := <-done; !strings.Contains(body, "ann, auditor:") {
				t.Error(body)
			}
		}
		cut(t, resp)
	})
}

// unanswered waits until auth has not answered two more questions: what the first has
// led to is done.
func (r *rig) unanswered() {
	r.t.Helper()
	asked := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.questions)
	}
	before := asked()
	eventually(r.t, "auth does not answer", func() bool { return asked() >= before+2 })
}

func anything(Question) bool { return true }

func (s *session) expires() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.grant.Expires
}

// only is the one session that there is.
func (r *rig) only() *session {
	r.t.Helper()
	all := r.server.sessions.list()
	if len(all) != 1 {
		r.t.Fatalf("%d sessions", len(all))
	}
	return all[0]
}

// run begins an answer that goes on until the server ends it.
func (r *rig) run(c *http.Client, session string) *http.Response {
	r.t.Helper()
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		w.(http.Flusher).Flush()
		<-q.Context().Done()
	})
	q, err := http.NewRequest("GET", wiki+"/", nil)
	check(r.t, err)
	with(session)(q)
	resp, err := c.Do(q)
	check(r.t, err)
	return resp
}

// TestAuthAway: what is held is good to the certificate's end, and not beyond.
func TestAuthAway(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	r.ask(c, "GET", wiki+"/", with(session))
	r.set(func() { r.refusal = errors.New("no way to auth") })
	for _, tt := range []struct {
		later time.Duration
		want  int
	}{{time.Minute, 200}, {8 * time.Minute, 200}, {2 * time.Minute, 503}} {
		r.now.Add(int64(tt.later))
		if resp, body := r.ask(c, "GET", wiki+"/", with(session)); resp.StatusCode != tt.want {
			t.Errorf("after %v more: %s %s", tt.later, resp.Status, body)
		}
	}
	for err, want := range map[error]int{
		&sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "bound to another address"}: 403,
		&sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no such application"}:    404,
		&sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "auth is away"}:        503,
		&sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "you are logged out"}: 401,
		&sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many"}:              429,
	} {
		r.set(func() { r.refusal = err })
		r.now.Add(int64(time.Minute))
		if resp, _ := r.ask(c, "POST", wiki+"/", with(session)); resp.StatusCode != want {
			t.Errorf("%v: %s, want %d", err, resp.Status, want)
		}
	}
}

// TestAuthSilent: auth does not refuse, it says nothing. A request waited for as long
// as the deadline of a question, and was refused, with a certificate that is good.
func TestAuthSilent(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	r.ask(c, "GET", wiki+"/", with(session))
	r.set(func() { r.silent = true })
	r.now.Add(int64(30 * time.Second))
	for range 3 {
		took := askTimeout
		for tries := 0; tries < 5 && took > askTimeout/2; tries++ { // the machine may do something else meanwhile
			began := time.Now()
			if resp, body := r.ask(c, "GET", wiki+"/", with(session)); resp.StatusCode != http.StatusOK {
				t.Errorf("with a good certificate: %s %q", resp.Status, body)
			}
			took = time.Since(began)
		}
		if took > askTimeout/2 {
			t.Errorf("a request waited for %v", took)
		}
	}
}

// TestAuthSilentBeside: who comes while auth is asked again that has not answered goes on.
func TestAuthSilentBeside(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	r.ask(c, "GET", wiki+"/", with(session))
	r.set(func() { r.refusal = errors.New("no way to auth") })
	r.now.Add(int64(30 * time.Second))
	r.ask(c, "GET", wiki+"/", with(session)) // the question that fails
	asked, answer := r.hold(anything)
	r.now.Add(int64(askAway))
	first := make(chan struct{})
	go func() {
		defer close(first)
		r.ask(r.client("wiki."+cluster, "h2"), "GET", wiki+"/first", with(session))
	}()
	<-asked
	if resp, body := r.ask(c, "GET", wiki+"/beside", with(session)); resp.StatusCode != http.StatusOK {
		t.Errorf("%s %q", resp.Status, body)
	}
	close(answer)
	<-first
}

// hold makes questions wait until answer is closed; asked is closed when there is one.
func (r *rig) hold(which func(Question) bool) (asked, answer chan struct{}) {
	asked, answer = make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(asked) })
	r.set(func() {
		r.asking = func(q Question) {
			if which(q) {
				once()
				<-answer
			}
		}
	})
	return asked, answer
}

// TestBesideTheQuestion: a request that came while auth was asked for another one of a
// session that had ended meanwhile was passed on.
func TestBesideTheQuestion(t *testing.T) {
	r := newRig(t)
	r.server.patience = patience // both wait for the answer
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	r.ask(c, "GET", wiki+"/", with(session))
	r.now.Add(int64(askAfter))
	eventually(t, "auth knows of the use", func() bool {
		one := r.server.sessions.list()[0]
		one.mu.Lock()
		defer one.mu.Unlock()
		return !one.used.After(one.counted)
	})
	r.now.Add(int64(time.Minute))             // nobody has asked anything
	r.set(func() { delete(r.good, session) }) // logged out elsewhere
	asked, answer := r.hold(anything)
	codes := make(chan int, 2)
	post := func(path string) {
		resp, _ := r.ask(r.client("wiki."+cluster, "h2"), "POST", wiki+path, with(session))
		codes <- resp.StatusCode
	}
	go post("/first")
	<-asked
	go post("/beside")
	var got []int
	select {
	case code := <-codes:
		got = append(got, code)
	case <-time.After(time.Second): // both wait: whatever is too fast has shown by now
	}
	close(answer)
	for len(got) < 2 {
		got = append(got, <-codes)
	}
	if !slices.Equal(got, []int{http.StatusUnauthorized, http.StatusUnauthorized}) {
		t.Errorf("answered %d", got)
	}
	for _, line := range r.arrived() {
		if strings.Contains(line, "POST") {
			t.Errorf("the application has seen %s", line)
		}
	}
}

// TestManySilent: auth was asked about 16 sessions at a time, and each question waited
// for its end: what hundreds of browsers ran went on for long after their certificates.
func TestManySilent(t *testing.T) {
	r := newRig(t)
	const browsers = 8 * askAtOnce
	c := r.client("wiki."+cluster, "h2")
	for range browsers {
		r.ask(c, "GET", wiki+"/", with(r.know("wiki")))
	}
	for _, one := range r.server.sessions.list() {
		one.mu.Lock()
		one.open++ // something that does not end by itself
		one.mu.Unlock()
	}
	r.set(func() { r.silent = true })
	r.now.Add(int64(silentLatest + time.Minute))
	eventually(t, "all sessions have ended", func() bool { return len(r.server.sessions.list()) == 0 }) // one after the other they would take longer than it waits
}

// TestLogout ends what runs at once.
func TestLogout(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	c.Timeout = 0
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		w.(http.Flusher).Flush()
		<-q.Context().Done()
	})
	q, err := http.NewRequest("GET", wiki+"/", nil)
	check(t, err)
	with(session)(q)
	running, err := c.Do(q)
	check(t, err)
	defer running.Body.Close()
	resp, body := r.ask(c, "GET", wiki+"/.sallyport/logout", with(session))
	if resp.StatusCode != 200 || !strings.Contains(body, "<form method=\"post\">") {
		t.Fatalf("%s %s", resp.Status, body)
	}
	// By no-referrer a browser says "Origin: null" with the form, and one without
	// Sec-Fetch-Site could not log out.
	if got := resp.Header.Get("Referrer-Policy"); got != "same-origin" {
		t.Errorf("the form's page has Referrer-Policy %q", got)
	}
	foreignForm := func(q *http.Request) { with(session)(q); q.Header.Set("Sec-Fetch-Site", "same-site") }
	if resp, _ := r.ask(c, "POST", wiki+"/.sallyport/logout", foreignForm); resp.StatusCode != 403 {
		t.Errorf("from another origin: %s", resp.Status)
	}
	resp, _ = r.ask(c, "POST", wiki+"/.sallyport/logout", with(session))
	if k := cookies(resp)[sessionCookie]; resp.StatusCode != 200 || k == nil || k.MaxAge >= 0 {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	cut(t, running)
	if resp, _ := r.ask(c, "POST", wiki+"/", with(session)); resp.StatusCode != 401 {
		t.Errorf("afterwards: %s", resp.Status)
	}
}

// TestStalled: a browser that takes nothing does not hold up the end of what it
// began, be it a download or a WebSocket.
func TestStalled(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"download":  "GET / HTTP/1.1\r\nSec-Fetch-Site: same-origin\r\n",
		"WebSocket": "GET / HTTP/1.1\r\nOrigin: " + wiki + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			session := r.know("wiki")
			var sent atomic.Int64
			more := func(b []byte) { sent.Add(int64(len(b))) }
			r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
				part := make([]byte, 64<<10)
				more(part)
				switch name {
				case "download":
					for err := error(nil); err == nil; more(part) {
						_, err = w.Write(part)
					}
				case "WebSocket":
					ws, err := websocket.Accept(w, q, &websocket.AcceptOptions{InsecureSkipVerify: true})
					if err != nil {
						t.Error(err)
						return
					}
					defer ws.CloseNow()
					for ws.Write(q.Context(), websocket.MessageBinary, part) == nil {
						more(part)
					}
				}
			})
			conn, err := tls.Dial("tcp", r.addr, &tls.Config{RootCAs: r.ca.pool, ServerName: "wiki." + cluster, NextProtos: []string{"http/1.1"}})
			check(t, err)
			defer conn.Close()
			_, err = io.WriteString(conn, head+"Host: wiki."+cluster+"\r\nCookie: "+sessionCookie+"="+session+"\r\n\r\n")
			check(t, err)
			last, since := int64(0), time.Now()
			eventually(t, "nothing moves", func() bool { // too early would be well too
				if n := sent.Load(); n != last || n == 0 {
					last, since = n, time.Now()
				}
				return time.Since(since) > time.Second/4
			})
			s := r.server.sessions.list()[0]
			if _, open := s.standing(); open != 1 {
				t.Fatalf("%d requests", open)
			}
			r.server.sessions.drop(s, gone())
			eventually(t, "the request is over", func() bool {
				_, open := s.standing()
				return open == 0 && r.server.Upgraded() == 0
			})
		})
	}
}

// TestRestart: a WebSocket of which this process lets go is told that it may come
// again; one whose session has ended is cut off.
func TestRestart(t *testing.T) {
	for name, test := range map[string]struct {
		why  error
		want websocket.StatusCode
	}{
		"the process ends": {context.Canceled, websocket.StatusServiceRestart},
		"the session ends": {gone(), -1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			session := r.know("wiki")
			r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
				ws, err := websocket.Accept(w, q, &websocket.AcceptOptions{InsecureSkipVerify: true})
				if err != nil {
					t.Error(err)
					return
				}
				defer ws.CloseNow()
				_ = ws.Write(q.Context(), websocket.MessageText, []byte("welcome"))
				_, _, _ = ws.Read(q.Context())
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c := r.client("wiki."+cluster, "http/1.1")
			c.Timeout = 0
			ws, _, err := websocket.Dial(ctx, wiki+"/", &websocket.DialOptions{HTTPClient: c,
				HTTPHeader: http.Header{"Origin": {wiki}, "Cookie": {sessionCookie + "=" + session}}})
			check(t, err)
			defer ws.CloseNow()
			if _, b, err := ws.Read(ctx); err != nil || string(b) != "welcome" {
				t.Fatalf("%q, %v", b, err)
			}
			r.server.sessions.drop(r.server.sessions.list()[0], test.why)
			_, _, err = ws.Read(ctx)
			if got := websocket.CloseStatus(err); err == nil || got != test.want {
				t.Errorf("it ends with %v, by code %d", err, got)
			}
			eventually(t, "no WebSocket", func() bool { return r.server.Upgraded() == 0 })
		})
	}
}

// TestA75_Strangers: cookies that nobody knows make few questions at a time, and
// leave nothing behind.
func TestA75_Strangers(t *testing.T) {
	r := newRig(t)
	var now, most atomic.Int64
	release := make(chan struct{})
	r.set(func() {
		r.asking = func(Question) {
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			now.Add(-1)
		}
	})
	const requests = 4 * strangersSource
	var tasks sync.WaitGroup
	var codes sync.Map
	for i := range requests {
		tasks.Go(func() {
			c := r.client("wiki."+cluster, "h2")
			q, _ := http.NewRequest("POST", wiki+"/", nil)
			with(cookie(5000 + i))(q)
			resp, err := c.Do(q)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			codes.Store(i, resp.StatusCode)
		})
	}
	eventually(t, "all places are taken", func() bool { return now.Load() == strangersSource })
	close(release)
	tasks.Wait()
	if got := most.Load(); got > strangersSource {
		t.Errorf("%d questions at once", got)
	}
	codes.Range(func(_, code any) bool {
		if code != http.StatusUnauthorized && code != http.StatusTooManyRequests {
			t.Errorf("answered %v", code)
		}
		return true
	})
	if got := len(r.server.sessions.list()); got != 0 {
		t.Errorf("%d sessions are left", got)
	}
	r.server.strangers.mu.Lock()
	defer r.server.strangers.mu.Unlock()
	if got := len(r.server.strangers.sources); got != 0 {
		t.Errorf("%d sources are left", got)
	}
}

// TestA75_Waiting: a source waits with so many at most, and others are served.
func TestA75_Waiting(t *testing.T) {
	var s strangers
	from, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")
	ctx, cancel := context.WithCancel(t.Context())
	var leaves []func()
	for range strangersSource {
		leave, err := s.enter(ctx, from)
		check(t, err)
		leaves = append(leaves, leave)
	}
	var tasks sync.WaitGroup
	for range strangersWaiting - strangersSource {
		tasks.Go(func() {
			if _, err := s.enter(ctx, netip.MustParseAddr("2001:db8::2")); err == nil { // of the same /64
				t.Error("there was a place")
			}
		})
	}
	eventually(t, "all wait", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.sources[prefixOf(from)].users == strangersWaiting
	})
	over, stop := context.WithCancel(context.Background())
	stop()
	if _, err := s.enter(over, from); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("one more has not been refused before it waits: %v", err)
	}
	leave, err := s.enter(ctx, other)
	check(t, err)
	leaves = append(leaves, leave)
	cancel()
	tasks.Wait()
	for _, leave := range leaves {
		leave()
	}
	if len(s.sources) != 0 || len(s.all) != 0 {
		t.Errorf("%d sources and %d places are left", len(s.sources), len(s.all))
	}
}

// TestA75_Sources: many sources together wait with so many at most.
func TestA75_Sources(t *testing.T) {
	var s strangers
	var places []netip.Prefix
	from := netip.MustParseAddr("192.0.2.1")
	for len(places) < strangersMost {
		from = from.Next()
		for range strangersWaiting / 2 {
			if here, _ := s.join(prefixOf(from)); here == nil {
				t.Fatalf("no room after %d", len(places))
			}
			places = append(places, prefixOf(from))
		}
	}
	known := len(s.sources)
	for _, one := range []netip.Addr{from, from.Next()} {
		if here, _ := s.join(prefixOf(one)); here != nil || len(s.sources) != known {
			t.Errorf("%v: there is room for one more, or its source is kept: %d of %d", one, len(s.sources), known)
		}
	}
	s.part(places[0])
	if here, _ := s.join(prefixOf(from.Next())); here == nil {
		t.Error("no room after one has left")
	}
	for _, place := range append(places[1:], prefixOf(from.Next())) {
		s.part(place)
	}
	if s.waiting != 0 || len(s.sources) != 0 {
		t.Errorf("%d are left, of %d sources", s.waiting, len(s.sources))
	}
}

// TestA75_SlowBody: a body of who is not logged in is not waited for, and its
// connection ends by the deadlines of strangers.
func TestA75_SlowBody(t *testing.T) {
	t.Parallel()
	r := newRigWith(t, strangersDeadline)
	conn, err := tls.Dial("tcp", r.addr, &tls.Config{RootCAs: r.ca.pool, ServerName: "wiki." + cluster, NextProtos: []string{"http/1.1"}})
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, "POST /x HTTP/1.1\r\nHost: wiki."+cluster+"\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 1000000000\r\n\r\nslow")
	check(t, err)
	b, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) || !strings.HasPrefix(string(b), "HTTP/1.1 401 ") {
		t.Errorf("%q, %v", b, err)
	}
}

// TestBodyOfNobody: a body whose chunks nobody can read was laid at the application's
// door: 502, it cannot be reached.
func TestBodyOfNobody(t *testing.T) {
	r := newRig(t)
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) { io.Copy(io.Discard, q.Body) })
	conn, err := tls.Dial("tcp", r.addr, &tls.Config{RootCAs: r.ca.pool, ServerName: "wiki." + cluster, NextProtos: []string{"http/1.1"}})
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, "POST /x HTTP/1.1\r\nHost: wiki."+cluster+"\r\nSec-Fetch-Site: same-origin\r\nCookie: "+sessionCookie+"="+r.know("wiki")+
		"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
	check(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	check(t, err)
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), "the body of the request") {
		t.Errorf("%s: %q", resp.Status, b)
	}
}

// TestRoom: the session that was unused for longest makes room, and the one that
// is in use stays.
func TestRoom(t *testing.T) {
	s := &Server{Cluster: cluster}
	v := &visit{Server: s, app: "wiki"}
	var first *session
	for i := range maxSessions + 10 {
		one := &session{server: s, app: "wiki", cookie: cookie(i), used: time.Unix(int64(i), 0)}
		one.ctx, one.cancel = context.WithCancelCause(context.Background())
		if i == 0 {
			first, one.open = one, 1
		}
		if _, err := s.sessions.add(keyOf("wiki", one.cookie), one); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(s.sessions.list()); got != maxSessions {
		t.Errorf("%d sessions", got)
	}
	if there, err := s.sessions.find(v, cookie(0)); err != nil || there != first {
		t.Error("the one in use is gone")
	}
	for _, one := range s.sessions.list() {
		one.over(errForgotten)
	}
}

// TestLargeBodies: what passes is not kept, in either direction.
func TestLargeBodies(t *testing.T) {
	const size, part, most = 64 << 20, 16 << 20, 16 << 20
	kept := func() int64 { // what nobody has any more is gone
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	r := newRig(t)
	session := r.know("wiki")
	before := kept()
	var peak atomic.Int64
	look := func() { peak.Store(max(peak.Load(), kept()-before)) }
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		if q.Method == "GET" {
			for range size / part {
				io.CopyN(w, zeros{}, part)
				look()
			}
			return
		}
		buf, n := make([]byte, 1<<20), int64(0)
		for {
			m, err := io.ReadFull(q.Body, buf)
			if n += int64(m); err != nil {
				break
			}
			if n%part == 0 {
				look()
			}
		}
		fmt.Fprint(w, n)
	})
	for _, protocol := range []string{"h2", "http/1.1"} {
		c := r.client("wiki."+cluster, protocol)
		c.Timeout = 0
		q, err := http.NewRequest("POST", wiki+"/", io.LimitReader(zeros{}, size))
		check(t, err)
		with(session)(q)
		resp, err := c.Do(q)
		check(t, err)
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != fmt.Sprint(size) {
			t.Errorf("%s: %q, %v", protocol, b, err)
		}
		q, err = http.NewRequest("GET", wiki+"/", nil)
		check(t, err)
		with(session)(q)
		resp, err = c.Do(q)
		check(t, err)
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || n != size {
			t.Errorf("%s: %d bytes, %v", protocol, n, err)
		}
	}
	if got := peak.Load(); got > most {
		t.Errorf("%d MB of heap for bodies of %d MB", got>>20, size>>20)
	}
	t.Logf("%d KB of heap for bodies of %d MB", peak.Load()>>10, size>>20)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// FuzzLocalPath: wherever a path comes from, a browser that is led there stays at
// this origin.
func FuzzLocalPath(f *testing.F) {
	for _, seed := range []string{"/", "/a?b=c#d", "//evil.test", "/\\evil.test", "/\t/evil.test", "\\\\evil.test", "https://evil.test", "/.sallyport/callback", "/%2f/evil.test", " /x", "/a\r\nSet-Cookie: x=1", "/é"} {
		f.Add(seed)
	}
	base, err := url.Parse(wiki + "/from")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := localPath(in)
		if out != in && out != "/" {
			t.Fatalf("%q became %q", in, out)
		}
		if strings.HasPrefix(out, ownPaths) {
			t.Fatalf("a login ends at %q, which is ours", out)
		}
		// As browsers read it (URL, section 4.4): controls and spaces at the ends
		// and tabs and newlines anywhere are passed over, a backslash is a slash.
		seen := strings.Map(func(r rune) rune {
			switch r {
			case '\t', '\n', '\r':
				return -1
			case '\\':
				return '/'
			}
			return r
		}, strings.TrimFunc(out, func(r rune) bool { return r <= ' ' }))
		u, err := base.Parse(seen)
		if err != nil {
			if !strings.HasPrefix(seen, "/") || strings.HasPrefix(seen, "//") {
				t.Fatalf("%q: %v", out, err)
			}
			return
		}
		if u.Scheme != "https" || u.Host != base.Host || u.User != nil {
			t.Fatalf("%q leads to %s", out, u)
		}
		if strings.ContainsAny(out, "\r\n\x00") {
			t.Fatalf("%q in a header", out)
		}
	})
}

// FuzzLogin: a cookie that was not made here is none, and one that was is read as
// it was written.
func FuzzLogin(f *testing.F) {
	f.Add(newVerifier() + "." + b64.EncodeToString([]byte("/x")))
	f.Add("..")
	f.Add(strings.Repeat("v", codeSize) + ".Ly9ldmlsLnRlc3Q")
	f.Fuzz(func(t *testing.T, value string) {
		verifier, path, ok := parseLogin(value)
		if !ok {
			return
		}
		if !letters(verifier, codeSize) || localPath(path) != path {
			t.Fatalf("%q: %q %q", value, verifier, path)
		}
		if v, p, ok := parseLogin(verifier + "." + b64.EncodeToString([]byte(path))); !ok || v != verifier || p != path {
			t.Fatalf("%q is read as %q %q", value, v, p)
		}
	})
}

// TestSocketWithoutInput: what an application still said on a WebSocket was lost
// when it took no more.
func TestSocketWithoutInput(t *testing.T) {
	const output = 4 << 20
	r := newRig(t)
	deafened, conns := make(chan struct{}), make(chan *deaf.Conn, 1)
	r.server.Dial = func(ctx context.Context, app string, browser netip.AddrPort, cfg *tls.Config) (net.Conn, error) {
		conn, err := r.dial(ctx, app, browser, cfg)
		far := deaf.New(conn)
		conns <- far
		return far, err
	}
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		<-deafened
		conn.Write(make([]byte, output))
	})
	conn, err := tls.Dial("tcp", r.addr, &tls.Config{RootCAs: r.ca.pool, ServerName: "wiki." + cluster, NextProtos: []string{"http/1.1"}})
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: wiki.%s\r\nOrigin: %s\r\nCookie: %s=%s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", cluster, wiki, sessionCookie, r.know("wiki"))
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
	conn.Close()
	eventually(t, "no WebSocket", func() bool { return r.server.Upgraded() == 0 })
}

// TestDrip: what an application said slowly of an answer whose length it had told came
// when there were 4 KiB of it, or at its end.
func TestDrip(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const piece, pieces = "a piece\n", 3
			r := newRig(t)
			session := r.know("wiki")
			next := make(chan struct{})
			r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(pieces*len(piece)))
				w.(http.Flusher).Flush()
				for range pieces {
					select {
					case <-next:
						io.WriteString(w, piece)
						w.(http.Flusher).Flush()
					case <-q.Context().Done():
						return
					}
				}
			})
			q, err := http.NewRequest("GET", wiki+"/", nil)
			check(t, err)
			with(session)(q)
			resp, err := r.client("wiki."+cluster, protocol).Do(q) // the head alone
			check(t, err)
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

// TestBodiless: a 304 that told the length of the body that it stands for broke off
// where the browser was to get it, and so did a 204 with a length.
func TestBodiless(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		status, err := strconv.Atoi(q.URL.Path[1:])
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Length", "400")
		w.Header().Set("Etag", `"x"`)
		w.WriteHeader(status)
	})
	for _, protocol := range []string{"h2", "http/1.1"} {
		c := r.client("wiki."+cluster, protocol)
		for _, status := range []int{http.StatusNotModified, http.StatusNoContent} {
			resp, body := r.ask(c, "GET", fmt.Sprintf("%s/%d", wiki, status), with(session))
			if resp.StatusCode != status || body != "" || resp.Header.Get("Etag") != `"x"` || resp.Header.Get("Content-Length") != "" {
				t.Errorf("%s: %s, %v, %q", protocol, resp.Status, resp.Header, body)
			}
		}
	}
}

// TestLargeHead: a head with too many fields, or too long ones, was answered 502, as if
// the application could not be reached.
func TestLargeHead(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "http/1.1")
	for _, head := range []struct{ fields, size, status int }{
		{100, 100, http.StatusOK},
		{1900, 2, http.StatusRequestHeaderFieldsTooLarge},
		{1, maxHead, http.StatusRequestHeaderFieldsTooLarge},
	} {
		resp, body := r.ask(c, "GET", wiki+"/", func(q *http.Request) {
			with(session)(q)
			for i := range head.fields {
				q.Header.Set(fmt.Sprintf("F%d", i), strings.Repeat("x", head.size))
			}
		})
		if resp.StatusCode != head.status {
			t.Errorf("%d fields of %d bytes: %s: %q", head.fields, head.size, resp.Status, body)
		}
	}
}

// TestLastRequest: the connection went on behind a request that told a length beside
// chunks.
func TestLastRequest(t *testing.T) {
	r := newRig(t)
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		io.Copy(io.Discard, q.Body)
	})
	for name, cookie := range map[string]string{"logged in": r.know("wiki"), "a stranger": cookie(77)} {
		conn, err := tls.Dial("tcp", r.addr, &tls.Config{RootCAs: r.ca.pool, ServerName: "wiki." + cluster, NextProtos: []string{"http/1.1"}})
		check(t, err)
		defer conn.Close()
		check(t, conn.SetDeadline(time.Now().Add(patience)))
		head := "POST /x HTTP/1.1\r\nHost: wiki." + cluster + "\r\nSec-Fetch-Site: same-origin\r\nCookie: " + sessionCookie + "=" + cookie + "\r\n"
		_, err = io.WriteString(conn, head+"Content-Length: 3\r\n\r\nabc"+head+"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
		check(t, err)
		in := bufio.NewReader(conn)
		for _, last := range []bool{false, true} {
			resp, err := http.ReadResponse(in, nil)
			for err == nil && resp.StatusCode == http.StatusEarlyHints {
				resp, err = http.ReadResponse(in, nil)
			}
			check(t, err)
			_, err = io.Copy(io.Discard, resp.Body)
			check(t, err)
			resp.Body.Close()
			if resp.Close != last {
				t.Errorf("%s: %s, the last: %v, want %v", name, resp.Status, resp.Close, last)
			}
		}
	}
}

// TestLockAtAgent: an upload that the agent broke off because of a lock, of which the
// gateway had not heard yet, was answered 502.
func TestLockAtAgent(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		r := newRig(t)
		session := r.know("wiki")
		c := r.client("wiki."+cluster, protocol)
		r.serve("wiki", func(_ http.ResponseWriter, q *http.Request) {
			if q.Method == "POST" {
				_, _ = io.ReadFull(q.Body, make([]byte, 1)) // the upload is under way
				r.set(func() { r.refusal = sallyport.Denied("you are locked", "") })
				panic(http.ErrAbortHandler)
			}
		})
		r.ask(c, "GET", wiki+"/", with(session)) // auth's answer is young
		q, err := http.NewRequest("POST", wiki+"/", zeros{})
		check(t, err)
		with(session)(q)
		resp, err := c.Do(q)
		check(t, err)
		b, err := io.ReadAll(resp.Body)
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden || !strings.Contains(string(b), "you are locked") {
			t.Errorf("%s: %s: %q", protocol, resp.Status, b)
		}
	}
}

// TestBrokenAsksSeldom: each request to an application that breaks it off asked auth about
// its session. The clock stands still: one second has one question.
func TestBrokenAsksSeldom(t *testing.T) {
	r := newRig(t)
	still := time.Now()
	r.server.Now = func() time.Time { return still.Add(time.Duration(r.now.Load())) }
	session := r.know("wiki")
	c := r.client("wiki."+cluster, "h2")
	r.serve("wiki", func(_ http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
	})
	r.ask(c, "GET", wiki+"/", with(session))
	asked := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.questions)
	}
	before := asked()
	for second := 1; second <= 3; second++ {
		for range 20 {
			if resp, b := r.ask(c, "GET", wiki+"/broken", with(session)); resp.StatusCode != http.StatusBadGateway {
				t.Fatalf("%s: %q", resp.Status, b)
			}
		}
		if n := asked() - before; n != second {
			t.Errorf("%d questions in %d s", n, second)
		}
		r.now.Add(int64(anewAfter))
	}
}

// TestAncestors: an application that no page may show in a frame could be shown by its
// own: browsers pass over X-Frame-Options where frame-ancestors is said.
func TestAncestors(t *testing.T) {
	for _, c := range []struct{ options, policy, want string }{
		{"", "", "'self'"}, {"DENY", "", "'none'"}, {" deny ", "", "'none'"}, {"SAMEORIGIN, DENY", "", "'none'"}, {"SAMEORIGIN", "", "'self'"},
		{"DENY", "default-src 'self'", "'none'"}, {"DENY", "default-src 'self'; Frame-Ancestors 'self'", "'self'"},
	} {
		h := http.Header{}
		if c.options != "" {
			h.Set("X-Frame-Options", c.options)
		}
		if c.policy != "" {
			h.Set("Content-Security-Policy", c.policy)
		}
		if got := ancestors(h); got != c.want {
			t.Errorf("%q, %q: %s, want %s", c.options, c.policy, got, c.want)
		}
	}
}

// TestTabs: of tabs that began to log in at once all but one were told that their login
// is not good here, or came to another's page.
func TestTabs(t *testing.T) {
	r := newRig(t)
	c := r.client("wiki."+cluster, "h2")
	jar := map[string]*http.Cookie{}
	ask := func(path string, jar map[string]*http.Cookie) *http.Response {
		resp, _ := r.ask(c, "GET", wiki+path, func(q *http.Request) {
			for _, name := range slices.Sorted(maps.Keys(jar)) {
				q.AddCookie(jar[name])
			}
		})
		for _, set := range resp.Cookies() {
			if jar[set.Name] = set; set.MaxAge < 0 {
				delete(jar, set.Name)
			}
		}
		return resp
	}
	const tabs = 3
	var callbacks []string
	for i := range tabs {
		begun := map[string]*http.Cookie{} // none knows of the others
		launch, err := url.Parse(ask(fmt.Sprintf("/tab/%d", i), begun).Header.Get("Location"))
		check(t, err)
		maps.Copy(jar, begun)
		challenge, code := launch.Query().Get("challenge"), strings.Repeat(string(rune('a'+i)), codeSize)
		for _, set := range begun {
			verifier, _, _ := strings.Cut(set.Value, ".")
			r.set(func() { r.codes[code] = Code{Verifier: verifier, App: "wiki"} })
		}
		callbacks = append(callbacks, callbackPath+"?code="+code+"&challenge="+challenge)
	}
	for i, callback := range callbacks {
		if resp := ask(callback, jar); resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != fmt.Sprintf("/tab/%d", i) {
			t.Errorf("tab %d: %s, to %q", i, resp.Status, resp.Header.Get("Location"))
		}
	}
	if len(jar) != 1 || jar[sessionCookie] == nil {
		t.Errorf("%d cookies are left", len(jar))
	}
	clear(jar)
	for i := range 3 * maxLogins { // that nobody ends
		ask(fmt.Sprintf("/%d", i), jar)
	}
	if len(jar) != maxLogins {
		t.Errorf("%d logins", len(jar))
	}
}
