package alpn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestHello(t *testing.T) {
	var h Hello
	b := hello(t, "Orders.DB.gw.test", "sallyport-db/1", "postgresql")
	need, err := h.Parse(b)
	if need != 0 || err != nil {
		t.Fatalf("Parse = %d, %v", need, err)
	}
	if got := string(h.ServerName()); got != "orders.db.gw.test" {
		t.Errorf("server name %q", got)
	}
	if got := h.Protocols(); !slices.Equal(got, []string{"sallyport-db/1", "postgresql"}) {
		t.Errorf("protocols %q", got)
	}
	if !h.Offers("postgresql") || h.Offers("h2") || h.Offers("") {
		t.Error("Offers does not agree with Protocols")
	}

	// Nothing of one hello is left in the next.
	if _, err := h.Parse(hello(t, "")); err != nil {
		t.Fatal(err)
	}
	if len(h.ServerName()) > 0 || h.Protocols() != nil || h.offers != 0 {
		t.Errorf("left over: %q %q", h.ServerName(), h.Protocols())
	}
}

// TestA33_AnyCut: every way to cut a hello, into packets and into records,
// gives the verdict of the whole.
func TestA33_AnyCut(t *testing.T) {
	hellos := map[string][]byte{
		"go":       hello(t, "orders.db.gw.test", "postgresql"),
		"tls12":    goHello(t, &tls.Config{ServerName: "a.gw.test", MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}),
		"nameless": hello(t, "", "h2", "http/1.1"),
		"sni last": records(handHello(extension{0x0a0a, nil}, alpnExtension("h2"), extension{21, make([]byte, 400)}, sniExtension("last.gw.test")), 1<<14),
		"grease":   records(handHello(extension{0x1a1a, []byte{0}}, sniExtension("g.gw.test"), alpnExtension("\x0a\x0a", "h2"), extension{0xfafa, nil}), 1<<14),
		"16 KiB":   records(handHello(extension{21, make([]byte, 16<<10)}, sniExtension("far.gw.test"), alpnExtension("h2")), 1<<14),
	}
	for name, whole := range hellos {
		t.Run(name, func(t *testing.T) {
			var want, got Hello
			if need, err := want.Parse(whole); need != 0 || err != nil {
				t.Fatalf("whole: %d, %v", need, err)
			}
			msg := unrecord(whole)
			for cut := 1; cut < len(msg); cut++ {
				b := append(records(msg[:cut], 1<<14), records(msg[cut:], 1<<14)...)
				if need, err := got.Parse(b); need != 0 || err != nil || !same(&got, &want) {
					t.Fatalf("two records, cut at %d: %d, %v, %q", cut, need, err, got.ServerName())
				}
			}
			for _, size := range []int{1, 2, 3, 5, 16, 255, 1000} {
				b := records(msg, size)
				if len(b) > MaxHello {
					continue
				}
				steps := feed(t, &got, b)
				if !same(&got, &want) {
					t.Fatalf("records of %d: %q", size, got.ServerName())
				}
				if steps > 64 {
					t.Errorf("records of %d: %d looks", size, steps)
				}
			}
			var prefix Hello
			for n := range whole[:min(len(whole), 3000)] {
				need, err := prefix.Parse(whole[:n])
				if err != nil || need <= n || need > len(whole) {
					t.Fatalf("%d of %d bytes: need %d, %v", n, len(whole), need, err)
				}
			}
		})
	}
}

// feed shows the parser exactly as many bytes as it asks for, and returns how
// often it had to look.
func feed(t *testing.T, h *Hello, b []byte) (looks int) {
	t.Helper()
	for n := 1; ; looks++ {
		need, err := h.Parse(b[:n])
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if need == 0 {
			return looks
		}
		if need <= n || need > len(b) {
			t.Fatalf("has %d of %d, needs %d", n, len(b), need)
		}
		n = need
	}
}

func unrecord(b []byte) (message []byte) {
	for len(b) > 0 {
		n := int(b[3])<<8 | int(b[4])
		message = append(message, b[recordHeader:recordHeader+n]...)
		b = b[recordHeader+n:]
	}
	return message
}

