package redis

import "bytes"

// words cuts a line of text into arguments as servers do (sdssplitargs of
// Redis): "..." with escapes, '...' with \' only, and a quote ends its word. The
// server never sees the line, only the array made of it, so that it cannot read
// another command than was recorded.
func words(line []byte) ([][]byte, error) {
	if bytes.IndexByte(line, 0) >= 0 {
		return nil, malformedf("a NUL in a line")
	}
	var out [][]byte
	for {
		for len(line) > 0 && blank(line[0]) {
			line = line[1:]
		}
		if len(line) == 0 {
			return out, nil
		}
		word, rest, ok := word(line)
		if !ok {
			return nil, malformedf("unbalanced quotes in a line")
		}
		out = append(out, word)
		line = rest
	}
}

// word reads the first one of a line that does not begin with a blank.
func word(line []byte) (out, rest []byte, ok bool) {
	out = []byte{}
	for len(line) > 0 {
		switch c := line[0]; {
		case c == '"':
			return quoted(out, line[1:])
		case c == '\'':
			return single(out, line[1:])
		case c == ' ' || c == '\n' || c == '\r' || c == '\t':
			return out, line, true
		default:
			out = append(out, c)
			line = line[1:]
		}
	}
	return out, line, true
}

func quoted(out, line []byte) ([]byte, []byte, bool) {
	for len(line) > 0 {
		switch {
		case line[0] == '"':
			return closed(out, line[1:])
		case len(line) >= 4 && line[0] == '\\' && line[1] == 'x' && hex(line[2]) >= 0 && hex(line[3]) >= 0:
			out = append(out, byte(hex(line[2])<<4|hex(line[3])))
			line = line[4:]
		case len(line) >= 2 && line[0] == '\\':
			out = append(out, escaped(line[1]))
			line = line[2:]
		default:
			out = append(out, line[0])
			line = line[1:]
		}
	}
	return nil, nil, false
}

func single(out, line []byte) ([]byte, []byte, bool) {
	for len(line) > 0 {
		switch {
		case line[0] == '\'':
			return closed(out, line[1:])
		case len(line) >= 2 && line[0] == '\\' && line[1] == '\'':
			out = append(out, '\'')
			line = line[2:]
		default:
			out = append(out, line[0])
			line = line[1:]
		}
	}
	return nil, nil, false
}

// closed is behind a closing quote, which must end the word.
func closed(out, line []byte) ([]byte, []byte, bool) {
	return out, line, len(line) == 0 || blank(line[0])
}

func escaped(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return c
}

// blank is isspace(3) in the C locale.
func blank(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
