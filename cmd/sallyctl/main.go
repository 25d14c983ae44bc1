// Command sallyctl is what administrators use: on auth's machine by its admin
// socket, elsewhere by the profile of "sally login".
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/usage"
)

// version is set when the program is built.
var version = "unknown"

const callTimeout = 30 * time.Second

// cli is the whole grammar.
type cli struct {
	globals

	Status     statusCmd     `cmd:"" help:"Show the cluster, its authorities and pins."`
	Users      usersCmd      `cmd:"" help:"Users: add, ls, rm, reset."`
	Tokens     tokensCmd     `cmd:"" help:"Join tokens: add, ls, rm."`
	Get        getCmd        `cmd:"" help:"Print documents: KIND or KIND/NAME."`
	Create     createCmd     `cmd:"" help:"Create documents from YAML."`
	Rm         rmCmd         `cmd:"" help:"Delete a document: KIND/NAME, or a host: node/ID."`
	Lock       lockCmd       `cmd:"" help:"Lock out a user, a role, a login or a host: sessions end, and no new ones start."`
	Nodes      nodesCmd      `cmd:"" help:"Agents and gateways: ls, rm."`
	Auth       authCmd       `cmd:"" help:"Certificate authorities: export, sign."`
	Audit      auditCmd      `cmd:"" help:"The audit log: search, verify."`
	Completion completionCmd `cmd:"" help:"Print a shell completion script."`
	Version    versionCmd    `cmd:"" help:"Print the version."`
}

// globals are the flags that every command takes; tctl's names.
type globals struct {
	Config  string `name:"config" short:"c" group:"global" placeholder:"FILE" env:"SALLY_CONFIG_FILE,TELEPORT_CONFIG_FILE" help:"Configuration of auth on this machine (default /etc/sallyport.yaml); says where its socket is."`
	DataDir string `name:"data-dir" group:"global" placeholder:"DIR" env:"SALLY_DATA_DIR" help:"Data directory of auth on this machine, instead of --config."`
	Proxy   string `name:"proxy" aliases:"auth-server" group:"global" placeholder:"HOST[:PORT]" env:"SALLY_PROXY,TELEPORT_PROXY" help:"Gateway to use with the profile of sally login, instead of auth on this machine."`
	Debug   bool   `name:"debug" short:"d" group:"global" negatable:"" help:"Say more on standard error."`
}

// program is what a command works with.
type program struct {
	globals
	ctx    context.Context
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

func main() {
	os.Exit(run(os.Args[1:]))
}

// interrupted is the exit code of a program that SIGINT ended, as shells have it.
const interrupted = 128 + int(syscall.SIGINT)

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	usage.DropEmpty()
	p := &program{ctx: ctx, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
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

func (p *program) run(args []string) error {
	g, err := parse(args, p.stdout, p.stderr)
	if err != nil {
		return err
	}
	p.globals = g.cli.globals
	return g.ctx.Run(p)
}

// parsed is a command line that has been understood.
type parsed struct {
	cli  *cli
	kong *kong.Kong
	ctx  *kong.Context
}

func parse(args []string, stdout, stderr io.Writer) (*parsed, error) {
	g, exited := &parsed{cli: &cli{}}, -1
	var err error
	g.kong, err = kong.New(g.cli,
		kong.Name("sallyctl"),
		kong.Description("Administer a Sallyport cluster."),
		usage.Help(), usage.Global(),
		kong.Exit(func(code int) { exited = code }),
		kong.Writers(stdout, stderr),
	)
	if err != nil {
		return nil, err
	}
	g.ctx, err = g.kong.Parse(usage.Complete(args, "version"))
	if exited >= 0 {
		return nil, fail.Exit{Code: exited}
	}
	if err != nil {
		return g, usage.Explain(err, absent())
	}
	g.cli.meant(g.ctx)
	return g, nil
}

// meant lets flags win over the environment: who names auth on this machine does not
// mean the cluster of a SALLY_PROXY that is still set.
func (c *cli) meant(ctx *kong.Context) {
	given := make(map[string]bool)
	for _, part := range ctx.Path {
		if part.Flag != nil {
			given[part.Flag.Name] = true
		}
	}
	if (given["data-dir"] || given["config"]) && !given["proxy"] {
		c.Proxy = ""
	}
}

type versionCmd struct{ format }

type versionJSON struct {
	Version string `json:"version"`
	Runtime string `json:"runtime"`
}

// Run prints the version of this program.
func (c *versionCmd) Run(p *program) error {
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, versionJSON{version, runtime.Version()})
	}
	_, err := fmt.Fprintf(p.stdout, "Sallyport %s %s\n", version, runtime.Version())
	return err
}
