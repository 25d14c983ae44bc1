package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/usage"
)

// cli is the whole grammar. Flags and environment are tsh's; SALLY_* wins.
type cli struct {
	globals

	Login      loginCmd      `cmd:"" help:"Log in to a cluster."`
	Logout     logoutCmd     `cmd:"" help:"Delete a cluster's keys and certificates."`
	Status     statusCmd     `cmd:"" help:"Show who you are, where, and until when."`
	Ls         lsCmd         `cmd:"" help:"List nodes that you may reach."`
	SSH        sshCmd        `cmd:"" name:"ssh" help:"Open a shell on a node, or run a command there."`
	SCP        scpCmd        `cmd:"" name:"scp" help:"Copy files to and from nodes."`
	Config     configCmd     `cmd:"" help:"Print OpenSSH client configuration."`
	Proxy      proxyCmd      `cmd:"" help:"Carry other programs' connections."`
	DB         dbCmd         `cmd:"" name:"db" help:"Databases: list, log in, connect."`
	Kube       kubeCmd       `cmd:"" help:"Kubernetes clusters: list, log in."`
	AWS        awsCmd        `cmd:"" name:"aws" help:"Run the AWS CLI, or another program, with a role of AWS that you may use."`
	App        appsCmd       `cmd:"" hidden:"" help:"Web applications, as tsh has them."`
	Apps       appsCmd       `cmd:"" help:"Web applications: list, log in, settings for curl."`
	TCP        tcpCmd        `cmd:"" name:"tcp" help:"TCP services: list."`
	Clusters   clustersCmd   `cmd:"" help:"List clusters."`
	Env        envCmd        `cmd:"" help:"Print environment variables for the present cluster."`
	Version    versionCmd    `cmd:"" help:"Print the version of this program and of the gateway."`
	Completion completionCmd `cmd:"" help:"Print a shell completion script."`
}

// globals are the flags that every command takes.
type globals struct {
	LoginName      string `name:"login" short:"l" group:"global" placeholder:"NAME" env:"SALLY_LOGIN,TELEPORT_LOGIN" help:"OS login on the node."`
	ProxyAddr      string `name:"proxy" group:"global" placeholder:"HOST[:PORT]" env:"SALLY_PROXY,TELEPORT_PROXY" help:"Address of the gateway."`
	User           string `name:"user" group:"global" placeholder:"NAME" env:"SALLY_USER,TELEPORT_USER" help:"User name in the cluster."`
	TTL            int    `name:"ttl" group:"global" placeholder:"MINUTES" help:"Minutes until the certificate ends."`
	Cluster        string `name:"cluster" short:"c" group:"global" placeholder:"NAME" env:"SALLY_CLUSTER,TELEPORT_CLUSTER,TELEPORT_SITE" help:"Cluster to use."`
	CAPin          string `name:"ca-pin" group:"global" placeholder:"sha256:HEX" env:"SALLY_CA_PIN" help:"Pin of the cluster's host CA: a login goes to nobody else, whatever this machine trusts."`
	Insecure       bool   `name:"insecure" group:"global" negatable:"" help:"Do not check the gateway's certificate at login. For tests only."`
	AddKeysToAgent string `name:"add-keys-to-agent" short:"k" group:"global" enum:"auto,no,yes,only" default:"auto" placeholder:"WHEN" env:"SALLY_ADD_KEYS_TO_AGENT,TELEPORT_ADD_KEYS_TO_AGENT" help:"Give keys to ssh-agent: auto (when there is one), yes, no, only (and keep the SSH key off the disk)."`
	Identity       string `name:"identity" short:"i" group:"global" placeholder:"FILE" env:"SALLY_IDENTITY_FILE,TELEPORT_IDENTITY_FILE" help:"Use the login in this file, which sally login --out writes, instead of the profile's."`
	Auth           string `name:"auth" group:"global" placeholder:"WAY" env:"SALLY_AUTH,TELEPORT_AUTH" help:"How to log in: local (password, in the terminal), browser, device (a code to type in a browser elsewhere)."`
	BindAddr       string `name:"bind-addr" group:"global" placeholder:"HOST:PORT" env:"SALLY_LOGIN_BIND_ADDR,TELEPORT_LOGIN_BIND_ADDR" help:"Where a login in the browser comes back to this program."`
	Callback       string `name:"callback" group:"global" placeholder:"127.0.0.1:PORT" help:"The same as the browser sees it, when something forwards the port. Needs --bind-addr."`
	Debug          bool   `name:"debug" short:"d" group:"global" negatable:"" help:"Say more on standard error ($SALLY_DEBUG, $TELEPORT_DEBUG)."`

	accepted
	refused
}

