package preamble

import (
	"strings"
	"testing"
)

func TestRefusedRedis(t *testing.T) {
	for _, row := range []struct{ fact, hint, want string }{
		{"the gateway does not answer", "try again", "-ERR the gateway does not answer (try again)\r\n"},
		{"NOPERM no role lets you", "", "-NOPERM no role lets you\r\n"},
		{"", "", "-ERR \r\n"},
		{"a\r\n+OK", "b\nc", "-ERR a  +OK (b c)\r\n"},
	} {
		if got := string(RefusedRedis(row.fact, row.hint)); got != row.want {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
	if got := string(RefusedRedis(strings.Repeat("ü", 2000), "")); len(got) > 1100 || !strings.HasSuffix(got, "ü\r\n") {
		t.Errorf("%d bytes", len(got))
	}
}
