//go:build unix

package fuzz

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/tunnel"
)

var (
	tunnelKey = tunnel.Key{1, 2, 3}
	tunnelAt  = tunnel.Binding{Tunnel: tunnel.ID{9, 8, 7}, Counter: 77}
)

// sealed is docs/tunnel.md's MAC, written anew.
func sealed(before, b []byte) []byte {
	m := hmac.New(sha256.New, tunnelKey[:])
	m.Write(before)
	m.Write(b)
	return m.Sum(bytes.Clone(b))
}

// FuzzTunnelHello: the border is a data connection's first 62 bytes; the oracle
// is the table of docs/tunnel.md, read byte by byte.
func FuzzTunnelHello(f *testing.F) {
	f.Add(tunnel.AppendDataHello(nil, tunnel.DataHello{Tunnel: tunnelAt.Tunnel, Counter: tunnelAt.Counter}, tunnelKey)[:30])
	f.Add([]byte("SLYP\x01\x01"))
	f.Add(tunnel.AppendDataHello(nil, tunnel.DataHello{Tunnel: tunnelAt.Tunnel, Counter: tunnelAt.Counter, Answer: true}, tunnelKey)[:30])
	f.Fuzz(func(t *testing.T, body []byte) {
		b := sealed(nil, body)
		got, err := tunnel.ParseDataHello(b)
		want := len(b) == 62 && (bytes.HasPrefix(b, []byte("SLYP\x01\x00")) || bytes.HasPrefix(b, []byte("SLYP\x01\x01")))
		if (err == nil) != want {
			t.Fatalf("%x: %v", b, err)
		}
		if !want {
			return
		}
		if !bytes.Equal(got.Tunnel[:], b[6:22]) || got.Answer != (b[5] == 1) || got.Counter != binary.BigEndian.Uint64(b[22:]) {
			t.Fatalf("%x read as %+v", b, got)
		}
		if err := tunnel.VerifyDataHello(b, tunnelKey); err != nil {
			t.Fatal(err)
		}
		b[int(b[29])%62] ^= 1 << (b[28] % 8)
		if err := tunnel.VerifyDataHello(b, tunnelKey); !errors.Is(err, tunnel.ErrForged) {
			t.Fatalf("one bit changed: %v", err)
		}
	})
}

// resourceForm is what a frame may name.
var resourceForm = regexp.MustCompile(`\A([a-z]{1,16})/([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)\z`)

// twinFrame reads an open frame the slow way.
func twinFrame(b []byte) (f tunnel.OpenFrame, ok bool) {
	if len(b) < 4 || b[0] != 1 || b[1] != 1 || int(binary.BigEndian.Uint16(b[2:])) != len(b)-4 {
		return f, false
	}
	r := bytes.NewReader(b[4:max(len(b)-32, 4)])
	n, _ := io.ReadFull(r, f.ConnectionID[:])
	size, err := r.ReadByte()
	if n != 16 || err != nil {
		return f, false
	}
	name := make([]byte, size)
	if _, err := io.ReadFull(r, name); err != nil && size > 0 {
		return f, false
	}
	m := resourceForm.FindSubmatch(name)
	if m == nil {
		return f, false
	}
	f.Kind, f.Name = string(m[1]), string(m[2])
	rest, _ := io.ReadAll(r)
	switch {
	case len(rest) == 1 && rest[0] == 0:
		return f, true
	case len(rest) == 7 && rest[0] == 4, len(rest) == 19 && rest[0] == 6:
		ip, _ := netip.AddrFromSlice(rest[1 : len(rest)-2])
		f.Client = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(rest[len(rest)-2:]))
		return f, !ip.Is4In6()
	}
	return f, false
}

// FuzzTunnelFrame: the border is what comes to an agent on a parked connection;
// the oracle is the twin.
func FuzzTunnelFrame(f *testing.F) {
	for _, o := range []tunnel.OpenFrame{
		{Kind: "db", Name: "orders", Client: netip.MustParseAddrPort("192.0.2.1:5432")},
		{Kind: "node", Name: "web-1", Client: netip.MustParseAddrPort("[2001:db8::1]:22")},
		{Kind: "tcp", Name: "echo"},
	} {
		b, err := tunnel.AppendOpenFrame(nil, o, tunnelAt, tunnelKey)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-32])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) >= 4 { // give it the length that it has: it gets further
			binary.BigEndian.PutUint16(body[2:], uint16(len(body)-4+32))
		}
		checkFrame(t, body)
	})
}

// TestRandomFrames is FuzzTunnelFrame with chosen fields and without coverage.
func TestRandomFrames(t *testing.T) {
	atRandom(t, 24, func(t *testing.T, in []byte) { checkFrame(t, chosenFrame(&dice{in})) })
}

