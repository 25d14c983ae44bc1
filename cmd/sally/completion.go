package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/cmd/internal/usage"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Run prints a script made from the grammar itself.
func (c *completionCmd) Run(p *program, k *kong.Kong) error {
	commands := wordsOf(k.Model.Node, map[string]words{})
	script := bashScript(commands)
	switch c.Shell {
	case "fish":
		script = fishScript(commands)
	case "zsh":
		script = "autoload -U +X bashcompinit && bashcompinit\n" + script
	}
	_, err := fmt.Fprint(p.stdout, script)
	return err
}

// words are what may follow a command.
type words struct {
	commands map[string]string // with their help
	flags    map[string]string
	valued   []string            // flags that take a value: "--format", "-f"
	values   map[string][]string // what these values may be, where that is known
}

// wordsOf maps each command's path ("db/login") to the words that may follow.
func wordsOf(n *kong.Node, out map[string]words) map[string]words {
	w := words{commands: map[string]string{}, flags: map[string]string{"--help": "Show help."}, values: map[string][]string{}}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			w.flags["--"+f.Name] = f.Help
			if f.IsBool() {
				continue
			}
			names := []string{"--" + f.Name}
			if f.Short != 0 {
				names = append(names, "-"+string(f.Short))
			}
			w.valued = append(w.valued, names...)
			for _, name := range names {
				w.values[name] = values(f.Value)
			}
		}
	}
	for _, arg := range n.Positional {
		for _, v := range values(arg) {
			w.commands[v] = arg.Help
		}
	}
	for _, child := range n.Children {
		if !child.Hidden {
			w.commands[child.Name] = child.Help
			wordsOf(child, out)
		}
	}
	out[strings.ReplaceAll(usage.Path(n), " ", "/")] = w
	return out
}

func values(v *kong.Value) (out []string) {
	if v.Enum == "" {
		return nil
	}
	for _, s := range v.EnumSlice() {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// bashScript follows the words before the cursor down the commands. "=" breaks
// words in bash: --format=json comes as three.
func bashScript(commands map[string]words) string {
	var b strings.Builder
	paths := slices.Sorted(maps.Keys(commands))
	fmt.Fprintf(&b, `_sally() {
	local cur="${COMP_WORDS[COMP_CWORD]}" prev="" path="" word="" skip="" words=""
	local i paths=%s
	for ((i = 1; i < COMP_CWORD; i++)); do
		prev="$word"; word="${COMP_WORDS[i]}"
		if [ "$word" = "=" ]; then skip=1; continue; fi
		if [ -n "$skip" ]; then skip=""; continue; fi
		case "$word" in
			%s) [ "${COMP_WORDS[i+1]}" = "=" ] || skip=1 ;;
			-*) ;;
			*) case "$paths" in *" ${path:+$path/}$word "*) path="${path:+$path/}$word" ;; esac ;;
		esac
	done
	[ "$cur" = "=" ] && cur=""
	[ "$word" = "=" ] && word="$prev"
	case "$path $word" in
`, shell.Word(" "+strings.Join(paths, " ")+" "), strings.Join(valued(commands), "|"))
	for _, path := range paths {
		for _, flag := range slices.Sorted(maps.Keys(commands[path].values)) {
			if list := commands[path].values[flag]; len(list) > 0 {
				fmt.Fprintf(&b, "\t\t%q) words=%s ;;\n", path+" "+flag, shell.Word(strings.Join(list, " ")))
			}
		}
	}
	b.WriteString("\tesac\n\tif [ -z \"$words\" ] && [ -z \"$skip\" ]; then case \"$path\" in\n")
	for _, path := range paths {
		w := commands[path]
		list := append(slices.Sorted(maps.Keys(w.commands)), slices.Sorted(maps.Keys(w.flags))...)
		fmt.Fprintf(&b, "\t\t%q) words=%s ;;\n", path, shell.Word(strings.Join(list, " ")))
	}
	b.WriteString("\tesac; fi\n\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -F _sally sally tsh\n")
	return b.String()
}

// valued are the flags of any command that take a value.
func valued(commands map[string]words) []string {
	all := map[string]bool{}
	for _, w := range commands {
		for _, name := range w.valued {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// fishScript says of each word after which commands it may stand.
func fishScript(commands map[string]words) string {
	var b strings.Builder
	for _, program := range []string{"sally", "tsh"} {
		fmt.Fprintf(&b, "complete -c %s -f\n", program)
		for _, path := range slices.Sorted(maps.Keys(commands)) {
			w := commands[path]
			condition := fishCondition(path, w)
			for _, name := range slices.Sorted(maps.Keys(w.commands)) {
				fmt.Fprintf(&b, "complete -c %s -n %s -a %s -d %s\n", program, condition, shell.Word(name), shell.Word(w.commands[name]))
			}
			for _, name := range slices.Sorted(maps.Keys(w.flags)) {
				more := ""
				if slices.Contains(w.valued, name) {
					more = " -x"
					if list := w.values[name]; len(list) > 0 {
						more = " -x -a " + shell.Word(strings.Join(list, " "))
					}
				}
				fmt.Fprintf(&b, "complete -c %s -n %s -l %s%s -d %s\n", program, condition, strings.TrimPrefix(name, "--"), more, shell.Word(w.flags[name]))
			}
		}
	}
	return b.String()
}

// fishCondition holds when the words so far name this command and none below it.
func fishCondition(path string, w words) string {
	if path == "" {
		return "__fish_use_subcommand"
	}
	var seen []string
	for part := range strings.SplitSeq(path, "/") {
		seen = append(seen, "__fish_seen_subcommand_from "+part)
	}
	if below := slices.Sorted(maps.Keys(w.commands)); len(below) > 0 {
		seen = append(seen, "not __fish_seen_subcommand_from "+strings.Join(below, " "))
	}
	return shell.Word(strings.Join(seen, "; and "))
}
