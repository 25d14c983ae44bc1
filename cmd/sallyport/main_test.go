package main

import (
	"io"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/usage"
)

// TestHelp: every command has help with examples, and the examples parse.
func TestHelp(t *testing.T) {
	ctx, err := parse([]string{"version"}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range ctx.Model.Leaves(true) {
		path := usage.Path(n)
		var out strings.Builder
		if _, err := parse(append(strings.Fields(path), "--help"), &out, io.Discard); err != (fail.Exit{Code: 0}) {
			t.Errorf("%s --help: %v", path, err)
		}
		for _, want := range []string{"Usage: sallyport " + path, n.Help, "Examples:\n"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s --help does not say %q:\n%s", path, want, out.String())
			}
		}
		for line := range strings.Lines(n.Detail) {
			line, _, _ = strings.Cut(line, "  #")
			args, ok := strings.CutPrefix(strings.TrimSpace(line), "sallyport ")
			if !ok {
				continue
			}
			if _, err := parse(strings.Fields(args), io.Discard, io.Discard); err != nil {
				t.Errorf("an example of %s: %s: %v", path, line, err)
			}
		}
	}
}

func TestArgvFaults(t *testing.T) {
	for argv, want := range map[string]string{
		"strat":                       `unknown command "strat"; did you mean "start"?`,
		"start --confg=x":             `unknown flag "--confg"; did you mean "--config"?`,
		"start x":                     `unexpected argument "x"`,
		"configure --roles":           "--roles needs a value",
		"demo --listen=127.0.0.1:0 x": `unexpected argument "x"`,
	} {
		if _, err := parse(strings.Fields(argv), io.Discard, io.Discard); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", argv, err, want)
		}
	}
}
