package app

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestA38_Paths: the application is asked for the path that the event names, which
// is the one that was asked for: none is made shorter, decoded or put in order here.
// One that cannot be written down in one way only is refused.
func TestA38_Paths(t *testing.T) {
	srv, got := application(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	r := newRig(t, Target{URI: srv.URL})
	for target, want := range map[string]string{
		"/": "", "//": "", "//a": "", "//evil.example.com/a": "", "/a//b": "", "/a/": "", "/a/.": "", "/a/./b": "", "/.": "", "/..": "", "/a/..": "", "/a/../b": "", "/../../etc/passwd": "",
		"/a%2fb": "", "/a%2Fb": "", "/%2e%2e/b": "", "/%2E./b": "", "/a/%2e": "", "/%2f%2fevil.example.com": "", "/%252e%252e/b": "", "/%5c..%5cb": "", "/a%00b": "", "/a%0d%0ab": "", "/a%20b": "", "/a%3fb": "", "/a%23b": "",
		"/a;b": "", "/a;x=1/../b": "", "/..;/b": "", "/a=b": "", "/a:b@c": "", "/a,b+c": "", "/a~b": "", "/A": "", "/%41": "", "/a%c0%afb": "", "/a%e2%80%8bb": "",
		"/?": "", "/a?": "", "/a?b?c": "", "/a?../../b": "", "/a?b=/../c": "", "/a?b=%2f;c&d": "", "/a?b%": "", "/a?b=%zz": "", "/a?b#c": "",
		"/a\\b": "/a%5Cb", "/..\\b": "/..%5Cb", "/a|b": "/a%7Cb", "/a\"b": "/a%22b", "/a^b": "/a%5Eb", "/a`b": "/a%60b", "/a{b}": "/a%7Bb%7D", "/a<b>": "/a%3Cb%3E", "/a\u00e9b": "/a%C3%A9b", // RFC 3986, section 2.1
		"/a%": "400", "/a%2": "400", "/a%zz": "400", "/a b": "400", "/a\tb": "400", "/a\x00b": "400", "/a\x7fb": "400", "a": "400", "": "400", "?a": "400", "\\a": "400", "*": "400", "/a#b": "/a%23b",
		"https://" + appHost + "/a": "/a", "http://evil.example.com/a": "4",
	} {
		if want == "" {
			want = target
		}
		before, named := got.count(), len(r.named("app.session.request"))
		out := r.raw("GET " + target + " HTTP/1.1\r\nHost: " + appHost + "\r\nConnection: close\r\n\r\n")
		r.finished.Wait() // the event is written behind the answer
		if want[0] != '/' {
			if !strings.HasPrefix(out, want) || got.count() != before {
				t.Errorf("%q: answered %q, the application was asked %d times; want %s", target, out, got.count()-before, want)
			}
			continue
		}
		if out != "200 ok\n" || got.count() != before+1 {
			t.Errorf("%q: answered %q, the application was asked %d times", target, out, got.count()-before)
			continue
		}
		if in := got.last(t); in.RequestURI != want {
			t.Errorf("%q: the application was asked for %q, want %q", target, in.RequestURI, want)
		}
		events := r.named("app.session.request")[named:]
		if len(events) != 1 {
			t.Errorf("%q: %d events", target, len(events))
			continue
		}
		path, query, _ := strings.Cut(want, "?")
		if f := events[0].Fields; f["path"] != path || f["raw_query"] != query {
			t.Errorf("%q: the event says %q, %q", target, f["path"], f["raw_query"])
		}
	}
}
