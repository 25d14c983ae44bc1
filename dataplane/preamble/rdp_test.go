package preamble

import (
	"errors"
	"testing"
)

// tpkt is a connection request with this variable part.
func tpkt(variable string) []byte {
	n := tpktHeader + x224Fixed + len(variable)
	return append([]byte{3, 0, byte(n >> 8), byte(n), byte(6 + len(variable)), 0xe0, 0, 0, 0, 0, 0}, variable...)
}

func TestRDP(t *testing.T) {
	const nego = "\x01\x00\x08\x00\x0b\x00\x00\x00"
	edit := func(at int, to byte) []byte {
		b := tpkt(nego)
		b[at] = to
		return b
	}
	tests := []struct {
		name      string
		in        []byte
		token     string
		protocols uint32
		need      int
		err       error
	}{
		{name: "mstsc", in: tpkt("Cookie: mstshash=alice\r\n" + nego), token: "Cookie: mstshash=alice", protocols: 11},
		{name: "negotiation alone", in: tpkt(nego), protocols: 11},
		{name: "standard security", in: tpkt("")},
		{name: "token", in: tpkt("Cookie: msts=3640205228.15629.0000\r\n"), token: "Cookie: msts=3640205228.15629.0000"},
		{name: "correlation", in: tpkt("\x01\x08\x08\x00\x0b\x00\x00\x00\x06\x00\x24\x00" + string(make([]byte, 32))), protocols: 11},
		{name: "header", in: []byte{3, 0}, need: 4},
		{name: "half", in: tpkt(nego)[:9], need: 19},
		{name: "short", in: []byte{3, 0, 0, 10}, err: ErrMalformed},
		{name: "large", in: []byte{3, 0, 0xff, 0xff}, err: ErrTooLarge},
		{name: "not a request", in: edit(5, 0xd0), err: ErrMalformed},
		{name: "length indicator", in: edit(4, 1), err: ErrMalformed},
		{name: "destination reference", in: edit(7, 1), err: ErrMalformed},
		{name: "class", in: edit(10, 0x40), err: ErrMalformed},
		{name: "cookie without an end", in: tpkt("Cookie: x"), err: ErrMalformed},
		{name: "negotiation cut", in: tpkt(nego[:7]), err: ErrMalformed},
		{name: "negotiation length", in: edit(13, 9), err: ErrMalformed},
		{name: "bytes behind", in: tpkt(nego + "x"), err: ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, need, err := ParseRDP(tt.in)
			if need != tt.need || !errors.Is(err, tt.err) {
				t.Fatalf("need %d, %v; want %d, %v", need, err, tt.need, tt.err)
			}
			if need == 0 && err == nil && (string(r.Token) != tt.token || r.Protocols != tt.protocols || r.Size != len(tt.in)) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func FuzzRDP(f *testing.F) {
	f.Add(tpkt("Cookie: mstshash=alice\r\n\x01\x00\x08\x00\x0b\x00\x00\x00"))
	f.Add([]byte{3, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, need, err := ParseRDP(b)
		if need != 0 && (err != nil || need <= len(b) || need > rdpMax) {
			t.Fatalf("%d bytes: need %d, %v", len(b), need, err)
		}
		if need == 0 && err == nil && r.Size > len(b) {
			t.Fatalf("read %d of %d bytes", r.Size, len(b))
		}
	})
}
