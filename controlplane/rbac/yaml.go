package rbac

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// parseYAML builds a tree from YAML. Anchors, aliases and merge keys are
// refused: a role is read by people, and a document that multiplies itself is
// an attack on the reader.
func parseYAML(doc []byte) (*node, error) {
	if line := tooDeep(doc); line > 0 {
		return nil, invalid(line, 1, fmt.Sprintf("lists and mappings are nested deeper than %d", maxDepth), "")
	}
	file, err := parseFile(doc)
	if err != nil {
		return nil, err
	}
	var body ast.Node
	for _, d := range file.Docs {
		if d.Body == nil || d.Body.Type() == ast.CommentType || d.Body.Type() == ast.DirectiveType {
			continue
		}
		if body != nil {
			line, column := place(d.Body)
			return nil, invalid(line, column, "a second document begins here", "one document at a time")
		}
		body = d.Body
	}
	if body == nil {
		return nil, invalid(0, 0, "the document is empty", "")
	}
	r := &yamlReader{}
	return r.value(body, 0)
}

// parseFile calls the parser, which is not ours: what it panics about is bad
// input too.
func parseFile(doc []byte) (file *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			file, err = nil, invalid(0, 0, "this is not YAML", "")
		}
	}()
	file, err = parser.ParseBytes(doc, 0)
	if err == nil {
		return file, nil
	}
	var syntax *yaml.SyntaxError
	if errors.As(err, &syntax) && syntax.Token != nil && syntax.Token.Position != nil {
		p := syntax.Token.Position
		return nil, invalid(p.Line, p.Column, "this is not YAML: "+clean(syntax.Message), "")
	}
	return nil, invalid(0, 0, "this is not YAML", "")
}

// tooDeep returns the first line that nests deeper than a role ever does, so
// that the parser's recursion stays small: open brackets, or dashes, question
// marks and tags in a row.
func tooDeep(doc []byte) int {
	open := 0
	for i, line := range bytes.Split(doc, []byte("\n")) {
		marks := 0
		for j, b := range line {
			switch b {
			case '[', '{':
				open++
			case ']', '}':
				open = max(0, open-1)
			case '-', '?', '!', '&', ':':
				if j+1 == len(line) || line[j+1] == ' ' || line[j+1] == '\t' || b == '!' || b == '&' {
					marks++
				}
			}
			if open > 2*maxDepth || marks > 8*maxDepth {
				return i + 1
			}
		}
	}
	return 0
}

type yamlReader struct{ nodes int }

func (r *yamlReader) value(y ast.Node, depth int) (*node, error) {
	line, column := place(y)
	if r.nodes++; depth > maxDepth || r.nodes > maxNodes {
		return nil, invalid(line, column, "the document is nested too deeply or too large", "")
	}
	n := &node{line: line, column: column}
	switch v := y.(type) {
	case nil, *ast.NullNode:
	case *ast.StringNode:
		n.shape, n.text = scalar, v.Value
	case *ast.LiteralNode:
		n.shape, n.text = scalar, v.Value.Value
	case *ast.BoolNode:
		n.shape, n.text, n.literal = scalar, v.Token.Value, strconv.FormatBool(v.Value)
	case *ast.IntegerNode:
		n.shape, n.text, n.literal = scalar, v.Token.Value, fmt.Sprint(v.Value)
	case *ast.FloatNode:
		n.shape, n.text = scalar, v.Token.Value
		if json.Valid([]byte(n.text)) {
			n.literal = n.text
		}
	case *ast.InfinityNode, *ast.NanNode:
		n.shape, n.text = scalar, y.GetToken().Value
	case *ast.TagNode:
		return r.tagged(v, depth)
	case *ast.SequenceNode:
		return n, r.list(n, v, depth)
	case *ast.MappingNode:
		n.shape = mapping
		for _, kv := range v.Values {
			if err := r.entry(n, kv, depth); err != nil {
				return nil, err
			}
		}
	case *ast.MappingValueNode:
		n.shape = mapping
		return n, r.entry(n, v, depth)
	case *ast.AnchorNode, *ast.AliasNode:
		return nil, invalid(line, column, "anchors and aliases are not accepted in a role", "write the value out")
	default:
		return nil, invalid(line, column, "this part of YAML is not accepted in a role", "")
	}
	return n, nil
}

// tagged takes the core schema's tags, of which !!str changes the meaning.
func (r *yamlReader) tagged(t *ast.TagNode, depth int) (*node, error) {
	line, column := place(t)
	if t.Value == nil {
		return nil, invalid(line, column, "a tag stands before nothing", "")
	}
	n, err := r.value(t.Value, depth+1)
	if err != nil {
		return nil, err
	}
	switch t.Start.Value {
	case "!!str":
		if n.shape == scalar {
			n.literal = ""
		}
	case "!!map", "!!seq", "!!bool", "!!int", "!!float", "!!null":
	default:
		return nil, invalid(line, column, fmt.Sprintf("the tag %q is not accepted in a role", clean(t.Start.Value)), "")
	}
	return n, nil
}

func (r *yamlReader) list(n *node, v *ast.SequenceNode, depth int) error {
	n.shape = list
	for _, y := range v.Values {
		item, err := r.value(y, depth+1)
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
	}
	return nil
}

func (r *yamlReader) entry(n *node, kv *ast.MappingValueNode, depth int) error {
	line, column := place(kv.Key)
	if _, merge := kv.Key.(*ast.MergeKeyNode); merge {
		return invalid(line, column, "merge keys are not accepted in a role", "write the keys out")
	}
	k, ok := kv.Key.(ast.Node)
	if c, complex := kv.Key.(*ast.MappingKeyNode); complex {
		k, ok = c.Value, c.Value != nil
	}
	if !ok {
		return invalid(line, column, "a key must be plain text", "")
	}
	key, err := r.value(k, depth+1)
	if err != nil {
		return err
	}
	if key.shape != scalar {
		return invalid(line, column, "a key must be plain text", "")
	}
	value, err := r.value(kv.Value, depth+1)
	if err != nil {
		return err
	}
	if n.line == 0 || len(n.entries) == 0 {
		n.line, n.column = line, column
	}
	return n.add(entry{key.text, line, column, value})
}

// place is where a node begins, 0 when the parser does not say.
func place(y ast.Node) (line, column int) {
	if y == nil {
		return 0, 0
	}
	tok := y.GetToken()
	if tok == nil || tok.Position == nil {
		return 0, 0
	}
	return tok.Position.Line, tok.Position.Column
}
