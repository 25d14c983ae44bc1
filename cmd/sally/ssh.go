package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	protocolSSH      = "sallyport-ssh/1"
	sshHandshake     = 20 * time.Second
	keepaliveEvery   = 15 * time.Second
	keepaliveMissing = 3
)

type sshCmd struct {
	TTY          bool     `name:"tty" short:"t" help:"Allocate a terminal even for a command."`
	NoTTY        bool     `name:"no-tty" short:"T" help:"Allocate no terminal."`
	Port         int      `name:"port" short:"p" hidden:"" help:"Taken for compatibility; nodes are reached by name."`
	Quiet        bool     `name:"quiet" short:"q" help:"Do not print banners."`
	LocalForward []string `name:"forward" short:"L" hidden:""`
	Dynamic      []string `name:"dynamic-forward" short:"D" hidden:""`
	Remote       []string `name:"remote-forward" short:"R" hidden:""`
	ForwardAgent bool     `name:"forward-agent" short:"A" hidden:""`
	Options      []string `name:"option" short:"o" placeholder:"KEY=VALUE" help:"OpenSSH option; SendEnv and SetEnv are obeyed, others are ignored."`

	Host    string   `arg:"" help:"[user@]node"`
	Command []string `arg:"" optional:"" passthrough:"" help:"Command to run; a shell without one."`
}

// Run opens the session and passes on the exit code of what ran.
func (c *sshCmd) Run(p *program) error {
	if err := c.unserved(); err != nil {
		return err
	}
	cred, err := p.loadValid()
	if err != nil {
		return err
	}
	login, node, err := p.destination(cred, c.Host)
	if err != nil {
		return err
	}
	conn, err := cred.dialer().DialResource(p.ctx, sallyport.KindNode, node, protocolSSH)
	if err != nil {
		return cred.explain(p.ctx, err, &sallyportv1.ExplainRequest{Kind: string(sallyport.KindNode), Name: node, Login: login})
	}
	defer conn.Close()
	sc, err := c.handshake(p, cred, conn, login, node)
	if err != nil {
		return err
	}
	defer sc.Close()
	return c.session(p, sc)
}

// unserved refuses what this version does not do, rather than doing less than
// was asked for.
func (c *sshCmd) unserved() error {
	switch {
	case len(c.LocalForward)+len(c.Dynamic)+len(c.Remote) > 0:
		return problem(errInvalid, "this version does not forward ports by sally ssh", "sally proxy tcp reaches TCP services")
	case c.ForwardAgent:
		return problem(errInvalid, "this version does not forward ssh-agent", "")
	}
	return nil
}

// destination splits [user@]node[.cluster]. Without a login it is -l, then the
// only login of the certificate, then the user's own name here.
func (p *program) destination(c *credentials, arg string) (login, node string, err error) {
	login, node = p.LoginName, arg
	if at := strings.LastIndex(arg, "@"); at >= 0 {
		login, node = arg[:at], arg[at+1:]
	}
	node = strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(node, "."+c.Profile.Cluster), ".node"))
	if node == "" {
		return "", "", problem(errInvalid, "no node is named", "sally ls")
	}
	if login != "" {
		return login, node, nil
	}
	me, err := user.Current()
	switch {
	case err == nil && slices.Contains(c.Identity.Principals, me.Username):
		return me.Username, node, nil
	case len(c.Identity.Principals) == 1:
		return c.Identity.Principals[0], node, nil
	case err == nil:
		return me.Username, node, nil
	}
	return "", "", problem(errInvalid, "no login is named", "sally ssh LOGIN@"+node)
}

