package mysql

import (
	"bytes"
	"slices"
)

// filesMost is how many files one text may name; more are not looked for.
const filesMost = 64

// reading is a way in which a server reads a text: whether strings in either sort
// of quotes have escapes by backslash (SQL modes NO_BACKSLASH_ESCAPES and, for
// names in double quotes, ANSI_QUOTES).
type reading struct{ single, double bool }

// loaded is the name in a LOAD, with its quotes, and where it begins.
type loaded struct {
	at  int
	str []byte
}

// filesOf returns the files that a text's LOAD DATA LOCAL INFILE and LOAD XML
// LOCAL INFILE name: each in the ways in which a server can read its string. It
// finds no file that is not there in each of these, since what is code in one may
// be a value in another; a text in which it finds none that is there only loses
// its request (doc.go).
func filesOf(text []byte) [][]byte {
	if !containsFold(text, "infile") || !containsFold(text, "local") {
		return nil
	}
	escaped := loadsOf(text, reading{single: true, double: true})
	plain := loadsOf(text, reading{})
	names := loadsOf(text, reading{single: true})
	var out [][]byte
	for _, e := range escaped {
		p, ok := loadAt(plain, e.at)
		if _, too := loadAt(names, e.at); ok && too {
			out = append(out, unquoted(e.str, true), unquoted(p.str, false))
		}
	}
	return out
}

func loadAt(l []loaded, at int) (loaded, bool) {
	i := slices.IndexFunc(l, func(f loaded) bool { return f.at == at })
	if i < 0 {
		return loaded{}, false
	}
	return l[i], true
}

// loadsOf finds the names in one way of reading, in the text's order.
func loadsOf(text []byte, as reading) []loaded {
	var out []loaded
	s := scanner{rest: text, as: as}
	var last [4]string // words before this one, newest last
	for len(out) < filesMost {
		word, str, ok := s.next()
		if !ok {
			return out
		}
		if str != nil && last[3] == "INFILE" && isLoadLocal(last[:3]) {
			out = append(out, loaded{at: len(text) - len(s.rest) - len(str), str: str})
		}
		copy(last[:], last[1:])
		last[3] = word
	}
	return out
}

// isLoadLocal takes the three words before INFILE: LOAD DATA LOCAL, or DATA
// CONCURRENT LOCAL, whose LOAD is before them.
func isLoadLocal(w []string) bool {
	if w[2] != "LOCAL" {
		return false
	}
	switch w[1] {
	case "DATA", "XML":
		return w[0] == "LOAD"
	case "CONCURRENT", "LOW_PRIORITY":
		return w[0] == "DATA" || w[0] == "XML"
	}
	return false
}

// scanner cuts a statement's text into words, strings and signs.
type scanner struct {
	rest []byte
	as   reading
}

// next returns a word in upper case, or a string with its quotes. A sign is the
// word "" without a string.
func (s *scanner) next() (word string, str []byte, ok bool) {
	s.blanks()
	if len(s.rest) == 0 {
		return "", nil, false
	}
	switch c := s.rest[0]; {
	case c == '\'' || c == '"' || c == '`':
		n := quoted(s.rest, c == '\'' && s.as.single || c == '"' && s.as.double)
		str, s.rest = s.rest[:n], s.rest[n:]
		if c == '`' || n < 2 || str[n-1] != c {
			return "", nil, true
		}
		return "", str, true
	case isWord(c):
		n := 1
		for n < len(s.rest) && isWord(s.rest[n]) {
			n++
		}
		w := s.rest[:n]
		s.rest = s.rest[n:]
		if n > len("LOW_PRIORITY") {
			return "", nil, true
		}
		return string(bytes.ToUpper(w)), nil, true
	}
	s.rest = s.rest[1:]
	return "", nil, true
}

// blanks skips space and comments. What stands in "/*!" is executed, so only its
// signs are skipped.
func (s *scanner) blanks() {
	for len(s.rest) > 0 {
		switch b := s.rest; {
		case b[0] <= ' ':
			s.rest = b[1:]
		case b[0] == '#', bytes.HasPrefix(b, []byte("--")) && (len(b) == 2 || b[2] <= ' '):
			s.skipPast("\n")
		case bytes.HasPrefix(b, []byte("/*!")), bytes.HasPrefix(b, []byte("/*M!")):
			s.skipPast("!")
			for len(s.rest) > 0 && s.rest[0] >= '0' && s.rest[0] <= '9' {
				s.rest = s.rest[1:]
			}
		case bytes.HasPrefix(b, []byte("/*")):
			s.rest = b[2:]
			s.skipPast("*/")
		case bytes.HasPrefix(b, []byte("*/")):
			s.rest = b[2:]
		default:
			return
		}
	}
}

func (s *scanner) skipPast(end string) {
	i := bytes.Index(s.rest, []byte(end))
	if i < 0 {
		s.rest = nil
		return
	}
	s.rest = s.rest[i+len(end):]
}

// quoted is the length of the string that b begins with, its quotes included, with
// or without escapes by backslash.
func quoted(b []byte, escapes bool) int {
	q := b[0]
	for i := 1; i < len(b); i++ {
		switch {
		case b[i] == '\\' && escapes:
			i++
		case b[i] == q && i+1 < len(b) && b[i+1] == q:
			i++
		case b[i] == q:
			return i + 1
		}
	}
	return len(b)
}

// unquoted is a string's value, with or without escapes by backslash
// (NO_BACKSLASH_ESCAPES; page "String Literals").
func unquoted(str []byte, escapes bool) []byte {
	q, in := str[0], str[1:len(str)-1]
	out := make([]byte, 0, len(in))
	for i := 0; i < len(in); i++ {
		c := in[i]
		switch {
		case c == '\\' && escapes && i+1 < len(in):
			i++
			c = unescaped(in[i])
		case c == q && i+1 < len(in) && in[i+1] == q:
			i++
		}
		out = append(out, c)
	}
	return out
}

func unescaped(c byte) byte {
	switch c {
	case '0':
		return 0
	case 'b':
		return '\b'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'Z':
		return 0x1a
	}
	return c
}

func isWord(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' || c == '$' || c >= 0x80
}

// containsFold finds a word of lower case letters in any case.
func containsFold(text []byte, word string) bool {
	for {
		i := bytes.IndexAny(text, word[:1]+string(word[0]-0x20))
		if i < 0 || len(text)-i < len(word) {
			return false
		}
		if bytes.EqualFold(text[i:i+len(word)], []byte(word)) {
			return true
		}
		text = text[i+1:]
	}
}
