package database

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strings"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// Bounds of what one event holds.
const (
	partSize     = 64 << 10 // text of a statement
	oneParameter = 4 << 10  // bytes of a parameter
	allParams    = 64 << 10 // bytes of all parameters; one counts at least 16
	paramCost    = 16
)

// Statement is a text to be recorded.
type Statement struct {
	Event sallyport.Event // without the session's fields
	Field string          // which takes the text
	Text  []byte
	Most  int // bytes of it that are recorded
}

// Record emits the text, with base's fields, in as many events as it needs, in
// order, numbered by db_query_part from 1 and with the whole length in
// db_query_size. A text longer than Most is cut there; the last event then says
// so in db_query_truncated, and all of them carry db_query_sha256, over the
// whole text. Text that is not UTF-8 is written as Escaped does, and
// db_query_escaped is true: no byte is lost.
func (s Statement) Record(base map[string]any, emit func(sallyport.Event)) {
	text, e := s.Text, s.Event
	escape := !utf8.Valid(text)
	kept := text
	if len(text) > s.Most {
		kept = cutAt(text, s.Most, escape)
	}
	fields := maps.Clone(base)
	maps.Copy(fields, e.Fields)
	if escape {
		fields["db_query_escaped"] = true
	}
	if len(kept) < len(text) {
		sum := sha256.Sum256(text)
		fields["db_query_sha256"] = hex.EncodeToString(sum[:])
	}
	many := len(text) > partSize
	if many {
		fields["db_query_size"] = int64(len(text))
	}
	for n := int64(1); ; n++ {
		part := cutAt(kept, partSize, escape)
		last := len(part) == len(kept)
		kept = kept[len(part):]
		e.Fields = fields
		if !last {
			e.Fields = maps.Clone(fields)
		} else if _, cut := fields["db_query_sha256"]; cut {
			e.Fields["db_query_truncated"] = true
		}
		if many {
			e.Fields["db_query_part"] = n
		}
		e.Fields[s.Field] = textOf(part, escape)
		emit(e)
		if last {
			return
		}
	}
}

// cutAt returns at most size bytes of a text, cut between two characters.
func cutAt(text []byte, size int, escape bool) []byte {
	if len(text) <= size {
		return text
	}
	n := size
	for !escape && n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

func textOf(b []byte, escape bool) string {
	if escape {
		return Escaped(b)
	}
	return string(b)
}

// Escaped writes bytes that are not UTF-8 so that they can be had back: \xNN for
// each byte that belongs to no character, \\ for a backslash.
func Escaped(b []byte) string {
	const digits = "0123456789abcdef"
	var out strings.Builder
	out.Grow(len(b) + 16)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == utf8.RuneError && n == 1:
			out.Write([]byte{'\\', 'x', digits[b[0]>>4], digits[b[0]&15]})
		case r == '\\':
			out.WriteString(`\\`)
		default:
			out.Write(b[:n])
		}
		b = b[n:]
	}
	return out.String()
}

// Printable is the name of a thing in a database; hardly any has more than
// 63 bytes, and only a hostile one more than oneParameter.
func Printable(name []byte) string {
	if len(name) > oneParameter {
		return Escaped(name[:oneParameter]) + "…"
	}
	return Escaped(name)
}
