package attack

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/dataplane/database"
)

// nasty are characters and bytes that an event's line writes longer than they are.
var nasty = []string{
	"x", "\x00", "\r", "\"", "\\", "\n", "\x7f", "\u0085", "\u2028", "ü", "😀", "\U000e0001", "\U0010f780", "\xff", "\x80", "\xed\xa0\x80", "\xc3",
}

// nastyText has runs of them, and at least so many bytes; in UTF-8 when whole.
func nastyText(r *rand.Rand, size int, whole bool) []byte {
	b := []byte{}
	for len(b) < size {
		s := nasty[r.IntN(len(nasty))]
		if whole && !utf8.ValidString(s) {
			continue
		}
		b = append(b, strings.Repeat(s, 1+r.IntN(max(1, size/(1+r.IntN(20)))))...)
	}
	return b
}

// logged is an event as the log gives it back.
func logged(t *testing.T, e sallyport.Event) map[string]any {
	t.Helper()
	e.User, e.UserKind, e.Cluster, e.SessionID = "alice@example.com", "human", "gw.example.com", "01234567-89ab-cdef-0123-456789abcdef"
	line := audit.LineOf(e, "host")
	back, err := audit.Decode(line.JSON)
	if err != nil {
		t.Fatal(err)
	}
	if back.Fields["truncated"] != nil {
		t.Fatalf("the log has cut an event of %s", e.Name)
	}
	return back.Fields
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// unescaped is what database.Escaped was made of.
func unescaped(t *testing.T, s string) string {
	t.Helper()
	var b []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\':
			b = append(b, s[i])
		case strings.HasPrefix(s[i:], `\\`):
			b = append(b, '\\')
			i++
		default:
			c, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, byte(c))
			i += 3
		}
	}
	return string(b)
}

