// Package table prints rows as tsh does: columns as wide as their longest cell,
// a header, dashes, rows; on a terminal the last column is cut to fit.
package table

import (
	"io"
	"strings"
	"unicode/utf8"
)

const gap = " "

// Write prints the table. width is the terminal's, 0 when there is none: then
// nothing is cut. Cells must be one line each.
func Write(w io.Writer, width int, header []string, rows [][]string) error {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	fit(widths, width)
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

// fit cuts the last column, to no less than its share, so that a row is at most
// as long as the terminal is wide.
func fit(widths []int, width int) {
	if width <= 0 || len(widths) == 0 {
		return
	}
	total := len(widths) - 1
	for _, n := range widths {
		total += n
	}
	last := len(widths) - 1
	widths[last] = max(widths[last]-max(total-width, 0), 8)
}

func line(b *strings.Builder, row []string, widths []int) {
	var text strings.Builder
	for i, cell := range row {
		n := utf8.RuneCountInString(cell)
		if n > widths[i] {
			cell, n = string([]rune(cell)[:widths[i]-3])+"...", widths[i]
		}
		text.WriteString(cell)
		text.WriteString(strings.Repeat(" ", widths[i]-n))
		text.WriteString(gap)
	}
	b.WriteString(strings.TrimRight(text.String(), " "))
	b.WriteByte('\n')
}
