package app

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestLengths: a name is found in any case and however it is cut.
func TestLengths(t *testing.T) {
	for text, want := range map[string]int64{
		"": 0, "Content-Length: 4\r\n": 1, "cONTENT-lENGTH:4": 1, "X: content-lengt": 0, "ccontent-length": 1, "content-content-length": 1,
		"content-\r\nlength": 0, "A: b\r\nContent-Length: 4\r\nContent-Length: 4\r\n": 2, "contentcontent-length, content-length": 2,
	} {
		for cut := range len(text) + 1 {
			var l lengths
			l.read([]byte(text[:cut]))
			l.read([]byte(text[cut:]))
			if got := l.seen.Load(); got != want {
				t.Errorf("%q, cut at %d: %d, want %d", text, cut, got, want)
			}
		}
	}
}

// TestLastRefused: a connection ends behind a request that told both lengths also when
// it is refused, or when hints come before its answer.
func TestLastRefused(t *testing.T) {
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		io.Copy(io.Discard, r.Body)
	})
	r := newRig(t, Target{URI: srv.URL})
	for host, status := range map[string]int{appHost: http.StatusOK, "other.example": http.StatusMisdirectedRequest} {
		conn := r.dial()
		in := bufio.NewReader(conn)
		if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: "+host+"\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		for err == nil && resp.StatusCode == http.StatusEarlyHints {
			resp, err = http.ReadResponse(in, nil)
		}
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != status || !resp.Close {
			t.Errorf("%s: %s, the last: %v", host, resp.Status, resp.Close)
		}
	}
}

// TestLastRequest: the connection went on behind a request that told a length beside
// chunks. Behind others it still does.
func TestLastRequest(t *testing.T) {
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	r := newRig(t, Target{URI: srv.URL})
	conn := r.dial()
	in := bufio.NewReader(conn)
	host := " HTTP/1.1\r\nHost: " + appHost + "\r\n"
	const body = "\r\n5\r\nhello\r\n0\r\n\r\n"
	for _, q := range []struct {
		text string
		last bool
	}{
		{"POST /chunks" + host + "Transfer-Encoding: chunked\r\n" + body, false},
		{"POST /length" + host + "Content-Length: 5\r\n\r\nhello", false},
		{"POST /large" + host + "Content-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000), false},
		{"GET /none" + host + "\r\n", false},
		{"POST /chunks" + host + "Transfer-Encoding: chunked\r\n" + body, false},
		{"POST /both" + host + "content-length: 3\r\nTransfer-Encoding: chunked\r\n" + body, true},
	} {
		if _, err := io.WriteString(conn, q.text); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%.20s: %v", q.text, err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Close != q.last {
			t.Errorf("%.20s: %s, the last: %v", q.text, resp.Status, resp.Close)
		}
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}
