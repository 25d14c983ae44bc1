package tunnel

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"

	"github.com/sallyport/sallyport/alpn"
)

// The two messages of a data connection, as pure functions. Nothing here does
// I/O, and nothing allocates by what a stranger says.

// Magic begins every data connection: the gateway tells it from TLS by it.
const Magic = "SLYP"

// Sizes in bytes.
const (
	HelloSize = 62 // magic 4, version 1, flags 1, tunnel id 16, counter 8, MAC 32
	helloBody = HelloSize - macSize
	macSize   = sha256.Size

	// FrameHeaderSize is what must be read of an open frame to know the rest.
	FrameHeaderSize = 4
	// MaxFrameSize bounds a whole open frame.
	MaxFrameSize = FrameHeaderSize + idSize + 1 + maxResource + maxAddress + macSize
	minFrameSize = FrameHeaderSize + idSize + 1 + minResource + minAddress + macSize

	idSize      = 16
	minResource = 3           // "a/b"
	maxResource = 16 + 1 + 63 // kind, slash, one DNS label
	minAddress  = 1           // family 0: none
	maxAddress  = 1 + 16 + 2  // family, address, port
	maxKind     = 16
	frameOpen   = 1
	frameParked = 2
	version     = 1
	familyNone  = 0
	familyV4    = 4
	familyV6    = 6
)

// What is wrong with a data hello or an open frame. The words are for counters
// and logs; a stranger is told nothing.
var (
	ErrMalformed = errors.New("malformed message")
	ErrVersion   = errors.New("unknown version")
	ErrForged    = errors.New("wrong authentication code")
)

// ID names a tunnel or a connection: 16 random bytes.
type ID = [idSize]byte

// Key authenticates one direction of one tunnel.
type Key [32]byte

// flagAnswer asks the gateway to say that the connection is parked.
const flagAnswer = 1

// DataHello is what an agent says first on a data connection.
type DataHello struct {
	Tunnel  ID
	Counter uint64
	Answer  bool // the gateway is to say that the connection is parked
}

// AppendDataHello writes the 62 bytes of a data hello:
//
//	"SLYP" | version 1 | flags (1: answer) | tunnel id (16) | counter (8) | MAC (32)
//
// The MAC is HMAC-SHA256 over all before, with the key from agent to gateway.
func AppendDataHello(b []byte, h DataHello, k Key) []byte {
	start := len(b)
	b = append(b, Magic...)
	b = append(b, version, h.flags())
	b = append(b, h.Tunnel[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Counter)
	return seal(b, b[start:], k)
}

func (h DataHello) flags() byte {
	if h.Answer {
		return flagAnswer
	}
	return 0
}

// ParseDataHello reads the fields of a data hello. Nothing of it may be
// believed before VerifyDataHello has said so; the tunnel id finds the key.
func ParseDataHello(b []byte) (DataHello, error) {
	if len(b) != HelloSize || string(b[:4]) != Magic {
		return DataHello{}, ErrMalformed
	}
	if b[4] != version || b[5]&^flagAnswer != 0 {
		return DataHello{}, ErrVersion
	}
	h := DataHello{Tunnel: ID(b[6:22]), Counter: binary.BigEndian.Uint64(b[22:30]), Answer: b[5]&flagAnswer != 0}
	return h, nil
}

// VerifyDataHello compares a data hello's MAC in constant time.
func VerifyDataHello(b []byte, k Key) error {
	if len(b) != HelloSize {
		return ErrMalformed
	}
	return check(b[:helloBody], nil, b[helloBody:], k)
}

// AnswerSize is that of the answer to a data hello that asks for one.
const AnswerSize = FrameHeaderSize + macSize

// AppendAnswer writes what a gateway says first on a data connection that asked
// to be told that it is parked; the open frame comes after it:
//
//	type 2 | version 1 | length 32 (2) | MAC (32)
//
// The MAC is made as that of an open frame is.
func AppendAnswer(b []byte, at Binding, k Key) []byte {
	start := len(b)
	b = append(b, frameParked, version, 0, macSize)
	return bind(b, b[start:], at, k)
}

// CheckAnswer says whether b is the answer for this data connection.
func CheckAnswer(b []byte, at Binding, k Key) error {
	if len(b) != AnswerSize || string(b[:FrameHeaderSize]) != string([]byte{frameParked, version, 0, macSize}) {
		return ErrMalformed
	}
	return check(at.bytes(), b[:FrameHeaderSize], b[FrameHeaderSize:], k)
}

// OpenFrame is what a gateway says first on a data connection that it has
// leased to a client.
type OpenFrame struct {
	ConnectionID ID
	Kind, Name   string
	Client       netip.AddrPort // the zero value when it is not known
}

// Binding is the one data connection that an open frame is good for.
type Binding struct {
	Tunnel  ID
	Counter uint64
}

// AppendOpenFrame writes an open frame:
//
//	type 1 | version 1 | length (2) of all that follows
//	connection id (16) | resource length (1) | "<kind>/<name>"
//	family (1: 0, 4, 6) | address (0, 4, 16) | port (2, not with family 0)
//	MAC (32)
//
// The MAC is HMAC-SHA256 over tunnel id, the connection's counter (8) and all
// of the frame before it, with the key from gateway to agent: a frame that is
// moved to another data connection is worth nothing.
func AppendOpenFrame(b []byte, f OpenFrame, at Binding, k Key) ([]byte, error) {
	if !validName(f.Kind, f.Name) {
		return b, ErrMalformed
	}
	start := len(b)
	b = append(b, frameOpen, version, 0, 0)
	b = append(b, f.ConnectionID[:]...)
	b = append(b, byte(len(f.Kind)+1+len(f.Name)))
	b = append(b, f.Kind...)
	b = append(b, '/')
	b = append(b, f.Name...)
	b = appendAddress(b, f.Client)
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start-FrameHeaderSize+macSize))
	return bind(b, b[start:], at, k), nil
}

