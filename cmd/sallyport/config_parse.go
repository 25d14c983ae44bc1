package main

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/sallyport/sallyport"
)

// fault is one thing that is wrong with a configuration.
type fault struct {
	path         string // "gateway.routes[0].mode"; "" for the whole
	fact         string
	line, column int // 0 while the place is not known
}

// faults are all that were found, in the order of the file.
type faults []fault

// Error has a line for each fault: "line:column: path: fact".
func (f faults) Error() string { return strings.Join(f.lines(""), "\n") }

func (f faults) lines(file string) []string {
	var out []string
	for _, x := range f {
		where := file
		if x.line > 0 {
			where += fmt.Sprintf("%s%d:%d", map[bool]string{true: ":"}[file != ""], x.line, x.column)
		}
		var parts []string
		for _, part := range []string{where, x.path, x.fact} {
			if part != "" {
				parts = append(parts, part)
			}
		}
		out = append(out, strings.Join(parts, ": "))
	}
	return out
}

// located says in which file the faults are.
func located(file string, err error) error {
	var f faults
	if !errors.As(err, &f) {
		return fmt.Errorf("%s: %w", file, err)
	}
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: strings.Join(f.lines(file), "\n"), Hint: "docs/config.md has every field", Cause: err}
}

// parseConfig reads, checks and completes a configuration. Its errors are faults.
func parseConfig(data []byte) (*config, error) { return parseConfigOf(data, "") }

// parseConfigOf is parseConfig where the cluster is known already.
func parseConfigOf(data []byte, cluster string) (c *config, err error) {
	// The YAML library is not ours: what it panics about, such as a tag that it
	// does not know, is bad input too.
	defer func() {
		if p := recover(); p != nil {
			c, err = nil, faults{{fact: "this is not YAML that can be read here: leave out tags (!) and aliases (*)"}}
		}
	}()
	return readConfig(data, cluster)
}

func readConfig(data []byte, cluster string) (*config, error) {
	c, root, err := decodeConfig(data)
	if err != nil {
		return nil, err
	}
	var f faults
	if err := c.checkOf(cluster); errors.As(err, &f) {
		return nil, placed(f, root)
	}
	c.complete()
	return c, nil
}

// decodeConfig reads what is written, and whether it has the shape.
func decodeConfig(data []byte) (*config, ast.Node, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // YAML 1.2.2, section 5.2: some editors begin a file so
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, nil, faults{syntax(err)}
	}
	root, extra := document(file, data)
	if extra != nil {
		return nil, nil, faults{*extra}
	}
	s := shape{}
	s.walk(root, reflect.TypeFor[config](), "")
	if len(s.found) > 0 {
		return nil, nil, s.found
	}
	var c config
	if err := yaml.NodeToValue(root, &c, yaml.Strict()); err != nil {
		return nil, nil, faults{syntax(err)}
	}
	return &c, root, nil
}

// syntax is a fault that the parser found.
func syntax(err error) fault {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		return fault{fact: err.Error()}
	}
	pos := ye.GetToken().Position
	return fault{fact: ye.GetMessage(), line: pos.Line, column: pos.Column}
}

// document is the only one of the file. The library reads the first of many
// and leaves out the others without a word.
func document(file *ast.File, data []byte) (ast.Node, *fault) {
	n, begun := 0, false
	for line := range strings.Lines(string(data)) {
		n++
		text := strings.TrimRight(line, " \t\r\n")
		switch {
		case text == "---" || strings.HasPrefix(text, "--- "):
			if begun {
				return nil, &fault{fact: "a second document begins here; a configuration is one", line: n, column: 1}
			}
			begun = true
		case text != "" && !strings.HasPrefix(strings.TrimSpace(text), "#"):
			begun = true
		}
	}
	for _, d := range file.Docs {
		if d.Body != nil {
			return d.Body, nil
		}
	}
	return nil, &fault{fact: "the configuration is empty; sallyport configure writes one", line: 1, column: 1}
}

// shape compares a document with the structs, so that every fault has its
// place and words of its own, and makes text of what is to be text.
type shape struct{ found faults }

func (s *shape) add(n ast.Node, path, fact string) {
	pos := position(n)
	s.found = append(s.found, fault{path: path, fact: fact, line: pos.Line, column: pos.Column})
}

func position(n ast.Node) token.Position {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return token.Position{Line: 1, Column: 1}
	}
	return *n.GetToken().Position
}

