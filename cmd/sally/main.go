// Command sally is what people use: log in, list, reach. Started under the name
// tsh it is the same program.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
)

// version is set when the program is built.
var version = "unknown"

// cli is the whole grammar. Flags and environment are tsh's; SALLY_* wins.
type cli struct {
	globals

	Login      loginCmd      `cmd:"" help:"Log in to a cluster."`
	Logout     logoutCmd     `cmd:"" help:"Delete a cluster's keys and certificates."`
	Status     statusCmd     `cmd:"" help:"Show who you are, where, and until when."`
	Ls         lsCmd         `cmd:"" help:"List nodes that you may reach."`
	SSH        sshCmd        `cmd:"" name:"ssh" help:"Open a shell on a node, or run a command there."`
	Config     configCmd     `cmd:"" help:"Print OpenSSH client configuration."`
	Proxy      proxyCmd      `cmd:"" help:"Carry other programs' connections."`
	DB         dbCmd         `cmd:"" name:"db" help:"Databases: list, log in, connect."`
	TCP        tcpCmd        `cmd:"" name:"tcp" help:"TCP services: list."`
	Clusters   clustersCmd   `cmd:"" help:"List clusters."`
	Env        envCmd        `cmd:"" help:"Print environment variables for the present cluster."`
	Version    versionCmd    `cmd:"" help:"Print the version of this program and of the gateway."`
	Completion completionCmd `cmd:"" help:"Print a shell completion script."`
}

// globals are the flags that every command takes.
type globals struct {
	LoginName       string `name:"login" short:"l" env:"SALLY_LOGIN,TELEPORT_LOGIN" help:"OS login on the node."`
	ProxyAddr       string `name:"proxy" env:"SALLY_PROXY,TELEPORT_PROXY" placeholder:"HOST[:PORT]" help:"Address of the gateway."`
	User            string `name:"user" env:"SALLY_USER,TELEPORT_USER" help:"User name in the cluster."`
	TTL             int    `name:"ttl" placeholder:"MINUTES" help:"Minutes until the certificate ends."`
	Cluster         string `name:"cluster" short:"c" env:"SALLY_CLUSTER,TELEPORT_CLUSTER,TELEPORT_SITE" help:"Cluster to use."`
	CAPin           string `name:"ca-pin" env:"SALLY_CA_PIN" placeholder:"sha256:HEX" help:"Pin of the cluster's host CA."`
	Insecure        bool   `name:"insecure" help:"Do not check the gateway's certificate at login. For tests only."`
	AddKeysToAgent  string `name:"add-keys-to-agent" short:"k" enum:"auto,no,yes,only" default:"auto" env:"SALLY_ADD_KEYS_TO_AGENT,TELEPORT_ADD_KEYS_TO_AGENT" help:"Add keys to ssh-agent: auto, no, yes, only."`
	Debug           bool   `name:"debug" short:"d" env:"SALLY_DEBUG,TELEPORT_DEBUG" help:"Say more on standard error."`
	SkipVersionTest bool   `name:"skip-version-check" hidden:""`
}

// program is what a command works with.
type program struct {
	globals
	ctx    context.Context
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	home   profile.Dir
	self   string // how to call this program again
}

func main() {
	os.Exit(run(os.Args))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	home, err := profile.Home()
	if err != nil {
		return fail.Report(os.Stderr, err)
	}
	p := &program{ctx: ctx, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, home: home, self: self(args[0])}
	return fail.Report(os.Stderr, p.run(calledAs(args)))
}

// calledAs lets a link named ssh be "sally ssh".
func calledAs(args []string) []string {
	if name := filepath.Base(args[0]); name == "ssh" {
		return append([]string{name}, args[1:]...)
	}
	return args[1:]
}

func self(arg0 string) string {
	if path, err := os.Executable(); err == nil {
		if dir := filepath.Dir(path); filepath.Base(arg0) == "tsh" {
			if _, err := os.Stat(filepath.Join(dir, "tsh")); err == nil {
				return filepath.Join(dir, "tsh")
			}
		}
		return path
	}
	return arg0
}

func (p *program) run(args []string) error {
	var c cli
	exited := -1
	k, err := kong.New(&c,
		kong.Name("sally"),
		kong.Description("Reach servers and databases through one port."),
		kong.UsageOnError(),
		kong.Exit(func(code int) { exited = code }),
		kong.Writers(p.stdout, p.stderr),
		kong.Vars{"version": version},
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
			return usageError(pe)
		}
		return err
	}
	p.globals = c.globals
	return kctx.Run(p)
}

func usageError(pe *kong.ParseError) error {
	command := "sally"
	if n := pe.Context.Selected(); n != nil {
		command += " " + strings.Fields(n.Path() + " ")[0]
	}
	return problem(errInvalid, pe.Error(), command+" --help")
}
