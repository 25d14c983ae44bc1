package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/dataplane/dial"
)

// sshForwards are ssh's flags for what passes beside the session (ssh(1)).
type sshForwards struct {
	LocalForward []string `name:"forward" short:"L" sep:"none" placeholder:"[BIND:]PORT:HOST:PORT" help:"Forward connections to a port or socket here to an address that the node reaches."`
	Remote       []string `name:"remote-forward" short:"R" sep:"none" placeholder:"[BIND:]PORT:HOST:PORT" help:"Forward connections to a port or socket of the node to an address that is reached from here."`
	Dynamic      []string `name:"dynamic-forward" short:"D" sep:"none" placeholder:"[BIND:]PORT" help:"Be a SOCKS proxy here, which connects from the node."`
	Stdio        string   `name:"stdio-forward" short:"W" placeholder:"HOST:PORT" help:"Carry one connection from the node on standard input and output."`
	ForwardAgent bool     `name:"forward-agent" short:"A" help:"Let programs on the node ask the ssh-agent here."`
	NoExec       bool     `name:"no-remote-exec" short:"N" help:"Run nothing on the node: only forward."`
	Subsystem    bool     `name:"subsystem" short:"s" help:"The command is the name of a subsystem."`
}

// use is what a connection is for: forwards, and a session beside them.
func (c *sshCmd) use(p *program, sc *ssh.Client) error {
	ctx, cancel := context.WithCancel(p.ctx)
	var forwards sync.WaitGroup
	defer forwards.Wait()
	defer cancel()
	alive, dead := context.WithCancel(context.WithoutCancel(p.ctx)) // Ctrl-C may be for the program on the node: the connection goes on
	defer dead()
	go keepalive(sc, alive.Done())
	defer onTerm(func() { sc.Close() })()
	if c.Stdio != "" {
		conn, err := sc.DialContext(ctx, "tcp", c.Stdio)
		if err != nil {
			return forwardProblem(c.Stdio, err)
		}
		return dial.Pipe(p.stdin, os.Stdout, conn)
	}
	list, err := c.forwards()
	if err != nil {
		return err
	}
	for _, f := range list {
		l, err := f.listen(ctx, sc)
		if err != nil {
			return err
		}
		if p.Debug || c.tells(f) {
			fmt.Fprintf(p.stderr, "Forwarding %s on %s\n", fail.Clean(or(f.to, "by SOCKS")), fail.Clean(f.at(l.Addr())))
		}
		forwards.Go(func() { f.serve(ctx, sc, l, c.failures(p)) })
	}
	if c.NoExec {
		return c.rest(ctx, sc)
	}
	return c.session(p, sc)
}

// at is where connections are taken. Which address of the node that is, the node
// decides and does not say (RFC 4254, section 7.1).
func (f forward) at(addr net.Addr) string {
	t, ok := addr.(*net.TCPAddr)
	switch {
	case !f.remote:
		return addr.String()
	case ok:
		return fmt.Sprintf("port %d of the node", t.Port)
	}
	return addr.String() + " of the node"
}

// rest waits for the end of the connection, or of the program.
func (c *sshCmd) rest(ctx context.Context, sc *ssh.Client) error {
	ended := make(chan struct{})
	go func() {
		_ = sc.Wait() // why does not matter: nobody had asked for an end
		close(ended)
	}()
	select {
	case <-ctx.Done():
		return nil
	case <-ended:
		return errLost
	}
}

// forward is one of -L, -R and -D: where to listen, and where to connect.
type forward struct {
	remote bool   // it listens on the node
	bind   string // host:port, or the path of a socket
	to     string // the same; "" for what a SOCKS client says
}