func (s *shape) walk(n ast.Node, t reflect.Type, path string) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return // as if it were not there
	case *ast.AnchorNode:
		s.walk(n.Value, t, path)
		return
	case *ast.AliasNode:
		return // what it stands for is looked at where it is
	case *ast.TagNode:
		s.walk(n.Value, t, path)
		return
	}
	switch {
	case t == reflect.TypeFor[duration]():
		s.duration(n, path)
	case t.Kind() == reflect.Struct:
		s.fields(n, t, path)
	case t.Kind() == reflect.Map:
		for _, v := range s.mapping(n, path) {
			if key, ok := asWritten(v.Key, t.Key()).(ast.MapKeyNode); ok {
				v.Key = key
			}
			v.Value = asWritten(v.Value, t.Elem())
			s.walk(v.Value, t.Elem(), below(path, v.Key.String()))
		}
	case t.Kind() == reflect.Slice:
		s.list(n, t.Elem(), path)
	default:
		s.scalar(n, t, path)
	}
}

// asWritten makes text of a number or condition without quotes that stands where text
// is wanted: a label's value 1.10 is not 1.1, and 0123 is not 83. A role that denies
// what is written would not see it.
func asWritten(n ast.Node, t reflect.Type) ast.Node {
	switch v := n.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode, *ast.BoolNode:
		if t.Kind() == reflect.String {
			return ast.String(n.GetToken())
		}
	case *ast.AnchorNode:
		v.Value = asWritten(v.Value, t)
	}
	return n
}

func below(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

// fields looks at a mapping whose keys are a struct's.
func (s *shape) fields(n ast.Node, t reflect.Type, path string) {
	for _, v := range s.mapping(n, path) {
		name := v.Key.String()
		if key, ok := v.Key.(*ast.StringNode); ok {
			name = key.Value
		}
		if _, merge := v.Key.(*ast.MergeKeyNode); merge {
			continue
		}
		f, ok := fieldOf(t, name)
		if !ok {
			s.add(v.Key, path, unknown(name, t))
			continue
		}
		v.Value = asWritten(v.Value, f.Type)
		s.walk(v.Value, f.Type, below(path, name))
	}
}

func fieldOf(t reflect.Type, name string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("yaml") == name {
			return t.Field(i), true
		}
	}
	return reflect.StructField{}, false
}

// mapping are the entries of a mapping; what is none is a fault.
func (s *shape) mapping(n ast.Node, path string) []*ast.MappingValueNode {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	}
	s.add(n, path, "names with values (name: value) are needed here, not "+kindOf(n))
	return nil
}

func (s *shape) list(n ast.Node, t reflect.Type, path string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		s.add(n, path, "a list is needed here, not "+kindOf(n)+": ["+example(n)+"]")
		return
	}
	for i, v := range seq.Values {
		if _, null := v.(*ast.NullNode); null {
			s.add(v, fmt.Sprintf("%s[%d]", path, i), "nothing stands here")
			continue
		}
		seq.Values[i] = asWritten(v, t)
		s.walk(seq.Values[i], t, fmt.Sprintf("%s[%d]", path, i))
	}
}

func example(n ast.Node) string {
	if v, ok := n.(ast.ScalarNode); ok {
		return v.String()
	}
	return "…"
}

func (s *shape) duration(n ast.Node, path string) {
	v, ok := n.(*ast.StringNode)
	if !ok {
		s.add(n, path, "a duration such as 12h or 30s is needed here, not "+kindOf(n))
		return
	}
	if err := new(duration).UnmarshalYAML([]byte(v.Value)); err != nil {
		s.add(n, path, err.Error())
	}
}

func (s *shape) scalar(n ast.Node, t reflect.Type, path string) {
	want, ok := "text", false
	switch _, scalar := n.(ast.ScalarNode); t.Kind() {
	case reflect.Bool:
		want = "true or false"
		_, ok = n.(*ast.BoolNode)
	case reflect.Int:
		want = "a whole number"
		if _, ok = n.(*ast.IntegerNode); ok {
			_, err := strconv.ParseInt(n.GetToken().Value, 0, 32)
			ok = err == nil
		}
	default:
		ok = scalar
		if _, text := n.(*ast.LiteralNode); text {
			ok = true
		}
	}
	if ok {
		return
	}
	if text := unquoted(n); text != "" && want == "text" {
		s.add(n, path, fmt.Sprintf("between brackets a text with a colon needs quotes: %q", text))
		return
	}
	s.add(n, path, want+" is needed here, not "+kindOf(n))
}

// unquoted is the text that the parser took for a name with a value, though no
// space stands behind the colon; "" when it is none. YAML 1.2.2 section 7.3.3
// allows it, the parser does not.
func unquoted(n ast.Node) string {
	all, ok := n.(*ast.MappingNode)
	if !ok || len(all.Values) != 1 {
		return ""
	}
	pair := all.Values[0]
	value, ok := pair.Value.(ast.ScalarNode)
	if !ok {
		return ""
	}
	key, val := pair.Key.GetToken(), value.GetToken()
	if val.Position.Line != key.Position.Line || val.Position.Column != key.Position.Column+len(key.Value)+1 {
		return ""
	}
	return key.Value + ":" + val.Value
}