func same(a, b *Hello) bool {
	return bytes.Equal(a.ServerName(), b.ServerName()) && a.Address() == b.Address() && slices.Equal(a.Protocols(), b.Protocols())
}

func TestHelloRefused(t *testing.T) {
	one := func(extensions ...extension) []byte { return records(handHello(extensions...), 1<<14) }
	edit := func(f func(b []byte) []byte) []byte { return f(one(sniExtension("a.gw.test"))) }
	many := make([]extension, maxExtensions+1)
	for i := range many {
		many[i].kind = uint16(1000 + i)
	}
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"not a handshake", []byte{23, 3, 3, 0, 1, 0}, FaultRecord},
		{"version 2", []byte{22, 2, 0, 0, 1, 1}, FaultRecord},
		{"empty record", []byte{22, 3, 1, 0, 0}, FaultRecord},
		{"record of 2^14+1", []byte{22, 3, 1, 0x40, 1}, FaultRecord},
		{"server hello", []byte{22, 3, 1, 0, 4, 2}, FaultRecord},
		{"alert in between", append(records(message(hello(t, "a.gw.test"))[:50], 50), 21, 3, 1, 0, 2, 1, 0), FaultRecord},
		{"message of 16 MiB", []byte{22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}, FaultLarge},
		{"message of 64 KiB", []byte{22, 3, 1, 0x40, 0, 1, 1, 0, 0}, FaultLarge},
		{"64 KiB with its headers", []byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}, FaultLarge},
		{"64 KiB with the next record's header", []byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xf5}, FaultLarge},
		{"128 KiB, its length cut off", []byte{22, 3, 1, 0, 2, 1, 2}, FaultLarge},
		{"empty message", []byte{22, 3, 1, 0, 4, 1, 0, 0, 0}, FaultSyntax},
		{"short message", []byte{22, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3}, FaultSyntax},
		{"session id of 33 bytes", edit(func(b []byte) []byte {
			body := unrecord(b)[handshakeHeader:]
			body = slices.Concat(body[:2+32], vec8(make([]byte, 33)), body[2+32+1:])
			return records(append([]byte{1, 0, 0, byte(len(body))}, body...), 1<<14)
		}), FaultSyntax},
		{"bytes after the extensions", edit(func(b []byte) []byte {
			m := append(message(b), 0)
			m[3]++
			return records(m, 1<<14)
		}), FaultSyntax},
		{"two names", one(sniExtension("a.gw.test", "b.gw.test")), FaultSyntax},
		{"no name in the list", one(extension{0, vec16(nil)}), FaultSyntax},
		{"empty extension", one(extension{0, nil}), FaultSyntax},
		{"empty name", one(sniExtension("")), FaultSyntax},
		{"bytes after the list", one(extension{0, append(sniExtension("a.gw.test").data, 0)}), FaultSyntax},
		{"two sni extensions", one(sniExtension("a.gw.test"), sniExtension("b.gw.test")), FaultSyntax},
		{"two alpn extensions", one(alpnExtension("h2"), alpnExtension("sallyport-ssh/1")), FaultSyntax},
		{"two of an unknown extension", one(extension{999, nil}, extension{999, nil}), FaultSyntax},
		{"129 extensions", one(many...), FaultLarge},
		{"empty alpn list", one(extension{16, vec16(nil)}), FaultSyntax},
		{"empty id", one(alpnExtension("h2", "")), FaultSyntax},
		{"id cut off", one(extension{16, vec16([]byte{5, 'h', '2'})}), FaultSyntax},
		{"33 ids", one(alpnExtension(strings.Split(strings.Repeat("x,", 32)+"x", ",")...)), FaultLarge},
		{"513 bytes of ids", one(alpnExtension(strings.Repeat("a", 255), strings.Repeat("b", 254), "c")), FaultLarge},
		{"600 bytes of ids", one(alpnExtension(strings.Repeat("a", 255), strings.Repeat("b", 255), strings.Repeat("c", 90))), FaultLarge},
		{"pre_shared_key before the end", one(extension{41, []byte{0}}, sniExtension("a.gw.test")), FaultSyntax},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var h Hello
			need, err := h.Parse(tt.in)
			if !errors.Is(err, tt.want) || need != 0 {
				t.Errorf("Parse = %d, %v; want %v", need, err, tt.want)
			}
		})
	}
}

