package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/term"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/dial"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

const (
	webTimeout      = 30 * time.Second
	maxPasswordFile = 4096
)

type loginCmd struct {
	ClusterName  string `arg:"" optional:"" name:"cluster" help:"Cluster to log in to."`
	PasswordFile string `name:"password-file" placeholder:"FILE" help:"Read the password from a file; - is standard input."`
	OTP          string `name:"otp" placeholder:"CODE" help:"One-time code, for scripts."`
	Browser      string `name:"browser" placeholder:"none" env:"SALLY_LOGIN_BROWSER,TELEPORT_LOGIN_BROWSER" help:"none: print the address of the login page and open no browser."`
	Force        bool   `name:"force" negatable:"" help:"Log in even when you are."`
	Verbose      bool   `name:"verbose" short:"v" help:"Show traits too."`
	outputs
	loginAccepted
	loginRefused
}

// loginAccepted are tsh's flags that change nothing here.
type loginAccepted struct {
	NoWait    bool   `name:"request-nowait" hidden:"" negatable:""`
	Reviewers string `name:"request-reviewers" hidden:""`
}

// loginRefused are those that this version does not serve.
type loginRefused struct {
	Roles       string `name:"request-roles" hidden:""`
	RequestID   string `name:"request-id" hidden:""`
	KubeCluster string `name:"kube-cluster" hidden:""`
	Scope       string `name:"scope" hidden:""`
}

func (c *loginCmd) unserved() error {
	switch {
	case c.Roles != "" || c.RequestID != "":
		return problem(errInvalid, "this version has no access requests", "ask an administrator for the role")
	case c.KubeCluster != "":
		return problem(errInvalid, "a login selects no Kubernetes cluster", "leave out --kube-cluster; then sally kube login "+c.KubeCluster)
	case c.Browser != "" && c.Browser != "none":
		return problem(errInvalid, fmt.Sprintf("--browser=%s: only none can be said", c.Browser), "leave it out: the system's own browser is used")
	case c.Scope != "":
		return problem(errInvalid, "this version has no scopes", "leave out --scope")
	}
	return c.outputs.check()
}

// Run logs in, or shows the status when there is nothing to do.
func (c *loginCmd) Run(p *program) error {
	if err := c.unserved(); err != nil {
		return err
	}
	f, done, err := c.target(p)
	if err != nil || done {
		return err
	}
	w, err := p.dialWeb(f)
	if err != nil {
		return err
	}
	ping, err := w.api.Ping(p.ctx, connect.NewRequest(&sallyportv1.PingRequest{}))
	if err != nil {
		return unreachable(f.WebProxyAddr, err)
	}
	f.Cluster, f.CAPins = ping.Msg.GetCluster(), w.pins
	if c.ClusterName != "" && c.ClusterName != f.Cluster {
		return problem(sallyport.ErrNotFound, fmt.Sprintf("%s serves cluster %q, not %q", f.WebProxyAddr, f.Cluster, c.ClusterName), "sally login --proxy="+f.WebProxyAddr)
	}
	how, err := c.way(p, ping.Msg)
	if err != nil {
		return err
	}
	makeKeys := newKeyPair
	if c.Out != "" {
		makeKeys = newSharedKey
	}
	k, err := makeKeys()
	if err != nil {
		return err
	}
	var m *sallyportv1.LoginResponse
	switch how {
	case byBrowser:
		m, err = c.viaBrowser(p, w, f, k)
	case byDevice:
		m, err = c.viaDevice(p, w, f, k)
	default:
		m, err = c.viaPassword(p, w, &f, ping.Msg, k)
	}
	if err != nil {
		return err
	}
	if p.User != "" && m.GetUser() != p.User {
		return problem(sallyport.ErrDenied, fmt.Sprintf("the browser is logged in as %s, not as %s", fail.Clean(m.GetUser()), p.User), "log out at "+origin(f)+" and try again")
	}
	return c.keep(p, f, k, m)
}

// viaPassword asks here for what proves who somebody is.
func (c *loginCmd) viaPassword(p *program, w *web, f *profile.Profile, ping *sallyportv1.PingResponse, k keyPair) (*sallyportv1.LoginResponse, error) {
	req, err := c.ask(p, f, ping)
	if err != nil {
		return nil, err
	}
	if req.SshPublicKey, req.TlsPublicKey, err = k.public(); err != nil {
		return nil, err
	}
	resp, err := w.api.Login(p.ctx, connect.NewRequest(req))
	if err != nil {
		return nil, client.Problem(err)
	}
	return resp.Msg, nil
}

