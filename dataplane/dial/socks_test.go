package dial

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
)

// talk is a client that has said all it has to say.
type talk struct {
	io.Reader
	answers bytes.Buffer
}

func (c *talk) Write(b []byte) (int, error) { return c.answers.Write(b) }

func TestReadSocks(t *testing.T) {
	for _, c := range []struct {
		name, say, address, answers string
	}{
		{"5 by name", "\x05\x01\x00\x05\x01\x00\x03\x04host\x00\x50", "host:80", "\x05\x00"},
		{"5 by IPv4", "\x05\x02\x02\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x1f\x90", "127.0.0.1:8080", "\x05\x00"},
		{"5 by IPv6", "\x05\x01\x00\x05\x01\x00\x04" + strings.Repeat("\x00", 15) + "\x01\x00\x16", "[::1]:22", "\x05\x00"},
		{"4", "\x04\x01\x00\x50\x0a\x00\x00\x01user\x00", "10.0.0.1:80", ""},
		{"4a", "\x04\x01\x00\x50\x00\x00\x00\x01\x00example.com\x00", "example.com:80", ""},
		{"5 with a password only", "\x05\x01\x02", "", "\x05\xff"},
		{"5 bind", "\x05\x01\x00\x05\x02\x00\x03\x04host\x00\x50", "", "\x05\x00"},
		{"5 without a port", "\x05\x01\x00\x05\x01\x00\x03\x04host\x00\x00", "", "\x05\x00"},
		{"5 odd name", "\x05\x01\x00\x05\x01\x00\x03\x04a\nbc\x00\x50", "", "\x05\x00"},
		{"5 cut", "\x05\x01\x00\x05\x01\x00\x03\x09host", "", "\x05\x00"},
		{"4 bind", "\x04\x02\x00\x50\x0a\x00\x00\x01\x00", "", ""},
		{"4a endless", "\x04\x01\x00\x50\x00\x00\x00\x01\x00" + strings.Repeat("a", 1000), "", ""},
		{"HTTP", "GET / HTTP/1.1\r\n", "", ""}, {"nothing", "", "", ""},
	} {
		in := &talk{Reader: strings.NewReader(c.say + "rest")}
		r, err := ReadSocks(in)
		if (err == nil) != (c.address != "") || r.Address != c.address || in.answers.String() != c.answers {
			t.Errorf("%s: %q, %v, answered %q", c.name, r.Address, err, in.answers.String())
		}
		if err != nil {
			continue
		}
		if rest, _ := io.ReadAll(in); string(rest) != "rest" {
			t.Errorf("%s: %q is left", c.name, rest)
		}
	}
}

// FuzzReadSocks: an address that is read is one that can be dialed, and a client
// that says it by SOCKS 5 again is read the same; what follows is not touched.
func FuzzReadSocks(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x04host\x00\x50rest"))
	f.Add([]byte("\x04\x01\x00\x50\x00\x00\x00\x01\x00example.com\x00"))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x1f\x90"))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &talk{Reader: bytes.NewReader(b)}
		r, err := ReadSocks(in)
		if err != nil {
			return
		}
		host, port, err := net.SplitHostPort(r.Address)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil || n == 0 || host == "" || len(host) > maxSocksName {
			t.Fatalf("%q: %v, %v", r.Address, err, perr)
		}
		again := append([]byte("\x05\x01\x00\x05\x01\x00\x03"), byte(len(host)))
		again = append(append(again, host...), byte(n>>8), byte(n))
		second, err := ReadSocks(&talk{Reader: bytes.NewReader(again)})
		if err != nil || second.Address != r.Address {
			t.Fatalf("%q again: %q, %v", r.Address, second.Address, err)
		}
	})
}
