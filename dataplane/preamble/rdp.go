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
	x224Fixed   = 7   // length indicator, code, two references, class
	x224Longest = 254 // what a length indicator may say: 255 is reserved (X.224, section 13.2.1)
	rdpMax      = tpktHeader + 1 + x224Longest
	rdpNegSize  = 8
	rdpNegType  = 1
	rdpCorrFlag = 8 // in the request's flags: a correlation info follows
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
	// The length indicator counts what follows it. The destination reference of
	// a request and its class are 0.
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
	if len(b) < rdpNegSize || b[0] != rdpNegType || binary.LittleEndian.Uint16(b[2:]) != rdpNegSize {
		return r, 0, ErrMalformed
	}
	request, info := b[:rdpNegSize], b[rdpNegSize:]
	flagged := request[1]&rdpCorrFlag != 0
	if flagged != (len(info) > 0) || flagged && !correlates(info) {
		return r, 0, ErrMalformed
	}
	r.Negotiates, r.Flags, r.Protocols = true, request[1], binary.LittleEndian.Uint32(request[4:])
	return r, 0, nil
}

// correlates says that b is a correlation info (2.2.1.1.2).
func correlates(b []byte) bool {
	return len(b) == rdpCorrSize && b[0] == rdpCorrType && binary.LittleEndian.Uint16(b[2:]) == rdpCorrSize
}