// TestA34_ServerName: every way to write a name is the plain one, no name, or refused.
func TestA34_ServerName(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	tests := []struct {
		sni     string
		want    string
		address bool
		err     error
	}{
		{sni: "a.gw.test", want: "a.gw.test"},
		{sni: "A.GW.Test", want: "a.gw.test"},
		{sni: "localhost", want: "localhost"},
		{sni: "_x.gw.test", want: "_x.gw.test"},
		{sni: "xn--bcher-kva.gw.test", want: "xn--bcher-kva.gw.test"}, // never decoded
		{sni: "1a.gw.test", want: "1a.gw.test"},
		{sni: "3com.4", err: FaultName},
		{sni: label63 + ".gw.test", want: label63 + ".gw.test"},
		{sni: strings.Repeat("a.", 126) + "b", want: strings.Repeat("a.", 126) + "b"},
		{sni: strings.Repeat("a.", 127) + "b", err: FaultName},
		{sni: label63 + "a.gw.test", err: FaultName},
		{sni: "a.gw.test.", err: FaultName},
		{sni: ".", err: FaultName},
		{sni: ".gw.test", err: FaultName},
		{sni: "a..gw.test", err: FaultName},
		{sni: "a.gw.test\x00", err: FaultName},
		{sni: "a\x00.gw.test", err: FaultName},
		{sni: "a.gw.test ", err: FaultName},
		{sni: "*.gw.test", err: FaultName},
		{sni: "bücher.gw.test", err: FaultName},
		{sni: "a\u212a.gw.test", err: FaultName}, // KELVIN SIGN folds to k
		{sni: "a。gw.test", err: FaultName},
		{sni: "-a.gw.test", err: FaultName},
		{sni: "a-.gw.test", err: FaultName},
		{sni: "a.gw.test-", err: FaultName},
		{sni: "a/b.gw.test", err: FaultName},
		{sni: "a.gw.test:443", err: FaultName},
		{sni: "127.0.0.1", address: true},
		{sni: "::1", address: true},
		{sni: "2001:db8::1", address: true},
		{sni: "::ffff:10.0.0.1", address: true},
		{sni: "[::1]", err: FaultName},
		{sni: "fe80::1%eth0", err: FaultName},
		{sni: "::1.", err: FaultName},
		{sni: "127.0.0.1.", err: FaultName},
		{sni: "127.1", err: FaultName},
		{sni: "127.0.0.01", err: FaultName},
		{sni: "256.0.0.1", err: FaultName},
		{sni: "1.2.3.4.5", err: FaultName},
		{sni: "2130706433", err: FaultName},
	}
	for _, tt := range tests {
		t.Run(tt.sni, func(t *testing.T) {
			var h Hello
			_, err := h.Parse(records(handHello(sniExtension(tt.sni)), 1<<14))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err == nil && (string(h.ServerName()) != tt.want || h.Address() != tt.address) {
				t.Errorf("name %q, address %v; want %q, %v", h.ServerName(), h.Address(), tt.want, tt.address)
			}
			if got, ok := NormalName(tt.sni); ok != (tt.err == nil && !tt.address) || got != tt.want {
				t.Errorf("NormalName = %q, %v", got, ok)
			}
		})
	}
}

func TestHelloOtherNameTypes(t *testing.T) {
	list := append([]byte{7}, vec16([]byte("not a host"))...)
	list = append(list, 0)
	list = append(list, vec16([]byte("a.gw.test"))...)
	var h Hello
	if _, err := h.Parse(records(handHello(extension{0, vec16(list)}), 1<<14)); err != nil {
		t.Fatal(err)
	}
	if string(h.ServerName()) != "a.gw.test" {
		t.Errorf("name %q", h.ServerName())
	}
}

// TestA146_HelloMemory: what a length field claims is not what is allocated.
func TestA146_HelloMemory(t *testing.T) {
	var h Hello
	claim := []byte{22, 3, 1, 0x40, 0, 1, 0, 0xf0, 0}
	if n := testing.AllocsPerRun(100, func() { _, _ = h.Parse(claim) }); n != 0 || cap(h.whole) > len(claim) {
		t.Errorf("%v allocations, a buffer of %d", n, cap(h.whole))
	}
}

