package database

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/eventtext"
)

// Bounds of what one event holds, in bytes as its line has them. What is beside
// them, with the session's fields, has the rest of eventtext.MaxEvent.
const (
	partSize     = eventtext.MaxEvent * 3 / 4 // text of a statement
	allParams    = partSize                   // all parameters, with their positions in further lists
	paramCost    = 16                         // least of a parameter: so an event lists less than 4096, the log's bound
	oneParameter = 4 << 10                    // of a parameter's own bytes
	oneName      = 2 << 10                    // of a name
)

// Statement is a text to be recorded.
type Statement struct {
	Event sallyport.Event // without the session's fields
	Field string          // which takes the text
	Text  []byte
	Most  int // bytes of it that are recorded
}

// Record emits the text, with base's fields, in as many events as it needs, in
// order, each such that the log takes it whole. Several are numbered by
// db_query_part from 1, and have the whole length in db_query_size and
// db_query_sha256, over the whole text. A text longer than Most is cut there; the
// last event then says so in db_query_truncated. Text that is not UTF-8 is written
// as Escaped does, and db_query_escaped is true: no byte is lost.
func (s Statement) Record(base map[string]any, emit func(sallyport.Event)) {
	text, e := s.Text, s.Event
	escape := !utf8.Valid(text)
	kept := text
	if len(text) > s.Most {
		kept = cutAt(text, s.Most, escape)
	}
	cut := len(kept) < len(text)
	fields := maps.Clone(base)
	maps.Copy(fields, e.Fields)
	if escape {
		fields["db_query_escaped"] = true
	}
	part := partOf(kept, escape)
	many := len(part) < len(text)
	if many {
		sum := sha256.Sum256(text)
		if _, known := fields["db_query_size"]; !known {
			fields["db_query_size"] = int64(len(text))
		}
		fields["db_query_sha256"] = hex.EncodeToString(sum[:])
	}
	for n := int64(1); ; n++ {
		last := len(part) == len(kept)
		e.Fields = fields
		if !last {
			e.Fields = maps.Clone(fields)
		} else if cut {
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
		kept = kept[len(part):]
		part = partOf(kept, escape)
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

// partOf returns what one event holds of a text, at least one character.
func partOf(text []byte, escape bool) []byte {
	if len(text) <= partSize/eventtext.MaxGrowth {
		return text
	}
	if !escape {
		n, _ := eventtext.Fit(string(cutAt(text, partSize, false)), partSize)
		return text[:n]
	}
	n, _ := fitEscaped(text, partSize)
	return text[:n]
}

// fitEscaped returns how many bytes of b an event's line holds in at most so many
// when they are written as Escaped does, and how many it needs.
func fitEscaped(b []byte, most int) (n, size int) {
	var scratch [utf8.UTFMax]byte
	for n < len(b) {
		first, k := appendEscaped(scratch[:0], b[n:])
		_, written := eventtext.Fit(string(first), partSize)
		if written > most-size {
			break
		}
		n, size = n+k, size+written
	}
	return n, size
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
	out := make([]byte, 0, len(b)+16)
	for len(b) > 0 {
		var n int
		out, n = appendEscaped(out, b)
		b = b[n:]
	}
	return string(out)
}

// appendEscaped appends the first character of b, which has n bytes, as Escaped
// writes it.
func appendEscaped(out, b []byte) (_ []byte, n int) {
	const digits = "0123456789abcdef"
	r, n := utf8.DecodeRune(b)
	switch {
	case r == utf8.RuneError && n == 1:
		return append(out, '\\', 'x', digits[b[0]>>4], digits[b[0]&15]), 1
	case r == '\\':
		return append(out, `\\`...), 1
	}
	return append(out, b[:n]...), n
}

// Printable is the name of a thing in a database; hardly any has more than
// 63 bytes, and only a hostile one more than oneName in an event's line.
func Printable(name []byte) string {
	if n, _ := fitEscaped(name, oneName); n < len(name) {
		return Escaped(name[:n]) + "…"
	}
	return Escaped(name)
}
