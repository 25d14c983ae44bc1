package preamble

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
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
		{name: "longest", in: tpkt("Cookie: " + strings.Repeat("x", 238) + "\r\n"), token: "Cookie: " + strings.Repeat("x", 238)},
		{name: "one byte longer", in: tpkt("Cookie: " + strings.Repeat("x", 239) + "\r\n"), err: ErrTooLarge},
		{name: "correlation not announced", in: tpkt("\x01\x00\x08\x00\x0b\x00\x00\x00\x06\x00\x24\x00" + string(make([]byte, 32))), err: ErrMalformed},
		{name: "correlation announced and missing", in: tpkt("\x01\x08\x08\x00\x0b\x00\x00\x00"), err: ErrMalformed},
		{name: "the specification's example", in: []byte("\x03\x00\x00\x2c\x27\xe0\x00\x00\x00\x00\x00Cookie: mstshash=eltons\r\n\x01\x00\x08\x00\x00\x00\x00\x00"), token: "Cookie: mstshash=eltons"},
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

// twinRDP reads a connection request as a person does, field by field, from a
// stream (MS-RDPBCGR, section 2.2.1.1).
func twinRDP(in []byte) (r RDP, ok bool) {
	s := bytes.NewReader(in)
	next := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(s, b); err != nil {
			return make([]byte, n) // zeros are right nowhere that matters
		}
		return b
	}
	if header := next(4); header[0] == 3 && header[1] == 0 {
		r.Size = int(header[2])*256 + int(header[3])
	}
	li := int(next(1)[0])
	if li > 254 || li < 6 || r.Size != 5+li || r.Size > len(in) {
		return r, false
	}
	s = bytes.NewReader(in[5:r.Size])
	fixed := next(6)
	if fixed[0] != 0xe0 || fixed[1] != 0 || fixed[2] != 0 || fixed[5] != 0 {
		return r, false
	}
	if first, err := s.ReadByte(); err == nil {
		_ = s.UnreadByte()
		if first != 1 {
			var text strings.Builder
			for !strings.HasSuffix(text.String(), "\r\n") {
				c, err := s.ReadByte()
				if err != nil {
					return r, false
				}
				text.WriteByte(c)
			}
			r.Token = []byte(strings.TrimSuffix(text.String(), "\r\n"))
		}
	}
	if s.Len() == 0 {
		return r, true
	}
	request := next(8)
	if request[0] != 1 || request[2] != 8 || request[3] != 0 {
		return r, false
	}
	r.Negotiates, r.Flags, r.Protocols = true, request[1], binary.LittleEndian.Uint32(request[4:])
	if r.Flags&8 != 0 {
		if info := next(36); info[0] != 6 || info[2] != 36 || info[3] != 0 {
			return r, false
		}
	}
	return r, s.Len() == 0
}

// FuzzRDP holds our reading against the twin's.
func FuzzRDP(f *testing.F) {
	for _, b := range rdpSeeds(f) {
		f.Add(b)
	}
	f.Fuzz(checkRDP)
}

// TestRandomRDP is FuzzRDP without coverage, for many more inputs.
func TestRandomRDP(t *testing.T) { mutants(t, rdpSeeds(t), checkRDP) }

func rdpSeeds(t testing.TB) [][]byte {
	t.Helper()
	files, err := filepath.Glob("../../fuzz/testdata/first/xfreerdp-*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	seeds := [][]byte{
		tpkt("Cookie: mstshash=alice\r\n\x01\x00\x08\x00\x0b\x00\x00\x00"),
		tpkt("\x01\x08\x08\x00\x0b\x00\x00\x00\x06\x00\x24\x00" + string(make([]byte, 32))),
		tpkt("\r\n"),
		{3, 0, 0xff, 0xff},
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	return seeds
}

func checkRDP(t *testing.T, b []byte) {
	t.Helper()
	r, need, err := ParseRDP(b)
	if need != 0 && (err != nil || need <= len(b) || need > rdpMax) {
		t.Fatalf("%d bytes: need %d, %v", len(b), need, err)
	}
	twin, ok := twinRDP(b)
	if ok != (need == 0 && err == nil) {
		t.Fatalf("%d, %v; the twin says %v", need, err, ok)
	}
	if ok && (!bytes.Equal(r.Token, twin.Token) || r.Size != twin.Size || r.Negotiates != twin.Negotiates || r.Flags != twin.Flags || r.Protocols != twin.Protocols) {
		t.Fatalf("%+v, the twin has %+v", r, twin)
	}
}
