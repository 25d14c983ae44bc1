package preamble

import (
	"strings"
	"unicode"
)

// RefusedRedis is an error of Redis's protocol of a fact and a hint. A fact that
// begins with a code, a word in capitals, keeps it; others get ERR.
func RefusedRedis(fact, hint string) []byte {
	const most = 1024
	if code, _, _ := strings.Cut(fact, " "); code == "" || strings.ContainsFunc(code, func(r rune) bool { return r < 'A' || r > 'Z' }) {
		fact = "ERR " + fact
	}
	if hint != "" {
		fact += " (" + hint + ")"
	}
	fact = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, fact)
	return []byte("-" + strings.ToValidUTF8(fact[:min(len(fact), most)], "") + "\r\n")
}
