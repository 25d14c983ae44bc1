// Package table prints rows as tsh does: columns as wide as their longest cell,
// a header, dashes, rows; on a terminal the labels are cut to fit.
package table

import (
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

const (
	gap      = " "
	ellipsis = "..."
	minCut   = 8 // a column is never cut to less than this
)

// Write prints the table. width is the terminal's, 0 when there is none: then
// nothing is cut. Control characters in cells become U+FFFD. The column that is
// cut is the one named Labels, else the last.
func Write(w io.Writer, width int, header []string, rows [][]string) error {
	rows = clean(rows)
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], uniseg.StringWidth(cell))
		}
	}
	fit(widths, width, cutColumn(header))
	dashes := make([]string, len(header))
	for i, n := range widths {
		dashes[i] = strings.Repeat("-", n)
	}
	var b strings.Builder
	for _, row := range append([][]string{header, dashes}, rows...) {
		line(&b, row, widths)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// clean keeps every cell on its line and its terminal as it was.
func clean(rows [][]string) [][]string {
	out := make([][]string, len(rows))
	for i, row := range rows {
		out[i] = make([]string, len(row))
		for j, cell := range row {
			out[i][j] = strings.Map(func(r rune) rune {
				if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
					return utf8.RuneError
				}
				return r
			}, cell)
		}
	}
	return out
}

func cutColumn(header []string) int {
	if i := slices.Index(header, "Labels"); i >= 0 {
		return i
	}
	return len(header) - 1
}

// fit makes one column narrower, so that a row is at most as long as the
// terminal is wide.
func fit(widths []int, width, column int) {
	if width <= 0 || len(widths) == 0 {
		return
	}
	total := len(widths) - 1
	for _, n := range widths {
		total += n
	}
	if over := total - width; over > 0 {
		widths[column] = max(widths[column]-over, min(widths[column], minCut))
	}
}

func line(b *strings.Builder, row []string, widths []int) {
	var text strings.Builder
	for i, cell := range row {
		text.WriteString(Column(cell, widths[i], ellipsis))
		text.WriteString(gap)
	}
	b.WriteString(strings.TrimRight(text.String(), " "))
	b.WriteByte('\n')
}

// Column is text in exactly so many columns of a terminal, of which a character may
// take none or two (Unicode Standard Annexes 11 and 29): filled up with spaces, or
// cut, and then with end behind it. Columns are at least those of end.
func Column(text string, columns int, end string) string {
	n := uniseg.StringWidth(text)
	if n > columns {
		text, n = cut(text, columns-uniseg.StringWidth(end))
		text, n = text+end, n+uniseg.StringWidth(end)
	}
	return text + strings.Repeat(" ", columns-n)
}

// cut is the beginning of text in whole characters that takes at most so many
// columns, and how many it takes.
func cut(text string, columns int) (_ string, n int) {
	for rest, state := text, -1; rest != ""; {
		var width int
		before := len(text) - len(rest)
		_, rest, width, state = uniseg.FirstGraphemeClusterInString(rest, state)
		if n+width > columns {
			return text[:before], n
		}
		n += width
	}
	return text, n
}