func kindOf(n ast.Node) string {
	switch n := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "names with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.BoolNode:
		return n.String()
	case *ast.IntegerNode, *ast.FloatNode:
		return "the number " + n.GetToken().Value
	case *ast.StringNode:
		return strconv.Quote(n.Value)
	}
	return "this"
}

// unknown says what may have been meant: a word that this version does not
// serve, one that is nearly the same, or one that stands elsewhere.
func unknown(name string, t reflect.Type) string {
	if what := later(name); what != "" {
		return fmt.Sprintf("%s: this version does not serve %s; remove it", name, what)
	}
	var here []string
	for i := range t.NumField() {
		here = append(here, t.Field(i).Tag.Get("yaml"))
	}
	fact := fmt.Sprintf("unknown field %q", name)
	if near := nearest(name, here); near != "" {
		return fmt.Sprintf("%s; did you mean %q?", fact, near)
	}
	all := paths(reflect.TypeFor[config](), "")
	for _, p := range all {
		if p == name || strings.HasSuffix(p, "."+name) {
			return fact + " here; there is " + p
		}
	}
	return fact + "; known here: " + strings.Join(here, ", ")
}

// later names the words of the design that this version knows of and does not
// serve; "" for others.
func later(word string) string {
	switch word {
	case "desktops":
		return "desktops"
	case "acme":
		return "ACME certificates"
	case "health":
		return "health checks of upstreams"
	case "limits":
		return "limits of upstreams"
	case "upgrade":
		return "upgrades without down time"
	}
	return ""
}

// paths are all fields, by their paths.
func paths(t reflect.Type, path string) []string {
	switch t.Kind() {
	case reflect.Pointer:
		return paths(t.Elem(), path)
	case reflect.Slice:
		return paths(t.Elem(), path+"[]")
	case reflect.Map:
		return paths(t.Elem(), path+".NAME")
	case reflect.Struct:
	default:
		return nil
	}
	var out []string
	for i := range t.NumField() {
		p := below(path, t.Field(i).Tag.Get("yaml"))
		out = append(append(out, p), paths(t.Field(i).Type, p)...)
	}
	return out
}

// placed finds where in the file each fault is: at its field, or at the nearest
// field above that is there.
func placed(f faults, root ast.Node) faults {
	out := slices.Clone(f)
	for i := range out {
		pos := position(find(root, out[i].path))
		out[i].line, out[i].column = pos.Line, pos.Column
	}
	slices.SortStableFunc(out, func(a, b fault) int {
		if a.line != b.line {
			return a.line - b.line
		}
		return a.column - b.column
	})
	return out
}

// find follows a path as far as it goes, and returns the last node on it.
func find(n ast.Node, path string) ast.Node {
	for part := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		next := child(n, part)
		if next == nil {
			return start(n)
		}
		n = next
	}
	return start(n)
}

func child(n ast.Node, part string) ast.Node {
	switch n := n.(type) {
	case *ast.AnchorNode:
		return child(n.Value, part)
	case *ast.TagNode:
		return child(n.Value, part)
	case *ast.SequenceNode:
		if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(n.Values) {
			return n.Values[i]
		}
	case *ast.MappingNode:
		for _, v := range n.Values {
			if c := child(v, part); c != nil {
				return c
			}
		}
	case *ast.MappingValueNode:
		if key, ok := n.Key.(*ast.StringNode); ok && key.Value == part {
			return n.Value
		}
	}
	return nil
}

// start is the node at which a person would look: a mapping's token is its colon
// or brace, so its first key is it.
func start(n ast.Node) ast.Node {
	switch v := n.(type) {
	case *ast.MappingNode:
		if len(v.Values) > 0 && !v.IsFlowStyle {
			return v.Values[0].Key
		}
	case *ast.MappingValueNode:
		return v.Key
	}
	return n
}

// nearest returns the known word at an edit distance of at most a third of the
// word's length, or "".
func nearest(word string, known []string) string {
	best, at := "", max(1, len(word)/3)+1
	for _, k := range known {
		if d := distance(word, k); d < at {
			best, at = k, d
		}
	}
	return best
}

// maxWord bounds what is compared: the time grows with its square.
const maxWord = 64

// distance counts the letters that were left out, added, changed, or swapped
// with the next (optimal string alignment).
func distance(a, b string) int {
	if len(a) > maxWord {
		return len(a)
	}
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
