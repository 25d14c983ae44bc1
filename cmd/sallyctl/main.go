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
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"

	"encoding/json"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
)

// version is set when the program is built.
var version = "unknown"

const callTimeout = 30 * time.Second

// cli is the whole grammar.
type cli struct {
	globals

	Status  statusCmd  `cmd:"" help:"Show the cluster, its authorities and pins."`
	Users   usersCmd   `cmd:"" help:"Users: add, ls, rm, reset."`
	Tokens  tokensCmd  `cmd:"" help:"Join tokens: add, ls, rm."`
	Get     getCmd     `cmd:"" help:"Print documents: KIND or KIND/NAME."`
	Create  createCmd  `cmd:"" help:"Create documents from YAML."`
	Rm      rmCmd      `cmd:"" help:"Delete a document: KIND/NAME."`
	Nodes   nodesCmd   `cmd:"" help:"Agents that are connected."`
	Auth    authCmd    `cmd:"" help:"Certificate authorities: export, sign."`
	Audit   auditCmd   `cmd:"" help:"The audit log: search, verify."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

type globals struct {
	Config  string `name:"config" env:"SALLY_CONFIG_FILE,TELEPORT_CONFIG_FILE" default:"/etc/sallyport.yaml" help:"Configuration of auth on this machine; says where its socket is."`
	DataDir string `name:"data-dir" env:"SALLY_DATA_DIR" help:"Data directory of auth on this machine, instead of --config."`
	Proxy   string `name:"proxy" aliases:"auth-server" env:"SALLY_PROXY,TELEPORT_PROXY" help:"Gateway to use with the profile of sally login."`
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := &program{ctx: ctx, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	code := fail.Report(os.Stderr, p.run(os.Args[1:]))
	stop()
	os.Exit(code)
}

func (p *program) run(args []string) error {
	var c cli
	exited := -1
	k, err := kong.New(&c,
		kong.Name("sallyctl"),
		kong.Description("Administer a Sallyport cluster."),
		kong.UsageOnError(),
		kong.Exit(func(code int) { exited = code }),
		kong.Writers(p.stdout, p.stderr),
	)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	kctx, err := k.Parse(args)
	if exited >= 0 {
		return fail.Exit{Code: exited}
	}
	if err != nil {
		var pe *kong.ParseError
		if errors.As(err, &pe) {
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: pe.Error(), Hint: "sallyctl --help"}
		}
		return err
	}
	p.globals = c.globals
	ctx, cancel := context.WithTimeout(p.ctx, callTimeout)
	defer cancel()
	p.ctx = ctx
	return kctx.Run(p)
}

// encode writes v as JSON or YAML.
func encode(w io.Writer, format string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if format == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(w, strings.TrimRight(string(b), "\n"))
	return err
}

type versionCmd struct{}

// Run prints the version of this program.
func (versionCmd) Run(p *program) error {
	_, err := fmt.Fprintf(p.stdout, "Sallyport %s %s\n", version, runtime.Version())
	return err
}
