package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// maxObject bounds one object of a list or a watch; etcd takes 1.5 MiB.
const maxObject = 16 << 20

var errObject = errors.New("an object in the API server's answer is too large")

// keepFunc says which objects may be seen.
type keepFunc func(namespace, name string) bool

// narrow makes the API server answer in a form that can be filtered: JSON,
// objects or tables with the objects' names in them.
func narrow(h http.Header, r *request) {
	var kept []string
	for _, line := range h["Accept"] {
		for entry := range strings.SplitSeq(line, ",") {
			if kind, params, err := mime.ParseMediaType(entry); err == nil && kind == "application/json" {
				kept = append(kept, mime.FormatMediaType(kind, params))
			}
		}
	}
	if len(kept) == 0 {
		kept = []string{"application/json"}
	}
	h["Accept"] = []string{strings.Join(kept, ",")}
	h.Del("Accept-Encoding") // ours would be to undo
	if r.query.Get("includeObject") == "None" || len(r.query["includeObject"]) > 1 {
		r.query.Set("includeObject", "Metadata")
	}
}

// filterable says whether an answer is in the form that narrow asked for.
func filterable(res *http.Response) bool {
	kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	return err == nil && kind == "application/json" && res.Header.Get("Content-Encoding") == ""
}

// filter puts a filter before an answer's body. It reads one object at a time, for
// which it has room for the user.
func filter(res *http.Response, watch bool, keep keepFunc, room holding) {
	m := &meter{r: res.Body, room: room, counted: shownStep}
	f := &filtered{body: res.Body, meter: m, dec: json.NewDecoder(m), keep: keep}
	f.dec.UseNumber()
	f.step = f.begin
	if watch {
		f.step = f.event
	}
	res.Body = f
	res.ContentLength = -1
	res.Header.Del("Content-Length")
	res.Header.Del("Etag")
}

// meter ends a read of one object that goes on for too long, or that there is no
// room for. The room of the largest object stays taken: so does what it was read into.
type meter struct {
	r       io.Reader
	left    int
	room    holding
	counted int // bytes of an object that there is room for
}

func (m *meter) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, errObject
	}
	if len(p) > m.left {
		p = p[:m.left]
	}
	n, err := m.r.Read(p)
	m.left -= n
	for maxObject-m.left > m.counted {
		if !m.room.take(m.counted * shownCost) {
			return 0, errHeld
		}
		m.counted *= 2
	}
	return n, err
}

// filtered is the body of a filtered answer. step makes the next piece of it.
type filtered struct {
	body  io.Closer
	meter *meter
	dec   *json.Decoder
	keep  keepFunc
	out   bytes.Buffer
	step  func() error
	err   error

	some bool // something stands before: the next needs a comma
	rows bool // of a table; else items
}

func (f *filtered) Close() error {
	f.meter.room.drop()
	return f.body.Close()
}

func (f *filtered) Read(p []byte) (int, error) {
	for f.out.Len() == 0 {
		if f.err != nil {
			return 0, f.err
		}
		f.meter.left = maxObject
		if f.err = f.step(); f.err != nil && f.err != io.EOF {
			// An end of the body within an object is not an end.
			if errors.Is(f.err, io.ErrUnexpectedEOF) || errors.Is(f.err, errObject) || errors.Is(f.err, errHeld) {
				return 0, f.err
			}
			f.err = fmt.Errorf("the API server's answer cannot be filtered: %w", f.err)
		}
	}
	return f.out.Read(p)
}

// begin reads the list's opening brace.
func (f *filtered) begin() error {
	if err := f.delim('{'); err != nil {
		return err
	}
	f.step = f.field
	return nil
}

func (f *filtered) delim(want json.Delim) error {
	tok, err := f.dec.Token()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	if tok != want {
		return fmt.Errorf("%q is not there", want.String())
	}
	f.out.WriteByte(byte(want))
	return nil
}

func (f *filtered) comma() {
	if f.some {
		f.out.WriteByte(',')
	}
	f.some = true
}

// field passes one field of the list on, or comes to its objects.
func (f *filtered) field() error {
	if !f.dec.More() {
		f.step = f.end
		return f.delim('}')
	}
	tok, err := f.dec.Token()
	if err != nil {
		return noEOF(err)
	}
	name, ok := tok.(string)
	if !ok {
		return errors.New("a field has no name")
	}
	switch name {
	case "kind", "apiVersion", "metadata", "columnDefinitions", "items", "rows":
	default: // what it holds cannot be judged
		return fmt.Errorf("a list has no field %.40q", name)
	}
	f.comma()
	key, err := json.Marshal(name)
	if err != nil {
		return err
	}
	f.out.Write(key)
	f.out.WriteByte(':')
	if name == "items" || name == "rows" {
		f.rows = name == "rows"
		return f.objects()
	}
	var value json.RawMessage
	if err := f.dec.Decode(&value); err != nil {
		return noEOF(err)
	}
	if name == "metadata" {
		if value, err = wholeList(value); err != nil {
			return err
		}
	}
	f.out.Write(value)
	return nil
}

