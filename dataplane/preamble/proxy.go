package preamble

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// Proxy is a PROXY protocol header (haproxy, doc/proxy-protocol.txt, versions 1
// and 2). Local says that the connection is the proxy's own or that the proxy
// does not tell: then the addresses are not set and the connection's count.
type Proxy struct {
	Size        int
	Local       bool
	Source      netip.AddrPort
	Destination netip.AddrPort
}

const (
	proxyV1Max    = 107 // section 2.1, the line with its CR LF
	proxyV2Max    = 4096
	proxyV2Header = 16
	proxyV2Sig    = "\r\n\r\n\x00\r\nQUIT\n"
)

// ParseProxy reads the header that b begins with, of either version.
func ParseProxy(b []byte) (p Proxy, need int, err error) {
	if len(b) == 0 {
		return p, 1, nil
	}
	if b[0] == 'P' {
		return parseProxyV1(b)
	}
	return parseProxyV2(b)
}

// parseProxyV1 reads a line. The shortest that ends is "PROXY UNKNOWN\r\n".
func parseProxyV1(b []byte) (p Proxy, need int, err error) {
	const prefix, shortest = "PROXY ", len("PROXY UNKNOWN\r\n")
	n := min(len(b), len(prefix))
	if string(b[:n]) != prefix[:n] {
		return p, 0, ErrMalformed
	}
	end := bytes.IndexByte(b[:min(len(b), proxyV1Max)], '\n')
	if end < 0 {
		if len(b) >= proxyV1Max {
			return p, 0, ErrTooLarge
		}
		return p, max(len(b)+1, shortest), nil
	}
	if end < shortest-1 || b[end-1] != '\r' {
		return p, 0, ErrMalformed
	}
	p.Size = end + 1
	return p.line(b[len(prefix) : end-1])
}

func (p Proxy) line(line []byte) (Proxy, int, error) {
	fields := bytes.Split(line, []byte(" ")) // at most 100 of one byte
	if string(fields[0]) == "UNKNOWN" {
		p.Local = true // what follows is to be ignored
		return p, 0, nil
	}
	if len(fields) != 5 || string(fields[0]) != "TCP4" && string(fields[0]) != "TCP6" {
		return p, 0, ErrMalformed
	}
	six := fields[0][3] == '6'
	src, ok1 := proxyAddr(fields[1], fields[3], six)
	dst, ok2 := proxyAddr(fields[2], fields[4], six)
	if !ok1 || !ok2 {
		return p, 0, ErrMalformed
	}
	p.Source, p.Destination = src, dst
	return p, 0, nil
}

// proxyAddr reads one address and port of a line: decimal ports without leading
// zeros, addresses of the family that the line states, without a zone.
func proxyAddr(addr, port []byte, six bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(string(addr))
	if err != nil || a.Zone() != "" || a.Is4() == six {
		return netip.AddrPort{}, false
	}
	n := 0
	for i, c := range port {
		if c < '0' || c > '9' || i == 5 || i > 0 && n == 0 {
			return netip.AddrPort{}, false
		}
		n = n*10 + int(c-'0')
	}
	if len(port) == 0 || n > 0xffff {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, uint16(n)), true
}

// The v2 header's commands and address families (section 2.2).
const (
	proxyV2Local   = 0x20
	proxyV2Proxy   = 0x21
	proxyV2Unspec  = 0x00
	proxyV2TCP4    = 0x11
	proxyV2UDP4    = 0x12
	proxyV2TCP6    = 0x21
	proxyV2UDP6    = 0x22
	proxyV2Unix    = 0x31
	proxyV2UnixDG  = 0x32
	proxyV2Size4   = 12
	proxyV2Size6   = 36
	proxyV2SizeUDS = 216
)

// parseProxyV2 reads the binary form. TLVs behind the addresses must be whole
// and are skipped.
func parseProxyV2(b []byte) (p Proxy, need int, err error) {
	n := min(len(b), len(proxyV2Sig))
	if string(b[:n]) != proxyV2Sig[:n] {
		return p, 0, ErrMalformed
	}
	if len(b) < proxyV2Header {
		return p, proxyV2Header, nil
	}
	command, family := b[12], b[13]
	size := int(binary.BigEndian.Uint16(b[14:]))
	if command != proxyV2Local && command != proxyV2Proxy || !proxyV2Assigned(family) {
		return p, 0, ErrMalformed
	}
	if size > proxyV2Max {
		return p, 0, ErrTooLarge
	}
	p.Size = proxyV2Header + size
	if len(b) < p.Size {
		return p, p.Size, nil
	}
	body := b[proxyV2Header:p.Size]
	if command == proxyV2Local {
		p.Local = true // section 2.2: the rest is to be skipped, whatever it says
		return p, 0, nil
	}
	return p.addresses(family, body)
}

// proxyV2Assigned: section 2.2 wants other values refused, with any command.
func proxyV2Assigned(family byte) bool {
	switch family {
	case proxyV2Unspec, proxyV2TCP4, proxyV2UDP4, proxyV2TCP6, proxyV2UDP6, proxyV2Unix, proxyV2UnixDG:
		return true
	}
	return false
}

func (p Proxy) addresses(family byte, b []byte) (Proxy, int, error) {
	var size int
	switch family {
	case proxyV2Unspec:
		p.Local = true
	case proxyV2TCP4:
		size = proxyV2Size4
	case proxyV2TCP6:
		size = proxyV2Size6
	case proxyV2Unix:
		size, p.Local = proxyV2SizeUDS, true // a path is no client address
	default: // datagrams: this is a stream
		return p, 0, ErrMalformed
	}
	if len(b) < size || family != proxyV2Unspec && !tlvsOK(b[size:]) {
		return p, 0, ErrMalformed
	}
	switch family {
	case proxyV2TCP4:
		p.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[0:4])), binary.BigEndian.Uint16(b[8:]))
		p.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[10:]))
	case proxyV2TCP6:
		p.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[0:16])), binary.BigEndian.Uint16(b[32:]))
		p.Destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[16:32])), binary.BigEndian.Uint16(b[34:]))
	}
	return p, 0, nil
}

// tlvsOK walks type, length, value to the end (section 2.2.7).
func tlvsOK(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 3 {
			return false
		}
		n := 3 + int(binary.BigEndian.Uint16(b[1:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return true
}

// AppendProxyV2 appends the binary header that tells src and dst. Addresses of
// different families are both written as IPv6.
func AppendProxyV2(b []byte, src, dst netip.AddrPort) []byte {
	b = append(b, proxyV2Sig...)
	s, d := src.Addr().Unmap(), dst.Addr().Unmap()
	switch {
	case !s.IsValid() || !d.IsValid():
		return append(b, proxyV2Local, proxyV2Unspec, 0, 0)
	case s.Is4() && d.Is4():
		b = append(b, proxyV2Proxy, proxyV2TCP4, 0, proxyV2Size4)
		s4, d4 := s.As4(), d.As4()
		b = append(append(b, s4[:]...), d4[:]...)
	default:
		b = append(b, proxyV2Proxy, proxyV2TCP6, 0, proxyV2Size6)
		s16, d16 := s.As16(), d.As16()
		b = append(append(b, s16[:]...), d16[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}
