package webapp

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// field is one of a request's head, as it goes over the wire.
type field struct{ name, value string }

// framed sends one request of raw frames, and returns the answer's status: 0 when the
// stream or the connection was ended in place of one.
func (r *rig) framed(fields []field, ended bool, data ...string) int {
	r.t.Helper()
	conn, err := tls.Dial("tcp", r.addr, &tls.Config{RootCAs: r.ca.pool, ServerName: "wiki." + cluster, NextProtos: []string{"h2"}})
	check(r.t, err)
	defer conn.Close()
	check(r.t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, http2.ClientPreface)
	check(r.t, err)
	f := http2.NewFramer(conn, conn)
	f.AllowIllegalWrites = true
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	check(r.t, f.WriteSettings())
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range fields {
		check(r.t, enc.WriteField(hpack.HeaderField{Name: h.name, Value: h.value}))
	}
	check(r.t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: len(data) == 0 && ended}))
	for i, d := range data {
		if f.WriteData(1, ended && i == len(data)-1, []byte(d)) != nil {
			break // the answer tells why
		}
	}
	for {
		frame, err := f.ReadFrame()
		switch m := frame.(type) {
		case *http2.MetaHeadersFrame:
			status, err := strconv.Atoi(m.PseudoValue("status"))
			check(r.t, err)
			return status
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0
		}
		var stream http2.StreamError
		if err != nil && !errors.As(err, &stream) {
			return 0
		}
	}
}

// TestA71_Frames: one request of HTTP/2 here is one at the application, or none. What
// two readers could take for two things is refused.
func TestA71_Frames(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	var mu sync.Mutex
	var whole []string
	r.serve("wiki", func(w http.ResponseWriter, q *http.Request) {
		b, err := io.ReadAll(q.Body)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			whole = append(whole, q.Method+" "+q.RequestURI+" "+string(b))
		}
	})
	host := "wiki." + cluster
	head := func(method, path string, more ...field) []field {
		return slices.Concat([]field{{":method", method}, {":scheme", "https"}, {":authority", host}, {":path", path}},
			[]field{{"sec-fetch-site", "same-origin"}, {"cookie", sessionCookie + "=" + session}}, more)
	}
	length := func(n string) field { return field{"content-length", n} }
	for name, c := range map[string]struct {
		fields []field
		data   []string
		want   string // at the application; "" for nothing, and no good answer
	}{
		"plain":                 {head("GET", "/one"), nil, "GET /one "},
		"body":                  {head("POST", "/one", length("5")), []string{"he", "llo"}, "POST /one hello"},
		"body without a length": {head("POST", "/one"), []string{"hello"}, "POST /one hello"},
		"TE: trailers":          {head("GET", "/one", field{"te", "trailers"}), nil, "GET /one "},

		"Host too":                  {head("GET", "/", field{"host", host}), nil, ""},
		"another Host":              {head("GET", "/", field{"host", "mail." + cluster}), nil, ""},
		"two authorities":           {append([]field{{":authority", "mail." + cluster}}, head("GET", "/")...), nil, ""},
		"another authority":         {[]field{{":method", "GET"}, {":scheme", "https"}, {":authority", "mail." + cluster}, {":path", "/"}}, nil, ""},
		"userinfo":                  {[]field{{":method", "GET"}, {":scheme", "https"}, {":authority", "evil@" + host}, {":path", "/"}}, nil, ""},
		"no method":                 {head("GET", "/")[1:], nil, ""},
		"two paths":                 {append([]field{{":path", "/two"}}, head("GET", "/")...), nil, ""},
		"a path late":               {append(head("GET", "/")[:3:3], field{"x", "y"}, field{":path", "/"}), nil, ""},
		"no path":                   {head("GET", ""), nil, ""},
		"a path without a slash":    {head("GET", "one"), nil, ""},
		"an address for a path":     {head("GET", "https://mail."+cluster+"/"), nil, ""},
		"a line in the path":        {head("GET", "/ HTTP/1.1\r\nHost: evil\r\n\r\nGET /two"), nil, ""},
		"a space in the path":       {head("GET", "/two HTTP/1.0"), nil, ""},
		"a space in the query":      {head("GET", "/?two HTTP/1.0"), nil, ""},
		"a line in a method":        {head("GET / HTTP/1.1\r\nX:", "/"), nil, ""},
		"a space in a method":       {head("GET /two", "/"), nil, ""},
		"a line in a value":         {head("GET", "/", field{"x", "a\r\nhost: evil"}), nil, ""},
		"a nul in a value":          {head("GET", "/", field{"x", "a\x00b"}), nil, ""},
		"a line in a name":          {head("GET", "/", field{"x: y\r\nhost", "evil"}), nil, ""},
		"a colon in a name":         {head("GET", "/", field{"content-length:", "5"}), nil, ""},
		"capitals in a name":        {head("POST", "/", field{"Content-Length", "5"}), []string{"hello"}, ""},
		"Transfer-Encoding":         {head("POST", "/", field{"transfer-encoding", "chunked"}), []string{"0\r\n\r\nGET /two HTTP/1.1\r\n\r\n"}, ""},
		"Transfer-Encoding, length": {head("POST", "/", length("5"), field{"transfer-encoding", "chunked"}), []string{"0\r\n\r\n"}, ""},
		"Connection":                {head("GET", "/", field{"connection", "close"}), nil, ""},
		"Keep-Alive":                {head("GET", "/", field{"keep-alive", "1"}), nil, ""},
		"Proxy-Connection":          {head("GET", "/", field{"proxy-connection", "close"}), nil, ""},
		"Upgrade":                   {head("GET", "/", field{"upgrade", "h2c"}), nil, ""},
		"TE: gzip":                  {head("GET", "/", field{"te", "gzip"}), nil, ""},
		"TE: trailers and more":     {head("GET", "/", field{"te", "trailers, chunked"}), nil, ""},
		"CONNECT":                   {[]field{{":method", "CONNECT"}, {":authority", host}}, nil, ""},
		"extended CONNECT":          {head("CONNECT", "/", field{":protocol", "websocket"}), nil, ""},
		"less than the length":      {head("POST", "/", length("6")), []string{"hello"}, ""},
		"nothing of the length":     {head("POST", "/", length("6")), nil, ""},
		"more than the length":      {head("POST", "/", length("4")), []string{"hello"}, ""},
		"more, later":               {head("POST", "/", length("4")), []string{"hell", "GET /two HTTP/1.1\r\n\r\n"}, ""},
		"two lengths":               {head("POST", "/", length("5"), length("6")), []string{"hello!"}, ""},
		"a list of lengths":         {head("POST", "/", length("5, 5")), []string{"hello"}, ""},
		"a length with a sign":      {head("POST", "/", length("+5")), []string{"hello"}, ""},
		"a negative length":         {head("POST", "/", length("-5")), []string{"hello"}, ""},
	} {
		mu.Lock()
		whole = nil
		mu.Unlock()
		status := r.framed(c.fields, true, c.data...)
		mu.Lock()
		got := slices.Clone(whole)
		mu.Unlock()
		if c.want == "" && (status/100 == 2 || status/100 == 3 || len(got) > 0) || c.want != "" && (status != 200 || !slices.Equal(got, []string{c.want})) {
			t.Errorf("%s: answered %d, the application has %q", name, status, got)
		}
	}
	for _, line := range r.arrived() {
		if strings.Contains(line, "two") {
			t.Errorf("the agent has seen %q", line)
		}
	}
}

