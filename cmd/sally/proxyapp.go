package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/dial"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

type proxyAppCmd struct {
	listener
	Stdio bool   `name:"stdio" hidden:"" help:"For TCP services."`
	Name  string `arg:"" help:"Name of the application."`
}

// Run listens and carries each request to the application. tsh knows TCP services
// by this command too.
func (c *proxyAppCmd) Run(p *program) error {
	cred, found, err := p.reachable(sallyport.KindApp, c.Name)
	if errors.Is(err, sallyport.ErrNotFound) {
		if _, _, terr := p.reachable(sallyport.KindTCP, c.Name); !errors.Is(terr, sallyport.ErrNotFound) {
			return (&proxyTCPCmd{listener: c.listener, Stdio: c.Stdio, Name: c.Name}).Run(p)
		}
	}
	if err != nil {
		return err
	}
	if err := notAWS(c.Name, found); err != nil {
		return err
	}
	if c.Stdio {
		return problem(errInvalid, "standard input and output carry TCP services only", "leave out --stdio: requests go to a port")
	}
	l, err := c.open()
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "Proxying connections to %s on %s\n\nUse:\n  http://%s\n", c.Name, l.Addr(), l.Addr())
	ctx, stop := signal.NotifyContext(p.ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return (&dial.AppProxy{
		Listener: l, Host: alpn.ServerName(string(sallyport.KindApp), c.Name, cred.Profile.Cluster), Anywhere: c.Wide,
		Dial: (&failures{to: p.stderr}).of(p.lasting(cred).to(sallyport.KindApp, c.Name, alpn.HTTP11)),
	}).Serve(ctx)
}

// notAWS refuses an application at AWS: whoever reached the port could name any of
// the user's roles there. found is what auth says, nil when it is away; then no role
// is passed on, and the agent serves nobody without.
func notAWS(name string, found *sallyportv1.AccessibleResource) error {
	if found.GetResource().GetProtocol() != sallyport.ProtocolAWS {
		return nil
	}
	return problem(errInvalid, fmt.Sprintf("application %q is AWS, for programs that hold a key of their port", name), "sally aws --app "+name+", or sally proxy aws --app "+name)
}
