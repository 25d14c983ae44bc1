package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/libpq"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/dataplane/dial"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	protocolTCP = "sallyport-tcp/1"
	protocolDB  = "sallyport-db/1"
)

type proxyCmd struct {
	SSH  proxySSHCmd  `cmd:"" name:"ssh" help:"Carry one SSH connection on standard input and output, for ProxyCommand."`
	DB   proxyDBCmd   `cmd:"" name:"db" help:"Listen on this machine for clients of a database."`
	Kube proxyKubeCmd `cmd:"" name:"kube" help:"Listen on this machine for clients of a Kubernetes cluster."`
	TCP  proxyTCPCmd  `cmd:"" name:"tcp" help:"Listen on this machine for clients of a TCP service."`
	App  proxyAppCmd  `cmd:"" name:"app" help:"Listen on this machine for clients of a web application."`
	AWS  proxyAWSCmd  `cmd:"" name:"aws" help:"Listen on this machine for programs that use AWS."`
}

type proxySSHCmd struct {
	Destination string `arg:"" help:"[user@]host[:port]"`
	NoResume    bool   `name:"no-resume" hidden:"" env:"TELEPORT_NO_RESUME"`
	Relogin     bool   `name:"relogin" hidden:"" negatable:"" default:"true"`
}

// Run is a byte pipe.
func (c *proxySSHCmd) Run(p *program) error {
	cred, err := p.loadValid()
	if err != nil {
		return err
	}
	host := c.Destination
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	login, node, err := p.destination(cred, host)
	if err != nil {
		return err
	}
	conn, err := cred.dialer().DialResource(p.ctx, sallyport.KindNode, node, protocolSSH)
	if err != nil {
		return cred.explain(p.ctx, err, &sallyportv1.ExplainRequest{Kind: string(sallyport.KindNode), Name: node, Login: login})
	}
	defer onTerm(func() { conn.Close() })()
	return p.pipe(cred, conn, &sallyportv1.ExplainRequest{Kind: string(sallyport.KindNode), Name: node, Login: login})
}

// pipe carries one connection to what use names on standard input and output. A loss
// has no reason on the connection, where every byte is the resource's: auth is asked.
func (p *program) pipe(cred *credentials, conn net.Conn, use *sallyportv1.ExplainRequest) error {
	err := dial.Pipe(p.stdin, os.Stdout, conn)
	var own *fs.PathError // of standard output
	if err == nil || errors.As(err, &own) || p.ctx.Err() != nil {
		return err
	}
	lost := &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err,
		Fact: fmt.Sprintf("%s %q: the connection was lost", kindName(use.GetKind()), use.GetName()), Hint: "connect again"}
	return cred.explain(p.ctx, lost, use)
}

// listener is what all local proxies take.
type listener struct {
	Port   string `name:"port" short:"p" placeholder:"PORT" help:"Port on 127.0.0.1; any free one without."`
	Listen string `name:"listen" placeholder:"HOST:PORT" help:"Address to listen on, instead of --port."`
	Wide   bool   `name:"insecure-listen-anywhere" help:"Allow an address that other machines reach: whoever connects acts as you."`
}

func (l listener) open() (net.Listener, error) {
	addr, err := l.address()
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &sallyport.Problem{Kind: errInvalid, Fact: err.Error(), Hint: "choose another port, or none for any that is free", Cause: err}
	}
	return ln, nil
}

// address is where to listen, which only this machine may reach.
func (l listener) address() (string, error) {
	if l.Listen != "" && l.Port != "" {
		return "", problem(errInvalid, "--listen and --port exclude each other", "")
	}
	if l.Listen == "" {
		port, target, mapped := strings.Cut(or(l.Port, "0"), ":")
		if mapped {
			return "", problem(errInvalid, fmt.Sprintf("this version serves one port of a service, not %q", target), "--port="+or(port, "PORT"))
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return "", problem(errInvalid, fmt.Sprintf("%q is not a port", port), "for example --port=5432")
		}
		return net.JoinHostPort("127.0.0.1", port), nil
	}
	host, _, err := net.SplitHostPort(l.Listen)
	if err != nil {
		return "", problem(errInvalid, fmt.Sprintf("%q is not host:port", l.Listen), "for example --listen=127.0.0.1:5432")
	}
	if ip := net.ParseIP(host); !l.Wide && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", problem(errInvalid, fmt.Sprintf("%s can be reached from other machines, and whoever connects acts as you", l.Listen), "listen on 127.0.0.1, or say --insecure-listen-anywhere")
	}
	return l.Listen, nil
}

