package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	protocolSSH      = "sallyport-ssh/1"
	sshHandshake     = 20 * time.Second
	keepaliveEvery   = 15 * time.Second
	keepaliveMissing = 3
)

type sshCmd struct {
	TTY       bool     `name:"tty" short:"t" help:"Allocate a terminal even for a command."`
	NoTTY     bool     `name:"no-tty" short:"T" help:"Allocate no terminal."`
	StdinNull bool     `name:"stdin-null" short:"n" help:"Send nothing of standard input."`
	Quiet     bool     `name:"quiet" short:"q" help:"Do not print banners."`
	Options   []string `name:"option" short:"o" sep:"none" placeholder:"KEY=VALUE" help:"OpenSSH option; User, RequestTTY, SendEnv, SetEnv, ForwardAgent, SessionType and the forwards are obeyed."`
	sshForwards
	sshAccepted
	sshRefused

	Host    string   `arg:"" optional:"" name:"[user@]host" help:"Node, and the login to use there."`
	Command []string `arg:"" optional:"" passthrough:"partial" help:"Command to run; a shell without one. All that follows is its own."`
}

// sshAccepted are flags of tsh and OpenSSH that change nothing here.
type sshAccepted struct {
	Port         int    `name:"port" short:"p" hidden:""`
	NoResume     bool   `name:"no-resume" hidden:""`
	Relogin      bool   `name:"relogin" hidden:"" negatable:"" default:"true"`
	RequestMode  string `name:"request-mode" hidden:""`
	Participants bool   `name:"participant-req" hidden:""`
	IPv4         bool   `name:"ipv4" short:"4" hidden:""`
	IPv6         bool   `name:"ipv6" short:"6" hidden:""`
	NoX11        bool   `name:"no-x11" short:"x" hidden:""`
	NoAgent      bool   `name:"no-agent" short:"a" hidden:""`
	Compress     bool   `name:"compress" short:"C" hidden:""`
	Protocol2    bool   `name:"protocol-2" short:"2" hidden:""`
	Verbose      bool   `name:"verbose" short:"v" hidden:""`                 // obeyed as --debug
	ConfigFile   string `name:"config-file" short:"F" sep:"none" hidden:""`  // only none
	ControlPath  string `name:"control-path" short:"S" sep:"none" hidden:""` // only none
	Escape       string `name:"escape-char" short:"e" sep:"none" hidden:""`  // obeyed: none, or what it is anyway
	ShowVersion  bool   `name:"show-version" short:"V" hidden:""`            // obeyed
}

// sshRefused are those that this version does not serve.
type sshRefused struct {
	X11        bool     `name:"x11-untrusted" short:"X" hidden:""`
	TrustedX11 bool     `name:"x11-trusted" short:"Y" hidden:""`
	X11Timeout string   `name:"x11-untrusted-timeout" hidden:""`
	Background bool     `name:"fork-after-authentication" aliases:"fork-after-auth" short:"f" hidden:""`
	Local      bool     `name:"local" hidden:""`
	LogDir     string   `name:"log-dir" hidden:""`
	Invite     []string `name:"invite" hidden:""`
	Reason     string   `name:"reason" hidden:""`
}

// Run opens the session and passes on the exit code of what ran.
func (c *sshCmd) Run(p *program) error {
	if c.ShowVersion {
		return (&versionCmd{Format: "text", Client: true}).Run(p)
	}
	if host, path, ok := uri("ssh", c.Host); ok && path == "" {
		c.Host = host
	}
	if err := c.unserved(); err != nil {
		return err
	}
	if err := c.options(); err != nil {
		return err
	}
	c.obey(p)
	cred, err := p.loadValid()
	if err != nil {
		return err
	}
	login, node, err := p.destination(cred, c.Host)
	if err != nil {
		return err
	}
	sc, err := p.reach(cred, login, node, c.Quiet)
	if err != nil {
		return err
	}
	defer sc.Close()
	return c.connected(p, sc, node)
}

// obey passes on what concerns more than this command.
func (c *sshCmd) obey(p *program) {
	p.sshUser(c.Options)
	p.Debug = p.Debug || c.Verbose
	p.EscapeSequences = p.EscapeSequences && c.Escape != "none"
}

// errLost is the end of a connection before what it was for had ended.
var errLost = errors.New("the connection was lost")

