package preamble

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestRefused1045(t *testing.T) {
	for _, row := range []struct{ fact, hint, want string }{
		{"no", "", "no"}, {"no", "ask", "no (ask)"}, {"", "", ""},
		{strings.Repeat("é", 300), "", strings.Repeat("é", 255)},
	} {
		b := Refused1045(row.fact, row.hint)
		if n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16; n != len(b)-4 || b[3] != 0 || b[4] != 0xff || b[5] != 0x15 || b[6] != 0x04 {
			t.Errorf("%q", b)
		}
		if got := string(b[7:]); got != row.want || !utf8.ValidString(got) {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}
