package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFresh: the pages in the repository are what the programs and structs say.
func TestFresh(t *testing.T) {
	root := filepath.Join("..", "..")
	all, err := pages(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range all {
		got, err := os.ReadFile(filepath.Join(root, "docs", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if string(got) != want {
			t.Errorf("docs/%s is stale: go run ./tools/docs, and commit it. The first difference:\n%s", name, difference(string(got), want))
		}
	}
	for _, want := range []string{"\n### sally db connect\n", "\n### sallyctl users add\n", "\n### sallyport start\n", "Examples:"} {
		if !strings.Contains(all["cli.md"], want) {
			t.Errorf("cli.md does not hold %q", want)
		}
	}
	for _, want := range []string{"### gateway.routes[].match\n", "### agent.databases[].tls\n", "### gateway.upstreams.NAME\n", "| `max_age` | duration |"} {
		if !strings.Contains(all["config.md"], want) {
			t.Errorf("config.md does not hold %q", want)
		}
	}
}

func difference(a, b string) string {
	al, bl := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range al {
		if i >= len(bl) || al[i] != bl[i] {
			return "- " + al[i] + "\n+ " + strings.Join(bl[i:min(i+1, len(bl))], "")
		}
	}
	return "+ " + strings.Join(bl[len(al):min(len(al)+1, len(bl))], "")
}

// TestUndocumented: a field without words is found.
func TestUndocumented(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.go")
	if err := os.WriteFile(file, []byte("package c\n\ntype config struct {\n\tA int `yaml:\"a\"` // A.\n\tB int `yaml:\"b\"`\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	structs, err := structsOf(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := section(&strings.Builder{}, structs, "config", ""); err == nil || !strings.Contains(err.Error(), "field B") {
		t.Errorf("%v", err)
	}
}