func (c *sshCmd) forwards() (list []forward, err error) {
	add := func(flag string, specs []string, remote bool) {
		for _, spec := range specs {
			f, ok := parseForward(spec)
			if !ok {
				err = problem(errInvalid, fmt.Sprintf("%s %q is not [bind:]port:host:port", flag, spec), "for example "+flag+" 8080:localhost:80")
			}
			f.remote = remote
			list = append(list, f)
		}
	}
	add("-L", c.LocalForward, false)
	add("-R", c.Remote, true)
	for _, spec := range c.Dynamic {
		parts, ok := splitForward(spec)
		bind, rest := bindOf(parts)
		if !ok || bind == "" || len(rest) > 0 {
			err = problem(errInvalid, fmt.Sprintf("-D %q is not [bind:]port", spec), "for example -D 1080")
		}
		list = append(list, forward{bind: bind})
	}
	return list, err
}

// parseForward reads [bind:]port:host:port, with a path of a socket in place of
// either half; addresses with colons stand in brackets.
func parseForward(spec string) (f forward, ok bool) {
	parts, ok := splitForward(spec)
	if !ok {
		return forward{}, false
	}
	bind, rest := bindOf(parts)
	if bind == "" {
		return forward{}, false
	}
	switch {
	case len(rest) == 1 && strings.HasPrefix(rest[0], "/"):
		return forward{bind: bind, to: rest[0]}, true
	case len(rest) == 2 && rest[0] != "" && isPort(rest[1], 1):
		return forward{bind: bind, to: net.JoinHostPort(rest[0], rest[1])}, true
	}
	return forward{}, false
}

// bindOf takes where to listen from the front; "" when it is not there.
func bindOf(parts []string) (bind string, rest []string) {
	switch {
	case len(parts) > 0 && strings.HasPrefix(parts[0], "/"):
		return parts[0], parts[1:]
	case len(parts) > 0 && isPort(parts[0], 0) && len(parts) != 2 || len(parts) == 2 && isPort(parts[0], 0) && strings.HasPrefix(parts[1], "/"):
		return net.JoinHostPort("localhost", parts[0]), parts[1:]
	case len(parts) > 1 && isPort(parts[1], 0):
		host := parts[0]
		if host == "*" {
			host = ""
		}
		return net.JoinHostPort(host, parts[1]), parts[2:]
	}
	return "", nil
}

func isPort(s string, least uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= least
}

// splitForward splits at colons that are not in brackets.
func splitForward(spec string) (parts []string, ok bool) {
	for {
		if inner, found := strings.CutPrefix(spec, "["); found {
			host, rest, closed := strings.Cut(inner, "]")
			if !closed || rest != "" && rest[0] != ':' {
				return nil, false
			}
			parts = append(parts, host)
			if rest == "" {
				return parts, true
			}
			spec = rest[1:]
			continue
		}
		part, rest, more := strings.Cut(spec, ":")
		parts = append(parts, part)
		if !more {
			return parts, true
		}
		spec = rest
	}
}

func networkOf(addr string) string {
	if strings.HasPrefix(addr, "/") {
		return "unix"
	}
	return "tcp"
}

// tells whether to say where connections are taken: beside a session only where the
// port was chosen for 0, which is known from nowhere else.
func (c *sshCmd) tells(f forward) bool {
	_, port, _ := net.SplitHostPort(f.bind) // of a socket's path there is none
	return !c.Quiet && (c.NoExec || port == "0")
}

func (f forward) listen(ctx context.Context, sc *ssh.Client) (l net.Listener, err error) {
	if f.remote {
		if l, err = sc.Listen(networkOf(f.bind), f.bind); err != nil {
			return nil, problem(errInvalid, fmt.Sprintf("the node does not listen on %s", f.bind), "your roles may not allow it, or the port is taken")
		}
		return l, nil
	}
	if networkOf(f.bind) == "unix" {
		// As ssh(1) does it: nobody else on this machine goes to the node as this person. A mode that
		// is set afterwards lets others in before. Nothing else makes files at this time.
		defer onlyOurs()()
	}
	l, err = (&net.ListenConfig{}).Listen(ctx, networkOf(f.bind), f.bind)
	if err != nil {
		return nil, problem(errInvalid, err.Error(), "choose another port")
	}
	return l, nil
}

