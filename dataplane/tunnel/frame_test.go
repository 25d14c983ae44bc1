package tunnel

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

var (
	testID  = ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	testKey = Key{31: 7}
)

// TestDataHelloBytes holds the format: docs/tunnel.md has the same vector.
func TestDataHelloBytes(t *testing.T) {
	got := AppendDataHello(nil, DataHello{Tunnel: testID, Counter: 258}, testKey)
	want := "534c5950" + "01" + "00" + "0102030405060708090a0b0c0d0e0f10" + "0000000000000102" +
		helloMAC
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
	if len(got) != HelloSize {
		t.Errorf("%d bytes, want %d", len(got), HelloSize)
	}
}

// TestOpenFrameBytes holds the format of the open frame.
func TestOpenFrameBytes(t *testing.T) {
	f := OpenFrame{ConnectionID: testID, Kind: "db", Name: "orders", Client: netip.MustParseAddrPort("192.0.2.1:258")}
	got, err := AppendOpenFrame(nil, f, Binding{testID, 3}, testKey)
	check0(t, err)
	want := "01" + "01" + "0041" + "0102030405060708090a0b0c0d0e0f10" + "09" + hex.EncodeToString([]byte("db/orders")) +
		"04" + "c0000201" + "0102" + frameMAC
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

// The codes of the two vectors, computed with Python's hmac module.
const (
	helloMAC = "5e6d3391e59a39f1be8a54339c50e985ec7fc50dc315b49f838f41dbe36926e2"
	frameMAC = "8f98b422a0011a1ca26cdb0ca02b04e33b7a75be53d7e8ebff3e482e07d6165a"
)

func TestDataHelloRefused(t *testing.T) {
	good := AppendDataHello(nil, DataHello{Tunnel: testID, Counter: 1}, testKey)
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x40
		h, err := ParseDataHello(b)
		if err == nil {
			err = VerifyDataHello(b, testKey)
		}
		if err == nil {
			t.Errorf("byte %d changed: accepted as %+v", i, h)
		}
	}
	for n := range good {
		if _, err := ParseDataHello(good[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if err := VerifyDataHello(good, Key{}); !errors.Is(err, ErrForged) {
		t.Errorf("another key: %v", err)
	}
}

// TestDataHelloOfLater: what another version says is not taken for what it is in
// this one, though its code is right.
func TestDataHelloOfLater(t *testing.T) {
	for at, value := range map[int]byte{4: version + 1, 5: flagAnswer << 1} {
		b := AppendDataHello(nil, DataHello{Tunnel: testID, Counter: 1}, testKey)[:helloBody]
		b[at] = value
		b = seal(b, b, testKey)
		check0(t, VerifyDataHello(b, testKey))
		if h, err := ParseDataHello(b); !errors.Is(err, ErrVersion) {
			t.Errorf("byte %d is %d: %+v, %v", at, value, h, err)
		}
	}
}

// TestA31_AnswerIsOne: what is sealed for a data connection is its answer only if
// it says so.
func TestA31_AnswerIsOne(t *testing.T) {
	at := Binding{testID, 9}
	good := AppendAnswer(nil, at, testKey)
	check0(t, CheckAnswer(good, at, testKey))
	for _, head := range [][]byte{{frameOpen, version, 0, macSize}, {frameParked, version + 1, 0, macSize}, {frameParked, version, 0, macSize + 1}} {
		if err := CheckAnswer(bind(bytes.Clone(head), head, at, testKey), at, testKey); !errors.Is(err, ErrMalformed) {
			t.Errorf("%x: %v", head, err)
		}
	}
	for name, try := range map[string]error{
		"another counter": CheckAnswer(good, Binding{testID, 10}, testKey),
		"another tunnel":  CheckAnswer(good, Binding{ID{}, 9}, testKey),
		"another key":     CheckAnswer(good, at, Key{}),
	} {
		if !errors.Is(try, ErrForged) {
			t.Errorf("%s: %v", name, try)
		}
	}
}

// TestA146_FrameSize: the length that a frame says is read only within its bounds,
// and the frame is as long as it says.
func TestA146_FrameSize(t *testing.T) {
	for n, ok := range map[int]bool{
		FrameHeaderSize: false, minFrameSize - 1: false, minFrameSize: true,
		MaxFrameSize: true, MaxFrameSize + 1: false, FrameHeaderSize + 0xffff: false,
	} {
		head := binary.BigEndian.AppendUint16([]byte{frameOpen, version}, uint16(n-FrameHeaderSize))
		if got, err := FrameSize(head); (err == nil) != ok || ok && got != n {
			t.Errorf("%d bytes: %d, %v", n, got, err)
		}
	}
	at := Binding{testID, 9}
	good, err := AppendOpenFrame(nil, OpenFrame{Kind: "node", Name: "web-1"}, at, testKey)
	check0(t, err)
	for n := range good {
		if _, err := ParseOpenFrame(good[:n], at, testKey); !errors.Is(err, ErrMalformed) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
	if _, err := ParseOpenFrame(append(good, 0), at, testKey); !errors.Is(err, ErrMalformed) {
		t.Errorf("a byte more: %v", err)
	}
}

// TestA31_FrameIsBound: a frame is good for one data connection and one key.
func TestA31_FrameIsBound(t *testing.T) {
	f := OpenFrame{ConnectionID: testID, Kind: "node", Name: "web-1"}
	at := Binding{testID, 9}
	good, err := AppendOpenFrame(nil, f, at, testKey)
	check0(t, err)
	if got, err := ParseOpenFrame(good, at, testKey); err != nil || got != f {
		t.Fatalf("%+v, %v", got, err)
	}
	other := testID
	other[0]++
	for name, try := range map[string]func() error{
		"another counter": func() error { _, err := ParseOpenFrame(good, Binding{testID, 10}, testKey); return err },
		"another tunnel":  func() error { _, err := ParseOpenFrame(good, Binding{other, 9}, testKey); return err },
		"another key":     func() error { _, err := ParseOpenFrame(good, at, Key{}); return err },
	} {
		if err := try(); !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1
		if got, err := ParseOpenFrame(b, at, testKey); err == nil {
			t.Errorf("byte %d changed: accepted as %+v", i, got)
		}
	}
}

func TestOpenFrameNames(t *testing.T) {
	for _, c := range []struct {
		kind, name string
		ok         bool
	}{
		{"node", "web-1", true},
		{"node", "6a3d4bd6-0000-4000-8000-0000000000b1", true},
		{"future", "x", true},
		{"abcdefghijklmnop", strings.Repeat("a", 63), true},
		{"", "x", false}, {"node", "", false}, {"Node", "x", false}, {"no/de", "x", false},
		{"abcdefghijklmnopq", "x", false}, {"node", strings.Repeat("a", 64), false},
		{"node", "a/b", false}, {"node", "a.b", false}, {"node", "-a", false}, {"node", "A", false}, {"node", "a\x00", false},
	} {
		b, err := AppendOpenFrame(nil, OpenFrame{Kind: c.kind, Name: c.name}, Binding{}, testKey)
		if (err == nil) != c.ok {
			t.Errorf("%q/%q: %v, want ok=%v", c.kind, c.name, err, c.ok)
		}
		if c.ok && len(b) > MaxFrameSize {
			t.Errorf("%q/%q: %d bytes", c.kind, c.name, len(b))
		}
	}
}

func FuzzDataHello(f *testing.F) {
	f.Add(AppendDataHello(nil, DataHello{Tunnel: testID, Counter: 1}, testKey))
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseDataHello(b)
		if err != nil {
			return
		}
		again := AppendDataHello(nil, h, testKey)
		if !bytes.Equal(again[:helloBody], b[:helloBody]) {
			t.Fatalf("%x came back as %x", b, again)
		}
		if (VerifyDataHello(b, testKey) == nil) != bytes.Equal(again, b) {
			t.Fatalf("verification of %x", b)
		}
	})
}

// FuzzOpenFrame seals what the fuzzer makes, so that it gets past the MAC.
func FuzzOpenFrame(f *testing.F) {
	for _, c := range []OpenFrame{
		{Kind: "db", Name: "orders", Client: netip.MustParseAddrPort("192.0.2.1:1")},
		{Kind: "node", Name: "a", Client: netip.MustParseAddrPort("[2001:db8::1]:65535")},
		{Kind: "x", Name: "y"},
	} {
		b, err := AppendOpenFrame(nil, c, Binding{testID, 1}, testKey)
		check0(f, err)
		f.Add(b[:len(b)-macSize], uint64(1))
	}
	f.Add([]byte{1, 1, 0, 0}, uint64(0))
	f.Fuzz(func(t *testing.T, body []byte, counter uint64) {
		at := Binding{testID, counter}
		_, _ = ParseOpenFrame(body, at, testKey)
		sealed := bind(bytes.Clone(body), body, at, testKey)
		got, err := ParseOpenFrame(sealed, at, testKey)
		if err != nil {
			return
		}
		if len(sealed) > MaxFrameSize {
			t.Fatalf("a frame of %d bytes was accepted", len(sealed))
		}
		again, err := AppendOpenFrame(nil, got, at, testKey)
		if err != nil || !bytes.Equal(again, sealed) {
			t.Fatalf("%x came back as %x, %v", sealed, again, err)
		}
	})
}

func TestControl(t *testing.T) {
	big := &tunnelv1.Control{Message: &tunnelv1.Control_Upsert{Upsert: &tunnelv1.Upsert{Assignment: make([]byte, MaxControl)}}}
	if _, err := AppendControl(nil, big); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a message above the bound: %v", err)
	}
	unknown := protowire.AppendTag(nil, 999, protowire.BytesType)
	unknown = protowire.AppendBytes(unknown, []byte("of a later version"))
	framed := append([]byte{0, 0, 0, byte(len(unknown))}, unknown...)
	m, err := ReadControl(bytes.NewReader(framed))
	if err != nil || m.Message != nil {
		t.Errorf("an unknown message: %v, %v", m, err)
	}
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"nothing":      {"", io.EOF},
		"half a size":  {"\x00\x00", io.ErrUnexpectedEOF},
		"half a body":  {"\x00\x00\x00\x05ab", io.ErrUnexpectedEOF},
		"no body":      {"\x00\x10\x00\x00", io.ErrUnexpectedEOF},
		"too large":    {"\x00\x10\x00\x01", ErrTooLarge},
		"enormous":     {"\xff\xff\xff\xff", ErrTooLarge},
		"not protobuf": {"\x00\x00\x00\x01\xff", ErrMalformed},
	} {
		if _, err := ReadControl(strings.NewReader(c.in)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestControlMemory: a length that is claimed costs nothing until bytes come.
func TestControlMemory(t *testing.T) {
	in := append([]byte{0, 0x10, 0, 0}, "few"...)
	n := testing.AllocsPerRun(10, func() {
		c := controlReader{r: bytes.NewReader(in)}
		_, _ = c.next()
		if c.buf.Cap() > 4096 {
			t.Errorf("%d bytes were allocated for 3", c.buf.Cap())
		}
	})
	if n > 10 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzControl reads a stream of messages and writes what it read: the second
// reading is the same.
func FuzzControl(f *testing.F) {
	var seed []byte
	for _, m := range []*tunnelv1.Control{
		{Message: &tunnelv1.Control_Hello{Hello: &tunnelv1.Hello{AgentId: agentID, Version: "1", Assignment: []byte("x")}}},
		{Message: &tunnelv1.Control_Need{Need: &tunnelv1.Need{Connections: 4}}},
		{Message: &tunnelv1.Control_StreamUp{StreamUp: &tunnelv1.StreamUp{ConnectionId: testID[:]}}},
	} {
		seed, _ = AppendControl(seed, m)
	}
	f.Add(seed)
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		c := controlReader{r: in}
		for {
			m, err := c.next()
			if err != nil {
				return
			}
			if c.buf.Cap() > 2*len(b)+4096 {
				t.Fatalf("%d bytes kept for %d", c.buf.Cap(), len(b))
			}
			out, err := AppendControl(nil, m)
			check0(t, err)
			again, err := ReadControl(bytes.NewReader(out))
			check0(t, err)
			if !proto.Equal(m, again) {
				t.Fatalf("%v came back as %v", m, again)
			}
		}
	})
}

// FuzzWindow compares the window with a set of what was used.
func FuzzWindow(f *testing.F) {
	f.Add([]byte{1, 1, 2, 0, 255, 3, 128, 128})
	f.Add([]byte{0x80, 0xff, 1, 0xc0, 5, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var w window
		used, highest, n, any := map[uint64]bool{}, uint64(0), uint64(5000), false
		for _, s := range steps {
			n += walk(s)
			want := !used[n] && (!any || n > highest || highest-n < windowSize)
			if got := w.use(n); got != want {
				t.Fatalf("use(%d) = %v with highest %d", n, got, highest)
			}
			if want {
				used[n], any, highest = true, true, max(highest, n)
			}
		}
	})
}

// walk makes a byte a step: small, backwards, or far.
func walk(s byte) uint64 {
	switch d := uint64(s & 0x3f); s >> 6 {
	case 0:
		return d
	case 1:
		return -d
	case 2:
		return d * 61
	default:
		return -(d * 37)
	}
}

func TestWindow(t *testing.T) {
	var w window
	for _, c := range []struct {
		n    uint64
		want bool
	}{
		{10, true}, {10, false}, {9, true}, {9, false}, {0, true}, {1, true}, {1033, true},
		{9, false}, {10, false}, {11, true}, {11, false}, {1 << 40, true}, {1<<40 - 1023, true}, {1<<40 - 1024, false},
		{1034, false}, {1<<64 - 1, true}, {1<<64 - 1, false}, {1 << 40, false}, {1<<64 - 2, true},
	} {
		if got := w.use(c.n); got != c.want {
			t.Errorf("use(%d) = %v, want %v", c.n, got, c.want)
		}
	}
}

func TestWord(t *testing.T) {
	for in, want := range map[string]string{
		"busy": "busy", "": "", "a b\n\x1b[31m": "a_b___31m", strings.Repeat("x", 99): strings.Repeat("x", maxWord),
	} {
		if d := cmp.Diff(want, word(in)); d != "" {
			t.Errorf("word(%q): %s", in, d)
		}
	}
}