// TestA38_Paths: a path comes to the agent as the browser wrote it; one that
// begins with ours in any spelling that this server reads so goes nowhere.
func TestA38_Paths(t *testing.T) {
	r := newRig(t)
	session := r.know("wiki")
	host := "wiki." + cluster
	ask := func(path string) int {
		return r.framed([]field{{":method", "GET"}, {":scheme", "https"}, {":authority", host}, {":path", path},
			{"sec-fetch-site", "same-origin"}, {"cookie", sessionCookie + "=" + session}}, true)
	}
	for _, path := range []string{
		"/", "//", "//evil.example.com/a", "/a//b", "/a/./b", "/a/../b", "/../../etc/passwd", "/a%2fb", "/%2e%2e/b", "/%2f%2fevil", "/%252e%252e/b",
		"/a%00b", "/a%0d%0ab", "/a;x=1/../b", "/..;/b", "/a%c0%afb", "/?", "/a?b=/../c&d=%zz;e", "/A", "/%41",
		"//.sallyport/callback", "/./.sallyport/callback", "/a/../.sallyport/callback", "/.Sallyport/logout", "/.sallyport.",
	} {
		before := len(r.arrived())
		status := ask(path)
		got := r.arrived()[before:]
		if status != http.StatusOK || len(got) != 1 || got[0] != "wiki GET "+path {
			t.Errorf("%s: %d, arrived %q", path, status, got)
		}
	}
	for _, path := range []string{"/.sallyport", "/.sallyport/", "/.sallyport/x", "/%2esallyport/x", "/.%73allyport/x", "/.sallyport%2fx", "/.sallyport%2Fcallback/..;", "/.sallyport//callback", "/.sallyport/../a", "/.sallyport/logout/"} {
		before := len(r.arrived())
		if status := ask(path); status != http.StatusNotFound || len(r.arrived()) != before {
			t.Errorf("%s: %d, arrived %q", path, status, r.arrived()[before:])
		}
	}
}