// FrameSize says how long the whole open frame is that begins with header.
func FrameSize(header []byte) (int, error) {
	if len(header) < FrameHeaderSize || header[0] != frameOpen {
		return 0, ErrMalformed
	}
	if header[1] != version {
		return 0, ErrVersion
	}
	n := FrameHeaderSize + int(binary.BigEndian.Uint16(header[2:]))
	if n < minFrameSize || n > MaxFrameSize {
		return 0, ErrMalformed
	}
	return n, nil
}

// ParseOpenFrame checks a whole frame's MAC for this data connection and then
// reads it. Each frame has one spelling.
func ParseOpenFrame(b []byte, at Binding, k Key) (OpenFrame, error) {
	n, err := FrameSize(b)
	if err != nil {
		return OpenFrame{}, err
	}
	if n != len(b) {
		return OpenFrame{}, ErrMalformed
	}
	body, mac := b[:n-macSize], b[n-macSize:]
	if err := check(at.bytes(), body, mac, k); err != nil {
		return OpenFrame{}, err
	}
	return parseBody(body[FrameHeaderSize:])
}

func parseBody(b []byte) (f OpenFrame, err error) {
	f.ConnectionID = ID(b[:idSize])
	b = b[idSize:]
	n := int(b[0])
	if n > maxResource || 1+n > len(b) {
		return OpenFrame{}, ErrMalformed
	}
	resource, b := string(b[1:1+n]), b[1+n:]
	kind, name, ok := strings.Cut(resource, "/")
	if !ok || !validName(kind, name) {
		return OpenFrame{}, ErrMalformed
	}
	f.Kind, f.Name = kind, name
	f.Client, ok = parseAddress(b)
	if !ok {
		return OpenFrame{}, ErrMalformed
	}
	return f, nil
}

func appendAddress(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr().Unmap()
	switch {
	case ip.Is4():
		v4 := ip.As4()
		b = append(append(b, familyV4), v4[:]...)
	case ip.Is6():
		v6 := ip.As16()
		b = append(append(b, familyV6), v6[:]...)
	default:
		return append(b, familyNone)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// parseAddress takes exactly what appendAddress writes: an IPv4 address in
// IPv6 form is refused.
func parseAddress(b []byte) (netip.AddrPort, bool) {
	if len(b) == 0 {
		return netip.AddrPort{}, false
	}
	family, b := b[0], b[1:]
	var ip netip.Addr
	switch {
	case family == familyNone:
		return netip.AddrPort{}, len(b) == 0
	case family == familyV4 && len(b) == 4+2:
		ip = netip.AddrFrom4([4]byte(b))
	case family == familyV6 && len(b) == 16+2:
		ip = netip.AddrFrom16([16]byte(b))
	}
	if !ip.IsValid() || ip.Is4In6() {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[len(b)-2:])), true
}

// validName says that kind and name are written as a resource's are. Which
// kinds there are is not this package's to know: versions mix.
func validName(kind, name string) bool {
	if kind == "" || len(kind) > maxKind {
		return false
	}
	for i := range len(kind) {
		if kind[i] < 'a' || kind[i] > 'z' {
			return false
		}
	}
	return alpn.ValidLabel(name)
}

// bytes is what stands before a frame under its MAC.
func (at Binding) bytes() []byte {
	b := make([]byte, 0, idSize+8)
	b = append(b, at.Tunnel[:]...)
	return binary.BigEndian.AppendUint64(b, at.Counter)
}

func seal(b, over []byte, k Key) []byte {
	m := hmac.New(sha256.New, k[:])
	m.Write(over)
	return m.Sum(b)
}

func bind(b, over []byte, at Binding, k Key) []byte {
	m := hmac.New(sha256.New, k[:])
	m.Write(at.bytes())
	m.Write(over)
	return m.Sum(b)
}

func check(first, second, mac []byte, k Key) error {
	m := hmac.New(sha256.New, k[:])
	m.Write(first)
	m.Write(second)
	var sum [macSize]byte
	if !hmac.Equal(m.Sum(sum[:0]), mac) {
		return ErrForged
	}
	return nil
}