// target says where to log in; done is true when the user already is, and the
// status has been shown.
func (c *loginCmd) target(p *program) (f profile.Profile, done bool, err error) {
	f, err = p.lastAt()
	if err == nil && !c.Force && c.Out == "" && !p.otherPin(f) {
		if held, lerr := p.home.Credentials(f); lerr == nil && time.Now().Before(held.Identity.NotAfter) && (p.User == "" || p.User == f.User) {
			return f, true, c.stay(p, f)
		}
	}
	if p.ProxyAddr == "" {
		if err != nil {
			return profile.Profile{}, false, problem(errInvalid, "no gateway is named", "sally login --proxy=HOST[:PORT]")
		}
		return f, false, nil
	}
	addr, aerr := profile.Address(p.ProxyAddr)
	if aerr != nil {
		return profile.Profile{}, false, aerr
	}
	if err != nil || f.WebProxyAddr != addr {
		f = profile.Profile{TLSRouting: true, AuthConnector: "local", CAPins: f.CAPins}
	}
	f.WebProxyAddr, f.SSHProxyAddr = addr, addr
	return f, false, nil
}

// otherPin says that --ca-pin is not what the login that is held trusts: the cluster is
// another one, or has another CA.
func (p *program) otherPin(f profile.Profile) bool {
	return p.CAPin != "" && len(f.CAPins) > 0 && !slices.Contains(f.CAPins, strings.ToLower(p.CAPin))
}

// stay makes the login that is good the current one, and shows it.
func (c *loginCmd) stay(p *program, f profile.Profile) error {
	if c.ClusterName != "" && c.ClusterName != f.Cluster {
		return problem(sallyport.ErrNotFound, fmt.Sprintf("%s serves cluster %q, not %q", f.WebProxyAddr, f.Cluster, c.ClusterName), "sally login --proxy="+f.WebProxyAddr)
	}
	if current, ok := p.home.Current(); p.held == nil && (!ok || current.Name() != f.Name()) {
		if err := p.home.Locked(func() error { return p.home.Save(f) }); err != nil {
			return err
		}
	}
	return (&statusCmd{Format: "text", Verbose: c.Verbose}).Run(p)
}

// ask collects user, password and code, from flags, files, or the terminal.
func (c *loginCmd) ask(p *program, f *profile.Profile, ping *sallyportv1.PingResponse) (*sallyportv1.LoginRequest, error) {
	switch {
	case p.User != "":
		f.User = p.User
	case f.User == "":
		me, err := user.Current()
		if err != nil {
			return nil, problem(errInvalid, "no user is named", "sally login --user=NAME")
		}
		f.User = me.Username
	}
	if !profile.ValidName(f.User) {
		return nil, problem(errInvalid, fmt.Sprintf("%q cannot be a user's name", f.User), "")
	}
	password, err := c.password(p, f.User)
	if err != nil {
		return nil, err
	}
	otp := c.OTP
	if otp == "" && c.PasswordFile == "" && ping.GetSecondFactor() != "off" && p.terminal() {
		if otp, err = p.prompt("One-time code (Enter if you have none): "); err != nil {
			return nil, err
		}
	}
	return &sallyportv1.LoginRequest{User: f.User, Password: password, Otp: otp, TtlSeconds: int64(p.TTL) * 60}, nil
}

func (c *loginCmd) password(p *program, name string) (string, error) {
	if c.PasswordFile != "" {
		return p.passwordFrom(c.PasswordFile)
	}
	if !p.terminal() {
		return "", problem(errInvalid, "no terminal to ask for the password", "use --password-file, or --auth=device")
	}
	fmt.Fprintf(p.stderr, "Password for %s: ", fail.Clean(name))
	line, err := p.typed(func() (string, error) {
		b, err := term.ReadPassword(int(p.stdin.Fd()))
		return string(b), err
	})
	fmt.Fprintln(p.stderr)
	return line, err
}

