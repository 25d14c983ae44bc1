package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/dataplane/dial"
	"github.com/sallyport/sallyport/dataplane/sigv4"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// awsFlags choose an application at AWS and a role there.
type awsFlags struct {
	App  string `name:"app" placeholder:"NAME" help:"Application, as sally apps ls shows it; without, the one that you have logged in to."`
	Role string `name:"aws-role" placeholder:"ARN" help:"Role of AWS, by ARN or name; without, that of sally apps login, or your only one."`
}

type awsCmd struct {
	awsFlags
	Exec     string   `name:"exec" short:"x" placeholder:"PROGRAM" help:"Run this in place of aws: any program of an AWS SDK."`
	Endpoint bool     `name:"endpoint-url" short:"e" hidden:"" help:"Taken for compatibility: it is always so."`
	Args     []string `arg:"" optional:"" passthrough:"" help:"Arguments for aws, after --."`
}

// Run starts aws, or another program, with a port of this run and keys that are
// good for it alone.
func (c *awsCmd) Run(p *program) error {
	if len(c.Args) > 0 && c.Args[0] == "--" {
		c.Args = c.Args[1:]
	}
	a, err := p.awsAccess(c.awsFlags)
	if err != nil {
		return err
	}
	name, hint := "aws", "install the AWS CLI (Debian: awscli), or run another program with --exec, or use sally proxy aws"
	if c.Exec != "" {
		name, hint = c.Exec, "--exec takes a program, its arguments follow --"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return problem(sallyport.ErrNotFound, name+" is not on the PATH", hint)
	}
	l, err := dial.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	port := a.port(l)
	args := c.Args
	if c.Exec == "" {
		// The environment says so too, but only to the AWS CLI 2.13 and later.
		args = append([]string{"--endpoint-url", port.url}, args...)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(p.ctx))
	served := make(chan error, 1)
	go func() { served <- port.proxy.Serve(ctx) }()
	cmd := exec.Command(path, args...)
	cmd.Env = awsEnv(os.Environ(), port)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	err = childExit(runClient(cmd))
	stop()
	if failed := <-served; err == nil {
		err = failed
	}
	return err
}

type proxyAWSCmd struct {
	listener
	awsFlags
	Endpoint bool   `name:"endpoint-url" short:"e" hidden:"" help:"Taken for compatibility: it is always so."`
	Format   string `name:"format" short:"f" enum:"unix,powershell,command-prompt,text,json,yaml" default:"unix" placeholder:"FORMAT" help:"unix, powershell, command-prompt, text, json or yaml."`
}

// Run listens, and prints the environment that leads programs here.
func (c *proxyAWSCmd) Run(p *program) error {
	a, err := p.awsAccess(c.awsFlags)
	if err != nil {
		return err
	}
	l, err := c.open()
	if err != nil {
		return err
	}
	port := a.port(l)
	port.proxy.Dial = (&failures{to: p.stderr}).of(port.proxy.Dial)
	if err := c.print(p, a, port); err != nil {
		l.Close()
		return err
	}
	ctx, stop := signal.NotifyContext(p.ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return port.proxy.Serve(ctx)
}

func (c *proxyAWSCmd) print(p *program, a *awsAccess, port awsPort) error {
	form := map[string]string{"unix": "export %s=%s\n", "powershell": "$Env:%s=\"%s\"\n", "command-prompt": "set %s=%s\n", "text": "%s: %s\n"}[c.Format]
	if form == "" {
		values := map[string]string{}
		for _, kv := range port.env() {
			values[kv[0]] = kv[1]
		}
		return output.Write(p.stdout, c.Format, values)
	}
	remark := map[string]string{"unix": "# ", "powershell": "# ", "command-prompt": "rem "}[c.Format]
	fmt.Fprintf(p.stdout, "%sStarted AWS proxy on %s for %s as %s.\n%sPrograms with this environment use it:\n", remark, port.url, a.name, a.role, remark)
	for _, kv := range port.env() {
		value := kv[1]
		if c.Format == "unix" {
			value = shell.Word(value)
		}
		if _, err := fmt.Fprintf(p.stdout, form, kv[0], value); err != nil {
			return err
		}
	}
	return nil
}

// awsAccess is an application at AWS, as one role.
type awsAccess struct {
	cred       *credentials
	name, role string
	dial       func(context.Context) (net.Conn, error)
}

// awsPort is one local port with its keys.
type awsPort struct {
	proxy *dial.AWSProxy
	url   string
	keys  sigv4.Keys
}

func (a *awsAccess) port(l net.Listener) awsPort {
	keys := dial.NewAWSKeys()
	return awsPort{url: "http://" + l.Addr().String(), keys: keys, proxy: &dial.AWSProxy{
		Listener: l, Host: alpn.ServerName(string(sallyport.KindApp), a.name, a.cred.Profile.Cluster), Role: a.role, Keys: keys, Dial: a.dial,
	}}
}

// env leads clients to the port.
func (p awsPort) env() [][2]string {
	return [][2]string{{"AWS_ACCESS_KEY_ID", p.keys.AccessKey}, {"AWS_SECRET_ACCESS_KEY", p.keys.Secret}, {"AWS_ENDPOINT_URL", p.url}}
}

// steersAWS are variables by which a client would find other credentials, or
// another way.
var steersAWS = regexp.MustCompile(`^(AWS_(SESSION_TOKEN|SECURITY_TOKEN|PROFILE|DEFAULT_PROFILE|ACCESS_KEY|SECRET_KEY|ROLE_ARN|ROLE_SESSION_NAME|WEB_IDENTITY_TOKEN_FILE|CONTAINER_.*|CREDENTIAL_.*|ENDPOINT_URL_.*|IGNORE_CONFIGURED_ENDPOINT_URLS|USE_FIPS_ENDPOINT|USE_DUALSTACK_ENDPOINT|EC2_METADATA_DISABLED|BEARER_TOKEN_.*)|NO_PROXY|no_proxy)$`)

// awsEnv is the environment of a program that is to come to the port and nowhere
// else.
func awsEnv(environ []string, port awsPort) []string {
	var out []string
	own := port.env()
	around := "127.0.0.1,localhost"
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if strings.EqualFold(name, "NO_PROXY") && value != "" {
			around += "," + value
		}
		if !steersAWS.MatchString(name) && !slices.ContainsFunc(own, func(o [2]string) bool { return o[0] == name }) {
			out = append(out, kv)
		}
	}
	for _, kv := range own {
		out = append(out, kv[0]+"="+kv[1])
	}
	return append(out, "AWS_EC2_METADATA_DISABLED=true", "NO_PROXY="+around, "no_proxy="+around)
}

