// Package completion makes the shells' completion scripts of a program from its grammar.
package completion

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/cmd/internal/usage"
)

// Cmd prints the script of the program that has it in its grammar, or another command of its own.
type Cmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Script is for a program by all its names, the first of which names the script's functions.
func (c *Cmd) Script(k *kong.Kong, names ...string) string {
	commands := wordsOf(k.Model.Node, map[string]words{})
	switch c.Shell {
	case "fish":
		return fishScript(commands, names)
	case "zsh":
		return "autoload -U +X bashcompinit && bashcompinit\n" + bashScript(commands, names)
	}
	return bashScript(commands, names)
}

// words are what may follow a command.
type words struct {
	commands map[string]string // with their help
	flags    map[string]string
	valued   []string            // flags that take a value: "--format", "-f"
	values   map[string][]string // what these values may be, where that is known
	files    []string            // of valued, those that take a file's name
	named    bool                // arguments may be names of files
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
			if strings.Contains(f.PlaceHolder, "FILE") || strings.Contains(f.PlaceHolder, "DIR") {
				w.files = append(w.files, names...)
			}
			for _, name := range names {
				w.values[name] = values(f.Value)
			}
		}
	}
	for _, arg := range n.Positional {
		w.named = w.named || strings.HasPrefix(arg.Name, "file")
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
// words in bash: --format=json comes as three, and in zsh as one. Where nothing fits,
// names of files do.
func bashScript(commands map[string]words, names []string) string {
	var b strings.Builder
	paths := slices.Sorted(maps.Keys(commands))
	fmt.Fprintf(&b, `_%s() {
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
	local glued=""
	case "$cur" in --*=*) word="${cur%%%%=*}"; glued="$word="; cur="${cur#*=}" ;; esac
	case "$path $word" in
`, names[0], shell.Word(" "+strings.Join(paths, " ")+" "), strings.Join(valued(commands), "|"))
	for _, path := range paths {
		for _, flag := range slices.Sorted(maps.Keys(commands[path].values)) {
			if list := commands[path].values[flag]; len(list) > 0 {
				fmt.Fprintf(&b, "\t\t%q) words=%s ;;\n", path+" "+flag, shell.Word(strings.Join(list, " ")))
			}
		}
	}
	b.WriteString("\tesac\n\tif [ -z \"$words$skip$glued\" ]; then case \"$path\" in\n")
	for _, path := range paths {
		w := commands[path]
		list := append(slices.Sorted(maps.Keys(w.commands)), slices.Sorted(maps.Keys(w.flags))...)
		fmt.Fprintf(&b, "\t\t%q) words=%s ;;\n", path, shell.Word(strings.Join(list, " ")))
	}
	b.WriteString("\tesac; fi\n\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n" +
		"\t[ -z \"$glued\" ] || COMPREPLY=(${COMPREPLY[@]+\"${COMPREPLY[@]/#/$glued}\"})\n}\ncomplete -o default -F _" + names[0] + " " + strings.Join(names, " ") + "\n")
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

// fishScript says of each word after which command it may stand.
func fishScript(commands map[string]words, names []string) string {
	var b strings.Builder
	paths := slices.Sorted(maps.Keys(commands))
	fmt.Fprintf(&b, `function __%s_at
	set -l path
	set -l skip
	for word in (commandline -opc)[2..-1]
		if test -n "$skip"
			set skip
			continue
		end
		switch $word
			case %s
				set skip 1
			case '-*'
			case '*'
				set -l next $word
				test -n "$path"; and set next $path/$word
				contains -- $next%s; and set path $next
		end
	end
	test "$path" = "$argv[1]"
end
`, names[0], strings.Join(valued(commands), " "), strings.Join(paths, " "))
	for _, program := range names {
		fmt.Fprintf(&b, "complete -c %s -f\n", program)
		for _, path := range paths {
			w, at := commands[path], shell.Word("__"+names[0]+"_at "+shell.Word(path))
			if w.named {
				fmt.Fprintf(&b, "complete -c %s -n %s -F\n", program, at)
			}
			for _, name := range slices.Sorted(maps.Keys(w.commands)) {
				fmt.Fprintf(&b, "complete -c %s -n %s -a %s -d %s\n", program, at, shell.Word(name), shell.Word(w.commands[name]))
			}
			for _, name := range slices.Sorted(maps.Keys(w.flags)) {
				more := ""
				switch list := w.values[name]; {
				case !slices.Contains(w.valued, name):
				case len(list) > 0:
					more = " -x -a " + shell.Word(strings.Join(list, " "))
				case slices.Contains(w.files, name):
					more = " -r -F"
				default:
					more = " -x"
				}
				fmt.Fprintf(&b, "complete -c %s -n %s -l %s%s -d %s\n", program, at, strings.TrimPrefix(name, "--"), more, shell.Word(w.flags[name]))
			}
		}
	}
	return b.String()
}
