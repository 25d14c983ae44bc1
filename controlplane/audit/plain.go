package audit

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// plainMost is how many names a plain object has at most: Decode looks for one
// that comes twice by comparing each with all.
const plainMost = 48

// member is one name and value of a plain object.
type member struct {
	name  string
	text  string // the value, when other is nil
	other any
}

func (m *member) value() any {
	if m.other == nil {
		return m.text
	}
	return m.other
}

// plainObject reads an object as Encode writes most: no space between the parts,
// values that are texts, whole numbers, true, false, or lists of texts. It takes
// a tenth of the time that a reader of all of JSON does, and auth reads each event
// of every host. ok is false for anything else, also for what is no JSON: then
// reader, which takes the same line for the same or for an error, has the word.
// The line is UTF-8. What is returned is in list, and holds on to the line.
func plainObject(line string, list []member) (_ []member, ok bool) {
	p := plainReader{rest: line}
	if !p.is('{') {
		return nil, false
	}
	for len(list) < plainMost {
		var m member
		if m.name, ok = p.text(); !ok || !p.is(':') || has(list, m.name) {
			return nil, false
		}
		if p.first() == '"' {
			m.text, ok = p.text()
		} else {
			m.other, ok = p.value()
		}
		if !ok {
			return nil, false
		}
		list = append(list, m)
		if !p.is(',') {
			return list, p.is('}') && p.rest == ""
		}
	}
	return nil, false
}

func has(list []member, name string) bool {
	for i := range list {
		if list[i].name == name {
			return true
		}
	}
	return false
}

// plainReader reads what plainObject says.
type plainReader struct{ rest string }

// first is the next byte; 0 at the end.
func (p *plainReader) first() byte {
	if p.rest == "" {
		return 0
	}
	return p.rest[0]
}

// is takes one byte, if it comes next.
func (p *plainReader) is(b byte) bool {
	if p.rest == "" || p.rest[0] != b {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *plainReader) word(w string) (ok bool) {
	p.rest, ok = strings.CutPrefix(p.rest, w)
	return ok
}

// value reads one that is no text.
func (p *plainReader) value() (any, bool) {
	switch p.first() {
	case 't':
		return true, p.word("true")
	case 'f':
		return false, p.word("false")
	case '[':
		return p.texts()
	}
	return p.whole()
}

// texts reads a list of texts.
func (p *plainReader) texts() (any, bool) {
	p.is('[')
	list := []any{}
	if p.is(']') {
		return list, true
	}
	for {
		text, ok := p.text()
		if !ok {
			return nil, false
		}
		list = append(list, text)
		if p.is(',') {
			continue
		}
		return list, p.is(']')
	}
}

// wholeDigits is how many digits every number of an int64 may have.
const wholeDigits = 18

// whole reads a number without a fraction, an exponent or a sign.
func (p *plainReader) whole() (any, bool) {
	n := 0
	for n < len(p.rest) && p.rest[n] >= '0' && p.rest[n] <= '9' {
		n++
	}
	if n == 0 || n > wholeDigits || n > 1 && p.rest[0] == '0' {
		return nil, false
	}
	v, err := strconv.ParseInt(p.rest[:n], 10, 64)
	p.rest = p.rest[n:] // a fraction or an exponent is not what may come next
	return v, err == nil
}

// text reads a string with no escapes but those of single signs.
func (p *plainReader) text() (string, bool) {
	if !p.is('"') {
		return "", false
	}
	var out []byte // what stands before an escape; nil without one
	from, ascii := 0, true
	for i := 0; i < len(p.rest); i++ {
		switch b := p.rest[i]; {
		case b == '"':
			s := p.rest[from:i]
			if out != nil {
				s = string(append(out, s...))
			}
			p.rest = p.rest[i+1:]
			if !ascii {
				s = raw(s)
			}
			return s, true
		case b == '\\':
			c, ok := unescaped(p.rest[i+1:])
			if !ok {
				return "", false
			}
			out = append(append(out, p.rest[from:i]...), c)
			i++
			from = i + 1
		case b < ' ':
			return "", false
		case b >= utf8.RuneSelf:
			ascii = false
		}
	}
	return "", false
}

// unescaped is what an escape of one sign stands for (RFC 8259 section 7), of
// those that Encode writes.
func unescaped(after string) (byte, bool) {
	if after == "" {
		return 0, false
	}
	switch after[0] {
	case '"', '\\':
		return after[0], true
	case 'n':
		return '\n', true
	case 't':
		return '\t', true
	}
	return 0, false
}