// wholeList is the metadata of a list without the number of objects that remain: it
// counts those that are not shown. One that goes on elsewhere, unasked, tells by that
// the name of an object, and is not all there is: it is an error.
func wholeList(value json.RawMessage) (json.RawMessage, error) {
	var meta map[string]json.RawMessage
	if json.Unmarshal(value, &meta) != nil {
		return nil, errors.New("a list's metadata is no object")
	}
	if next := meta["continue"]; next != nil && string(next) != `""` && string(next) != "null" {
		return nil, errors.New("a list comes in pages unasked")
	}
	if meta["remainingItemCount"] == nil {
		return value, nil
	}
	delete(meta, "remainingItemCount")
	return json.Marshal(meta)
}

func (f *filtered) objects() error {
	tok, err := f.dec.Token()
	if err != nil {
		return noEOF(err)
	}
	switch tok {
	case nil:
		f.out.WriteString("null")
		return nil
	case json.Delim('['):
		f.out.WriteByte('[')
		f.some, f.step = false, f.object
		return nil
	}
	return errors.New("the objects are not a list")
}

// object passes one object on, or leaves it out.
func (f *filtered) object() error {
	if !f.dec.More() {
		f.some, f.step = true, f.field
		return f.delim(']')
	}
	var value json.RawMessage
	if err := f.dec.Decode(&value); err != nil {
		return noEOF(err)
	}
	if f.shown(value, f.rows) {
		f.comma()
		f.out.Write(value)
	}
	return nil
}

// end expects nothing more.
func (f *filtered) end() error {
	if _, err := f.dec.Token(); err != io.EOF {
		return errors.New("something follows the list")
	}
	return io.EOF
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// shown says whether an object, or a row of a table, may be seen. Field names
// are compared exactly, as API servers and clients do: encoding/json's structs
// would take "Metadata" for "metadata".
func (f *filtered) shown(value json.RawMessage, row bool) bool {
	fields := fieldsOf(value)
	if row {
		fields = fieldsOf(fields["object"])
	}
	meta := fieldsOf(fields["metadata"])
	var namespace, name string
	if json.Unmarshal(meta["name"], &name) != nil {
		return false
	}
	if ns := meta["namespace"]; ns != nil && json.Unmarshal(ns, &namespace) != nil {
		return false
	}
	return f.keep(namespace, name)
}

func fieldsOf(value json.RawMessage) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(value, &m) != nil {
		return nil
	}
	return m
}

// event passes one event of a watch on, or leaves it out.
func (f *filtered) event() error {
	var value json.RawMessage
	if err := f.dec.Decode(&value); err != nil {
		return err // io.EOF between events is the end
	}
	fields := fieldsOf(value)
	var kind string
	if json.Unmarshal(fields["type"], &kind) != nil {
		return errors.New("an event has no type")
	}
	switch {
	case kind == "BOOKMARK" || kind == "ERROR": // tell how far the watch is, or why it ends
	case f.isTable(fields["object"]):
		var err error
		if value, err = f.rowsOf(fields); err != nil || value == nil {
			return err
		}
	case !f.shown(fields["object"], false):
		return nil
	}
	f.out.Write(value)
	f.out.WriteByte('\n')
	return nil
}

func (f *filtered) isTable(object json.RawMessage) bool {
	var kind string
	return json.Unmarshal(fieldsOf(object)["kind"], &kind) == nil && kind == "Table"
}

// rowsOf keeps those rows of an event's table that may be seen; nil when there
// are none.
func (f *filtered) rowsOf(event map[string]json.RawMessage) (json.RawMessage, error) {
	table := fieldsOf(event["object"])
	var rows, kept []json.RawMessage
	if err := json.Unmarshal(table["rows"], &rows); err != nil {
		return nil, errors.New("a table has no rows")
	}
	for _, row := range rows {
		if f.shown(row, true) {
			kept = append(kept, row)
		}
	}
	if len(kept) == 0 {
		return nil, nil
	}
	var err error
	if table["rows"], err = json.Marshal(kept); err != nil {
		return nil, err
	}
	if event["object"], err = json.Marshal(table); err != nil {
		return nil, err
	}
	return json.Marshal(event)
}