// chosenFrame is an open frame without its MAC: mostly right, and wrong in one
// place or another.
func chosenFrame(d *dice) []byte {
	names := []string{"db/orders", "node/web-1", "tcp/0", "db/", "/x", "db", "", "db/-a", "db/a-", "DB/a", "db/a/b", "db/a.b", "d-b/a", "db/\x00", "db/é",
		"abcdefghijklmnop/a", "abcdefghijklmnopq/a", "db/" + strings.Repeat("a", 63), "db/" + strings.Repeat("a", 64)}
	clients := [][]byte{{0}, {4, 192, 0, 2, 1, 0, 80}, append(append([]byte{6, 0x20, 1}, make([]byte, 14)...), 0, 80),
		append([]byte{6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 1, 2, 3, 4, 0, 80), {}, {5}, {0, 0}, {4, 1, 2, 3, 4, 5}, {6, 1}}
	name := names[d.roll(len(names))]
	b := []byte{[]byte{1, 1, 1, 1, 2, 0}[d.roll(6)], []byte{1, 1, 1, 1, 2, 0}[d.roll(6)], 0, 0}
	b = append(b, make([]byte, 16)...)
	b[4+d.roll(16)] = byte(d.roll(256))
	b = append(b, vec8([]byte(name))...)
	b = append(b, clients[d.roll(len(clients))]...)
	if d.roll(8) == 7 {
		b = b[:4+d.roll(len(b)-3)]
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4+32+[]int{0, 0, 0, 0, 0, 1, -1}[d.roll(7)]))
	return b
}

// checkFrame holds our reading of a frame, whose MAC it adds, against the twin's.
func checkFrame(t *testing.T, body []byte) {
	t.Helper()
	before := binary.BigEndian.AppendUint64(bytes.Clone(tunnelAt.Tunnel[:]), tunnelAt.Counter)
	b := sealed(before, body)
	got, err := tunnel.ParseOpenFrame(b, tunnelAt, tunnelKey)
	want, ok := twinFrame(b)
	if (err == nil) != ok || ok && got != want {
		t.Fatalf("%x: %+v, %v; the twin has %+v, %v", b, got, err, want, ok)
	}
	if n, err := tunnel.FrameSize(b); ok && (err != nil || n != len(b) || n > tunnel.MaxFrameSize) {
		t.Fatalf("size %d, %v, of %d", n, err, len(b))
	}
	if !ok {
		return
	}
	for _, elsewhere := range []tunnel.Binding{{Tunnel: tunnelAt.Tunnel, Counter: tunnelAt.Counter + 1}, {Counter: tunnelAt.Counter}} {
		if _, err := tunnel.ParseOpenFrame(b, elsewhere, tunnelKey); !errors.Is(err, tunnel.ErrForged) {
			t.Fatalf("moved to another connection: %v", err)
		}
	}
	b[int(b[4])%len(b)] ^= 1 << (b[5] % 8)
	if _, err := tunnel.ParseOpenFrame(b, tunnelAt, tunnelKey); err == nil {
		t.Fatal("one bit changed, and read")
	}
}

// FuzzTunnelControl: the border is a control connection; the oracle is that the
// lengths say where messages begin, and that nothing is read beyond them.
func FuzzTunnelControl(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 0x2a, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 16, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for at := 0; ; {
			_, err := tunnel.ReadControl(r)
			if err != nil {
				return
			}
			at += 4 + int(binary.BigEndian.Uint32(b[at:]))
			if len(b)-r.Len() != at {
				t.Fatalf("read to %d, the message ends at %d", len(b)-r.Len(), at)
			}
		}
	})
}

// FuzzTunnelPark: the border is the gateway's port; a hub without this tunnel
// closes whatever says it belongs to one, without a word.
func FuzzTunnelPark(f *testing.F) {
	h := tunnel.NewHub(tunnel.HubConfig{
		Verify: func([]byte, string) (tunnel.Assignment, error) { return tunnel.Assignment{}, fmt.Errorf("nobody") },
	})
	f.Add(tunnel.AppendDataHello(nil, tunnel.DataHello{Tunnel: tunnelAt.Tunnel, Counter: tunnelAt.Counter}, tunnelKey))
	f.Add([]byte("SLYP"))
	f.Fuzz(func(t *testing.T, hello []byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[1])
		if err := h.Park(nil, fds[0], hello, netip.AddrPort{}); err == nil {
			t.Fatal("parked")
		}
		if n, err := unix.Read(fds[1], make([]byte, 1)); n != 0 || err != nil {
			t.Fatalf("read %d, %v; want the end", n, err)
		}
	})
}