func TestAllocations(t *testing.T) {
	table, err := NewTable("gw.test", []Match{{SNI: []string{"shop.example.com"}, ALPN: []string{"h2"}}, {SNI: []string{"*.example.com"}}})
	if err != nil {
		t.Fatal(err)
	}
	msg := message(hello(t, "orders.db.gw.test", "postgresql"))
	tests := map[string][]byte{
		"resource":   hello(t, "orders.db.gw.test", "sallyport-db/1", "postgresql"),
		"web":        hello(t, "gw.test", "h2", "http/1.1"),
		"address":    records(handHello(sniExtension("127.0.0.1")), 1<<14),
		"static":     hello(t, "shop.example.com", "h2"),
		"wildcard":   hello(t, "other.example.com", "h2"),
		"unknown":    hello(t, "other.test", "h2"),
		"fragmented": records(msg, 100), // after the first one
	}
	for name, b := range tests {
		var h Hello
		_, _ = h.Parse(b)
		got := testing.AllocsPerRun(100, func() {
			if p, _, _ := Probe(b); p != TLS {
				t.Fatal(p)
			}
			if need, err := h.Parse(b); need != 0 || err != nil {
				t.Fatal(need, err)
			}
			table.Route(&h)
		})
		if got != 0 {
			t.Errorf("%s: %v allocations, want 0", name, got)
		}
	}
}

// FuzzHello: no input breaks the parser; the verdict depends on the message
// alone, not on how it was cut.
func FuzzHello(f *testing.F) {
	f.Add(hello(f, "orders.db.gw.test", "postgresql"), uint16(7))
	f.Add(hello(f, ""), uint16(100))
	f.Add(records(handHello(sniExtension("127.0.0.1"), alpnExtension("h2", "\x0a\x0a")), 9), uint16(1))
	f.Add(records(handHello(extension{41, nil}), 1<<14), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		var h, again Hello
		need, err := h.Parse(b)
		if need != 0 && (err != nil || need <= len(b) || need > MaxHello) {
			t.Fatalf("%d bytes: need %d, %v", len(b), need, err)
		}
		if n := int(cut); n < len(b) {
			part, partErr := again.Parse(b[:n])
			if partErr != nil && !errors.Is(err, partErr) {
				t.Fatalf("refused at %d bytes with %v, whole %v", n, partErr, err)
			}
			if part == 0 && partErr == nil && (need != 0 || err != nil || !same(&h, &again)) {
				t.Fatalf("read at %d bytes, whole: %d, %v", n, need, err)
			}
		}
		if need != 0 || err != nil || cut == 0 {
			return
		}
		msg := unrecordHello(b)
		other := records(msg, int(cut)%(1<<14)+1)
		if len(other) > MaxHello {
			return
		}
		if n, err := again.Parse(other); n != 0 || err != nil || !same(&h, &again) {
			t.Fatalf("recorded anew by %d: %d, %v", cut, n, err)
		}
	})
}

// unrecordHello is unrecord for bytes that go on after the hello.
func unrecordHello(b []byte) []byte {
	var msg []byte
	for len(msg) < handshakeHeader || len(msg) < handshakeHeader+(int(msg[1])<<16|int(msg[2])<<8|int(msg[3])) {
		n := int(b[3])<<8 | int(b[4])
		n = min(n, len(b)-recordHeader)
		msg = append(msg, b[recordHeader:recordHeader+n]...)
		b = b[recordHeader+n:]
	}
	return msg[:handshakeHeader+(int(msg[1])<<16|int(msg[2])<<8|int(msg[3]))]
}

func BenchmarkHello(b *testing.B) {
	table, err := NewTable("gw.test", nil)
	if err != nil {
		b.Fatal(err)
	}
	in := hello(b, "orders.db.gw.test", "postgresql")
	var h Hello
	b.ReportAllocs()
	for b.Loop() {
		Probe(in)
		if _, err := h.Parse(in); err != nil {
			b.Fatal(err)
		}
		table.Route(&h)
	}
}
