package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport"
)

func TestListenProblem(t *testing.T) {
	other := errors.New("something else")
	for _, tt := range []struct {
		err        error
		fact, hint string
	}{
		{syscall.EADDRINUSE, "another program listens", "ss -ltnp"},
		{syscall.EACCES, "may not listen", "CAP_NET_BIND_SERVICE"},
		{syscall.EADDRNOTAVAIL, "no such address", "gateway.listen"},
		{other, "something else", ""},
	} {
		err := listenProblem(fmt.Errorf("gateway: %w", &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", tt.err)}), "gateway.listen", `gateway.listen: [":8443"]`)
		var p *sallyport.Problem
		if !strings.Contains(err.Error(), tt.fact) || errors.As(err, &p) != (tt.hint != "") || p != nil && !strings.Contains(p.Hint, tt.hint) {
			t.Errorf("%v: %v, %+v", tt.err, err, p)
		}
	}
}

// TestDemoPortTaken: a demo on a port that is in use made keys and started a
// database first, and then said no more than "bind".
func TestDemoPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := &demo{demoCmd: &demoCmd{Listen: l.Addr().String()}, node: &node{cfg: &config{}}}
	err = d.pickPort()
	var p *sallyport.Problem
	if !errors.As(err, &p) || !strings.Contains(p.Hint, "make run LISTEN=") {
		t.Errorf("%v", err)
	}
}

// TestDemoCommands: what the demo prints works in any directory, and in a home
// without ~/.ssh.
func TestDemoCommands(t *testing.T) {
	d := &demo{demoCmd: &demoCmd{Data: "demo-data"}, node: &node{cfg: &config{DataDir: "/srv/it's here"}}, postgres: &demoPostgres{}}
	d.node.cfg.Gateway.PublicAddress = "127.0.0.1:8443"
	got := d.commands("sha256:00", "web", "/opt/a b/bin")
	for _, want := range []string{
		"export PATH='/opt/a b/bin':$PATH\n",
		"sally login --proxy=127.0.0.1:8443 --user=admin --ca-pin=sha256:00\n",
		"mkdir -p -m 700 ~/.ssh && sally config >> ~/.ssh/config && ssh " + currentUser() + "@web.localhost\n",
		`sallyctl --data-dir='/srv/it'\''s here' users ls` + "\n",
		"psql service=localhost-demo\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("does not say %q:\n%s", want, got)
		}
	}
}
