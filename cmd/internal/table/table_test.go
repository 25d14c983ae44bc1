package table

import (
	"strings"
	"testing"

	"github.com/rivo/uniseg"
)

func TestWrite(t *testing.T) {
	header := []string{"Node Name", "Address", "Labels"}
	rows := [][]string{{"web-1", "⟵ Tunnel", "env=prod,team=web,zone=a"}, {"db", "⟵ Tunnel", ""}}
	for _, tt := range []struct {
		name  string
		width int
		want  string
	}{
		{"no terminal", 0, `Node Name Address  Labels
--------- -------- ------------------------
web-1     ⟵ Tunnel env=prod,team=web,zone=a
db        ⟵ Tunnel
`},
		{"wide", 80, `Node Name Address  Labels
--------- -------- ------------------------
web-1     ⟵ Tunnel env=prod,team=web,zone=a
db        ⟵ Tunnel
`},
		{"cut", 33, `Node Name Address  Labels
--------- -------- --------------
web-1     ⟵ Tunnel env=prod,te...
db        ⟵ Tunnel
`},
		{"too narrow", 3, `Node Name Address  Labels
--------- -------- --------
web-1     ⟵ Tunnel env=p...
db        ⟵ Tunnel
`},
	} {
		var b strings.Builder
		if err := Write(&b, tt.width, header, rows); err != nil || b.String() != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, b.String(), tt.want)
		}
	}
}

// TestLabelsAreCut: what stands behind the labels, such as a command to paste,
// stays whole.
func TestLabelsAreCut(t *testing.T) {
	var b strings.Builder
	Write(&b, 30, []string{"Name", "Labels", "Connect"}, [][]string{{"a", strings.Repeat("x", 40), "sally db connect a"}})
	if out := b.String(); !strings.Contains(out, " sally db connect a\n") || !strings.Contains(out, "xxxxx...") {
		t.Errorf("\n%s", out)
	}
}

func TestNoRows(t *testing.T) {
	var b strings.Builder
	if Write(&b, 2, []string{"A", "B"}, nil); b.String() != "A B\n- -\n" {
		t.Errorf("%q", b.String())
	}
}

// FuzzWrite: strangers' names make no lines and no escapes; rows fit.
func FuzzWrite(f *testing.F) {
	f.Add("a", "b=c", 20)
	f.Add("\x1b[2J", "x\ny", 1)
	f.Add("\u202e\u2066", strings.Repeat("é", 100), 40)
	f.Add("\xff", "\x00\t\r", 0)
	f.Add("0", "0\xa3\x10뗧\xe9\xb0 \xda\x05hO驥\xeb\x97", 32)
	f.Fuzz(func(t *testing.T, name, labels string, width int) {
		var b strings.Builder
		if err := Write(&b, width, []string{"Name", "Labels", "Connect"}, [][]string{{name, labels, ""}, {labels, name, "x"}}); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if len(lines) != 4 {
			t.Fatalf("%d lines: %q", len(lines), b.String())
		}
		for _, l := range lines {
			if strings.ContainsFunc(l, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x202e }) {
				t.Fatalf("control characters in %q", l)
			}
			cells := clean([][]string{{name, labels}})[0] // what is no text takes a column, too
			least := max(uniseg.StringWidth(cells[0]), uniseg.StringWidth(cells[1]), 4) + 8 + 7 + 2
			if columns := uniseg.StringWidth(l); width > least && columns > width {
				t.Fatalf("%d columns on a terminal of %d: %q", columns, width, l)
			}
		}
	})
}
