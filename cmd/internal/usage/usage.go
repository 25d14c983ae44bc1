// Package usage tells a person what is wrong with a command line, and what
// would be right, the same way in every program.
package usage

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport"
)

// Help is how help looks.
func Help() kong.Option {
	return kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100})
}

// Global puts the flags that every command takes at the end of its help: they
// have the group "global".
func Global() kong.Option {
	return kong.ExplicitGroups([]kong.Group{{Key: "global", Title: "Flags of every command:"}})
}

// Examples are shown in a command's help.
func Examples(lines ...string) string { return "Examples:\n\n  " + strings.Join(lines, "\n  ") }

// Complete completes what people type first: nothing, "help COMMAND", "--version".
func Complete(args []string, version ...string) []string {
	switch {
	case len(args) == 0:
		return []string{"--help"}
	case args[0] == "help":
		return append(append([]string{}, args[1:]...), "--help")
	case len(args) == 1 && (args[0] == "--version" || args[0] == "-V"):
		return version
	}
	return args
}

// DropEmpty makes variables that are set to nothing count as unset, as they do
// for tsh: TELEPORT_PROXY speaks when SALLY_PROXY is empty.
func DropEmpty() {
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if value == "" && (strings.HasPrefix(name, "SALLY_") || strings.HasPrefix(name, "TELEPORT_")) {
			os.Unsetenv(name)
		}
	}
}

var (
	strayArgument = regexp.MustCompile(`^unexpected argument (.*?)(?:, did you mean (.*)\?)?$`)
	unknownFlag   = regexp.MustCompile(`^unknown flag (.*?)(?:, did you mean (.*)\?)?$`)
	missingValue  = regexp.MustCompile(`^(-\S+): (?:expected .* value but got "EOL"|missing value)`)
	badNumber     = regexp.MustCompile(`^(-\S+): expected a valid \d+ bit u?int but got (".*")$`)
	badDuration   = regexp.MustCompile(`^(-\S+): expected duration but got (".*"): `)
	badEnum       = regexp.MustCompile(`^(.*) must be one of (".*") but got (".*")$`)
)

// Absent are commands that people know from elsewhere and that are not here, by
// path ("mfa", "kube exec"), and what to use instead.
type Absent map[string]string

// Explain turns the parser's words into ours. Other errors stay as they are.
func Explain(err error, absent Absent) error {
	var pe *kong.ParseError
	if !errors.As(err, &pe) {
		return err
	}
	if p := absent.explain(pe); p != nil {
		return p
	}
	command, what := pe.Context.Model.Name, "unknown command"
	if n := pe.Context.Selected(); n != nil {
		command += " " + Path(n)
		if n.Leaf() {
			what = "unexpected argument"
		}
	}
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact(pe.Error(), what), Hint: command + " --help"}
}

// explain is nil where what was typed is not one of these commands.
func (a Absent) explain(pe *kong.ParseError) error {
	m := strayArgument.FindStringSubmatch(pe.Error())
	n := pe.Context.Selected()
	if m == nil || n != nil && n.Leaf() {
		return nil
	}
	path := strings.TrimSpace(Path(n) + " " + m[1])
	instead, ok := a[path]
	if !ok {
		return nil
	}
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("there is no command %q here", path), Hint: instead}
}

func fact(text, what string) string {
	if m := missingValue.FindStringSubmatch(text); m != nil {
		return m[1] + " needs a value"
	}
	if m := badNumber.FindStringSubmatch(text); m != nil {
		return m[1] + ": " + m[2] + " is no whole number in range"
	}
	if m := badDuration.FindStringSubmatch(text); m != nil {
		return m[1] + ": " + m[2] + " is no duration, such as 30m or 8h"
	}
	if m := badEnum.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("%s: %s is none of %s", m[1], m[3], strings.ReplaceAll(strings.ReplaceAll(m[2], `","`, ", "), `"`, ""))
	}
	if m := strayArgument.FindStringSubmatch(text); m != nil {
		return meant(fmt.Sprintf("%s %q", what, m[1]), m[2])
	}
	if m := unknownFlag.FindStringSubmatch(text); m != nil {
		if len(m[1]) == len("-x") { // a letter is near to every other
			m[2] = ""
		}
		return meant(fmt.Sprintf("unknown flag %q", m[1]), m[2])
	}
	return text
}

func meant(fact, other string) string {
	if other == "" {
		return fact
	}
	return fact + "; did you mean " + other + "?"
}

// Path is a command's path: "db login".
func Path(n *kong.Node) string {
	var names []string
	for ; n != nil && n.Type == kong.CommandNode; n = n.Parent {
		names = append([]string{n.Name}, names...)
	}
	return strings.Join(names, " ")
}
