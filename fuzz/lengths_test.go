package fuzz

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/preamble"
)

// TestA146_Lengths: what a stranger's length field claims is neither allocated
// nor waited for beyond the border's own bound.
func TestA146_Lengths(t *testing.T) {
	var hello alpn.Hello
	parseHello := func(b []byte) (int, error) { return hello.Parse(b) }
	parseProxy := func(b []byte) (int, error) { _, need, err := preamble.ParseProxy(b); return need, err }
	parsePostgres := func(b []byte) (int, error) { _, need, err := preamble.ParsePostgres(b); return need, err }
	parseRDP := func(b []byte) (int, error) { _, need, err := preamble.ParseRDP(b); return need, err }
	parseHTTP := func(b []byte) (int, error) { _, need, err := preamble.ParseHTTP(b); return need, err }
	const sig = "\r\n\r\n\x00\r\nQUIT\n"
	tests := []struct {
		name  string
		parse func([]byte) (need int, err error)
		claim string
		most  int // that may be asked for; 0: it must be refused
	}{
		{"hello of 16 MiB", parseHello, "\x16\x03\x01\x40\x00\x01\xff\xff\xff", 0},
		{"hello of 60 KiB", parseHello, "\x16\x03\x01\x40\x00\x01\x00\xf0\x00", alpn.MaxHello},
		{"hello of 60 KiB, in small records", parseHello, "\x16\x03\x01\x00\x02\x01\x00\x16\x03\x01\x00\x02\xf0\x00", alpn.MaxHello},
		{"record of 64 KiB", parseHello, "\x16\x03\x01\xff\xff\x01", 0},
		{"proxy v2 of 64 KiB", parseProxy, sig + "\x21\x11\xff\xff", 0},
		{"proxy v2 of 4 KiB", parseProxy, sig + "\x21\x11\x10\x00", 16 + 4096},
		{"proxy v1 without an end", parseProxy, "PROXY TCP4 " + strings.Repeat("1", 95), 107},
		{"proxy v1 beyond its end", parseProxy, "PROXY TCP4 " + strings.Repeat("1", 96), 0},
		{"postgres of 4 GiB", parsePostgres, "\xff\xff\xff\xff\x00\x03\x00\x00", 0},
		{"postgres of 2 GiB", parsePostgres, "\x80\x00\x00\x00\x00\x03\x00\x00", 0},
		{"postgres of 10,000 bytes", parsePostgres, "\x00\x00\x27\x10\x00\x03\x00\x00", 10_000},
		{"cancel request of 1 GiB", parsePostgres, "\x40\x00\x00\x00\x04\xd2\x16\x2e", 0},
		{"rdp of 64 KiB", parseRDP, "\x03\x00\xff\xff\xff\xe0", 0},
		{"rdp of 259 bytes", parseRDP, "\x03\x00\x01\x03\xfe\xe0", 259},
		{"http without an end", parseHTTP, "GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n", 8 << 10},
		{"http beyond its end", parseHTTP, "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 8<<10), 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := []byte(tt.claim)
			need, err := tt.parse(in)
			if tt.most == 0 && err == nil || tt.most > 0 && (err != nil || need <= len(in) || need > tt.most) {
				t.Errorf("needs %d, %v; may ask for %d", need, err, tt.most)
			}
			if n := testing.AllocsPerRun(100, func() { _, _ = tt.parse(in) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}
