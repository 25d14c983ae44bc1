package fuzz

import (
	"regexp"
	"testing"

	"github.com/sallyport/sallyport/alpn"
)

// firstBytes is DESIGN's table of first bytes, written a second time, as regular
// expressions over Latin-1: one character a byte.
var firstBytes = map[alpn.Protocol]*regexp.Regexp{
	alpn.TLS:            regexp.MustCompile(`^\x{16}\x{03}`),
	alpn.Data:           regexp.MustCompile(`^SLYP`),
	alpn.SSH:            regexp.MustCompile(`^SSH-`),
	alpn.SSLRequest:     regexp.MustCompile(`^\x{00}\x{00}\x{00}\x{08}\x{04}\x{d2}\x{16}\x{2f}`),
	alpn.GSSENCRequest:  regexp.MustCompile(`^\x{00}\x{00}\x{00}\x{08}\x{04}\x{d2}\x{16}\x{30}`),
	alpn.CancelRequest:  regexp.MustCompile(`^\x{00}\x{00}\x{00}\x{10}\x{04}\x{d2}\x{16}\x{2e}`),
	alpn.StartupMessage: regexp.MustCompile(`(?s)^\x{00}\x{00}..\x{00}\x{03}..`),
	alpn.TPKT:           regexp.MustCompile(`^\x{03}\x{00}`),
	alpn.HTTP:           regexp.MustCompile(`^(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|CONNECT|TRACE) `),
	alpn.ProxyV1:        regexp.MustCompile(`^PROXY `),
	alpn.ProxyV2:        regexp.MustCompile(`^\r\n\r\n\x{00}\r\nQUIT\n`),
}

// longest is the length after which first bytes cannot be undecided.
const longest = 12

// latin1 makes each byte a character.
func latin1(b []byte) string {
	out := make([]rune, len(b))
	for i, c := range b {
		out[i] = rune(c)
	}
	return string(out)
}

// FuzzFirstBytes: the border is the first bytes on the public port; the oracle
// is the table above. There is exactly one answer, or the connection is closed.
func FuzzFirstBytes(f *testing.F) {
	for _, s := range []string{"\x16\x03\x01", "SLYP", "SSH-2.0-x", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "\x00\x00\x00\x08\x04\xd2\x16\x30",
		"\x00\x00\x00\x10\x04\xd2\x16\x2e", "\x00\x00\x00\x29\x00\x03\x00\x00user", "\x03\x00\x00\x13\x0e\xe0", "GET / HTTP/1.1\r\n", "HEAD /", "POST /", "PUT /",
		"PATCH /", "DELETE /", "OPTIONS *", "CONNECT x:1", "TRACE /", "PROXY TCP4 ", "\r\n\r\n\x00\r\nQUIT\n", "PRI * HTTP/2.0", "\x80\x2e\x01", "S", "P", "\x00"} {
		f.Add([]byte(s))
	}
	for _, b := range clientFlights(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, answer, need := alpn.Probe(b)
		text, matches := latin1(b), 0
		for want, re := range firstBytes {
			if !re.MatchString(text) {
				continue
			}
			if matches++; answer != alpn.Yes || p != want {
				t.Fatalf("%q is %v, answered %v %v", b, want, answer, p)
			}
		}
		switch {
		case matches > 1:
			t.Fatalf("%q is %d things", b, matches)
		case matches == 0 && answer == alpn.Yes:
			t.Fatalf("%q answered %v", b, p)
		case answer == alpn.More && (len(b) >= longest || need > longest || need <= len(b)):
			t.Fatalf("%q is undecided until %d", b, need)
		}
		if answer == alpn.No && possible(b) {
			t.Fatalf("%q was refused and could still become something", b)
		}
	})
}

// possible tries to complete b to one of the table's rows.
func possible(b []byte) bool {
	for _, whole := range []string{"\x16\x03", "SLYP", "SSH-", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "\x00\x00\x00\x08\x04\xd2\x16\x30",
		"\x00\x00\x00\x10\x04\xd2\x16\x2e", "\x03\x00", "GET ", "HEAD ", "POST ", "PUT ", "PATCH ", "DELETE ", "OPTIONS ", "CONNECT ", "TRACE ",
		"PROXY ", "\r\n\r\n\x00\r\nQUIT\n"} {
		if len(b) < len(whole) && whole[:len(b)] == string(b) {
			return true
		}
	}
	startup := []byte("\x00\x00\x00\x00\x00\x03\x00\x00")
	if len(b) < len(startup) {
		copy(startup, b)
		for i, c := range b {
			if i != 2 && i != 3 && i < 6 && c != [...]byte{0, 0, 0, 0, 0, 3}[i] {
				return false
			}
		}
		return firstBytes[alpn.StartupMessage].MatchString(latin1(startup))
	}
	return false
}
