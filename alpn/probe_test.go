package alpn

import "testing"

func TestProbe(t *testing.T) {
	tests := []struct {
		in     string
		want   Protocol
		answer Answer
		need   int
	}{
		{"", Unknown, More, 2},
		{"\x16", Unknown, More, 2},
		{"\x16\x03", TLS, Yes, 0},
		{"\x16\x03\x01\x02\x00", TLS, Yes, 0},
		{"\x16\x02", Unknown, No, 0},
		{"\x80\x2e\x01", Unknown, No, 0}, // SSLv2
		{"SLYP", Data, Yes, 0},
		{"SLY", Unknown, More, 4},
		{"SLYX", Unknown, No, 0},
		{"SSH-2.0-OpenSSH_9.2", SSH, Yes, 0},
		{"S", Unknown, More, 4},
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", SSLRequest, Yes, 0},
		{"\x00\x00\x00\x08\x04\xd2\x16\x30", GSSENCRequest, Yes, 0},
		{"\x00\x00\x00\x08\x04\xd2\x16\x31", Unknown, No, 0},
		{"\x00\x00\x00\x10\x04\xd2\x16\x2e", CancelRequest, Yes, 0},
		{"\x00\x00\x00\x10\x04\xd2\x16", Unknown, More, 8},
		{"\x00\x00\x00\x10\x04\xd2\x16\x2f", Unknown, No, 0},
		{"\x00\x00\x00\x29\x00\x03\x00\x00user", StartupMessage, Yes, 0},
		{"\x00\x00\x00\x29\x00\x03\x00\x02user", StartupMessage, Yes, 0},
		{"\x00\x00\x00\x29\x00\x02\x00\x00", Unknown, No, 0}, // PostgreSQL 2.0
		{"\x00\x01\x00\x29\x00\x03\x00\x00", Unknown, No, 0},
		{"\x03\x00\x00\x13\x0e\xe0", TPKT, Yes, 0},
		{"\x03", Unknown, More, 2},
		{"GET / HTTP/1.1\r\n", HTTP, Yes, 0},
		{"P", Unknown, More, 4},
		{"PU", Unknown, More, 4},
		{"PRI * HTTP/2.0", Unknown, No, 0},
		{"get / HTTP/1.1", Unknown, No, 0},
		{"GETX", Unknown, No, 0},
		{"PROXY TCP4 ", ProxyV1, Yes, 0},
		{"PROXY", Unknown, More, 6},
		{"PROXYX", Unknown, No, 0},
		{"\r\n\r\n\x00\r\nQUIT\n", ProxyV2, Yes, 0},
		{"\r\n\r\n", Unknown, More, 12},
		{"\r\nGET / ", Unknown, No, 0},
		{"\x01\x02\x03", Unknown, No, 0},
		{"?", Unknown, No, 0},
		{"\x00\x00??", Unknown, More, 8},
	}
	for _, tt := range tests {
		p, a, need := Probe([]byte(tt.in))
		if p != tt.want || a != tt.answer || need != tt.need {
			t.Errorf("Probe(%q) = %v, %v, %d; want %v, %v, %d", tt.in, p, a, need, tt.want, tt.answer, tt.need)
		}
	}
}

// TestProbeRows: each row of the table of first bytes is undecided until its
// pattern is whole, decided from then on whatever follows, and something else,
// or nothing, with any of its bytes another.
func TestProbeRows(t *testing.T) {
	rows := []struct {
		is      Protocol
		pattern string // '?' is any byte
	}{
		{TLS, "\x16\x03"},
		{Data, "SLYP"},
		{SSH, "SSH-"},
		{SSLRequest, "\x00\x00\x00\x08\x04\xd2\x16\x2f"},
		{GSSENCRequest, "\x00\x00\x00\x08\x04\xd2\x16\x30"},
		{CancelRequest, "\x00\x00\x00\x10\x04\xd2\x16\x2e"},
		{StartupMessage, "\x00\x00?\x29\x00\x03\x00?"},
		{TPKT, "\x03\x00"},
		{HTTP, "GET "}, {HTTP, "HEAD "}, {HTTP, "POST "}, {HTTP, "PUT "}, {HTTP, "PATCH "}, {HTTP, "DELETE "}, {HTTP, "OPTIONS "},
		{HTTP, "CONNECT "}, {HTTP, "TRACE "},
		{ProxyV1, "PROXY "},
		{ProxyV2, "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"},
	}
	if len(rows) != len(first) {
		t.Errorf("%d rows are tested, there are %d", len(rows), len(first))
	}
	for _, row := range rows {
		b := []byte(row.pattern)
		for n := range b {
			if p, a, need := Probe(b[:n]); a != More || p != Unknown || need <= n || need > len(b) {
				t.Errorf("%q: %v, %v, %d", b[:n], p, a, need)
			}
		}
		for _, more := range []string{"", "x", "\x00\x00\x00\x00", "\x16\x03\x01"} {
			if p, a, need := Probe(append(b[:len(b):len(b)], more...)); a != Yes || p != row.is || need != 0 {
				t.Errorf("%q and %q: %v, %v, %d", b, more, p, a, need)
			}
		}
		for i := range b {
			for other := range 256 {
				changed := []byte(row.pattern)
				changed[i] = byte(other)
				p, a, _ := Probe(changed)
				if same := b[i] == byte(other) || b[i] == '?' || row.is == StartupMessage && (i == 3 || i == 6); same != (p == row.is && a == Yes) {
					t.Errorf("%q: %v, %v", changed, p, a)
				}
			}
		}
	}
}

// TestProbeRowsDisjoint holds what the table's comment promises.
func TestProbeRowsDisjoint(t *testing.T) {
	for i, x := range first {
		for _, y := range first[i+1:] {
			n := min(len(x.pattern), len(y.pattern))
			clash := true
			for k := range n {
				a, b := x.pattern[k], y.pattern[k]
				if a != b && a != '?' && b != '?' {
					clash = false
				}
			}
			if clash {
				t.Errorf("%q and %q match the same bytes", x.pattern, y.pattern)
			}
		}
	}
}

func TestProtocolNames(t *testing.T) {
	for p := range protocols {
		if p.String() == "" {
			t.Errorf("protocol %d has no name", p)
		}
	}
}

// FuzzProbe: an answer is final, and more is asked for only when it can help.
func FuzzProbe(f *testing.F) {
	for _, row := range first {
		f.Add([]byte(row.pattern))
		f.Add([]byte(row.pattern[:len(row.pattern)-1]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, answer, need := Probe(b)
		if answer == More && need <= len(b) {
			t.Fatalf("Probe(%q) asks for %d bytes and has %d", b, need, len(b))
		}
		for n := range b {
			p, a, _ := Probe(b[:n])
			if a == More {
				continue
			}
			if p != whole || a != answer {
				t.Fatalf("Probe(%q) = %v, %v but with more bytes %v, %v", b[:n], p, a, whole, answer)
			}
			return
		}
	})
}

func BenchmarkProbe(b *testing.B) {
	for _, in := range []string{"\x16\x03\x01\x02\x00\x01", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "zzzzzzzzzzzz"} {
		b.Run(in[:2], func(b *testing.B) {
			bytes := []byte(in)
			b.ReportAllocs()
			for b.Loop() {
				Probe(bytes)
			}
		})
	}
}
