package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/tools/peers"
)

func completionScript(t *testing.T, shell string) string {
	t.Helper()
	var out strings.Builder
	p := newProgram(t)
	p.stdout = &out
	if err := p.run([]string{"sally", "completion", shell}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestCompletionBash asks a real bash, with the words broken as readline breaks them.
func TestCompletionBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		peers.Missing(t, "bash")
	}
	file := filepath.Join(t.TempDir(), "sally.bash")
	if err := os.WriteFile(file, []byte(completionScript(t, "bash")), 0o600); err != nil {
		t.Fatal(err)
	}
	complete := func(line ...string) []string {
		t.Helper()
		var quoted []string
		for _, w := range line {
			quoted = append(quoted, shell.Word(w))
		}
		script := "set -u; . " + shell.Word(file) + "; complete -p sally tsh >/dev/null || exit 3; COMP_WORDS=(" + strings.Join(quoted, " ") +
			"); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _sally || true; printf '%s\\n' ${COMPREPLY[@]+\"${COMPREPLY[@]}\"}"
		out, err := exec.Command(bash, "--norc", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.Fields(string(out))
	}
	for _, tt := range []struct {
		line []string
		want []string // exactly
		some []string // among others
		none []string
	}{
		{line: []string{"sally", ""}, some: []string{"login", "ssh", "db", "completion", "--proxy"}, none: []string{"app", "--headless"}},
		{line: []string{"sally", "st"}, want: []string{"status"}},
		{line: []string{"tsh", "lo"}, want: []string{"login", "logout"}},
		{line: []string{"sally", "db", ""}, some: []string{"ls", "login", "connect", "--cluster"}, none: []string{"status", "ssh"}},
		{line: []string{"sally", "db", "lo"}, want: []string{"login", "logout"}},
		{line: []string{"sally", "proxy", ""}, some: []string{"ssh", "db", "tcp", "app", "aws"}, none: []string{"azure"}},
		{line: []string{"sally", "db", "login", "--db"}, want: []string{"--db-name", "--db-user"}},
		{line: []string{"sally", "status", "--format", ""}, want: []string{"text", "json", "yaml"}},
		{line: []string{"sally", "status", "--format", "j"}, want: []string{"json"}},
		{line: []string{"sally", "status", "-f", "y"}, want: []string{"yaml"}},
		{line: []string{"sally", "status", "--format", "=", "j"}, want: []string{"json"}},
		{line: []string{"sally", "status", "--format=j"}, want: []string{"--format=json"}}, // as zsh has it
		{line: []string{"sally", "status", "--format="}, want: []string{"--format=text", "--format=json", "--format=yaml"}},
		{line: []string{"sally", "ls", "--proxy=gw"}, want: []string{}},
		{line: []string{"sally", "status", "--format", "="}, want: []string{"text", "json", "yaml"}},
		{line: []string{"sally", "ls", "--format", "n"}, want: []string{"names"}},
		{line: []string{"sally", "--proxy", "db", "l"}, want: []string{"login", "logout", "ls"}},
		{line: []string{"sally", "--proxy", "=", "db", "sta"}, want: []string{"status"}},
		{line: []string{"sally", "--proxy", "x", "status", "--fo"}, want: []string{"--format"}},
		{line: []string{"sally", "--proxy", ""}, want: []string{}},
		{line: []string{"sally", "completion", ""}, some: []string{"bash", "zsh", "fish"}},
		{line: []string{"sally", "ssh", "web", "--t"}, want: []string{"--ttl", "--tty"}},
	} {
		got := complete(tt.line...)
		if tt.want != nil {
			sorted := slices.Sorted(slices.Values(tt.want))
			if !slices.Equal(slices.Sorted(slices.Values(got)), sorted) {
				t.Errorf("%q: %q, want %q", tt.line, got, tt.want)
			}
		}
		for _, w := range tt.some {
			if !slices.Contains(got, w) {
				t.Errorf("%q: no %q in %q", tt.line, w, got)
			}
		}
		for _, w := range tt.none {
			if slices.Contains(got, w) {
				t.Errorf("%q: %q in %q", tt.line, w, got)
			}
		}
	}
}

// TestCompletionParses: shells that are here read their scripts; every command
// and flag is in all of them.
func TestCompletionParses(t *testing.T) {
	g, err := parse([]string{"sally", "version"}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, sh := range []string{"bash", "zsh", "fish"} {
		script := completionScript(t, sh)
		for _, n := range g.kong.Model.Leaves(true) {
			if !strings.Contains(script, n.Name) {
				t.Errorf("%s: no %s", sh, n.Name)
			}
			for _, f := range n.Flags {
				if !f.Hidden && !strings.Contains(script, f.Name) {
					t.Errorf("%s: no --%s", sh, f.Name)
				}
			}
		}
		path, err := exec.LookPath(sh)
		if err != nil {
			continue // not on this machine; the words were checked
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", sh, err, out)
		}
	}
}

// TestCompletionFish: words that stand anywhere on the line were taken for commands:
// "proxy kube" was offered what kube has.
func TestCompletionFish(t *testing.T) {
	fish, err := exec.LookPath("fish")
	if err != nil {
		peers.Missing(t, "fish")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "sally.fish")
	if err := os.WriteFile(file, []byte(completionScript(t, "fish")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a-file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for line, tt := range map[string]struct{ some, none string }{
		"sally ":                 {some: "login kube proxy", none: "a-file"},
		"sally proxy kube ":      {none: "login ls credentials a-file"},
		"sally kube ":            {some: "login ls", none: "ssh"},
		"sally --proxy kube db ": {some: "login ls connect", none: "credentials"},
		"sally status --format ": {some: "text json yaml", none: "a-file"},
		"sally scp a":            {some: "a-file"},
		"sally ls --identity a":  {some: "a-file"},
		"sally ls --proxy a":     {none: "a-file"},
		"tsh lo":                 {some: "login logout"},
	} {
		cmd := exec.Command(fish, "--no-config", "-c", "source "+shell.Word(file)+"; complete -C "+shell.Word(line))
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got := map[string]bool{}
		for l := range strings.Lines(string(out)) {
			word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
			got[word] = true
		}
		for _, word := range strings.Fields(tt.some) {
			if !got[word] {
				t.Errorf("%q: no %s in %q", line, word, out)
			}
		}
		for _, word := range strings.Fields(tt.none) {
			if got[word] {
				t.Errorf("%q: %s is offered", line, word)
			}
		}
	}
}
