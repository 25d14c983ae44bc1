package main

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// step leads from a value to one that is in it.
type step struct {
	key   string
	index int // in a list; -1 with a key
}

// wayTo is the way to what stands at a column of a document, which is one line of
// JSON; nil when nothing does. Columns are characters, from 1.
func wayTo(doc string, column int) []step {
	for i := range doc {
		if column--; column == 0 {
			f := finder{dec: json.NewDecoder(strings.NewReader(doc)), before: int64(i)}
			f.value(nil)
			return f.way
		}
	}
	return nil
}

// finder reads until it has come to a place.
type finder struct {
	dec    *json.Decoder
	before int64 // bytes in front of the place
	way    []step
}

// value reads one, and says whether that was all.
func (f *finder) value(way []step) (over bool) {
	t, err := f.dec.Token()
	if err != nil || f.reached(way) {
		return true
	}
	opens, _ := t.(json.Delim)
	if opens == 0 {
		return false
	}
	for i := 0; f.dec.More(); i++ {
		next := step{index: i}
		if opens == '{' {
			key, err := f.dec.Token()
			if err != nil {
				return true
			}
			next.key, _ = key.(string)
			next.index = -1
		}
		inner := append(way[:len(way):len(way)], next)
		if f.reached(inner) || f.value(inner) {
			return true
		}
	}
	_, err = f.dec.Token()
	return err != nil || f.reached(way)
}

func (f *finder) reached(way []step) bool {
	if f.dec.InputOffset() <= f.before {
		return false
	}
	f.way = slices.Clone(way)
	return true
}

// steps are those of a path such as spec.allow.rules[0].where.
func steps(path string) (way []step) {
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' }) {
		if n, err := strconv.Atoi(strings.TrimSuffix(part, "]")); err == nil && strings.HasSuffix(part, "]") {
			way = append(way, step{index: n})
			continue
		}
		way = append(way, step{key: part, index: -1})
	}
	return way
}

// onlyLineOf is the line of the one key of that name in a document; 0 when there are
// several, or none.
func onlyLineOf(n ast.Node, key string) int {
	var lines keyLines
	lines.key = key
	ast.Walk(&lines, n)
	if len(lines.found) != 1 {
		return 0
	}
	return lines.found[0]
}

// keyLines gathers the lines of a key.
type keyLines struct {
	key   string
	found []int
}

// Visit meets ast.Visitor.
func (k *keyLines) Visit(n ast.Node) ast.Visitor {
	if kv, ok := n.(*ast.MappingValueNode); ok {
		if t := kv.Key.GetToken(); t != nil && t.Value == k.key {
			k.found = append(k.found, t.Position.Line)
		}
	}
	return k
}

// lineOf is the line of the text to which a way leads, as far as it can be followed:
// what an alias stands for is at the alias.
func lineOf(n ast.Node, way []step) int {
	line := n.GetToken().Position.Line
	for _, s := range way {
		next, at := inside(n, s)
		if next == nil {
			break
		}
		n, line = next, at
	}
	return line
}

// inside is what a step leads to, and its line; nil for nothing.
func inside(n ast.Node, s step) (ast.Node, int) {
	switch v := n.(type) {
	case *ast.AnchorNode:
		return inside(v.Value, s)
	case *ast.TagNode:
		return inside(v.Value, s)
	case *ast.MappingNode:
		for _, kv := range v.Values {
			if next, line := inside(kv, s); next != nil {
				return next, line
			}
		}
	case *ast.MappingValueNode:
		if t := v.Key.GetToken(); s.index < 0 && t != nil && t.Value == s.key && v.Value != nil {
			return v.Value, t.Position.Line
		}
	case *ast.SequenceNode:
		if s.index >= 0 && s.index < len(v.Values) && v.Values[s.index] != nil {
			if t := v.Values[s.index].GetToken(); t != nil {
				return v.Values[s.index], t.Position.Line
			}
		}
	}
	return nil, 0
}
