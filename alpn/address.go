package alpn

import (
	"bytes"
	"net/netip"
)

// isAddress says that name is an IP literal, which SNI must not hold (RFC 6066,
// section 3) and some clients send all the same.
func isAddress(name []byte) bool {
	if !looksV6(name) {
		return isV4(name)
	}
	addr, err := netip.ParseAddr(string(name))
	return err == nil && addr.Zone() == ""
}

func looksV6(name []byte) bool { return bytes.IndexByte(name, ':') >= 0 }

// isV4 accepts the dotted decimal form only, without leading zeros.
func isV4(name []byte) bool {
	parts, value, digits := 0, 0, 0
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' {
			if digits == 0 || value > 255 {
				return false
			}
			parts, value, digits = parts+1, 0, 0
			continue
		}
		c := name[i]
		if c < '0' || c > '9' || digits == 3 || digits > 0 && value == 0 {
			return false
		}
		value, digits = value*10+int(c-'0'), digits+1
	}
	return parts == 4
}

func numericLast(name []byte) bool {
	last := name[bytes.LastIndexByte(name, '.')+1:]
	for _, c := range last {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(last) > 0
}