func (c *sshCmd) handshake(p *program, cred *credentials, conn net.Conn, login, node string) (*ssh.Client, error) {
	signer, _, err := p.home.SSHSigner(cred.Profile)
	if err != nil {
		return nil, err
	}
	var banner bytes.Buffer
	cfg := &ssh.ClientConfig{
		User:            login,
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: p.hostKey(cred, node),
		BannerCallback: func(text string) error {
			banner.WriteString(text)
			return nil
		},
	}
	if err := conn.SetDeadline(time.Now().Add(sshHandshake)); err != nil {
		return nil, err
	}
	sc, chans, reqs, err := ssh.NewClientConn(conn, node+":0", cfg)
	if err != nil {
		return nil, sshRefusal(err, banner.String(), login, node)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil { // the peer has proved who it is
		return nil, err
	}
	if !c.Quiet && banner.Len() > 0 {
		fmt.Fprint(p.stderr, fail.Clean(strings.ReplaceAll(banner.String(), "\r\n", "\n")))
	}
	return ssh.NewClient(sc, chans, reqs), nil
}

// sshRefusal prefers the reason that the node gave in its banner: "ERROR: fact"
// and "hint: next step", a line each, as every program of ours prints them.
func sshRefusal(err error, banner, login, node string) error {
	p := &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fmt.Sprintf("ssh to %s as %s: %v", node, login, err), Cause: err}
	for line := range strings.Lines(banner) {
		line = strings.TrimSpace(line)
		if fact, ok := strings.CutPrefix(line, "ERROR: "); ok {
			p.Kind, p.Fact = sallyport.ErrDenied, fact
		}
		if hint, ok := strings.CutPrefix(line, "hint: "); ok {
			p.Hint = hint
		}
	}
	return p
}

// hostKey takes only a host certificate of the cluster for this very node.
func (p *program) hostKey(cred *credentials, node string) ssh.HostKeyCallback {
	checker := &ssh.CertChecker{IsHostAuthority: func(auth ssh.PublicKey, _ string) bool {
		data, err := os.ReadFile(p.home.KnownHosts())
		if err != nil {
			return false
		}
		for len(data) > 0 {
			marker, hosts, key, _, rest, err := ssh.ParseKnownHosts(data)
			if err != nil {
				return false
			}
			data = rest
			if marker == "cert-authority" && slices.Contains(hosts, cred.Profile.Cluster) && bytes.Equal(key.Marshal(), auth.Marshal()) {
				return true
			}
		}
		return false
	}}
	return func(_ string, addr net.Addr, key ssh.PublicKey) error {
		return checker.CheckHostKey(node+":0", addr, key)
	}
}

// session runs the shell or the command.
func (c *sshCmd) session(p *program, sc *ssh.Client) error {
	s, err := sc.NewSession()
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	defer s.Close()
	s.Stdout, s.Stderr = p.stdout, p.stderr
	if err := c.setenv(s); err != nil {
		return err
	}
	restore := func() {}
	if c.wantsTTY(p) {
		if restore, err = p.terminalFor(s); err != nil {
			return err
		}
	}
	defer restore()
	stdin, err := s.StdinPipe()
	if err != nil {
		return err
	}
	if len(c.Command) == 0 {
		err = s.Shell()
	} else {
		err = s.Start(strings.Join(c.Command, " "))
	}
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	// Reading the terminal cannot be interrupted: this ends with the process.
	go func() {
		io.Copy(stdin, p.stdin)
		stdin.Close()
	}()
	done := make(chan struct{})
	defer close(done)
	go keepalive(sc, done)
	stop := context.AfterFunc(p.ctx, func() {
		if !c.wantsTTY(p) {
			s.Signal(ssh.SIGINT)
		}
	})
	defer stop()
	return exitOf(s.Wait())
}

func (c *sshCmd) wantsTTY(p *program) bool {
	return !c.NoTTY && (c.TTY || len(c.Command) == 0 && p.terminal())
}

// setenv obeys -o SendEnv and SetEnv, and sends LANG and LC_* as Debian's ssh does.
func (c *sshCmd) setenv(s *ssh.Session) error {
	send := []string{"LANG", "LC_*"}
	for _, o := range c.Options {
		k, v, _ := strings.Cut(strings.TrimSpace(o), "=")
		switch strings.ToLower(strings.TrimSpace(k)) {
		case "sendenv":
			send = append(send, strings.Fields(v)...)
		case "setenv":
			name, value, _ := strings.Cut(v, "=")
			s.Setenv(strings.TrimSpace(name), strings.Trim(value, `"`))
		}
	}
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if slices.ContainsFunc(send, func(pattern string) bool {
			prefix, star := strings.CutSuffix(pattern, "*")
			return name == pattern || star && strings.HasPrefix(name, prefix)
		}) {
			s.Setenv(name, value) // a node that does not allow it says no; that is no error
		}
	}
	return nil
}