// serve runs a local proxy until it is interrupted, and tells of connections that
// it cannot make.
func (p *program) serve(lp *dial.LocalProxy) error {
	lp.Dial = (&failures{to: p.stderr}).of(lp.Dial)
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup(1)
		ends = append(ends, syscall.SIGHUP) // what is to be removed at the end is
	}
	ctx, stop := signal.NotifyContext(p.ctx, ends...)
	defer stop()
	err := lp.Serve(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

type proxyTCPCmd struct {
	listener
	Stdio bool   `name:"stdio" help:"Carry one connection on standard input and output instead of listening."`
	Name  string `arg:"" help:"Name of the TCP service."`
}

// Run listens and carries each connection to the service.
func (c *proxyTCPCmd) Run(p *program) error {
	cred, _, err := p.reachable(sallyport.KindTCP, c.Name)
	if err != nil {
		return err
	}
	if c.Stdio {
		conn, err := cred.dialer().DialResource(p.ctx, sallyport.KindTCP, c.Name, protocolTCP)
		if err != nil {
			return err
		}
		return p.pipe(cred, conn, &sallyportv1.ExplainRequest{Kind: string(sallyport.KindTCP), Name: c.Name})
	}
	l, err := c.open()
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "Proxying connections to %s on %s\n", c.Name, l.Addr())
	return p.serve(&dial.LocalProxy{Listener: l, Dial: p.lasting(cred).to(sallyport.KindTCP, c.Name, protocolTCP)})
}

// reachable loads the credentials and says at once when the name is wrong,
// offline or forbidden.
func (p *program) reachable(kind sallyport.Kind, name string) (*credentials, *sallyportv1.AccessibleResource, error) {
	cred, err := p.loadValid()
	if err != nil {
		return nil, nil, err
	}
	list, err := cred.list(p.ctx, kind, name)
	if errors.Is(err, sallyport.ErrUnavailable) {
		// Sessions need no control plane: the agent decides, and says so.
		return cred, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	found := listing(list, name)
	switch {
	case found == nil:
		return nil, nil, problem(sallyport.ErrNotFound, fmt.Sprintf("%s %q is not known, or not yours to see", kindName(string(kind)), name), listHint(string(kind)))
	case !found.GetOnline():
		return nil, nil, problem(sallyport.ErrUnavailable, fmt.Sprintf("%s %q is offline: no agent that serves it is connected", kindName(string(kind)), name), "ask who runs the agent, or try again")
	}
	return cred, found, nil
}

type proxyDBCmd struct {
	listener
	databaseFlags
	Tunnel bool   `name:"tunnel" help:"Taken for compatibility: the local side is always plain and the way to the database always TLS."`
	Name   string `arg:"" optional:"" help:"Name of the database; without, the one that you have logged in to."`
}

// Run listens; clients use no TLS and no password, and name user and database.
func (c *proxyDBCmd) Run(p *program) error {
	if err := c.unserved(); err != nil {
		return err
	}
	name, err := p.databaseName(c.Name)
	if err != nil {
		return err
	}
	cred, found, err := p.reachable(sallyport.KindDatabase, name)
	if err != nil {
		return err
	}
	user, dbname := only(c.User, found.GetDatabaseUsers()), only(c.DBName, found.GetDatabaseNames())
	switch p.protocolOf(cred.Profile, name, found) {
	case protocolMySQL:
		return c.mysql(p, &database{cred: cred, name: name, user: user, dbname: dbname})
	case protocolRedis:
		return c.redis(p, &database{cred: cred, name: name, user: user, dbname: dbname})
	}
	if err := libpq.Check([]libpq.Setting{{Key: "user", Value: user}, {Key: "dbname", Value: dbname}}); err != nil {
		return err
	}
	l, err := c.open()
	if err != nil {
		return err
	}
	use := libpq.URI(l.Addr().String(), or(user, "USER"), or(dbname, or(user, "DATABASE")), "sslmode=disable")
	fmt.Fprintf(p.stdout, "Started authenticated tunnel for the PostgreSQL database %q in cluster %q on %s.\n\nUse:\n  $ psql %s\n",
		name, cred.Profile.Cluster, l.Addr(), shell.Word(use))
	return p.serve(&dial.LocalProxy{Listener: l, Postgres: true, Dial: p.lasting(cred).to(sallyport.KindDatabase, name, protocolDB)})
}

func or(s, other string) string {
	if strings.TrimSpace(s) == "" {
		return other
	}
	return s
}