// accepted are tsh's flags that change nothing here: scripts may go on to say them.
type accepted struct {
	SkipVersionCheck bool   `name:"skip-version-check" hidden:"" negatable:""`
	OSLog            bool   `name:"os-log" hidden:"" negatable:""`
	CertFormat       string `name:"cert-format" hidden:""`
	MFAMode          string `name:"mfa-mode" hidden:"" enum:"auto,cross-platform,platform,otp,sso,browser" default:"auto"`
	Mlock            string `name:"mlock" hidden:"" enum:"off,auto,best_effort,strict" default:"auto"`
	Relay            string `name:"relay" hidden:""`
	Compat           string `name:"compat" hidden:""`
	UseLocalSSHAgent bool   `name:"use-local-ssh-agent" hidden:"" negatable:"" default:"true" env:"TELEPORT_USE_LOCAL_SSH_AGENT"`
	RequestReason    string `name:"request-reason" hidden:""`
	NoAccessRequest  bool   `name:"disable-access-request" hidden:"" negatable:""`
	EscapeSequences  bool   `name:"enable-escape-sequences" hidden:"" negatable:"" default:"true"` // obeyed by ssh
}

// refused are tsh's flags that this version does not serve: doing less than was
// asked for would be worse than an error.
type refused struct {
	Jumphost string `name:"jumphost" short:"J" hidden:""`
	Headless bool   `name:"headless" hidden:"" negatable:"" env:"TELEPORT_HEADLESS"`
	PIVSlot  string `name:"piv-slot" hidden:"" env:"TELEPORT_PIV_SLOT"`
}

// settle reads what the grammar cannot, and refuses what is not served.
func (p *program) settle() error {
	p.Debug = p.Debug || truthy("SALLY_DEBUG") || truthy("TELEPORT_DEBUG")
	if !p.UseLocalSSHAgent && p.AddKeysToAgent == "auto" {
		p.AddKeysToAgent = "no"
	}
	switch r := p.refused; {
	case r.Jumphost != "":
		return problem(errInvalid, "this version does not take a jump host: the gateway is the only one that is needed", "give the gateway with --proxy=HOST")
	case r.Headless:
		return problem(errInvalid, "this version has no headless login", "sally login --password-file=FILE --otp=CODE logs in without a terminal")
	case r.PIVSlot != "":
		return problem(errInvalid, "this version keeps no keys on security keys", "leave out --piv-slot")
	}
	if w := way(p.Auth); w != "" && w != byPassword && w != byBrowser && w != byDevice {
		return problem(errInvalid, fmt.Sprintf("this version has no login by %q", p.Auth), "leave out --auth, or say local, browser or device")
	}
	return nil
}

// truthy reads a variable that switches something on. Rubbish is no.
func truthy(name string) bool {
	on, err := strconv.ParseBool(os.Getenv(name))
	return err == nil && on
}

// parsed is a command line that has been understood.
type parsed struct {
	cli  *cli
	kong *kong.Kong
	ctx  *kong.Context
}

// parse understands a command line, args[0] being the name that the program was
// started by.
func parse(args []string, stdout, stderr io.Writer) (*parsed, error) {
	name, rest, err := calledAs(args)
	if err != nil {
		return nil, err
	}
	g := &parsed{cli: &cli{}}
	exited := -1
	g.kong, err = kong.New(g.cli,
		kong.Name(name),
		kong.Description("Reach servers and databases through one port."),
		usage.Help(), usage.Global(),
		kong.Exit(func(code int) { exited = code }),
		kong.Writers(stdout, stderr),
	)
	if err != nil {
		return nil, err
	}
	g.ctx, err = g.kong.Parse(rest)
	if exited >= 0 {
		return nil, fail.Exit{Code: exited}
	}
	return g, usage.Explain(err, absent())
}

// calledAs lets links named ssh and scp be "sally ssh" and "sally scp", and completes what people type
// first.
func calledAs(args []string) (name string, rest []string, err error) {
	name, rest = filepath.Base(args[0]), args[1:]
	switch name {
	case "ssh":
		return "sally", append([]string{"ssh"}, rest...), nil
	case "scp":
		return "sally", append([]string{"scp"}, rest...), nil
	case "tsh":
	default:
		name = "sally"
	}
	return name, usage.Complete(rest, "version", "--client"), nil
}