// passwordFrom reads the first line of a file.
func (p *program) passwordFrom(path string) (string, error) {
	file := p.stdin
	if path != "-" {
		var err error
		if file, err = os.Open(path); err != nil {
			return "", problem(errInvalid, err.Error(), "give the file that holds the password with --password-file")
		}
		defer file.Close()
	}
	b, err := io.ReadAll(io.LimitReader(file, maxPasswordFile))
	if err != nil {
		return "", err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return strings.TrimSuffix(string(line), "\r"), nil
}

func (p *program) terminal() bool { return term.IsTerminal(int(p.stdin.Fd())) }

func (p *program) prompt(text string) (string, error) {
	fmt.Fprint(p.stderr, text)
	return p.typed(func() (string, error) {
		line, err := bufio.NewReader(p.stdin).ReadString('\n')
		return strings.TrimSpace(line), err
	})
}

// typed waits for what a person types, or for the signal that ends the program:
// reading a terminal cannot be interrupted, so the reader is left behind and
// the terminal put back as it was.
func (p *program) typed(read func() (string, error)) (string, error) {
	fd := int(p.stdin.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return read()
	}
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := read()
		got <- answer{line, err}
	}()
	select {
	case a := <-got:
		return a.line, a.err
	case <-p.ctx.Done():
		term.Restore(fd, state)
		fmt.Fprintln(p.stderr)
		return "", p.ctx.Err()
	}
}

// keep stores the login and shows it.
func (c *loginCmd) keep(p *program, f profile.Profile, k keyPair, m *sallyportv1.LoginResponse) error {
	f.User = m.GetUser()
	if c.Out != "" {
		if err := c.outputs.write(f, k, m); err != nil {
			return err
		}
		_, err := fmt.Fprintf(p.stdout, "The login of %s has been written to %s, until %s.\n", f.User, strings.Join(c.outputs.names(), ", "), m.GetExpires().AsTime().Local().Format(time.DateTime))
		return err
	}
	if err := p.home.Locked(func() error { return p.saveLogin(f, k, m) }); err != nil {
		return err
	}
	p.ProxyAddr = f.WebProxyAddr
	if err := (&statusCmd{Format: "text", Verbose: c.Verbose}).Run(p); err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "Next: sally ls, sally ssh NODE, sally db ls\n")
	return nil
}

// web is the cluster's web origin, before there is a certificate.
type web struct {
	api  sallyportv1connect.PublicServiceClient
	pins []string // what was trusted, to be kept in the profile
}

// dialWeb decides how the gateway is known: by pin, by a public certificate, or
// by asking once.
func (p *program) dialWeb(f profile.Profile) (*web, error) {
	pins := f.CAPins
	if p.CAPin != "" {
		pin := strings.ToLower(p.CAPin)
		if !identity.ValidPin(pin) {
			return nil, problem(errInvalid, fmt.Sprintf("the pin %q is not sha256: and 64 hex digits", p.CAPin),
				"give --ca-pin (or SALLY_CA_PIN) what sallyctl status on the auth host prints")
		}
		pins = []string{pin}
	}
	w := &web{pins: pins}
	host, _, err := net.SplitHostPort(f.WebProxyAddr)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	switch {
	case p.Insecure:
		fmt.Fprintln(p.stderr, "WARNING: the gateway's certificate is not checked: your password goes to whoever answers")
		cfg.InsecureSkipVerify = true
	case len(pins) > 0:
		verifyPins(cfg, host, pins)
	default:
		if err := p.trust(w, cfg, f.WebProxyAddr, host); err != nil {
			return nil, err
		}
	}
	t := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true, DialContext: dial.ByEnvironment, TLSHandshakeTimeout: 10 * time.Second}
	if len(pins) > 0 && !p.Insecure {
		t.DialTLSContext = func(ctx context.Context, _, addr string) (net.Conn, error) { return dialPinned(ctx, addr, cfg, pins) }
	}
	hc := &http.Client{Timeout: webTimeout, Transport: t}
	w.api = sallyportv1connect.NewPublicServiceClient(hc, "https://"+f.WebProxyAddr)
	return w, nil
}

