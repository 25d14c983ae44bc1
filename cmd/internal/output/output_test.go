package output

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	goccy "github.com/goccy/go-yaml"
	yaml3 "go.yaml.in/yaml/v3"
	sigs "sigs.k8s.io/yaml"
)

// readers are those that people's programs have: of YAML 1.2 more or less, and, behind
// sigs.k8s.io/yaml, of 1.1.
var readers = map[string]func([]byte, any) error{
	"yaml.v3":          yaml3.Unmarshal,
	"sigs.k8s.io/yaml": func(b []byte, to any) error { return sigs.Unmarshal(b, to) },
	"goccy":            func(b []byte, to any) error { return goccy.Unmarshal(b, to) },
}

// nasty are strings that some reader takes for something else without quotes, or that
// some writer cannot write.
func nasty() []string {
	list := strings.Split("|~|null|Null|y|Y|n|yes|No|NO|on|On|oN|off|true|TRUE|False|12e5|12e03|1e+5|-1.5E-3|0x1f|0X1F|0o17|017|0b101|1_000|+1|-1|.5|5.|1.|.inf|-.INF|.nan|.NaN|1:30|190:20:30|1:30.5|2026-01-02|2026-01-02T03:04:05Z|2026-1-2|=|<<|!!str|!x|&a|*a|%x|@x|`x|- x|-|--|---|...|--- x|? x|?|: x|:|a: b|a:|a #b|#b|a#b|[a]|{a: b}|[|]|{|}|,|a, b|'a'|\"a\"|'|\"|\\|a\\nb| a|a |\ta|a\t| |\t|e5|E5|Infinity|nan|a:b|a: |sha256:00ff|/etc/x y|10.0.0.1:5432|1.2.3.4|::1|http://a/?b=c&d|a=b|<b>|é|ключ|日本|😀|\u2028|\u2029|\u0085|\u00a0|\ufeff|\ufeffa|\ufffe|\x00|\x07|\x1b[0m|\x7f|\u0080|\u009f|\r|\r\n|\n|\n\n|a\n|a\nb|\na|  a\n b\n|a\n\n|\ta\n|a \n|\n a|a\n# b|a\n--- b|"+strings.Repeat("long words ", 60)+"x|"+strings.Repeat("x", 1100)+"|"+strings.Repeat(" ", 200), "|")
	r := rand.New(rand.NewPCG(1, 2))
	const signs = "0123456789eExXoObB_.:-+~#&*!%@`'\"\\,[]{}<>=?|/ \t\n\r\u0085\u2028\ufeffnNyYtTfFaAuUlLsS"
	all := []rune(signs)
	for range 5000 {
		var b strings.Builder
		for range 1 + r.IntN(7) {
			b.WriteRune(all[r.IntN(len(all))])
		}
		list = append(list, b.String())
	}
	return list
}

// TestSameStrings: without their quotes strings were read as numbers, truths, dates,
// or as nothing.
func TestSameStrings(t *testing.T) {
	for _, s := range nasty() {
		want := map[string]any{s: []any{s, map[string]any{"key": s}}, "after": "x"}
		var b strings.Builder
		if err := Write(&b, "yaml", want); err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		for name, read := range readers {
			var got map[string]any
			if err := read([]byte(b.String()), &got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s reads %q as %#v, %v\n%s", name, s, got, err, b.String())
			}
		}
	}
}

// TestWrite: the layout, and what is no string.
func TestWrite(t *testing.T) {
	v := struct {
		Zulu   string            `json:"zulu"`
		Alpha  []any             `json:"alpha"`
		Labels map[string]string `json:"labels"`
		None   []string          `json:"none"`
		Empty  []string          `json:"empty"`
		Map    map[string]int    `json:"map"`
	}{"on", []any{1, -2.5, uint64(1) << 63, true, nil, []int{1}, map[string]any{"a": "b c", "d": false}}, map[string]string{"env": "prod", "on": "1"}, nil, []string{}, map[string]int{}}
	const want = `zulu: "on"
alpha:
- 1
- -2.5
- 9223372036854775808
- true
- null
- - 1
- a: b c
  d: false
labels:
  env: prod
  "on": "1"
none: null
empty: []
map: {}
`
	var b, j strings.Builder
	if err := Write(&b, "yaml", v); err != nil || b.String() != want {
		t.Errorf("%v\n%s", err, &b)
	}
	if err := Write(&j, "json", v); err != nil || !strings.HasPrefix(j.String(), "{\n  \"zulu\": \"on\",\n") || !strings.HasSuffix(j.String(), "}\n") {
		t.Errorf("%v\n%s", err, &j)
	}
	var got, same any
	if err := errors.Join(sigs.Unmarshal([]byte(b.String()), &got), json.Unmarshal([]byte(j.String()), &same)); err != nil || !reflect.DeepEqual(got, same) {
		t.Errorf("%v\n%v\n%v", err, got, same)
	}
	for _, bad := range []string{"", "{", "1 2", `{"a"}`, strings.Repeat("[", 20000) + strings.Repeat("]", 20000)} {
		if b, err := YAML([]byte(bad)); err == nil {
			t.Errorf("%.10q: %s", bad, b)
		}
	}
}