const (
	socksTimeout   = 30 * time.Second // for a local program to say where to
	forwardsAtOnce = 256
)

// failures says on standard error why a connection was not carried, as ssh(1) does: the
// program that made it only sees its end. A raw terminal needs the carriage return.
func (c *sshCmd) failures(p *program) func(to string, err error) {
	end := "\n"
	if !c.NoExec && c.wantsTTY(p) {
		end = "\r\n"
	}
	return func(to string, err error) {
		if !c.Quiet {
			fmt.Fprintf(p.stderr, "Forwarding to %s: %s%s", fail.Clean(to), fail.Clean(openFailure(err)), end)
		}
	}
}

// openFailure is the other side's reason as ssh(1) prints it (RFC 4254, section 5.1).
func openFailure(err error) string {
	refused, ok := errors.AsType[*ssh.OpenChannelError](err)
	if !ok {
		return err.Error()
	}
	what := map[ssh.RejectionReason]string{
		ssh.Prohibited: "administratively prohibited", ssh.ConnectionFailed: "connect failed",
		ssh.UnknownChannelType: "unknown channel type", ssh.ResourceShortage: "resource shortage",
	}[refused.Reason]
	return "open failed: " + or(what, "reason "+strconv.Itoa(int(refused.Reason))) + ": " + refused.Message
}

// serve carries each connection until ctx is done; what cannot be carried is told.
func (f forward) serve(ctx context.Context, sc *ssh.Client, l net.Listener, tell func(to string, err error)) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	places := make(chan struct{}, forwardsAtOnce)
	var each sync.WaitGroup
	defer each.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		places <- struct{}{}
		each.Go(func() {
			defer func() { <-places }()
			f.carry(ctx, sc, conn, tell)
		})
	}
}

// carry connects one connection with its other end.
func (f forward) carry(ctx context.Context, sc *ssh.Client, conn net.Conn, tell func(to string, err error)) {
	answer := func(byte) error { return nil }
	to := f.to
	if to == "" {
		// Lifted below, when the program has said where to.
		_ = conn.SetDeadline(time.Now().Add(socksTimeout))
		r, err := dial.ReadSocks(conn)
		if err != nil || conn.SetDeadline(time.Time{}) != nil {
			conn.Close()
			return
		}
		to, answer = r.Address, func(code byte) error { return r.Answer(conn, code) }
	}
	far, err := f.connect(ctx, sc, to)
	if err != nil {
		if ctx.Err() == nil {
			tell(to, err)
		}
		_ = answer(dial.SocksRefused) // nobody is there to hear that it fails
		conn.Close()
		return
	}
	if answer(dial.SocksDone) != nil {
		far.Close()
		conn.Close()
		return
	}
	// How it ended is known to both ends.
	_ = dial.Join(ctx, conn, far)
}

func (f forward) connect(ctx context.Context, sc *ssh.Client, to string) (net.Conn, error) {
	if f.remote {
		return (&net.Dialer{Timeout: socksTimeout}).DialContext(ctx, networkOf(to), to)
	}
	return sc.DialContext(ctx, networkOf(to), to)
}

func forwardProblem(to string, err error) error {
	return problem(errInvalid, fmt.Sprintf("%s: %v", to, err), "")
}

// forwardAgent lets the session's programs ask the agent of SSH_AUTH_SOCK.
func forwardAgent(sc *ssh.Client, s *ssh.Session) error {
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return problem(errInvalid, "there is no ssh-agent here to forward", "start one, or leave out -A")
	}
	if err := agent.ForwardToRemote(sc, socket); err != nil {
		return problem(errInvalid, "the ssh-agent here cannot be reached", "leave out -A")
	}
	if err := agent.RequestAgentForwarding(s); err != nil {
		return problem(errInvalid, "the node does not take a forwarded agent", "your roles may not allow it: leave out -A")
	}
	return nil
}
