package fail

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

func TestReport(t *testing.T) {
	denied := sallyport.Denied("no role of yours allows it", "ask for one")
	for _, tt := range []struct {
		name string
		err  error
		code int
		want string
	}{
		{"none", nil, 0, ""},
		{"plain", errors.New("disk full"), 1, "ERROR: disk full\n"},
		{"problem", denied, 1, "ERROR: no role of yours allows it\nhint: ask for one\n"},
		{"wrapped", fmt.Errorf("node web: %w", denied), 1, "ERROR: node web: no role of yours allows it\nhint: ask for one\n"},
		{"no hint", sallyport.Denied("no", ""), 1, "ERROR: no\n"},
		{"exit", Exit{3}, 3, ""},
		{"exit wrapped", fmt.Errorf("psql: %w", Exit{130}), 130, ""},
		{"escapes", errors.New("a\x1b[31mred\rb\u202ec"), 1, "ERROR: a\uFFFD[31mred\uFFFDb\uFFFDc\n"},
	} {
		var b strings.Builder
		if code := Report(&b, tt.err); code != tt.code || b.String() != tt.want {
			t.Errorf("%s: %d %q, want %d %q", tt.name, code, b.String(), tt.code, tt.want)
		}
	}
}

func TestCauses(t *testing.T) {
	var b strings.Builder
	Causes(&b, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "gateway a: down", Cause: fmt.Errorf("dial: %w", fs.ErrNotExist)})
	for _, want := range []string{"cause: unavailable (", "cause: dial: file does not exist (", "cause: file does not exist ("} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	b.Reset()
	if Causes(&b, Exit{1}); b.String() != "" {
		t.Errorf("%q", b.String())
	}
	if Causes(&b, nil); b.String() != "" {
		t.Errorf("%q", b.String())
	}
}
