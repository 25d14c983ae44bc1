package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/sallyport/sallyport"
)

// decode reads one document, nil when there is none, into v too. The YAML library is not ours:
// what it panics about is bad input too.
func decode(text string, v *any) (root ast.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("this is not YAML that can be read here: leave out tags (!) and aliases (*)")
		}
	}()
	file, err := parser.ParseBytes([]byte(text), 0)
	if err != nil {
		return nil, err
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		root = asWritten(doc.Body)
		if err := yaml.NodeToValue(root, v); err != nil || *v != nil {
			return root, err
		}
	}
	return nil, nil
}

// asWritten makes text of every number without quotes, and of True and its like: a
// label's value 1.10 is not 1.1, and 0123 is not 83. Whoever wants a number, or a
// condition, reads it from the text. What has another tag than !!str is what that says.
func asWritten(n ast.Node) ast.Node {
	switch v := n.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return ast.String(n.GetToken())
	case *ast.BoolNode:
		if v.Token.Value != strconv.FormatBool(v.Value) {
			return ast.String(v.Token)
		}
	case *ast.SequenceNode:
		for i := range v.Values {
			v.Values[i] = asWritten(v.Values[i])
		}
	case *ast.MappingNode:
		for _, kv := range v.Values {
			asWritten(kv)
		}
	case *ast.MappingValueNode:
		if key, ok := asWritten(v.Key).(ast.MapKeyNode); ok {
			v.Key = key
		}
		v.Value = asWritten(v.Value)
	case *ast.MappingKeyNode:
		v.Value = asWritten(v.Value)
	case *ast.AnchorNode:
		v.Value = asWritten(v.Value)
	case *ast.TagNode:
		if token.ReservedTagKeyword(v.Start.Value) == token.StringTag {
			v.Value = asWritten(v.Value)
		}
	}
	return n
}

// document is one of a stream, as JSON, and the line at which it begins.
type document struct {
	json string
	line int
	root ast.Node
}

// place is where auth has seen something in a document: it has got JSON, on one line
// that is nobody's. Where it names only a field, field or unknown find that.
var (
	place   = regexp.MustCompile(`^line 1, column (\d+): `)
	field   = regexp.MustCompile(`\b(?:metadata|spec)(?:\.\w+|\[\d+\])+`)
	unknown = regexp.MustCompile(`^unknown field "(\w+)"`)
)

// say puts the line of the text in place of where auth saw it.
func (d document) say(fact string) string {
	line := 0
	if seen := place.FindStringSubmatch(fact); seen != nil {
		fact = fact[len(seen[0]):]
		column, _ := strconv.Atoi(seen[1]) // of too many digits: of nothing
		if way := wayTo(d.json, column); len(way) > 0 {
			line = lineOf(d.root, way)
		}
	} else if path := field.FindString(fact); path != "" {
		line = lineOf(d.root, steps(path))
	} else if name := unknown.FindStringSubmatch(fact); name != nil {
		line = onlyLineOf(d.root, name[1])
	}
	if line == 0 {
		return fmt.Sprintf("the document at line %d: %s", d.line, fact)
	}
	return fmt.Sprintf("line %d: %s", d.line-1+line, fact)
}

// isHere says where else to look when a document is of a kind of tctl's only.
func (d document) isHere() error {
	var head struct{ Kind any }
	_ = json.Unmarshal([]byte(d.json), &head) // what is no mapping is auth's to refuse
	kind, _ := head.Kind.(string)
	_, err := documentKind(kind)
	if p := (*sallyport.Problem)(nil); kind != "" && errors.As(err, &p) {
		return &sallyport.Problem{Kind: p.Kind, Fact: d.say(p.Fact), Hint: p.Hint}
	}
	return nil
}

// refused is auth's error about the document.
func (d document) refused(err error) error {
	var p *sallyport.Problem
	if !errors.As(err, &p) || !errors.Is(p, sallyport.ErrInvalid) {
		return err
	}
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: d.say(p.Fact), Hint: p.Hint, Cause: err}
}

// documents splits a YAML stream into JSON documents; empty ones are left out.
func documents(text []byte) ([]document, error) {
	var out []document
	for _, c := range chunks(string(text)) {
		var v any
		root, err := decode(c.text, &v)
		if err != nil {
			return nil, misplaced(err, c.line)
		}
		if v == nil {
			continue
		}
		b, err := json.Marshal(v)
		if err != nil {
			return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("the document at line %d has keys that are not text", c.line+1)}
		}
		out = append(out, document{string(b), c.line + 1, root})
	}
	if len(out) == 0 {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "no document to create", Hint: "sallyctl create FILE"}
	}
	return out, nil
}

// chunk is one document of a stream, after so many lines.
type chunk struct {
	text string
	line int
}

// chunks cuts a stream at its markers: "---" or "..." at the beginning of a line
// never stand inside a document (YAML 1.2.2, section 9.1.2). The library's own
// reader of streams loses what follows an empty document.
func chunks(text string) []chunk {
	var out []chunk
	var doc strings.Builder
	first, n := 0, 0
	flush := func() {
		if strings.TrimSpace(doc.String()) != "" {
			out = append(out, chunk{doc.String(), first})
		}
		doc.Reset()
	}
	for line := range strings.Lines(text) {
		if marker(line) {
			flush()
			first = n
			line = "   " + line[3:] // what follows on the line is the next document's
		}
		doc.WriteString(line)
		n++
	}
	flush()
	return out
}

func marker(line string) bool {
	return (strings.HasPrefix(line, "---") || strings.HasPrefix(line, "...")) && (len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0)
}

// misplaced says where the parser stopped.
func misplaced(err error, lines int) error {
	p := &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: err.Error(), Cause: err}
	var ye yaml.Error
	if errors.As(err, &ye) && ye.GetToken() != nil {
		pos := ye.GetToken().Position
		p.Fact = fmt.Sprintf("line %d, column %d: %s", lines+pos.Line, pos.Column, ye.GetMessage())
	}
	return p
}
