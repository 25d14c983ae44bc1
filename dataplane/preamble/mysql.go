package preamble

import "strings"

// Refused1045 greets a MySQL client with an error, access denied, of a fact and
// a hint: an ERR packet in place of the greeting (MySQL documentation, page
// "Connection Phase"), without a SQLSTATE, since nothing has been agreed on.
// There is one text, which is cut where clients cut it.
func Refused1045(fact, hint string) []byte {
	const code, most = 1045, 511
	text := fact
	if hint != "" {
		text += " (" + hint + ")"
	}
	text = strings.ToValidUTF8(text[:min(len(text), most)], "")
	b := []byte{0, 0, 0, 0, 0xff, code & 0xff, code >> 8}
	b = append(b, text...)
	n := len(b) - 4
	b[0], b[1] = byte(n), byte(n>>8)
	return b
}
