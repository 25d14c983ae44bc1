package app

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestCleanCookie(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"a=1":                              "a=1",
		"a=1;b=2 ;  c":                     "a=1;b=2 ;  c", // nothing of ours: as it was
		"__Host-sallyport=x":               "",
		"a=1; __Host-sallyport-app=x; b=2": "a=1; b=2",
		"__host-SALLYPORT=x; a=1":          "a=1",
		"=__Host-sallyport=x; a=1":         "a=1",
		"a=\"__Host-sallyport=1\"; b=__Host-sallyport": "a=\"__Host-sallyport=1\"; b=__Host-sallyport",
		"__Secure-sallyport=1; x__Host-sallyport=2":    "__Secure-sallyport=1; x__Host-sallyport=2",
		"a=1;__Host-sallyport=\"; b=2":                 "a=1; b=2",
		"\t __Host-sallyport =x;a=1":                   "a=1",
	} {
		if got := CleanCookie(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestCleanSetCookie(t *testing.T) {
	for in, want := range map[string]string{
		"a=1; Path=/":                            "a=1; Path=/",
		"a=1; Domain=gw.test":                    "a=1",
		"a=1; dOMAIN = .gw.test ;Path=/; Domain": "a=1;Path=/",
		"a=Domain=x; Secure":                     "a=Domain=x; Secure",
		"__Host-sallyport=1; Secure":             "",
		" =__host-sallyport=1":                   "",
		"a=1;domainx=2":                          "a=1;domainx=2",
		"a=1;\tDomain=g":                         "a=1",
		"a=1;\rDomain=g":                         "",
		"a=1;Domain\x00=g":                       "",
		"a=1\x7f":                                "",
	} {
		if got := CleanSetCookie(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// FuzzCookies holds both against net/http's readers of the same lines: nothing
// of ours is left, what is not ours is, and no cookie names a domain.
func FuzzCookies(f *testing.F) {
	for _, s := range []string{"a=1; __Host-sallyport-app=x; b=2", "__host-sallyport=\"a;b\"", "=__Host-sallyport=1;a=2; Domain=x", "a=1; Domain=gw.test; Path=/", ";;;=;", "a=1;\tdomain", "a=1;\rDomain=g", "a=1;\r__Host-sallyport=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		clean := CleanCookie(line)
		before, after := readCookies(line), readCookies(clean)
		i := 0
		for _, c := range before {
			if len(c.Name) >= len(CookiePrefix) && strings.EqualFold(c.Name[:len(CookiePrefix)], CookiePrefix) {
				continue
			}
			if i >= len(after) || after[i].Name != c.Name || after[i].Value != c.Value {
				t.Fatalf("%q became %q: cookie %s is gone or changed", line, clean, c.Name)
			}
			i++
		}
		if i != len(after) {
			t.Fatalf("%q became %q: %d cookies more", line, clean, len(after)-i)
		}
		set := CleanSetCookie(line)
		if c, err := http.ParseSetCookie(set); err == nil {
			if c.Domain != "" || strings.HasPrefix(strings.ToLower(c.Name), strings.ToLower(CookiePrefix)) {
				t.Fatalf("%q became %q: %+v", line, set, c)
			}
		}
		if again := CleanSetCookie(set); again != set {
			t.Fatalf("%q, cleaned twice, becomes %q", line, again)
		}
	})
}

func readCookies(line string) []*http.Cookie {
	return (&http.Request{Header: http.Header{"Cookie": {line}}}).Cookies()
}

// FuzzOutward: a redirect stays where it led, or leads to the outer name; its
// path and query never change.
func FuzzOutward(f *testing.F) {
	for _, s := range []string{"/a", "http://inner.test/x?y#z", "//inner.test", "https://inner.test:443/", "http://u:p@inner.test:80/", "HTTP://INNER.TEST/%2f", "http:inner.test", "javascript:alert(1)", "http://[::1]:80/", "\\\\inner.test"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, location string) {
		out := Outward(location, "http", "web.gw.test", []string{"inner.test:80", "inner.test:443"})
		if out == location {
			return
		}
		was, err := url.Parse(location)
		if err != nil {
			t.Fatalf("%q cannot be read and became %q", location, out)
		}
		is, err := url.Parse(out)
		if err != nil || is.Scheme != "https" || is.Host != "web.gw.test" || is.User != nil || !strings.EqualFold(was.Hostname(), "inner.test") {
			t.Fatalf("%q became %q", location, out)
		}
		if is.EscapedPath() != was.EscapedPath() && !(was.EscapedPath() == "" && is.EscapedPath() == "") || is.RawQuery != was.RawQuery || is.Fragment != was.Fragment {
			t.Fatalf("%q became %q: another path, query or fragment", location, out)
		}
	})
}
