package sshauth

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSourceAllowed(t *testing.T) {
	for _, c := range []struct {
		list, addr string
		want       bool
	}{
		{"192.0.2.7", "192.0.2.7", true},
		{"192.0.2.7", "::ffff:192.0.2.7", true},
		{"192.0.2.0/24", "192.0.2.7", true},
		{"198.51.100.1,192.0.2.0/24", "192.0.2.7", true},
		{"2001:db8::/32", "2001:db8::1", true},
		{"0.0.0.0/0", "192.0.2.7", true},
		{"", "192.0.2.7", false},
		{",192.0.2.7", "192.0.2.7", false},
		{"192.0.2.7,", "192.0.2.7", false},
		{"192.0.2.7/24", "192.0.2.7", false}, // host bits, as sshd
		{"192.0.2.7,bad", "192.0.2.7", false},
		{"192.0.2.7 ", "192.0.2.7", false},
		{"192.0.2.7/33", "192.0.2.7", false},
		{"192.0.2.8", "192.0.2.7", false},
		{"!192.0.2.8", "192.0.2.7", false},
		{"*", "192.0.2.7", false},
		{"::/0", "192.0.2.7", false},
		{"fe80::1%eth0", "fe80::1", false},
		{strings.Repeat("192.0.2.7,", maxSourceItems) + "192.0.2.7", "192.0.2.7", false},
	} {
		if got := sourceAllowed(c.list, netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%q for %s: %v", c.list, c.addr, got)
		}
	}
	if sourceAllowed("0.0.0.0/0", netip.Addr{}) {
		t.Error("an unknown address is in a prefix")
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":             "plain",
		"é ü":               "é ü",
		"a\x1b[2Jb":         "a?[2Jb",
		"a\r\nb":            "a??b",
		"a\u009bb":          "a?b",
		"a\x7f":             "a?",
		"bad \xff utf":      "bad ? utf",
		"0123456789abcdefg": "0123456789abcdef",
	} {
		if got := Printable(in, 16); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
