package completion

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/tools/peers"
)

type grammar struct {
	Verbose bool   `help:"Say more."`
	Format  string `enum:"text,json" default:"text" help:"How."`
	Users   struct {
		Add struct {
			Name string `arg:""`
		} `cmd:"" help:"Add one."`
		Rm struct{} `cmd:"" help:"Remove one."`
	} `cmd:"" help:"Users."`
	Create struct {
		File string `arg:""`
	} `cmd:"" help:"Create."`
	Secret struct{} `cmd:"" hidden:""`
}

// TestNames: a program's script is for all its names, and for no other program: two that
// are sourced in one shell do not get in each other's way.
func TestNames(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		peers.Missing(t, "bash")
	}
	var g grammar
	k, err := kong.New(&g, kong.Name("one"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source := ""
	for i, names := range [][]string{{"one", "alias"}, {"two"}} {
		file := filepath.Join(dir, names[0])
		c := Cmd{Shell: []string{"bash", "zsh"}[i]}
		script := strings.TrimPrefix(c.Script(k, names...), "autoload -U +X bashcompinit && bashcompinit\n")
		if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
		source += ". " + shell.Word(file) + "\n"
	}
	for line, want := range map[string]string{
		"one us": "users", "alias users ": "--format --help --verbose add rm", "two --format j": "json", "one se": "", "two create --v": "--verbose",
	} {
		words := strings.Split(line, " ")
		f := map[string]string{"one": "_one", "alias": "_one", "two": "_two"}[words[0]]
		script := "set -u\n" + source + "complete -p " + words[0] + " | grep -q -- '-F " + f + " ' || exit 3\nCOMP_WORDS=("
		for _, w := range words {
			script += shell.Word(w) + " "
		}
		script += "); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); " + f + " || true; printf '%s\\n' ${COMPREPLY[@]+\"${COMPREPLY[@]}\"}"
		out, err := exec.Command(bash, "--norc", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
		if got := slices.Sorted(slices.Values(strings.Fields(string(out)))); strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	fish := (&Cmd{Shell: "fish"}).Script(k, "one", "alias")
	for _, want := range []string{"function __one_at\n", "complete -c one -n '__one_at users' -a add", "complete -c alias -n '__one_at users' -a add", "complete -c one -n '__one_at create' -F"} {
		if !strings.Contains(fish, want) {
			t.Errorf("fish: no %q in\n%s", want, fish)
		}
	}
}
