package audit

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/eventtext"
)

// MaxEvent bounds one encoded event. Longer ones lose the ends of their
// longest values and carry "truncated": true.
const MaxEvent = eventtext.MaxEvent

// Bounds of what an event holds.
const (
	maxNesting  = 6
	maxElements = 4096 // of one list or map, before truncation
)

// Fields with the name of a common one are written with this prefix.
const (
	fieldsPrefix = "fields."
	timeFormat   = "2006-01-02T15:04:05.000Z07:00" // RFC 3339 with milliseconds
)

// Encode writes the event as one line of JSON without the line feed. The same
// event gives the same bytes. Every character that does not print is escaped,
// so that the line can be shown on a terminal.
func Encode(e sallyport.Event) []byte {
	for limit := MaxEvent; limit >= 64; limit /= 4 {
		w := &writer{b: make([]byte, 0, 768), max: MaxEvent, limit: limit}
		w.event(&e, limit >= 256)
		if !w.over {
			return w.b
		}
	}
	// Only the fixed fields, each at most 64 bytes, are left: it fits.
	w := &writer{max: 2 * MaxEvent, limit: 64}
	w.event(&e, false)
	return w.b
}

// writer writes until max bytes; strings are cut to limit bytes.
type writer struct {
	b     []byte
	max   int
	limit int
	cut   bool // something was shortened
	over  bool // more than max: the rest was not written
}

func (w *writer) event(e *sallyport.Event, withFields bool) {
	w.b = append(w.b, '{')
	w.pair("event", e.Name)
	w.pair("code", e.Code)
	w.pair("time", e.Time.UTC().Format(timeFormat))
	w.pair("uid", e.UID)
	w.key("ei")
	w.value(index(e), 0)
	for _, f := range []struct{ name, value string }{
		{"cluster_name", e.Cluster}, {"user", e.User}, {"user_kind", e.UserKind}, {"login", e.Login},
		{"sid", e.SessionID}, {"server_id", e.ServerID}, {"addr.remote", e.Addr},
	} {
		if f.value != "" {
			w.pair(f.name, f.value)
		}
	}
	if e.Success != nil {
		w.key("success")
		w.b = strconv.AppendBool(w.b, *e.Success)
	}
	if withFields {
		w.fields(e)
	} else {
		w.cut = w.cut || len(e.Fields) > 0
	}
	if t, _ := e.Fields["truncated"].(bool); t || w.cut {
		w.key("truncated")
		w.b = append(w.b, "true"...)
	}
	w.b = append(w.b, '}')
	w.over = w.over || len(w.b) > w.max
}

// index is the event's place among those of its session.
func index(e *sallyport.Event) any {
	switch v := e.Fields["ei"].(type) {
	case int64, int:
		return v
	}
	return int64(0)
}