// verifyPins makes the pinned CA, and the name in the leaf, the only way to be
// believed. What public authorities say counts for nothing: one in the system's
// store that signs for everybody, such as an inspecting proxy's, is whom the pin
// is there to keep away from passwords. A gateway with a public certificate shows
// the cluster's own to who asks by alpn.Pinned1.
func verifyPins(cfg *tls.Config, host string, pins []string) {
	cfg.NextProtos = []string{alpn.HTTP2, alpn.HTTP11, alpn.Pinned1}
	cfg.InsecureSkipVerify = true // VerifyConnection does the whole check
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		roots, err := identity.PinnedRoots(cs.PeerCertificates, pins)
		if err != nil {
			if _, perr := verifyName(cs.PeerCertificates, nil, host); perr == nil {
				return errPublic
			}
			return err
		}
		_, err = verifyName(cs.PeerCertificates, roots, host)
		return err
	}
}

// dialPinned goes inside a WebSocket where something on the way ends TLS: whoever
// that is has not the pinned CA.
func dialPinned(ctx context.Context, addr string, cfg *tls.Config, pins []string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	raw, err := dial.ByEnvironment(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, cfg)
	if err = conn.HandshakeContext(ctx); err == nil {
		return conn, nil
	}
	raw.Close()
	raw, ierr := dial.Inside(ctx, addr, func(chain []*x509.Certificate) bool {
		_, err := identity.PinnedRoots(chain, pins)
		return err == nil
	})
	if ierr != nil {
		return nil, err
	}
	conn = tls.Client(raw, cfg)
	if err = conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// errPublic is an ErrPin of a chain that would be good for who has no pin.
var errPublic = fmt.Errorf("%w, but is trusted by this machine", identity.ErrPin)

func verifyName(chain []*x509.Certificate, roots *x509.CertPool, host string) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	return chain[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between})
}

// trust looks at the chain that the gateway shows. A public one is fine; for
// the cluster's own CA the user is asked once, with the pin in view.
func (p *program) trust(w *web, cfg *tls.Config, addr, host string) error {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	raw, err := dial.ByEnvironment(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err := conn.HandshakeContext(ctx); err != nil {
		return unreachable(addr, err)
	}
	chain := conn.ConnectionState().PeerCertificates
	if _, err := verifyName(chain, nil, host); err == nil {
		return nil
	}
	ca := chain[len(chain)-1]
	if !ca.IsCA || !p.terminal() {
		return problem(sallyport.ErrUnauthorized, "the certificate of "+addr+" is not from a public authority",
			"give --ca-pin=sha256:…, which sallyctl status on the auth host prints")
	}
	fmt.Fprintf(p.stderr, "The certificate of %s is from the cluster's own authority:\n  %s\n", addr, identity.Pin(ca))
	answer, err := p.prompt("Is this the pin that your administrator gave you? [y/N] ")
	if err != nil || !strings.EqualFold(answer, "y") && !strings.EqualFold(answer, "yes") {
		return problem(sallyport.ErrUnauthorized, "the certificate was not trusted", "ask your administrator for the pin and use --ca-pin")
	}
	w.pins = []string{identity.Pin(ca)}
	verifyPins(cfg, host, w.pins)
	return nil
}

// unreachable names the gateway, not the layers below.
func unreachable(addr string, err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) && (ce.Code() != connect.CodeUnavailable || ce.Meta().Get(client.HintHeader) != "") {
		return client.Problem(err) // a gateway's or auth's own words
	}
	if p := innermost(err); p != nil {
		return p
	}
	if errors.Is(err, errPublic) {
		return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: fmt.Sprintf("gateway %s: %v", addr, errPublic),
			Hint: "something on the way ends TLS, or the gateway is too old to show the cluster's own certificate; to trust this one instead, sally logout --proxy=" + addr + ", and log in without --ca-pin", Cause: err}
	}
	if errors.Is(err, identity.ErrPin) {
		return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: fmt.Sprintf("gateway %s: %v", addr, identity.ErrPin),
			Hint: "compare --ca-pin with what sallyctl status on the auth host prints; if it is right, somebody else answers at this address", Cause: err}
	}
	cause := err
	for errors.Unwrap(cause) != nil {
		cause = errors.Unwrap(cause)
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fmt.Sprintf("gateway %s: %v", addr, cause),
		Hint: "check the address, and that sallyport is running there", Cause: err}
}

// innermost is the problem nearest to the cause: what dialing said, under what
// was being done.
func innermost(err error) (found *sallyport.Problem) {
	var p *sallyport.Problem
	for errors.As(err, &p) && errors.Is(p, sallyport.ErrUnavailable) {
		found, err = p, p.Cause
	}
	return found
}