// connected uses a connection to a node. Its loss is one line on standard error and
// exit code 255, as with ssh(1): a command's own 255 would look the same else. A Ctrl-C
// before is no reason to be silent: it was for the command, which may have gone on.
func (c *sshCmd) connected(p *program, sc *ssh.Client, node string) error {
	err := c.use(p, sc)
	if !errors.Is(err, errLost) {
		return err
	}
	if !c.Quiet {
		fmt.Fprintf(p.stderr, "Connection to %s closed.\n", fail.Clean(node))
	}
	return fail.Exit{Code: 255}
}

// reach connects to a node and logs in there.
func (p *program) reach(cred *credentials, login, node string, quiet bool) (*ssh.Client, error) {
	conn, err := cred.dialer().DialResource(p.ctx, sallyport.KindNode, node, protocolSSH)
	if err != nil {
		return nil, cred.explain(p.ctx, err, &sallyportv1.ExplainRequest{Kind: string(sallyport.KindNode), Name: node, Login: login})
	}
	stop := context.AfterFunc(p.ctx, func() { conn.Close() })
	sc, err := p.handshake(cred, conn, sshTarget{login: login, node: node, quiet: quiet})
	if !stop() {
		err = p.ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return sc, nil
}

// sshTarget is whom to log in as, and where.
type sshTarget struct {
	login, node string
	quiet       bool // banners are not shown
}

// unserved refuses what this version does not do, rather than doing less than
// was asked for.
func (c *sshCmd) unserved() error {
	switch {
	case c.Host == "":
		return problem(errInvalid, "no node is named", "sally ssh [LOGIN@]NODE; sally ls shows the nodes")
	case strings.Contains(c.Host, "="):
		return problem(errInvalid, "this version does not choose nodes by label", "sally ls "+shell.Word(c.Host[strings.LastIndex(c.Host, "@")+1:])+" shows them; name one")
	case c.X11 || c.TrustedX11:
		return problem(errInvalid, "this version does not forward X11", "leave out -X and -Y")
	case c.Background:
		return problem(errInvalid, "this version does not go into the background", "leave out -f, and end the line with &")
	case c.Local || c.LogDir != "" || len(c.Invite) > 0 || c.Reason != "":
		return problem(errInvalid, "this version does not serve --local, --log-dir, --invite and --reason", "leave them out")
	case c.ControlPath != "" && c.ControlPath != "none":
		return problem(errInvalid, "this version shares no connection between commands", "leave out -S, or use OpenSSH: sally config >> ~/.ssh/config")
	case c.Subsystem && len(c.Command) == 0:
		return problem(errInvalid, "-s needs the name of a subsystem", "sally ssh -s NODE sftp")
	case c.NoExec && (c.Subsystem || len(c.Command) > 0):
		return problem(errInvalid, "-N runs nothing", "leave out -N, or the command")
	}
	return nil
}

// options obeys those of -o that change what the other flags say (ssh_config(5)).
// The command loses the "--" that may stand before it, as with OpenSSH.
func (c *sshCmd) options() error {
	if len(c.Command) > 0 && c.Command[0] == "--" {
		c.Command = c.Command[1:]
	}
	if err := checkConfigFile(c.ConfigFile); err != nil {
		return err
	}
	clear := false
	for _, o := range c.Options {
		if done, err := checkOption(o); done || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		k, raw, _ := option(o)
		switch v := strings.ToLower(raw); k {
		case "requesttty":
			c.TTY, c.NoTTY = c.TTY || v == "yes" || v == "force", c.NoTTY || v == "no"
		case "forwardagent":
			c.ForwardAgent = c.ForwardAgent || v == "yes"
		case "localforward":
			c.LocalForward = append(c.LocalForward, strings.Join(strings.Fields(raw), ":"))
		case "remoteforward":
			c.Remote = append(c.Remote, strings.Join(strings.Fields(raw), ":"))
		case "dynamicforward":
			c.Dynamic = append(c.Dynamic, raw)
		case "clearallforwardings":
			clear = clear || v == "yes"
		case "stdinnull":
			c.StdinNull = c.StdinNull || v == "yes"
		case "sessiontype":
			c.NoExec, c.Subsystem = c.NoExec || v == "none", c.Subsystem || v == "subsystem"
		case "loglevel":
			c.Quiet = c.Quiet || v == "quiet"
		case "escapechar":
			c.Escape = raw
		case "user": // sshUser
		default:
			return unknownOption(o)
		}
	}
	if c.Escape != "" && c.Escape != "none" && c.Escape != "~" {
		return problem(errInvalid, fmt.Sprintf("this version has no escape character %q", c.Escape), "-e none switches ~ off")
	}
	if clear {
		c.LocalForward, c.Remote, c.Dynamic = nil, nil, nil
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
	switch have := logins(c.Identity.Principals); {
	case err == nil && slices.Contains(have, me.Username):
		return me.Username, node, nil
	case len(have) == 1:
		return have[0], node, nil
	case err == nil:
		return me.Username, node, nil
	}
	return "", "", problem(errInvalid, "no login is named", "sally ssh LOGIN@"+node)
}

func (p *program) handshake(cred *credentials, conn net.Conn, to sshTarget) (*ssh.Client, error) {
	signer, done, err := p.signer(cred.Profile)
	if err != nil {
		return nil, err
	}
	defer done()
	var banner bytes.Buffer
	cfg := &ssh.ClientConfig{
		User:            to.login,
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: p.hostKey(cred, to.node),
		BannerCallback: func(text string) error {
			banner.WriteString(text)
			return nil
		},
	}
	if err := conn.SetDeadline(time.Now().Add(sshHandshake)); err != nil {
		return nil, err
	}
	sc, chans, reqs, err := ssh.NewClientConn(conn, to.node+":0", cfg)
	if err != nil {
		return nil, sshRefusal("ssh to "+to.node+" as "+to.login, err, banner.String())
	}
	if err := conn.SetDeadline(time.Time{}); err != nil { // the peer has proved who it is
		return nil, err
	}
	if !to.quiet && banner.Len() > 0 {
		fmt.Fprint(p.stderr, fail.Clean(strings.ReplaceAll(banner.String(), "\r\n", "\n")))
	}
	return ssh.NewClient(sc, chans, reqs), nil
}

// sshRefusal prefers the reason that the node gave, in its banner or on standard
// error: "ERROR: fact" and "hint: next step", a line each, as every program of ours
// prints them.
func sshRefusal(what string, err error, said string) error {
	p := &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fmt.Sprintf("%s: %v", what, err), Cause: err}
	for line := range strings.Lines(said) {
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

func (p *program) knownHosts() ([]byte, error) {
	if p.held != nil {
		return []byte(strings.Join(p.held.file.Known, "\n") + "\n"), nil
	}
	return os.ReadFile(p.home.KnownHosts())
}

// hostKey takes only a host certificate of the cluster for this very node.
func (p *program) hostKey(cred *credentials, node string) ssh.HostKeyCallback {
	checker := &ssh.CertChecker{IsHostAuthority: func(auth ssh.PublicKey, _ string) bool {
		data, err := p.knownHosts()
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
	sessions := sc
	if c.Subsystem {
		sessions = &ssh.Client{Conn: subsystems{sc.Conn}}
	}
	s, err := sessions.NewSession()
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	defer s.Close()
	s.Stdout, s.Stderr = p.stdout, p.stderr
	if c.ForwardAgent {
		if err := forwardAgent(sc, s); err != nil {
			return err
		}
	}
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
		if !c.StdinNull {
			io.Copy(stdin, c.input(p, sc))
		}
		stdin.Close()
	}()
	stop := context.AfterFunc(p.ctx, func() {
		if !c.wantsTTY(p) {
			s.Signal(ssh.SIGINT)
		}
	})
	defer stop()
	return exitOf(s.Wait())
}

// input is standard input; where a person types, with the escape sequences.
func (c *sshCmd) input(p *program, sc *ssh.Client) io.Reader {
	if !p.EscapeSequences || !c.wantsTTY(p) || !p.terminal() {
		return p.stdin
	}
	return &escapes{r: p.stdin, help: p.stderr, disconnect: func() { sc.Close() }}
}

func (c *sshCmd) wantsTTY(p *program) bool {
	return !c.NoTTY && !c.Subsystem && (c.TTY || len(c.Command) == 0 && p.terminal())
}

// setenv obeys -o SendEnv and SetEnv, and sends LANG and LC_* as Debian's ssh does.
func (c *sshCmd) setenv(s *ssh.Session) error {
	send := []string{"LANG", "LC_*"}
	for _, o := range c.Options {
		switch k, v, _ := option(o); k {
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
		if w, h, err = terminalSize(p.stdin, os.Stdout); err != nil {
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
	stop := onResize(func() {
		now, high, err := terminalSize(p.stdin, os.Stdout)
		if err == nil && (now != w || high != h) {
			w, h = now, high
			_ = s.WindowChange(h, w) // the session's end says more
		}
	})
	return func() {
		stop()
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
// number, as a shell has it; without any the connection was lost.
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
		return errLost
	}
	return err
}

func signalNumber(name string) int {
	return int(signalNumbers()[ssh.Signal(name)])
}
