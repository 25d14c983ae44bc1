package websession

import (
	"strings"
	"testing"
)

// FuzzTokens: what is taken is exactly what is written, and becomes a key of its
// own kind, whatever comes.
func FuzzTokens(f *testing.F) {
	f.Add("")
	f.Add(token{}.String())
	f.Add(token{owner: ownerOf("alice")}.String() + "=")
	f.Add(deviceToken{userCode: "BCDFGHJK"}.String())
	f.Add(strings.Repeat("_", 75))
	f.Add(strings.Repeat("-", 54))
	f.Add("bcdf-ghjk")
	f.Add("B C D F G H J K")
	f.Add(strings.Repeat("A", CodeSize))
	f.Fuzz(func(t *testing.T, s string) {
		if tok, ok := parseToken(s); ok {
			if tok.String() != s || len(s) != 75 {
				t.Fatalf("%q is read as %q", s, tok)
			}
			id := tok.key()[strings.LastIndexByte(tok.key(), '/')+1:]
			if !validID(id) || strings.Count(tok.key(), "/") != 2 {
				t.Fatalf("%q is the key %q", s, tok.key())
			}
		}
		if tok, ok := parseDeviceToken(s); ok {
			if tok.String() != s || len(s) != 54 || strings.Trim(tok.userCode, userCodeLetters) != "" || len(tok.userCode) != userCodeSize {
				t.Fatalf("%q is read as %q of %q", s, tok, tok.userCode)
			}
		}
		if code, ok := ParseUserCode(s); ok {
			again, ok := ParseUserCode(ShowUserCode(code))
			if !ok || again != code || len(code) != userCodeSize || strings.Trim(code, userCodeLetters) != "" {
				t.Fatalf("%q is read as %q, and that as %q", s, code, again)
			}
			if bare := strings.NewReplacer("-", "", " ", "").Replace(strings.ToUpper(s)); bare != code {
				t.Fatalf("%q is read as %q", s, code)
			}
		}
		if ValidCode(s) && (len(s) != 43 || strings.ContainsAny(s, "=+/ \n&")) {
			t.Fatalf("%q is a code", s)
		}
	})
}

// TestUserCodes: every letter comes, none of the others, and codes do not repeat. There
// are 20^8 of them, so that once in 2,000 times two of 5,000 are the same, and once in
// ten million times two pairs.
func TestUserCodes(t *testing.T) {
	const codes = 5000
	seen, letters := map[string]bool{}, map[rune]int{}
	for range codes {
		c := newUserCode()
		seen[c] = true
		for _, r := range c {
			letters[r]++
		}
	}
	for _, r := range userCodeLetters {
		if n := letters[r]; n < 1700 || n > 2300 { // 2,000 expected, standard deviation 44
			t.Errorf("%c comes %d times", r, n)
		}
	}
	if repeated := codes - len(seen); repeated > 2 {
		t.Errorf("%d of %d codes came before", repeated, codes)
	}
	if len(letters) != len(userCodeLetters) {
		t.Errorf("letters %v", letters)
	}
}

// TestChallenge is the example of RFC 7636, appendix B.
func TestChallenge(t *testing.T) {
	if got := Challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"); got != "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM" {
		t.Errorf("got %s", got)
	}
}
