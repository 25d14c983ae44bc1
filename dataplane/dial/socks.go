package dial

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// What a SOCKS server tells its client (RFC 1928 section 6).
const (
	SocksDone    = 0
	SocksRefused = 5 // the connection was refused, or could not be made
)

const (
	maxSocksName = 255 // bytes of a host's name or of a user's
	socks4       = 4
	socks5       = 5
)

var errSocks = errors.New("not a SOCKS request for a connection")

// SocksRequest is what a SOCKS client has asked for, and how to answer it.
type SocksRequest struct {
	Address string // host:port, the host being a name or an address
	version byte
}

// ReadSocks reads the request of a SOCKS client (RFC 1928 without
// authentication, SOCKS 4 and 4a) and does what must be said before it. It reads
// no byte that comes after the request. The caller sets the deadline.
func ReadSocks(rw io.ReadWriter) (SocksRequest, error) {
	var version [1]byte
	if _, err := io.ReadFull(rw, version[:]); err != nil {
		return SocksRequest{}, err
	}
	switch version[0] {
	case socks4:
		return readSocks4(rw)
	case socks5:
		return readSocks5(rw)
	}
	return SocksRequest{}, errSocks
}

// Answer tells the client how it went.
func (r SocksRequest) Answer(w io.Writer, code byte) error {
	b := []byte{socks5, code, 0, 1, 0, 0, 0, 0, 0, 0} // bound to 0.0.0.0:0: where is the far side's affair
	if r.version == socks4 {
		b = []byte{0, 90, 0, 0, 0, 0, 0, 0}
		if code != SocksDone {
			b[1] = 91
		}
	}
	_, err := w.Write(b)
	return err
}

// readSocks4 follows the version: command, port, address, user, and in 4a a name.
func readSocks4(r io.Reader) (SocksRequest, error) {
	var b [7]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return SocksRequest{}, err
	}
	if b[0] != 1 {
		return SocksRequest{}, errSocks
	}
	if _, err := readZeroEnded(r); err != nil {
		return SocksRequest{}, err
	}
	addr := netip.AddrFrom4([4]byte(b[3:7]))
	host := addr.String()
	if b[3] == 0 && b[4] == 0 && b[5] == 0 && b[6] != 0 { // 0.0.0.x marks 4a
		name, err := readZeroEnded(r)
		if err != nil {
			return SocksRequest{}, err
		}
		host = name
	}
	return socksRequest(socks4, host, binary.BigEndian.Uint16(b[1:3]))
}

// readZeroEnded reads byte by byte: what follows is the far side's.
func readZeroEnded(r io.Reader) (string, error) {
	var text []byte
	for b := make([]byte, 1); len(text) <= maxSocksName; text = append(text, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == 0 {
			return string(text), nil
		}
	}
	return "", errSocks
}

// readSocks5 follows the version: the methods, our choice, the request.
func readSocks5(rw io.ReadWriter) (SocksRequest, error) {
	var count [1]byte
	if _, err := io.ReadFull(rw, count[:]); err != nil {
		return SocksRequest{}, err
	}
	methods := make([]byte, count[0])
	if _, err := io.ReadFull(rw, methods); err != nil {
		return SocksRequest{}, err
	}
	if !strings.ContainsRune(string(methods), 0) { // 0: no authentication
		_, _ = rw.Write([]byte{socks5, 0xff})
		return SocksRequest{}, errSocks
	}
	if _, err := rw.Write([]byte{socks5, 0}); err != nil {
		return SocksRequest{}, err
	}
	var head [4]byte
	if _, err := io.ReadFull(rw, head[:]); err != nil {
		return SocksRequest{}, err
	}
	if head[0] != socks5 || head[1] != 1 || head[2] != 0 {
		return SocksRequest{}, errSocks
	}
	host, err := readSocksHost(rw, head[3])
	if err != nil {
		return SocksRequest{}, err
	}
	var port [2]byte
	if _, err := io.ReadFull(rw, port[:]); err != nil {
		return SocksRequest{}, err
	}
	return socksRequest(socks5, host, binary.BigEndian.Uint16(port[:]))
}

// readSocksHost reads an address of one of the types of RFC 1928 section 5.
func readSocksHost(r io.Reader, kind byte) (string, error) {
	size := 0
	switch kind {
	case 1:
		size = 4
	case 4:
		size = 16
	case 3:
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return "", err
		}
		size = int(n[0])
	default:
		return "", errSocks
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	if kind == 3 {
		return string(b), nil
	}
	addr, _ := netip.AddrFromSlice(b) // 4 or 16 bytes
	return addr.String(), nil
}

func socksRequest(version byte, host string, port uint16) (SocksRequest, error) {
	if host == "" || port == 0 || strings.ContainsFunc(host, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '/' || c == '[' || c == ']' }) {
		return SocksRequest{}, errSocks
	}
	return SocksRequest{Address: net.JoinHostPort(host, strconv.Itoa(int(port))), version: version}, nil
}
