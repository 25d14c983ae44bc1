package preamble

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	proxyproto "github.com/pires/go-proxyproto"
)

func v2(command, family byte, body ...byte) []byte {
	b := append([]byte(proxyV2Sig), command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

func TestA48_Proxy(t *testing.T) {
	four := []byte{192, 0, 2, 1, 198, 51, 100, 1, 0x1f, 0x90, 1, 0xbb}
	src, dst := netip.MustParseAddrPort("192.0.2.1:8080"), netip.MustParseAddrPort("198.51.100.1:443")
	six := append(append(make([]byte, 15), 1), append(make([]byte, 15), 2)...)
	six = append(six, 0, 1, 0, 2)
	tests := []struct {
		name string
		in   []byte
		want Proxy
		need int
		err  error
	}{
		{name: "tcp4", in: []byte("PROXY TCP4 192.0.2.1 198.51.100.1 8080 443\r\nGET"), want: Proxy{Size: 44, Source: src, Destination: dst}},
		{name: "tcp6", in: []byte("PROXY TCP6 ::1 ::2 1 2\r\n"), want: Proxy{Size: 24, Source: netip.MustParseAddrPort("[::1]:1"), Destination: netip.MustParseAddrPort("[::2]:2")}},
		{name: "unknown", in: []byte("PROXY UNKNOWN\r\n"), want: Proxy{Size: 15, Local: true}},
		{name: "unknown with words", in: []byte("PROXY UNKNOWN ffff:: x y\r\n"), want: Proxy{Size: 26, Local: true}},
		{name: "no line yet", in: []byte("PROXY TCP4 192.0.2.1"), need: 21},
		{name: "start", in: []byte("PRO"), need: 15},
		{name: "no carriage return", in: []byte("PROXY TCP4 1.1.1.1 1.1.1.1 1 2\n"), err: ErrMalformed},
		{name: "107 bytes without an end", in: []byte("PROXY UNKNOWN " + strings.Repeat("x", 93)), err: ErrTooLarge},
		{name: "108 bytes", in: []byte("PROXY UNKNOWN " + strings.Repeat("x", 100)), err: ErrTooLarge},
		{name: "two spaces", in: []byte("PROXY  TCP4 1.1.1.1 1.1.1.1 1 2\r\n"), err: ErrMalformed},
		{name: "four as six", in: []byte("PROXY TCP6 1.1.1.1 1.1.1.1 1 2\r\n"), err: ErrMalformed},
		{name: "six as four", in: []byte("PROXY TCP4 ::1 ::1 1 2\r\n"), err: ErrMalformed},
		{name: "zone", in: []byte("PROXY TCP6 fe80::1%lo ::1 1 2\r\n"), err: ErrMalformed},
		{name: "port 65536", in: []byte("PROXY TCP4 1.1.1.1 1.1.1.1 65536 2\r\n"), err: ErrMalformed},
		{name: "port 080", in: []byte("PROXY TCP4 1.1.1.1 1.1.1.1 080 2\r\n"), err: ErrMalformed},
		{name: "port +1", in: []byte("PROXY TCP4 1.1.1.1 1.1.1.1 +1 2\r\n"), err: ErrMalformed},
		{name: "no port", in: []byte("PROXY TCP4 1.1.1.1 1.1.1.1 1 \r\n"), err: ErrMalformed},
		{name: "seven words", in: []byte("PROXY TCP4 1.1.1.1 1.1.1.1 1 2 3\r\n"), err: ErrMalformed},
		{name: "udp", in: []byte("PROXY UDP4 1.1.1.1 1.1.1.1 1 2\r\n"), err: ErrMalformed},

		{name: "v2 tcp4", in: v2(0x21, 0x11, four...), want: Proxy{Size: 28, Source: src, Destination: dst}},
		{name: "v2 tcp6", in: v2(0x21, 0x21, six...), want: Proxy{Size: 52, Source: netip.MustParseAddrPort("[::1]:1"), Destination: netip.MustParseAddrPort("[::2]:2")}},
		{name: "v2 with a tlv", in: v2(0x21, 0x11, append(four, 4, 0, 1, 9)...), want: Proxy{Size: 32, Source: src, Destination: dst}},
		{name: "v2 local", in: v2(0x20, 0x00), want: Proxy{Size: 16, Local: true}},
		{name: "v2 local with an address", in: v2(0x20, 0x11, four...), want: Proxy{Size: 28, Local: true}},
		{name: "v2 local with rubbish", in: v2(0x20, 0x11, 1, 2, 3), want: Proxy{Size: 19, Local: true}},
		{name: "v2 unspec", in: v2(0x21, 0x00, 1, 2, 3), want: Proxy{Size: 19, Local: true}},
		{name: "v2 unix", in: v2(0x21, 0x31, make([]byte, 216)...), want: Proxy{Size: 232, Local: true}},
		{name: "v2 signature", in: []byte(proxyV2Sig), need: 16},
		{name: "v2 header", in: v2(0x21, 0x11, four...)[:16], need: 28},
		{name: "v2 udp", in: v2(0x21, 0x12, four...), err: ErrMalformed},
		{name: "v2 unassigned family", in: v2(0x21, 0x13, four...), err: ErrMalformed},
		{name: "v2 local, unassigned family", in: v2(0x20, 0x40), err: ErrMalformed},
		{name: "v2 version 3", in: v2(0x31, 0x11, four...), err: ErrMalformed},
		{name: "v2 command 2", in: v2(0x22, 0x11, four...), err: ErrMalformed},
		{name: "v2 short address", in: v2(0x21, 0x11, four[:11]...), err: ErrMalformed},
		{name: "v2 cut tlv", in: v2(0x21, 0x11, append(four, 4, 0, 2, 9)...), err: ErrMalformed},
		{name: "v2 4097 bytes", in: v2(0x21, 0x11, make([]byte, 4097)...), err: ErrTooLarge},
		{name: "v2 claims 64 KiB", in: append([]byte(proxyV2Sig), 0x21, 0x11, 0xff, 0xff), err: ErrTooLarge},
		{name: "neither", in: []byte("\x16\x03"), err: ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, need, err := ParseProxy(tt.in)
			if need != tt.need || !errors.Is(err, tt.err) {
				t.Fatalf("need %d, %v; want %d, %v", need, err, tt.need, tt.err)
			}
			if need == 0 && err == nil && got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestAppendProxyV2(t *testing.T) {
	tests := []struct{ src, dst, wantSrc string }{
		{"192.0.2.1:8080", "198.51.100.1:443", "192.0.2.1:8080"},
		{"[2001:db8::1]:8080", "[2001:db8::2]:443", "[2001:db8::1]:8080"},
		{"[::ffff:192.0.2.1]:8080", "198.51.100.1:443", "192.0.2.1:8080"},
		{"[2001:db8::1]:8080", "198.51.100.1:443", "[2001:db8::1]:8080"},
	}
	for _, tt := range tests {
		b := AppendProxyV2(nil, netip.MustParseAddrPort(tt.src), netip.MustParseAddrPort(tt.dst))
		h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Errorf("%s to %s: %v", tt.src, tt.dst, err)
			continue
		}
		if got := h.SourceAddr.String(); got != tt.wantSrc {
			t.Errorf("%s: source %s, want %s", tt.src, got, tt.wantSrc)
		}
		if p, need, err := ParseProxy(b); need != 0 || err != nil || p.Size != len(b) {
			t.Errorf("%s: %+v, %d, %v", tt.src, p, need, err)
		}
	}
	if p, _, err := ParseProxy(AppendProxyV2(nil, netip.AddrPort{}, netip.AddrPort{})); !p.Local || err != nil {
		t.Errorf("without addresses: %+v, %v", p, err)
	}
}

// FuzzProxy holds our reading against go-proxyproto's. What we read it must
// read alike; what it reads and we refuse is one of the cases named here.
func FuzzProxy(f *testing.F) {
	for _, b := range proxySeeds(f) {
		f.Add(b)
	}
	f.Fuzz(checkProxy)
}

// TestRandomProxy is FuzzProxy without coverage, for many more inputs.
func TestRandomProxy(t *testing.T) { mutants(t, proxySeeds(t), checkProxy) }

func proxySeeds(_ testing.TB) [][]byte {
	return [][]byte{
		[]byte("PROXY TCP4 192.0.2.1 198.51.100.1 8080 443\r\nGET"),
		[]byte("PROXY TCP6 ::1 ::ffff:1.2.3.4 1 2\r\n"),
		[]byte("PROXY UNKNOWN x\r\n"),
		v2(0x21, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2, 4, 0, 1, 9),
		v2(0x21, 0x21, append(make([]byte, 36), 1, 0, 2, 'h', '2', 2, 0, 1, 'a')...),
		v2(0x21, 0x31, make([]byte, 216)...),
		v2(0x20, 0x12, 1, 2),
	}
}

func checkProxy(t *testing.T, b []byte) {
	t.Helper()
	p, need, err := ParseProxy(b)
	if need != 0 && (err != nil || need <= len(b)) {
		t.Fatalf("%d bytes: need %d, %v", len(b), need, err)
	}
	r := bufio.NewReaderSize(bytes.NewReader(b), 1<<17)
	h, theirs := proxyproto.Read(r)
	if need != 0 {
		if theirs == nil {
			t.Fatalf("need %d, go-proxyproto read %v", need, h)
		}
		return
	}
	if err != nil {
		if theirs == nil && !stricter(h, b) {
			t.Fatalf("%v, go-proxyproto read %v", err, h)
		}
		return
	}
	if theirs != nil {
		if p.Local && p.Size >= proxyV2Header && b[12] == proxyV2Proxy && b[13] == proxyV2Unspec {
			return // the choice is the receiver's (section 2.2)
		}
		t.Fatalf("%+v, go-proxyproto: %v", p, theirs)
	}
	if read := len(b) - r.Buffered(); read != p.Size {
		t.Fatalf("%d bytes, go-proxyproto %d", p.Size, read)
	}
	if _, err := h.TLVs(); h.Version == 2 && !p.Local && err != nil {
		t.Fatalf("%+v, go-proxyproto: %v", p, err)
	}
	if p.Local {
		if _, tcp := h.SourceAddr.(*net.TCPAddr); tcp && h.Command == proxyproto.PROXY {
			t.Fatalf("local, go-proxyproto %v", h.SourceAddr)
		}
		return
	}
	if s, d := h.SourceAddr.(*net.TCPAddr).AddrPort(), h.DestinationAddr.(*net.TCPAddr).AddrPort(); !sameAddr(s, p.Source) || !sameAddr(d, p.Destination) {
		t.Fatalf("%v to %v, go-proxyproto %v to %v", p.Source, p.Destination, s, d)
	}
}

// stricter names what we refuse and go-proxyproto reads: datagrams, and TLVs
// that are not whole.
func stricter(h *proxyproto.Header, b []byte) bool {
	if h.Version != 2 || h.Command != proxyproto.PROXY {
		return false
	}
	if h.TransportProtocol.IsDatagram() {
		return true
	}
	_, err := h.TLVs()
	return err != nil
}

func sameAddr(a, b netip.AddrPort) bool {
	return a.Addr().Unmap() == b.Addr().Unmap() && a.Port() == b.Port()
}
