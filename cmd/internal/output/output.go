// Package output writes values for other programs to read: as JSON, or as YAML.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Write writes v in a format, "json" or "yaml", and a newline. Its fields are named
// and left out as encoding/json has it, in either.
func Write(w io.Writer, format string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil && format == "yaml" {
		b, err = YAML(b)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, strings.TrimRight(string(b), "\n"))
	return err
}

// YAML is a document of JSON as one of YAML, in the same order. A string is read as
// the same string by every reader: of YAML 1.1 too, where 12e5, on, 0x1f, 2026-01-02
// and 1:30 are none without quotes.
func YAML(document []byte) ([]byte, error) {
	var whole json.RawMessage
	if err := json.Unmarshal(document, &whole); err != nil { // one value, of bounded depth
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(whole))
	d.UseNumber()
	root, err := node(d)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	e.CompactSeqIndent()
	if err := e.Encode(root); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// node reads one value.
func node(d *json.Decoder) (*yaml.Node, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch v := token.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		if v == '{' {
			n.Kind = yaml.MappingNode // its keys are values like others
		}
		for d.More() {
			inner, err := node(d)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, inner)
		}
		_, err = d.Token() // its end
		return n, err
	case string:
		return text(v), nil
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: v.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(v)}, nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: "null"}, nil
}

func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if !plain.MatchString(s) || slices.ContainsFunc(reserved, func(word string) bool { return strings.EqualFold(word, s) }) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// plain are strings that need no quotes: far fewer than the writers of YAML take for
// such, and with nothing at the beginning that a number, a date or an indicator has.
var plain = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9._/@+=-]*(?:[ :][A-Za-z0-9._/@+=-]+)*$`)

// reserved are words of YAML 1.1 (its types bool and null), whatever their case.
var reserved = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
