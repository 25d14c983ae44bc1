package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// programs that were built, in a directory.
type programs struct{ dir string }

func names() []string { return []string{"sally", "sallyctl", "sallyport"} }

func build(root, dir string) (programs, error) {
	args := []string{"build", "-buildvcs=false", "-o", dir + string(filepath.Separator)}
	for _, name := range names() {
		args = append(args, "./cmd/"+name)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return programs{}, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return programs{dir}, nil
}

// output runs a program with nothing of this machine's in its environment.
func (p programs) output(name string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(p.dir, name), args...)
	cmd.Env = []string{"HOME=/nowhere", "COLUMNS=100", "PATH=" + os.Getenv("PATH")}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), nil
}

const cliHead = `# Commands

What each program says to ` + "`--help`" + `. ` + "`sally`" + ` is for people, ` + "`sallyctl`" + ` for administrators, ` + "`sallyport`" + ` for servers.
Errors are two lines, ` + "`ERROR: fact`" + ` and ` + "`hint: next step`" + `, and the exit code is 1, or that of the program or the remote
command that was run. Listings take ` + "`--format=json`" + ` and ` + "`--format=yaml`" + `. Started as ` + "`tsh`" + `, ` + "`sally`" + ` is the same program; started as
` + "`ssh`" + ` it is ` + "`sally ssh`" + `. A variable ` + "`SALLY_X`" + ` is read before ` + "`TELEPORT_X`" + `; a flag wins over both.
`

// commands is the page of all commands.
func commands(p programs) (string, error) {
	var b strings.Builder
	b.WriteString(generated + cliHead)
	for _, name := range names() {
		top, err := p.output(name, "--help")
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s", name, block(top))
		for _, path := range listed(top) {
			help, err := p.output(name, append(strings.Fields(path), "--help")...)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, "\n### %s %s\n\n%s", name, path, block(help))
		}
	}
	return b.String(), nil
}

// command is a line of help that names one.
var command = regexp.MustCompile(`^  ([a-z]+(?: [a-z]+)*)  +\S`)

// listed are the commands that a program's help names.
func listed(help string) []string {
	var out []string
	_, list, _ := strings.Cut(help, "\nCommands:\n")
	for line := range strings.Lines(list) {
		if m := command.FindStringSubmatch(line); m != nil {
			out = append(out, m[1])
		}
	}
	return out
}

// block shows help as it is, without the flags of every command, which stand
// in the program's own.
func block(help string) string {
	if !strings.Contains(help, "\nCommands:\n") {
		help, _, _ = strings.Cut(help, "\nFlags of every command:\n")
	}
	return "```text\n" + strings.TrimSpace(help) + "\n```\n"
}