// awsAccess finds the application and the role.
func (p *program) awsAccess(flags awsFlags) (*awsAccess, error) {
	name, err := p.applicationName(flags.App)
	if err != nil {
		return nil, err
	}
	cred, found, err := p.reachable(sallyport.KindApp, name)
	if err != nil {
		return nil, err
	}
	role := flags.Role
	if role == "" {
		role = p.awsRoleOf(cred.Profile, name)
	}
	role, err = awsRole(name, role, found)
	return &awsAccess{cred: cred, name: name, role: role, dial: p.lasting(cred).to(sallyport.KindApp, name, alpn.HTTP11)}, err
}

// awsRole is the ARN that is meant; found is what auth says, nil when it is away. It
// may be pasted into a shell: it is an ARN, whoever said it.
func awsRole(app, role string, found *sallyportv1.AccessibleResource) (string, error) {
	arn, err := meantRole(app, role, found)
	if err == nil && !sigv4.ValidRole(arn) {
		return "", problem(errInvalid, fmt.Sprintf("%q is not the ARN of a role", fail.Clean(arn)), "arn:aws:iam::123456789012:role/NAME")
	}
	return arn, err
}

func meantRole(app, role string, found *sallyportv1.AccessibleResource) (string, error) {
	mine := found.GetAwsRoleArns()
	if found != nil && found.GetResource().GetProtocol() != sallyport.ProtocolAWS {
		return "", problem(errInvalid, fmt.Sprintf("application %q is not AWS", app), "sally apps ls -v")
	}
	switch {
	case strings.HasPrefix(role, "arn:"):
		return role, nil // the agent decides
	case role == "" && len(mine) == 1:
		return mine[0], nil
	case role == "":
		return "", problem(errInvalid, fmt.Sprintf("application %q: which role of AWS?", app), "--aws-role=ARN; yours: "+or(fail.Clean(strings.Join(mine, ", ")), "none that is known"))
	}
	var named []string
	for _, arn := range mine {
		if strings.HasSuffix(arn, ":role/"+role) {
			named = append(named, arn)
		}
	}
	if len(named) != 1 {
		return "", problem(errInvalid, fmt.Sprintf("application %q: %d roles of AWS are named %q", app, len(named), role), "--aws-role=ARN; yours: "+or(fail.Clean(strings.Join(mine, ", ")), "none that is known"))
	}
	return named[0], nil
}

const awsRoleSuffix = ".aws-role"

// awsRoleOf is the role of sally apps login; "" without.
func (p *program) awsRoleOf(f profile.Profile, name string) string {
	b, err := os.ReadFile(applicationFile(p.home, f, name, awsRoleSuffix))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// keepAWSRole writes it down, under the lock of the home.
func (p *program) keepAWSRole(f profile.Profile, name, role string) error {
	return p.home.Locked(func() error {
		return profile.WriteFile(applicationFile(p.home, f, name, awsRoleSuffix), []byte(role+"\n"))
	})
}

// dropAWSRole forgets it; there may be none.
func (p *program) dropAWSRole(f profile.Profile, name string) error {
	err := os.Remove(applicationFile(p.home, f, name, awsRoleSuffix))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
