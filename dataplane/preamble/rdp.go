package preamble

import (
	"bytes"
	"encoding/binary"
)

// RDP is an X.224 connection request (MS-RDPBCGR, section 2.2.1.1; ITU-T X.224,
// section 13.3; RFC 1006). Token is the routing token or cookie without its
// CR LF; Protocols are the security protocols asked for, when Negotiates.
type RDP struct {
	Size       int
	Token      []byte
	Negotiates bool
	Flags      byte
	Protocols  uint32
}

const (
	tpktHeader  = 4
	x224Request = 0xe0
	x224Fixed   = 7    // length indicator, code, two references, class
	rdpMax      = 1024 // mstsc sends less than 100 bytes; a routing token may add some
	rdpNegSize  = 8
	rdpNegType  = 1
	rdpCorrType = 6
	rdpCorrSize = 36
)

// ParseRDP reads the connection request that b begins with.
func ParseRDP(b []byte) (r RDP, need int, err error) {
	if len(b) < tpktHeader {
		return r, tpktHeader, nil
	}
	r.Size = int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case b[0] != 3 || b[1] != 0 || r.Size < tpktHeader+x224Fixed:
		return r, 0, ErrMalformed
	case r.Size > rdpMax:
		return r, 0, ErrTooLarge
	case len(b) < r.Size:
		return r, r.Size, nil
	}
	tpdu := b[tpktHeader:r.Size]
	// The length indicator counts what follows it, and 255 is reserved. The
	// destination reference of a request and its class are 0.
	if int(tpdu[0]) != len(tpdu)-1 || tpdu[1] != x224Request || tpdu[2] != 0 || tpdu[3] != 0 || tpdu[6] != 0 {
		return r, 0, ErrMalformed
	}
	return r.variable(tpdu[x224Fixed:])
}

// variable reads what stands behind the fixed part: a token or cookie that ends
// with CR LF, then a negotiation request; both may be missing.
func (r RDP) variable(b []byte) (RDP, int, error) {
	if len(b) > 0 && b[0] != rdpNegType {
		end := bytes.Index(b, []byte("\r\n"))
		if end < 0 {
			return r, 0, ErrMalformed
		}
		r.Token, b = b[:end], b[end+2:]
	}
	if len(b) == 0 {
		return r, 0, nil
	}
	// A correlation info of its own type and length may follow (2.2.1.1.2).
	correlates := len(b) == rdpNegSize+rdpCorrSize && b[8] == rdpCorrType && binary.LittleEndian.Uint16(b[10:]) == rdpCorrSize
	if len(b) != rdpNegSize && !correlates || b[0] != rdpNegType || binary.LittleEndian.Uint16(b[2:]) != rdpNegSize {
		return r, 0, ErrMalformed
	}
	r.Negotiates, r.Flags, r.Protocols = true, b[1], binary.LittleEndian.Uint32(b[4:])
	return r, 0, nil
}
