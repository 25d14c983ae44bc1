package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Run prints a script made from the grammar itself.
func (c *completionCmd) Run(p *program, k *kong.Kong) error {
	commands := tree(k.Model.Node, "", map[string][]string{})
	switch c.Shell {
	case "fish":
		fish(p, commands)
	case "zsh":
		fmt.Fprintln(p.stdout, "autoload -U +X bashcompinit && bashcompinit")
		bash(p, commands)
	default:
		bash(p, commands)
	}
	return nil
}

// tree maps each command's path ("db login") to the words that may follow.
func tree(n *kong.Node, path string, out map[string][]string) map[string][]string {
	words := []string{"--help"}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			words = append(words, "--"+f.Name)
		}
	}
	for _, child := range n.Children {
		if child.Hidden {
			continue
		}
		words = append(words, child.Name)
		tree(child, strings.TrimSpace(path+" "+child.Name), out)
	}
	slices.Sort(words)
	out[path] = slices.Compact(words)
	return out
}

func bash(p *program, commands map[string][]string) {
	fmt.Fprint(p.stdout, `_sally() {
	local path="" word cur="${COMP_WORDS[COMP_CWORD]}"
	for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case "$word" in -*) ;; *) case " ${_sally_paths} " in *" ${path:+$path/}$word "*) path="${path:+$path/}$word" ;; esac ;; esac
	done
	local words=""
	case "$path" in
`)
	var paths []string
	for path := range commands {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		fmt.Fprintf(p.stdout, "\t%q) words=%q ;;\n", strings.ReplaceAll(path, " ", "/"), strings.Join(commands[path], " "))
	}
	for i := range paths {
		paths[i] = strings.ReplaceAll(paths[i], " ", "/")
	}
	fmt.Fprintf(p.stdout, "\tesac\n\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\n_sally_paths=%q\ncomplete -F _sally sally tsh\n", strings.Join(paths, " "))
}

func fish(p *program, commands map[string][]string) {
	for _, path := range slices.Sorted(func(yield func(string) bool) {
		for k := range commands {
			if !yield(k) {
				return
			}
		}
	}) {
		condition := "__fish_use_subcommand"
		if path != "" {
			var seen []string
			for part := range strings.FieldsSeq(path) {
				seen = append(seen, "__fish_seen_subcommand_from "+part)
			}
			condition = strings.Join(seen, "; and ")
		}
		for _, word := range commands[path] {
			if flag, ok := strings.CutPrefix(word, "--"); ok {
				fmt.Fprintf(p.stdout, "complete -c sally -n '%s' -l %s\n", condition, flag)
			} else {
				fmt.Fprintf(p.stdout, "complete -c sally -f -n '%s' -a %s\n", condition, word)
			}
		}
	}
}
