package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/eventtext"
)

// errEvent is why a line is not an event.
func errEvent(format string, args ...any) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "audit line: " + fmt.Sprintf(format, args...)}
}

// Decode reads what Encode wrote, also when another version wrote it: names
// that are not known become Fields. Lists are []any, maps map[string]any.
func Decode(line []byte) (sallyport.Event, error) {
	var e sallyport.Event
	if len(line) > 2*MaxEvent {
		return e, errEvent("%d bytes; %d are the most", len(line), 2*MaxEvent)
	}
	if !utf8.Valid(line) {
		return e, errEvent("not UTF-8")
	}
	var room [plainMost]member
	if list, ok := plainObject(string(line), room[:0]); ok {
		return e, fillPlain(&e, list)
	}
	m, err := readObject(line)
	if err != nil {
		return e, err
	}
	return e, fill(&e, m)
}

// readObject reads any object of JSON.
func readObject(line []byte) (map[string]any, error) {
	d := &reader{dec: json.NewDecoder(bytes.NewReader(line))}
	d.dec.UseNumber()
	if tok, err := d.dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errEvent("not a JSON object")
	}
	m, err := d.object(0)
	if err != nil {
		return nil, err
	}
	if _, err := d.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errEvent("there is something after the object")
	}
	return m, nil
}

// textOf is the field of a common name that is text; nil for other names.
func textOf(e *sallyport.Event, name string) *string {
	switch name {
	case "event":
		return &e.Name
	case "code":
		return &e.Code
	case "uid":
		return &e.UID
	case "cluster_name":
		return &e.Cluster
	case "user":
		return &e.User
	case "user_kind":
		return &e.UserKind
	case "login":
		return &e.Login
	case "sid":
		return &e.SessionID
	case "server_id":
		return &e.ServerID
	case "addr.remote":
		return &e.Addr
	}
	return nil
}

// fill moves the common names from m to the event; the rest is Fields.
func fill(e *sallyport.Event, m map[string]any) error {
	for name, v := range m {
		if err := fillOne(e, name, v); err != nil {
			return err
		}
	}
	return filled(e)
}

// fillPlain is fill for a list.
func fillPlain(e *sallyport.Event, list []member) error {
	for i := range list {
		m := &list[i]
		if to := textOf(e, m.name); to != nil && m.other == nil {
			*to = m.text
			continue
		}
		if err := fillOne(e, m.name, m.value()); err != nil {
			return err
		}
	}
	return filled(e)
}

// filled says whether an event has what each must have.
func filled(e *sallyport.Event) error {
	if e.Name == "" || e.Time.IsZero() {
		return errEvent("event or time is missing")
	}
	return nil
}

func fillOne(e *sallyport.Event, name string, v any) error {
	to := textOf(e, name)
	text, ok := v.(string)
	switch {
	case name == "user_kind" && !ok:
		n, _ := v.(int64)
		return fillKind(e, n)
	case to != nil && !ok:
		return errEvent("%s is not text", name)
	case to != nil:
		*to = text
	case name == "time":
		return fillTime(e, text)
	case name == "success":
		b, ok := v.(bool)
		if !ok {
			return errEvent("success is not true or false")
		}
		e.Success = &b
	case name == "ei":
		n, ok := v.(int64)
		if !ok {
			return errEvent("ei is not a whole number")
		}
		if n != 0 {
			setField(e, "ei", n)
		}
	case v == nil:
	default:
		name = strings.TrimPrefix(name, fieldsPrefix)
		if _, twice := e.Fields[name]; twice {
			return errEvent("a name comes twice")
		}
		setField(e, name, v)
	}
	return nil
}

// fillKind takes the number that Shown writes.
func fillKind(e *sallyport.Event, n int64) error {
	if n < 1 || n > int64(len(userKinds)) {
		return errEvent("user_kind is no kind")
	}
	e.UserKind = userKinds[n-1]
	return nil
}

func fillTime(e *sallyport.Event, text string) error {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return errEvent("time is not RFC 3339")
	}
	// As Encode writes it, so that what is read once can be read again.
	e.Time = t.UTC().Truncate(time.Millisecond)
	if e.Time.Year() < 1970 || e.Time.Year() > 9999 {
		return errEvent("time is out of range")
	}
	return nil
}

// reader builds values from JSON tokens, bounded in depth and refusing names
// that come twice: two readers could take different ones.
type reader struct{ dec *json.Decoder }

func (d *reader) value(depth int) (any, error) {
	tok, err := d.dec.Token()
	if err != nil {
		return nil, errEvent("not JSON")
	}
	if depth > 2*maxNesting {
		return nil, errEvent("nested too deeply")
	}
	switch v := tok.(type) {
	case string:
		return raw(v), nil
	case json.Number:
		return number(v)
	case json.Delim:
		if v == '[' {
			return d.list(depth)
		}
		return d.object(depth)
	}
	return tok, nil
}

func (d *reader) list(depth int) (any, error) {
	out := []any{}
	for d.dec.More() {
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, d.end()
}

func (d *reader) object(depth int) (map[string]any, error) {
	out := map[string]any{}
	for d.dec.More() {
		tok, err := d.dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return nil, errEvent("not JSON")
		}
		name = raw(name)
		if _, twice := out[name]; twice {
			return nil, errEvent("a name comes twice")
		}
		if out[name], err = d.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return out, d.end()
}

func (d *reader) end() error {
	if _, err := d.dec.Token(); err != nil {
		return errEvent("not JSON")
	}
	return nil
}

// number is int64 when written as a whole number, else float64.
func number(n json.Number) (any, error) {
	if !strings.ContainsAny(n.String(), ".eE") {
		if v, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
			return v, nil
		}
	}
	v, err := n.Float64()
	if err != nil {
		return nil, errEvent("a number is out of range")
	}
	return v, nil
}

// raw turns the private characters back into the bytes that they stand for.
func raw(s string) string {
	if !strings.ContainsFunc(s, isByte) {
		return s
	}
	b := make([]byte, 0, len(s))
	for _, r := range s {
		if c, is := eventtext.ByteOf(r); is {
			b = append(b, c)
			continue
		}
		b = utf8.AppendRune(b, r)
	}
	return string(b)
}

func isByte(r rune) bool {
	_, is := eventtext.ByteOf(r)
	return is
}

func setField(e *sallyport.Event, name string, v any) {
	if e.Fields == nil {
		e.Fields = make(map[string]any, 16)
	}
	e.Fields[name] = v
}
