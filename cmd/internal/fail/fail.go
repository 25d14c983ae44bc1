// Package fail tells a person what went wrong, the same way in every program:
// "ERROR: fact", then "hint: next step", and an exit code that means it.
package fail

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sallyport/sallyport"
)

// Exit is an error that carries the exit code of a program that was run for
// the user: it is passed on and nothing is printed.
type Exit struct{ Code int }

func (e Exit) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// Report prints err and returns the exit code: 0 for nil, the code of an Exit,
// else 1.
func Report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	var exit Exit
	if errors.As(err, &exit) {
		return exit.Code
	}
	fmt.Fprintln(w, "ERROR: "+Clean(err.Error()))
	var p *sallyport.Problem
	if errors.As(err, &p) && p.Hint != "" {
		fmt.Fprintln(w, "hint: "+Clean(p.Hint))
	}
	return 1
}

// Causes prints what is behind err, one line each, for those who asked for it.
func Causes(w io.Writer, err error) {
	var exit Exit
	if err == nil || errors.As(err, &exit) {
		return
	}
	said := map[string]bool{err.Error(): true}
	for _, e := range below(err, nil) {
		if text := e.Error(); !said[text] {
			said[text] = true
			fmt.Fprintf(w, "cause: %s (%T)\n", Clean(text), e)
		}
	}
}

// below lists the errors that err wraps, outermost first.
func below(err error, out []error) []error {
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			out = below(inner, append(out, inner))
		}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			out = below(inner, append(out, inner))
		}
	}
	return out
}

// Clean makes text from elsewhere harmless to a terminal: control characters
// but newline and tab become U+FFFD.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '\uFFFD'
		}
		return r
	}, s)
}
