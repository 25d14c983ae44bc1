package preamble

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestHTTPRedirect(t *testing.T) {
	tests := []struct{ cluster, in, want string }{
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test\r\n\r\n", "https://gw.test/"},
		{"gw.test", "GET /a?b=c HTTP/1.1\r\nhost:  GW.Test:8443 \r\n\r\n", "https://gw.test:8443/a?b=c"},
		{"gw.test", "GET / HTTP/1.1\r\nHost: grafana.gw.test:80\r\n\r\n", "https://grafana.gw.test/"},
		{"gw.test", "GET /x HTTP/1.1\r\nHost: evil.test:8443\r\n\r\n", "https://gw.test:8443/x"},
		{"gw.test", "GET /x HTTP/1.1\r\nHost: evilgw.test\r\n\r\n", "https://gw.test/x"},
		{"gw.test", "GET /x HTTP/1.1\r\nHost: gw.test@evil.test\r\n\r\n", ""},
		{"gw.test", "GET /x HTTP/1.1\r\nHost: gw.test:1@evil.test\r\n\r\n", ""},
		{"gw.test", "GET /x HTTP/1.1\r\nHost: 127.0.0.1:8443\r\n\r\n", "https://gw.test:8443/x"},
		{"gw.test", "GET /x HTTP/1.1\r\nHost: [::1]:8443\r\n\r\n", "https://gw.test:8443/x"},
		{"gw.test", "GET /x HTTP/1.1\r\nHost: [::1]\r\n\r\n", "https://gw.test/x"},
		{"gw.test", "GET //evil.test/ HTTP/1.1\r\nHost: gw.test\r\n\r\n", "https://gw.test//evil.test/"},
		{"gw.test", "GET http://evil.test/ HTTP/1.1\r\nHost: gw.test\r\n\r\n", "https://gw.test/"},
		{"gw.test", "OPTIONS * HTTP/1.1\r\nHost: gw.test\r\n\r\n", "https://gw.test/"},
		{"gw.test", "GET / HTTP/1.0\r\n\r\n", "https://gw.test:8443/"}, // the port that was reached
		{"gw.test", "GET / HTTP/1.0\r\nHost: gw.test\r\n\r\n", "https://gw.test/"},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test:\r\n\r\n", "https://gw.test/"},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test:443\r\n\r\n", "https://gw.test/"},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test:08443\r\n\r\n", "https://gw.test:8443/"},
		{"gw.test", "GET /a|b\"<c>#d HTTP/1.1\r\nHost: gw.test\r\n\r\n", "https://gw.test/a%7Cb%22%3Cc%3E%23d"},
		{"gw.test", "GET / HTTP/1.1\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost:\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test\r\nhOST: gw.test\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test:0\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test:65536\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test:+1\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test:http\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test/x\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw .test\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw.test, b\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: gw%2etest\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: \"gw.test\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: \xe4.gw.test\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: [::1%25lo]:1\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: [127.0.0.1]\r\n\r\n", ""},
		{"gw.test", "GET / HTTP/1.1\r\nHost: []\r\n\r\n", ""},
		{"", "GET /x HTTP/1.1\r\nHost: shop.test:8080\r\n\r\n", "https://shop.test:8080/x"},
		{"", "GET /x HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n", ""},
		{"", "GET /x HTTP/1.1\r\n\r\n", ""},
	}
	for _, tt := range tests {
		h, need, err := ParseHTTP([]byte(tt.in))
		if need != 0 || err != nil || h.Size != len(tt.in) {
			t.Errorf("%q: %+v, %d, %v", tt.in, h, need, err)
			continue
		}
		if got := location(t, h.Redirect(tt.cluster, 8443)); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
}

// location reads an answer as a browser does; "" for a refusal.
func location(t *testing.T, answer []byte) string {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
	if err != nil {
		t.Fatalf("%q: %v", answer, err)
	}
	defer resp.Body.Close()
	if !resp.Close || resp.ContentLength != 0 {
		t.Errorf("%q does not close", answer)
	}
	if resp.StatusCode == http.StatusBadRequest {
		return ""
	}
	if resp.StatusCode != http.StatusPermanentRedirect {
		t.Errorf("status %d", resp.StatusCode)
	}
	return resp.Header.Get("Location")
}

func TestHTTPRefused(t *testing.T) {
	tests := []struct {
		in   string
		need int
		err  error
	}{
		{"GET / HTTP/1.1\r\n", 17, nil},
		{"GET " + strings.Repeat("a", httpMax), 0, ErrTooLarge},
		{"GET /\r\n\r\n", 0, ErrMalformed},
		{"GET / HTTP/2.0\r\n\r\n", 0, ErrMalformed},
		{"GET / x HTTP/1.1\r\n\r\n", 0, ErrMalformed},
		{"GET /\x00 HTTP/1.1\r\n\r\n", 0, ErrMalformed},
		{"GET /\nX HTTP/1.1\r\n\r\n", 0, ErrMalformed},
		{"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", 0, ErrMalformed},
		{"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 0, ErrMalformed},
		{"GET / HTTP/1.x\r\n\r\n", 0, ErrMalformed},
		{"GET / HTTP/1.1\r\n folded\r\n\r\n", 0, ErrMalformed},
		{"GET / HTTP/1.1\r\nX: a\nHost: b\r\n\r\n", 0, ErrMalformed},
	}
	for _, tt := range tests {
		_, need, err := ParseHTTP([]byte(tt.in))
		if need != tt.need || !errors.Is(err, tt.err) {
			t.Errorf("%.40q: %d, %v; want %d, %v", tt.in, need, err, tt.need, tt.err)
		}
	}
}

// FuzzHTTP: whatever is asked, the redirect stays on our names, and net/http
// reads it as one answer.
func FuzzHTTP(f *testing.F) {
	for _, b := range httpSeeds(f) {
		f.Add(b)
	}
	f.Fuzz(checkHTTP)
}

// TestRandomHTTP is FuzzHTTP without coverage, for many more inputs.
func TestRandomHTTP(t *testing.T) { mutants(t, httpSeeds(t), checkHTTP) }

func httpSeeds(_ testing.TB) [][]byte {
	return [][]byte{
		[]byte("GET /a?b HTTP/1.1\r\nHost: gw.test:8443\r\n\r\n"),
		[]byte("PUT /x HTTP/1.1\r\nAccept: */*\r\nHOST:\t gw.test \r\nContent-Length: 3\r\n\r\nabc"),
		[]byte("CONNECT gw.test:443 HTTP/1.1\r\nHost: gw.test:443\r\n\r\n"),
		[]byte("GET http://gw.test/ HTTP/1.0\r\n\r\n"),
		[]byte("GET //x@y/ HTTP/1.1\r\nHost: gw.test@evil.test\r\n\r\n"),
	}
}

func checkHTTP(t *testing.T, b []byte) {
	t.Helper()
	h, need, err := ParseHTTP(b)
	if need != 0 && (err != nil || need <= len(b)) {
		t.Fatalf("%d bytes: need %d, %v", len(b), need, err)
	}
	if need != 0 || err != nil {
		return
	}
	sameRequest(t, h, b)
	answer := h.Redirect("gw.test", 8443)
	to := location(t, answer)
	if to == "" {
		return // 400
	}
	u, err := url.Parse(to)
	if err != nil {
		return // a path that url.Parse refuses (a bad escape) is a path all the same
	}
	if host := u.Hostname(); u.Scheme != "https" || host != "gw.test" && !strings.HasSuffix(host, ".gw.test") {
		t.Fatalf("sent to %q", to)
	}
	if n := bytes.Count(answer, []byte("\r\n")); n != 5 {
		t.Fatalf("%q", answer)
	}
}

// sameRequest: where net/http takes the head too, it reads the same request from
// the same bytes. It refuses more of them (names and values that are no tokens),
// which a redirect has no need to.
func sameRequest(t *testing.T, h HTTP, b []byte) {
	t.Helper()
	r := bufio.NewReaderSize(bytes.NewReader(b), httpMax)
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	if read := min(len(b), httpMax) - r.Buffered(); read != h.Size || req.RequestURI != string(h.Target) {
		t.Fatalf("%q in %d bytes, net/http %q in %d", h.Target, h.Size, req.RequestURI, read)
	}
	if req.URL.Host == "" && req.Host != string(h.Host) {
		t.Fatalf("host %q, net/http %q", h.Host, req.Host)
	}
}
