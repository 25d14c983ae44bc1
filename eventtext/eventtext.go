// Package eventtext writes a text as an event's line holds it: a string of JSON of
// which every character prints. Who makes events learns here how much of a text
// one holds.
package eventtext

import (
	"unicode"
	"unicode/utf8"
)

// MaxEvent bounds one encoded event, in bytes.
const MaxEvent = 64 << 10

// MaxGrowth is how many bytes one byte of a text becomes at most.
const MaxGrowth = 12

// Bytes that are not UTF-8 are written as these private characters, one per
// byte, so that they survive any JSON reader and come back as they were. Text
// that holds such a character itself is written by the bytes of it.
const (
	byteBase = 0x10f700 // + the byte
	byteLow  = byteBase + 0x80
	byteHigh = byteBase + 0xff
)

// ByteOf returns the byte that a private character stands for.
func ByteOf(r rune) (b byte, is bool) { return byte(r - byteBase), r >= byteLow && r <= byteHigh }

// Append appends s to b, as it stands between the quotes of a JSON string (RFC
// 8259 section 7), until b has more than most bytes. It reports whether all of s
// was written.
func Append(b []byte, s string, most int) ([]byte, bool) {
	for len(s) > 0 && len(b) <= most {
		n := plain(s)
		if n > 0 {
			b = append(b, s[:n]...)
		} else {
			b, n = appendFirst(b, s)
		}
		s = s[n:]
	}
	return b, len(s) == 0
}

// Fit returns how many bytes of s, in whole characters from its beginning, Append
// writes in at most so many bytes, and how many it writes.
func Fit(s string, most int) (n, size int) {
	var scratch [utf8.UTFMax * MaxGrowth]byte
	for n < len(s) {
		k, written := min(plain(s[n:]), most-size), 0
		if written = k; k == 0 {
			var b []byte
			b, k = appendFirst(scratch[:0], s[n:])
			written = len(b)
		}
		if written > most-size {
			break
		}
		n, size = n+k, size+written
	}
	return n, size
}

// appendFirst appends the first character of s, which has n bytes.
func appendFirst(b []byte, s string) (_ []byte, n int) {
	r, n := utf8.DecodeRuneInString(s)
	switch {
	case r == utf8.RuneError && n == 1, r >= byteLow && r <= byteHigh:
		for _, c := range []byte(s[:n]) {
			b = appendEscape(b, byteBase+rune(c))
		}
	case r == '"' || r == '\\':
		b = append(b, '\\', byte(r))
	case r == '\n':
		b = append(b, `\n`...)
	case r == '\t':
		b = append(b, `\t`...)
	case !unicode.IsPrint(r):
		b = appendEscape(b, r)
	default:
		b = append(b, s[:n]...)
	}
	return b, n
}

func appendEscape(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	units := [2]rune{r, 0}
	n := 1
	if r > 0xffff { // a surrogate pair
		r -= 0x10000
		units, n = [2]rune{0xd800 + r>>10, 0xdc00 + r&0x3ff}, 2
	}
	for _, u := range units[:n] {
		b = append(b, '\\', 'u', hex[u>>12&15], hex[u>>8&15], hex[u>>4&15], hex[u&15])
	}
	return b
}

// plain counts the printable ASCII at the start that needs no escape.
func plain(s string) int {
	for i := range len(s) {
		if b := s[i]; b < ' ' || b > '~' || b == '"' || b == '\\' {
			return i
		}
	}
	return len(s)
}
