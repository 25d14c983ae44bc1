package preamble

import (
	"bytes"
	"encoding/binary"
)

// PostgreSQL, "Message Formats" and "Message Flow" (protocol 3.0 and 3.2). The
// first packet of a connection has no type byte: length, then a code.
const (
	pgCancelCode  = 1234<<16 | 5678
	pgSSLCode     = 1234<<16 | 5679
	pgGSSENCCode  = 1234<<16 | 5680
	pgMajor       = 3
	pgHeader      = 8
	pgMaxStartup  = 10000 // MAX_STARTUP_PACKET_LENGTH of the server
	pgMinStartup  = pgHeader + 1
	pgRequestSize = 8
	pgCancelSize  = 16
)

// The one-byte answers to SSLRequest and GSSENCRequest.
const (
	PostgresYes = 'S'
	PostgresNo  = 'N'
)

// PostgresKind is which of the first packets it is.
type PostgresKind uint8

const (
	PostgresSSL PostgresKind = iota + 1
	PostgresGSSENC
	PostgresCancel
	PostgresStartup
)

// Postgres is a connection's first packet, or the next one after 'N'.
type Postgres struct {
	Kind PostgresKind
	Size int // of the packet, its length field included

	PID, Key uint32 // PostgresCancel

	// PostgresStartup. Parameters are "name\0value\0…", checked; a part of
	// the bytes that were parsed.
	Minor      uint16
	Parameters []byte
}

// ParsePostgres reads the packet that b begins with. need is 0 when it is done,
// else the length that b must reach. b may go on behind the packet; whether it
// may is for the caller to say, who knows whose turn it is.
func ParsePostgres(b []byte) (p Postgres, need int, err error) {
	if len(b) < pgHeader {
		return p, pgHeader, nil
	}
	size, code := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if size > pgMaxStartup {
		return p, 0, ErrTooLarge
	}
	p.Size = int(size)
	switch {
	case code == pgSSLCode && size == pgRequestSize:
		p.Kind = PostgresSSL
	case code == pgGSSENCCode && size == pgRequestSize:
		p.Kind = PostgresGSSENC
	case code == pgCancelCode && size == pgCancelSize:
		if len(b) < pgCancelSize {
			return p, pgCancelSize, nil
		}
		p.Kind = PostgresCancel
		p.PID, p.Key = binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	case code>>16 == pgMajor && size >= pgMinStartup:
		if len(b) < p.Size {
			return p, p.Size, nil
		}
		p.Kind = PostgresStartup
		p.Minor, p.Parameters = uint16(code), b[pgHeader:p.Size]
		if !pgParametersOK(p.Parameters) {
			return p, 0, ErrMalformed
		}
	default:
		return p, 0, ErrMalformed
	}
	return p, 0, nil
}

// Parameter finds one of a StartupMessage's parameters: the last of that name,
// as the server does.
func (p Postgres) Parameter(name string) (value string, ok bool) {
	for rest := p.Parameters; len(rest) > 1; {
		var k, v []byte
		k, rest, _ = pgString(rest)
		v, rest, _ = pgString(rest)
		if string(k) == name {
			value, ok = string(v), true
		}
	}
	return value, ok
}

// pgParametersOK checks that they are pairs of zero-terminated strings, at least
// one (a user is required), with one zero byte behind the last and nothing else.
func pgParametersOK(b []byte) bool {
	if len(b) < 2 {
		return false
	}
	for len(b) > 1 {
		name, rest, ok := pgString(b)
		if !ok || len(name) == 0 {
			return false
		}
		if _, rest, ok = pgString(rest); !ok {
			return false
		}
		b = rest
	}
	return len(b) == 1 && b[0] == 0
}

func pgString(b []byte) (s, rest []byte, ok bool) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
}

// Refused28000 answers a StartupMessage in clear:
// invalid_authorization_specification, severity FATAL, with a fact and a hint.
// Zero bytes in either end the string early and so must not be there.
func Refused28000(fact, hint string) []byte { return refusedPostgres("28000", fact, hint) }

// Refused08P01 answers a first packet that is none (protocol_violation), as
// Refused28000 does.
func Refused08P01(fact, hint string) []byte { return refusedPostgres("08P01", fact, hint) }

func refusedPostgres(sqlstate, fact, hint string) []byte {
	fields := []struct {
		code  byte
		value string
	}{{'S', "FATAL"}, {'V', "FATAL"}, {'C', sqlstate}, {'M', fact}, {'H', hint}}
	b := []byte{'E', 0, 0, 0, 0}
	for _, f := range fields {
		if f.value == "" {
			continue
		}
		b = append(b, f.code)
		b = append(b, f.value...)
		b = append(b, 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-1))
	return b
}

// PostgresSSLRequest asks for TLS.
func PostgresSSLRequest() [pgRequestSize]byte {
	return [...]byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}
}