func (w *writer) fields(e *sallyport.Event) {
	names := make([]string, 0, min(len(e.Fields), maxElements))
	for name, v := range e.Fields {
		if v == nil || w.reserved(name, v) {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) > maxElements {
		names, w.cut = names[:maxElements], true
	}
	for _, name := range names {
		out := name
		if strings.HasPrefix(name, fieldsPrefix) || isCommon(name) {
			out = fieldsPrefix + name
		}
		w.key(out)
		w.value(e.Fields[name], 0)
	}
}

// isCommon tells whether every event may have the name.
func isCommon(name string) bool {
	switch name {
	case "event", "code", "time", "uid", "ei", "cluster_name", "user", "user_kind", "login", "sid", "server_id",
		"addr.remote", "success", "truncated":
		return true
	}
	return false
}

// reserved tells whether a field is written among the common ones.
func (w *writer) reserved(name string, v any) bool {
	switch v.(type) {
	case bool:
		return name == "truncated"
	case int64, int:
		return name == "ei"
	}
	return false
}

func (w *writer) pair(name, value string) {
	w.key(name)
	w.str(value)
}

func (w *writer) key(name string) {
	if w.b[len(w.b)-1] != '{' {
		w.b = append(w.b, ',')
	}
	w.str(name)
	w.b = append(w.b, ':')
}

func (w *writer) value(v any, depth int) {
	if len(w.b) > w.max || depth > maxNesting {
		w.over = w.over || len(w.b) > w.max
		w.cut = true
		w.b = append(w.b, "null"...)
		return
	}
	switch v := v.(type) {
	case nil:
		w.b = append(w.b, "null"...)
	case string:
		w.str(v)
	case []byte:
		w.str(string(v[:min(len(v), w.limit+utf8.UTFMax)]))
	case bool:
		w.b = strconv.AppendBool(w.b, v)
	case int:
		w.b = strconv.AppendInt(w.b, int64(v), 10)
	case int32:
		w.b = strconv.AppendInt(w.b, int64(v), 10)
	case int64:
		w.b = strconv.AppendInt(w.b, v, 10)
	case uint16:
		w.b = strconv.AppendInt(w.b, int64(v), 10)
	case uint32:
		w.b = strconv.AppendInt(w.b, int64(v), 10)
	case uint64:
		w.unsigned(v)
	case float64:
		w.float(v)
	case time.Time:
		w.str(v.UTC().Format(timeFormat))
	case []string:
		list(w, v, depth, func(s string) { w.str(s) })
	case []int64:
		list(w, v, depth, func(n int64) { w.b = strconv.AppendInt(w.b, n, 10) })
	case []bool:
		list(w, v, depth, func(t bool) { w.b = strconv.AppendBool(w.b, t) })
	case []float64:
		list(w, v, depth, func(f float64) { w.float(f) })
	case []any:
		list(w, v, depth, func(x any) { w.value(x, depth+1) })
	case map[string]string:
		object(w, v, func(s string) { w.str(s) })
	case map[string][]string:
		object(w, v, func(s []string) { w.value(s, depth+1) })
	case map[string]any:
		object(w, v, func(x any) { w.value(x, depth+1) })
	case fmt.Stringer:
		w.str(v.String())
	case error:
		w.str(v.Error())
	default:
		w.str(fmt.Sprint(v))
	}
}

func list[T any](w *writer, l []T, depth int, one func(T)) {
	if len(l) > maxElements {
		l, w.cut = l[:maxElements], true
	}
	w.b = append(w.b, '[')
	for i, x := range l {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		if len(w.b) > w.max {
			w.over = true
			break
		}
		one(x)
	}
	w.b = append(w.b, ']')
}

func object[T any](w *writer, m map[string]T, one func(T)) {
	names := make([]string, 0, min(len(m), maxElements))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) > maxElements {
		names, w.cut = names[:maxElements], true
	}
	w.b = append(w.b, '{')
	for _, name := range names {
		if len(w.b) > w.max {
			w.over = true
			break
		}
		w.key(name)
		one(m[name])
	}
	w.b = append(w.b, '}')
}

func (w *writer) unsigned(v uint64) {
	if v > math.MaxInt64 {
		w.str(strconv.FormatUint(v, 10))
		return
	}
	w.b = strconv.AppendUint(w.b, v, 10)
}

// float writes a number that a reader can tell from a whole one. JSON has no
// infinity; it is written as text.
func (w *writer) float(v float64) {
	if math.IsInf(v, 0) || math.IsNaN(v) {
		w.str(strconv.FormatFloat(v, 'g', -1, 64))
		return
	}
	at := len(w.b)
	w.b = strconv.AppendFloat(w.b, v, 'g', -1, 64)
	if !strings.ContainsAny(string(w.b[at:]), ".e") {
		w.b = append(w.b, ".0"...)
	}
}

// str writes a JSON string, as package eventtext does.
func (w *writer) str(s string) {
	if len(s) > w.limit {
		s, w.cut = cutString(s, w.limit), true
	}
	whole := false
	w.b, whole = eventtext.Append(append(w.b, '"'), s, w.max)
	w.over = w.over || !whole
	w.b = append(w.b, '"')
}

// cutString cuts between characters.
func cutString(s string, n int) string {
	for i := 0; i < utf8.UTFMax && n-i > 0; i++ {
		if utf8.RuneStart(s[n-i]) {
			return s[:n-i]
		}
	}
	return s[:n]
}
