// Command sally is what people use: log in, list, reach. Started under the name
// tsh it is the same program; under the name ssh it is "sally ssh".
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/cmd/internal/usage"
)

// version is set when the program is built.
var version = "unknown"

// program is what a command works with.
type program struct {
	globals
	ctx    context.Context
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	home   profile.Dir   // not known where a command needs none
	self   string        // how to call this program again
	held   *heldIdentity // by --identity; nil: the profile's
}

func main() {
	os.Exit(run(os.Args))
}

// interrupted is the exit code of a program that SIGINT ended, as shells have it.
const interrupted = 128 + int(syscall.SIGINT)

func run(args []string) int {
	ctx, stop := interruptible()
	defer stop()
	usage.DropEmpty()
	p := &program{ctx: ctx, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, self: self(args[0])}
	err := p.run(args)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return interrupted
	}
	code := fail.Report(os.Stderr, err)
	if p.Debug {
		fail.Causes(os.Stderr, err)
	}
	return code
}

// self is the program's path, by the name tsh when it was started so.
func self(arg0 string) string {
	path, err := os.Executable()
	if err != nil {
		return arg0
	}
	if filepath.Base(arg0) == "tsh" {
		if tsh := filepath.Join(filepath.Dir(path), "tsh"); exists(tsh) {
			return tsh
		}
	}
	return path
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (p *program) run(args []string) error {
	g, err := parse(args, p.stdout, p.stderr)
	if err != nil {
		return err
	}
	p.globals = g.cli.globals
	command := usage.Path(g.ctx.Selected())
	if command != "completion" { // help and completion are there without a home directory, as for a package's build
		if p.home, err = profile.Home(); err != nil {
			return err
		}
	}
	if err := p.settle(); err != nil {
		return err
	}
	if err := p.useIdentity(command); err != nil {
		return err
	}
	return g.ctx.Run(p, g.kong)
}