// terminalFor asks for a pty of our size, makes ours raw, and follows its size.
func (p *program) terminalFor(s *ssh.Session) (restore func(), err error) {
	fd := int(p.stdin.Fd())
	w, h := 80, 24
	if term.IsTerminal(fd) {
		if w, h, err = term.GetSize(fd); err != nil {
			return nil, err
		}
	}
	name := os.Getenv("TERM")
	if name == "" {
		name = "xterm-256color"
	}
	if err := s.RequestPty(name, h, w, ssh.TerminalModes{}); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	if !term.IsTerminal(fd) {
		return func() {}, nil
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	go func() {
		for range resized {
			if w, h, err := term.GetSize(fd); err == nil {
				s.WindowChange(h, w)
			}
		}
	}()
	return func() {
		signal.Stop(resized)
		close(resized)
		term.Restore(fd, state)
	}, nil
}

// keepalive notices within a minute that the node is gone.
func keepalive(sc *ssh.Client, done <-chan struct{}) {
	tick := time.NewTicker(keepaliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		answered := make(chan error, 1)
		go func() {
			_, _, err := sc.SendRequest("keepalive@openssh.com", true, nil)
			answered <- err
		}()
		select {
		case <-done:
			return
		case err := <-answered:
			if err == nil {
				continue
			}
		case <-time.After(keepaliveMissing * keepaliveEvery):
		}
		sc.Close()
		return
	}
}

// exitOf turns the end of a session into our exit code; a signal is 128 and its
// number, as a shell has it; a lost connection is 255, as ssh has it.
func exitOf(err error) error {
	var status *ssh.ExitError
	var missing *ssh.ExitMissingError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		if name := status.Signal(); name != "" {
			if n := signalNumber(name); n > 0 {
				return fail.Exit{Code: 128 + n}
			}
		}
		return fail.Exit{Code: status.ExitStatus()}
	case errors.As(err, &missing):
		return fail.Exit{Code: 255}
	}
	return err
}

func signalNumber(name string) int {
	for s, n := range map[ssh.Signal]syscall.Signal{
		ssh.SIGABRT: syscall.SIGABRT, ssh.SIGALRM: syscall.SIGALRM, ssh.SIGFPE: syscall.SIGFPE, ssh.SIGHUP: syscall.SIGHUP,
		ssh.SIGILL: syscall.SIGILL, ssh.SIGINT: syscall.SIGINT, ssh.SIGKILL: syscall.SIGKILL, ssh.SIGPIPE: syscall.SIGPIPE,
		ssh.SIGQUIT: syscall.SIGQUIT, ssh.SIGSEGV: syscall.SIGSEGV, ssh.SIGTERM: syscall.SIGTERM, ssh.SIGUSR1: syscall.SIGUSR1, ssh.SIGUSR2: syscall.SIGUSR2,
	} {
		if string(s) == name {
			return int(n)
		}
	}
	return 0
}

type configCmd struct {
	Port int `name:"port" short:"p" default:"3022" help:"Port to write; nodes are reached by name."`
}

// Run prints what goes into ~/.ssh/config. Standard output stays clean.
func (c *configCmd) Run(p *program) error {
	f, err := p.selected()
	if err != nil {
		return err
	}
	key, cert := p.home.KeyPath(f, ""), p.home.SSHCertPath(f)
	_, err = fmt.Fprintf(p.stdout, `# Begin generated Teleport configuration for %[1]s by sally
# Common flags for all %[2]s hosts
Host *.%[2]s %[3]s
    UserKnownHostsFile "%[4]s"
    IdentityFile "%[5]s"
    CertificateFile "%[6]s"
    IdentitiesOnly yes
# Flags for all %[2]s hosts except the proxy
Host *.%[2]s !%[3]s
    Port %[7]d
    ProxyCommand "%[8]s" proxy ssh --cluster=%[2]s --proxy=%[1]s %%r@%%h:%%p
# End generated Teleport configuration
`, f.WebProxyAddr, f.Cluster, f.Name(), p.home.KnownHosts(), key, cert, c.Port, p.self)
	return err
}
