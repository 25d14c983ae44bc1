package database

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func unescape(s string) string {
	return must(strconv.Unquote(`"` + strings.NewReplacer(`"`, `\"`, "\n", `\n`).Replace(s) + `"`))
}

func TestEscaped(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain é": "plain é", `a\b`: `a\\b`, "\xff": `\xff`, "é\xc3": `é\xc3`, `\xff`: `\\xff`, "\xed\xa0\x80": `\xed\xa0\x80`,
	} {
		if got := Escaped([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzEscaped(f *testing.F) {
	f.Add([]byte("a\\\xffé\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := Escaped(b)
		if !utf8.ValidString(got) {
			t.Fatalf("%q", got)
		}
		plain := bytes.ContainsAny(b, "\"\n\r")
		if !plain && unescape(got) != string(b) {
			t.Fatalf("%q is %q again", got, unescape(got))
		}
	})
}

func TestParametersAreBounded(t *testing.T) {
	v := NewValues()
	v.Add(nil, false)
	v.Add([]byte{}, false)
	v.Add([]byte("text"), false)
	v.Add([]byte("bin"), true)
	v.Add([]byte{0xff}, false)
	want := map[string]any{
		"p":        []string{"", "", "text", base64.StdEncoding.EncodeToString([]byte("bin")), base64.StdEncoding.EncodeToString([]byte{0xff})},
		"base64_p": []int64{4, 5}, "null_p": []int64{1},
	}
	if d := cmp.Diff(want, v.Fields("p")); d != "" {
		t.Error(d)
	}

	v = NewValues()
	for range 65535 {
		v.Add(nil, false)
	}
	if len(v.list) != allParams/paramCost || v.Fields("p")["p_truncated"] != true || v.Fields("p")["p_count"] != int64(65535) {
		t.Errorf("%d kept", len(v.list))
	}
	v = NewValues()
	sum := 0
	for range 100 {
		v.Add(bytes.Repeat([]byte("x"), 1<<20), false)
	}
	for _, s := range v.list {
		sum += len(s)
	}
	if sum > allParams || len(v.list[0]) != oneParameter {
		t.Errorf("%d bytes kept, %d of the first", sum, len(v.list[0]))
	}
	v = NewValues()
	if d := cmp.Diff(map[string]any{}, v.Fields("p")); d != "" {
		t.Error(d)
	}
}

// TestPrintable: what a hostile client names is bounded in the log.
func TestPrintable(t *testing.T) {
	for _, tt := range []struct {
		name []byte
		want string
	}{
		{nil, ""}, {[]byte("stmt_1"), "stmt_1"}, {[]byte("\xff"), `\xff`},
		{bytes.Repeat([]byte("n"), oneName), strings.Repeat("n", oneName)},
		{bytes.Repeat([]byte("n"), oneName+1), strings.Repeat("n", oneName) + "…"},
		{bytes.Repeat([]byte{0xff}, 1<<20), strings.Repeat(`\xff`, oneName/5) + "…"}, // a backslash is two in an event's line
	} {
		if got := Printable(tt.name); got != tt.want {
			t.Errorf("%d bytes: %d bytes", len(tt.name), len(got))
		}
	}
}