// TestStatementsInTheLog: a statement of what the log writes six or twelve times as
// long does not lose its text there.
func TestStatementsInTheLog(t *testing.T) {
	base := map[string]any{"db_service": "orders", "db_user": "alice", "db_name": "orders", "db_protocol": "postgres", "db_uri": "localhost:5432"}
	name := database.Printable(bytes.Repeat([]byte{0xff}, 1<<20))
	check := func(text []byte, most int) {
		t.Helper()
		var got strings.Builder
		var events []map[string]any
		e := sallyport.Event{Name: "db.session.query", Code: "TDB02I", Fields: map[string]any{"statement_name": name, "portal_name": name}}
		database.Statement{Event: e, Field: "db_query", Text: text, Most: most}.Record(base, func(e sallyport.Event) {
			f := logged(t, e)
			events = append(events, f)
			part := f["db_query"].(string)
			if f["db_query_escaped"] == true {
				part = unescaped(t, part)
			}
			got.WriteString(part)
		})
		cut := events[len(events)-1]["db_query_truncated"] == true
		if cut != (len(text) > most) || !strings.HasPrefix(string(text), got.String()) || !cut && got.Len() < len(text) || cut && got.Len() <= most-4 {
			t.Fatalf("%d bytes of a text of %d in the log, truncated: %v", got.Len(), len(text), cut)
		}
		for i, f := range events {
			switch {
			case len(events) == 1 && !cut:
				if f["db_query_sha256"] != nil || f["db_query_part"] != nil {
					t.Fatalf("the only event has %v", f)
				}
			case f["db_query_sha256"] != sumOf(text) || f["db_query_size"] != int64(len(text)) || f["db_query_part"] != int64(i+1):
				t.Fatalf("event %d of %d: %v, %v, %v", i, len(events), f["db_query_sha256"], f["db_query_size"], f["db_query_part"])
			}
		}
	}
	for _, s := range nasty {
		check([]byte("/*"+strings.Repeat(s, 200_000/len(s))+"*/ DROP TABLE secret"), 1<<20)
		check([]byte(strings.Repeat(s, 4000/len(s))), 1000)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 40 {
		check(nastyText(r, 1+r.IntN(150_000), i%2 == 0), 100_000)
	}
}

// TestValuesInTheLog: parameters that the log would write longer than an event do
// not take the event's other fields with them.
func TestValuesInTheLog(t *testing.T) {
	name := database.Printable(bytes.Repeat([]byte{0}, 1<<20))
	check := func(values [][]byte, inBinary func(i int) bool) {
		t.Helper()
		v := database.NewValues()
		for i, b := range values {
			v.Add(b, inBinary(i))
		}
		f := v.Fields("parameters")
		f["statement_name"], f["portal_name"] = name, name
		f = logged(t, sallyport.Event{Name: "db.session.postgres.statements.bind", Code: "TPG01I", Fields: f})
		list := f["parameters"].([]any)
		cut := len(list) < len(values)
		sums, _ := f["sha256_parameters"].([]any)
		for i, text := range list {
			got := []byte(text.(string))
			if holds(f["base64_parameters"], i+1) {
				got, _ = base64.StdEncoding.DecodeString(text.(string))
			}
			if values[i] == nil != holds(f["null_parameters"], i+1) || !bytes.HasPrefix(values[i], got) {
				t.Fatalf("value %d of %d bytes is %d others in the log", i+1, len(values[i]), len(got))
			}
			partly := len(got) < len(values[i])
			if partly != holds(f["cut_parameters"], i+1) || partly && (len(sums) == 0 || sums[0] != sumOf(values[i])) {
				t.Fatalf("value %d is cut: %v; in the log %v and %v", i+1, partly, f["cut_parameters"], sums)
			}
			if partly {
				cut, sums = true, sums[1:]
			}
		}
		var rest any
		if len(list) < len(values) {
			rest = sumOf(lengthsAnd(values[len(list):]))
		}
		if rest != f["rest_sha256_parameters"] || len(sums) > 0 {
			t.Fatalf("the rest is %v in the log, not %v; %d sums too many", f["rest_sha256_parameters"], rest, len(sums))
		}
		if cut != (f["parameters_truncated"] == true) || cut && f["parameters_count"] != int64(len(values)) {
			t.Fatalf("cut: %v, and the log says %v of %v", cut, f["parameters_truncated"], f["parameters_count"])
		}
		room := 0
		for _, b := range values {
			room += 20 + 12*len(b)
		}
		if cut && room < 40<<10 && slices.IndexFunc(values, func(b []byte) bool { return len(b) > 4<<10 }) < 0 {
			t.Fatalf("values of %d bytes in the log were cut", room)
		}
	}
	for _, s := range append(nasty, "", strings.Repeat("x", 4095)+"ü") {
		for _, many := range []int{1, 15, 2001, 65535} {
			for _, size := range []int{1, 16, 4096, 10_000} {
				if many*size > 10<<20 {
					continue
				}
				value := []byte(strings.Repeat(s, size/max(len(s), 1)+1))
				check(slices.Repeat([][]byte{value}, many), func(i int) bool { return i%3 == 1 })
			}
		}
	}
	check(make([][]byte, 65535), func(int) bool { return false })
	r := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		values := make([][]byte, 1+r.IntN(3000))
		for i := range values {
			if values[i] = nastyText(r, r.IntN(1<<r.IntN(14)), false); r.IntN(4) == 0 {
				values[i] = nil
			}
		}
		check(values, func(i int) bool { return i%5 == 0 })
	}
}

// lengthsAnd are values as their hash has them.
func lengthsAnd(values [][]byte) []byte {
	var b []byte
	for _, v := range values {
		size := int64(len(v))
		if v == nil {
			size = -1
		}
		b = append(binary.BigEndian.AppendUint64(b, uint64(size)), v...)
	}
	return b
}

// holds says that a list of positions has one.
func holds(list any, position int) bool {
	l, _ := list.([]any)
	_, found := slices.BinarySearchFunc(l, int64(position), func(x any, p int64) int { return int(x.(int64) - p) })
	return found
}
