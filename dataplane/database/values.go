package database

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"

	"github.com/sallyport/sallyport/eventtext"
)

// Values are the parameters of one message, bounded: at most 4 KiB of one, and of
// all what one event's line holds, are kept.
type Values struct {
	list    []string
	base64  []int64 // positions, from 1
	nulls   []int64
	total   int64 // how many there were
	room    int   // bytes of the line
	dropped bool  // something was cut or left out
}

// NewValues returns an empty list.
func NewValues() Values { return Values{room: allParams} }

// Add takes the next value; nil is NULL.
func (v *Values) Add(b []byte, binary bool) {
	v.total++
	if v.room < paramCost {
		v.dropped = true
		return
	}
	kept, isText := cutValue(b, binary)
	room := v.room - valueCost(v.total)
	size, text := 0, ""
	switch {
	case b == nil:
		v.nulls = append(v.nulls, v.total)
	case isText:
		text = string(kept)
		var n int
		n, size = eventtext.Fit(text, room)
		kept, text = kept[:n], text[:n]
	default:
		kept = kept[:min(len(kept), base64.StdEncoding.DecodedLen(room/4*4))]
		text = base64.StdEncoding.EncodeToString(kept)
		size = len(text)
		v.base64 = append(v.base64, v.total)
	}
	v.list = append(v.list, text)
	v.dropped = v.dropped || len(kept) < len(b)
	v.room -= max(paramCost, valueCost(v.total)+size)
}

// cutValue returns what is kept of a value, and whether it is text.
func cutValue(b []byte, binary bool) (kept []byte, isText bool) {
	head := b[:min(len(b), oneParameter)]
	text := cutAt(b, oneParameter, binary)
	if binary || len(head)-len(text) >= utf8.UTFMax || !utf8.Valid(text) {
		return head, false
	}
	return text, true
}

// valueCost is what a value takes of a line beside its own text: quotes and a
// comma, and its position in another list.
func valueCost(position int64) int {
	var digits [20]byte
	return len(`"",,`) + len(strconv.AppendInt(digits[:0], position, 10))
}

// Len is how many values there were.
func (v *Values) Len() int { return int(v.total) }

// Fields are those of the event, with the list under the name given: values in
// binary form, or not UTF-8, are base64 and their positions are in
// base64_<name>; NULLs are empty and in null_<name>; <name>_truncated says when
// more were sent.
func (v *Values) Fields(name string) map[string]any {
	f := map[string]any{}
	if v.total > 0 {
		f[name] = v.list
	}
	if len(v.base64) > 0 {
		f["base64_"+name] = v.base64
	}
	if len(v.nulls) > 0 {
		f["null_"+name] = v.nulls
	}
	if v.dropped {
		f[name+"_truncated"] = true
		f[name+"_count"] = v.total
	}
	return f
}
