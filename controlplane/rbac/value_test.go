package rbac

import (
	"slices"
	"testing"

	"github.com/sallyport/sallyport"
)

func TestValue(t *testing.T) {
	id := sallyport.Identity{Name: "alice", Traits: map[string][]string{"logins": {"root", "alice"}, "email": {"alice@example.com"}}}
	for _, c := range []struct {
		text string
		want []string
	}{
		{"plain", []string{"plain"}},
		{"{{internal.logins}}", []string{"root", "alice"}},
		{"user {{external.email}}", []string{"user alice@example.com"}},
		{"{{email.local(external.email)}}", []string{"alice"}},
		{"{{external.missing}}", nil},
	} {
		v, err := ParseValue(c.text)
		if err != nil {
			t.Fatalf("%q: %v", c.text, err)
		}
		if got := v.Expand(id); !slices.Equal(got, c.want) {
			t.Errorf("%q makes %q, want %q", c.text, got, c.want)
		}
	}
	for _, bad := range []string{"{{internal.logins", "{{internal.nothing}}", "{{a}}{{b}}", `{{regexp.match("x")}}`} {
		if _, err := ParseValue(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestValueNames(t *testing.T) {
	v, err := ParseValue("Bearer {{internal.jwt}}")
	if err != nil || !v.Names("jwt") || v.Names("logins") {
		t.Errorf("%v, %v", v, err)
	}
}
