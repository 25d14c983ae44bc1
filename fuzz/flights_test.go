package fuzz

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/preamble"
)

// clientFlights are the captures of TestCapture, by file name. A seed that has
// gone must not pass in silence.
func clientFlights(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(flightDir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures in %s: %v", flightDir, err)
	}
	out := map[string][]byte{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(file)] = b
	}
	return out
}

// TestClientFlights: what real clients send first is what we take it for.
func TestClientFlights(t *testing.T) {
	want := map[string]string{ // by client, what it says; regular expressions
		`curl-.*-https`:         `tls shop\.example\.com h2,http/1\.1`,
		`git-.*`:                `tls localhost h2,http/1\.1`,
		`wget-.*`:               `tls localhost `,
		`java-.*`:               `tls  `, // no name without a dot
		`gnutls-cli-.*`:         `tls shop\.example\.com h2`,
		`node-.*`:               `tls shop\.example\.com h2,http/1\.1`,
		`openssl-.*-tls13`:      `tls orders\.db\.gw\.test sallyport-db/1,postgresql`,
		`openssl-.*-tls12`:      `tls shop\.example\.com h2,http/1\.1`,
		`openssl-.*-nameless`:   `tls  `,
		`openssl-.*-many`:       `tls shop\.example\.com imap`,
		`psql-15.*-hello`:       `tls orders\.db\.gw\.test `,
		`mariadb-.*-hello`:      `tls  `,
		`ssh-.*-banner`:         `ssh`,
		`psql-.*-sslrequest`:    `pg_ssl`,
		`psql-.*-startup`:       `pg_startup alice orders`,
		`psql-.*-cancel`:        `pg_cancel 70001 1020304`,
		`curl-.*-http`:          `http 127\.0\.0\.1:\d+ /a\?b=c`,
		`curl-.*-http-put`:      `http 127\.0\.0\.1:\d+ /capture_test\.go`,
		`curl-.*-h2c`:           `no`, // HTTP/2 in clear asks for nothing that a redirect could answer
		`curl-.*-proxy-v1`:      `proxy_v1 127\.0\.0\.1, tls  h2,http/1\.1`,
		`haproxy-.*-proxy-v1`:   `proxy_v1 127\.0\.0\.1, ssh`,
		`haproxy-.*-v2(-tlvs)?`: `proxy_v2 127\.0\.0\.1, ssh`,
		`haproxy-.*-v2-local`:   `proxy_v2 local`,
		`xfreerdp-.*-cookie`:    `tpkt Cookie: mstshash=alice 3`, // TLS or CredSSP
		`xfreerdp-.*-standard`:  `tpkt Cookie: mstshash=alice 0`, // no negotiation
		`xfreerdp-.*-token`:     `tpkt tsv://MS Terminal Services Plugin\.1\.Sessions 3`,
	}
	flights := clientFlights(t)
	for client, b := range flights {
		got, rows := story(t, b), 0
		for pattern, w := range want {
			if !regexp.MustCompile(`^` + pattern + `$`).MatchString(client) {
				continue
			}
			if rows++; !regexp.MustCompile(`^` + w + `$`).MatchString(got) {
				t.Errorf("%s says %q, want %q", client, got, w)
			}
		}
		if rows != 1 {
			t.Errorf("%s has %d rows", client, rows)
		}
	}
	for pattern := range want {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(flights)), regexp.MustCompile(`^`+pattern+`$`).MatchString) {
			t.Errorf("no capture matches %s", pattern)
		}
	}
}

// story reads a flight to its end, one thing after the other.
func story(t *testing.T, b []byte) string {
	t.Helper()
	var said []string
	for len(b) > 0 {
		is, answer, _ := alpn.Probe(b)
		if answer != alpn.Yes {
			return strings.Join(append(said, answer.String()), ", ")
		}
		words, size, err := read(is, b)
		if err != nil {
			t.Errorf("%v: %v", is, err)
			break
		}
		said, b = append(said, is.String()+words), b[size:]
	}
	return strings.Join(said, ", ")
}

// read is what the parser of one thing says.
func read(is alpn.Protocol, b []byte) (words string, size int, err error) {
	var need int
	switch is {
	case alpn.TLS:
		h := &alpn.Hello{}
		need, err = h.Parse(b)
		words, size = fmt.Sprintf(" %s %s", h.ServerName(), strings.Join(h.Protocols(), ",")), len(b)
	case alpn.ProxyV1, alpn.ProxyV2:
		var p preamble.Proxy
		p, need, err = preamble.ParseProxy(b)
		if words, size = " "+p.Source.Addr().String(), p.Size; p.Local {
			words = " local"
		}
	case alpn.SSLRequest, alpn.GSSENCRequest, alpn.CancelRequest, alpn.StartupMessage:
		var p preamble.Postgres
		p, need, err = preamble.ParsePostgres(b)
		size = p.Size
		switch p.Kind {
		case preamble.PostgresCancel:
			words = fmt.Sprintf(" %x %x", p.PID, p.Key)
		case preamble.PostgresStartup:
			user, _ := p.Parameter("user")
			database, _ := p.Parameter("database")
			words = " " + user + " " + database
		}
	case alpn.HTTP:
		var h preamble.HTTP
		h, need, err = preamble.ParseHTTP(b)
		words, size = fmt.Sprintf(" %s %s", h.Host, h.Target), len(b)
	case alpn.TPKT:
		var r preamble.RDP
		r, need, err = preamble.ParseRDP(b)
		words, size = fmt.Sprintf(" %s %x", r.Token, r.Protocols), r.Size
	default:
		size = len(b)
	}
	if err == nil && need > 0 {
		err = errShort
	}
	return words, size, err
}
