package database

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/sallyport/sallyport/eventtext"
)

// Values are the parameters of one message, bounded: at most 4 KiB of one, and of
// all what one event's line holds, are kept.
type Values struct {
	list   []string
	base64 []int64 // positions, from 1
	nulls  []int64
	cut    []int64
	sums   []string  // of those that were cut
	rest   hash.Hash // of those that were left out; nil: none was
	total  int64     // how many there were
	room   int       // bytes of the line
}

// NewValues returns an empty list.
func NewValues() Values { return Values{room: allParams} }

// Add takes the next value; nil is NULL.
func (v *Values) Add(b []byte, inBinary bool) {
	v.total++
	cost := valueCost(v.total)
	text, n, isText := fitValue(b, inBinary, v.room-cost)
	if n < len(b) {
		cost += sumCost(v.total)
		text, n, isText = fitValue(b, inBinary, v.room-cost)
	}
	if v.rest != nil || v.room < max(cost, paramCost) {
		v.leaveOut(b)
		return
	}
	switch {
	case b == nil:
		v.nulls = append(v.nulls, v.total)
	case !isText:
		v.base64 = append(v.base64, v.total)
	}
	if n < len(b) {
		sum := sha256.Sum256(b)
		v.cut, v.sums = append(v.cut, v.total), append(v.sums, hex.EncodeToString(sum[:]))
	}
	_, size := eventtext.Fit(text, math.MaxInt)
	v.list = append(v.list, text)
	v.room -= max(paramCost, cost+size)
}

// leaveOut takes a value into the hash of those that are not listed. All behind it
// are none either, so that the list is of the first ones.
func (v *Values) leaveOut(b []byte) {
	if v.rest == nil {
		v.rest = sha256.New()
	}
	size := int64(len(b))
	if b == nil {
		size = -1
	}
	v.rest.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	v.rest.Write(b)
}

// fitValue returns what is kept of a value in so many bytes of the line: the text,
// how many bytes of the value it is, and whether it is no base64.
func fitValue(b []byte, inBinary bool, room int) (text string, n int, isText bool) {
	kept, isText := cutValue(b, inBinary)
	if isText {
		text = string(kept)
		n, _ = eventtext.Fit(text, max(room, 0))
		return text[:n], n, true
	}
	kept = kept[:min(len(kept), base64.StdEncoding.DecodedLen(max(room, 0)/4*4))]
	return base64.StdEncoding.EncodeToString(kept), len(kept), false
}

// cutValue returns what is kept of a value, and whether it is text.
func cutValue(b []byte, inBinary bool) (kept []byte, isText bool) {
	head := b[:min(len(b), oneParameter)]
	text := cutAt(b, oneParameter, inBinary)
	if inBinary || len(head)-len(text) >= utf8.UTFMax || !utf8.Valid(text) {
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

// sumCost is what the hash of a value takes of a line, with its position.
func sumCost(position int64) int { return 2*sha256.Size + valueCost(position) }

// Len is how many values there were.
func (v *Values) Len() int { return int(v.total) }

// Fields are those of the event, with the list under the name given: values in
// binary form, or not UTF-8, are base64 and their positions are in
// base64_<name>; NULLs are empty and in null_<name>. <name>_truncated says when
// more were sent, and <name>_count how many values. Those of which only the
// beginning is listed are in cut_<name>, and the SHA-256 of each, whole, in
// sha256_<name>, in the same order; the SHA-256 of all that are not listed is
// rest_sha256_<name>: of each its length, in 8 bytes, and the value; -1 for NULL.
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
	if len(v.cut) > 0 {
		f["cut_"+name], f["sha256_"+name] = v.cut, v.sums
	}
	if v.rest != nil {
		f["rest_sha256_"+name] = hex.EncodeToString(v.rest.Sum(nil))
	}
	if v.rest != nil || len(v.cut) > 0 {
		f[name+"_truncated"] = true
		f[name+"_count"] = v.total
	}
	return f
}
