package database

import (
	"encoding/base64"
	"unicode/utf8"
)

// Values are the parameters of one message, bounded: at most 4 KiB of one and
// 64 KiB of all are kept.
type Values struct {
	list    []string
	base64  []int64 // positions, from 1
	nulls   []int64
	total   int64 // how many there were
	room    int
	dropped bool // something was cut or left out
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
	v.room -= paramCost
	keep := min(len(b), oneParameter, v.room)
	v.dropped = v.dropped || keep < len(b)
	v.room -= keep
	cut := b[:keep]
	switch {
	case b == nil:
		v.nulls = append(v.nulls, v.total)
		v.list = append(v.list, "")
	case binary || !utf8.Valid(cut):
		v.base64 = append(v.base64, v.total)
		v.list = append(v.list, base64.StdEncoding.EncodeToString(cut))
	default:
		v.list = append(v.list, string(cut))
	}
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
