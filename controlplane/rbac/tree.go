package rbac

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// Bounds of a document. A role of a thousand lines is a tenth of the size.
const (
	maxDocument = 256 << 10 // bytes
	maxDepth    = 32        // of nested lists and mappings
	maxNodes    = 32 << 10
)

// shape is what a node of a document is.
type shape uint8

const (
	null shape = iota
	scalar
	list
	mapping
)

func (s shape) String() string {
	return [...]string{"nothing", "a single value", "a list", "a mapping"}[s]
}

// node is one value of a document with the place where it was written.
type node struct {
	line, column int
	shape        shape
	text         string  // scalar: as written, unquoted
	literal      string  // scalar: its JSON form when it is not a string: true, 12
	items        []*node // list
	entries      []entry // mapping, in the order written
}

// entry is one key of a mapping with its value.
type entry struct {
	key          string
	line, column int
	value        *node
}

// get returns the value of a key; nil when it is absent or null.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for _, e := range n.entries {
		if e.key == key && e.value.shape != null {
			return e.value
		}
	}
	return nil
}

// invalid is the error of a document: the place and the fact.
func invalid(line, column int, fact, hint string) *sallyport.Problem {
	if line > 0 {
		fact = fmt.Sprintf("line %d, column %d: %s", line, column, fact)
	}
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact, Hint: hint}
}

// parseTree reads one document. What begins like JSON is tried as JSON, which
// YAML's flow style resembles.
func parseTree(doc []byte) (*node, error) {
	if len(doc) > maxDocument {
		return nil, invalid(0, 0, fmt.Sprintf("the document has %d bytes; %d are the most", len(doc), maxDocument), "")
	}
	if !utf8.Valid(doc) {
		return nil, invalid(0, 0, "the document is not UTF-8 text", "")
	}
	if bytes.HasPrefix(bytes.TrimLeft(doc, " \t\r\n"), []byte("{")) {
		n, jsonErr := parseJSON(doc)
		if jsonErr == nil {
			return n, nil
		}
		n, err := parseYAML(doc)
		if err == nil {
			return n, nil
		}
		return nil, jsonErr
	}
	return parseYAML(doc)
}

// jsonReader builds a tree from JSON tokens.
type jsonReader struct {
	doc   []byte
	dec   *json.Decoder
	nodes int

	// line and column are those of offset at.
	line, column, at int
}

func parseJSON(doc []byte) (*node, error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	r := &jsonReader{doc: doc, dec: dec, line: 1, column: 1}
	n, err := r.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		r.locate()
		return nil, invalid(r.line, r.column, "there is something after the end of the document", "one document at a time")
	}
	return n, nil
}

// locate moves line and column to the next token.
func (r *jsonReader) locate() {
	at := int(r.dec.InputOffset())
	for at < len(r.doc) && strings.IndexByte(" \t\r\n,:", r.doc[at]) >= 0 {
		at++
	}
	for ; r.at < at; r.at++ {
		switch b := r.doc[r.at]; {
		case b == '\n':
			r.line, r.column = r.line+1, 1
		case utf8.RuneStart(b):
			r.column++
		}
	}
}

func (r *jsonReader) value(depth int) (*node, error) {
	r.locate()
	n := &node{line: r.line, column: r.column}
	if r.nodes++; depth > maxDepth || r.nodes > maxNodes {
		return nil, invalid(n.line, n.column, "the document is nested too deeply or too large", "")
	}
	tok, err := r.dec.Token()
	if err != nil {
		return nil, r.syntax(err)
	}
	switch v := tok.(type) {
	case nil:
	case bool:
		n.shape, n.text, n.literal = scalar, strconv.FormatBool(v), strconv.FormatBool(v)
	case json.Number:
		n.shape, n.text, n.literal = scalar, v.String(), v.String()
	case string:
		n.shape, n.text = scalar, v
	case json.Delim:
		if v == '[' {
			err = r.list(n, depth)
		} else {
			err = r.mapping(n, depth)
		}
	}
	return n, err
}

func (r *jsonReader) list(n *node, depth int) error {
	n.shape = list
	for r.dec.More() {
		item, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
	}
	return r.end()
}

func (r *jsonReader) mapping(n *node, depth int) error {
	n.shape = mapping
	for r.dec.More() {
		r.locate()
		line, column := r.line, r.column
		tok, err := r.dec.Token()
		if err != nil {
			return r.syntax(err)
		}
		value, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		if err := n.add(entry{tok.(string), line, column, value}); err != nil {
			return err
		}
	}
	return r.end()
}

func (r *jsonReader) end() error {
	if _, err := r.dec.Token(); err != nil {
		return r.syntax(err)
	}
	return nil
}

func (r *jsonReader) syntax(err error) error {
	r.locate()
	fact := "the document ends too early"
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		fact = "this is not JSON: " + clean(strings.TrimPrefix(err.Error(), "json: "))
	}
	return invalid(r.line, r.column, fact, "")
}

// add refuses a key that is there already: which one holds would be a guess.
func (n *node) add(e entry) error {
	for _, old := range n.entries {
		if old.key == e.key {
			return invalid(e.line, e.column, fmt.Sprintf("%q is written twice; first at line %d", clean(e.key), old.line), "")
		}
	}
	n.entries = append(n.entries, e)
	return nil
}

// appendJSON writes the node as canonical JSON: keys in order of their bytes,
// no white space, nulls left out of mappings.
func (n *node) appendJSON(b []byte) []byte {
	switch n.shape {
	case null:
		return append(b, "null"...)
	case scalar:
		if n.literal != "" {
			return append(b, n.literal...)
		}
		return appendString(b, n.text)
	case list:
		b = append(b, '[')
		for i, item := range n.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = item.appendJSON(b)
		}
		return append(b, ']')
	}
	b = append(b, '{')
	sorted := slices.Clone(n.entries)
	slices.SortFunc(sorted, func(x, y entry) int { return strings.Compare(x.key, y.key) })
	first := true
	for _, e := range sorted {
		if e.value.shape == null {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(appendString(b, e.key), ':')
		b = e.value.appendJSON(b)
	}
	return append(b, '}')
}

// appendString writes a JSON string and leaves <, > and & as they are.
func appendString(b []byte, s string) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return strconv.AppendQuote(b, s)
	}
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

// clean makes a stranger's text fit for a message: one line, printable, short.
func clean(s string) string {
	const longest = 120
	var b strings.Builder
	for _, r := range s {
		if b.Len() > longest {
			b.WriteString("…")
			break
		}
		if !strconv.IsPrint(r) {
			r = '�'
		}
		b.WriteRune(r)
	}
	return b.String()
}
