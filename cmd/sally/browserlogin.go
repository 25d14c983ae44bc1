package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/controlplane/client"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	browserPatience = 3 * time.Minute // for a person at the page; tsh waits as long
	maxCallbacks    = 5               // codes that somebody may bring to the callback
)

// way is how somebody proves who he is.
type way string

const (
	byPassword way = "local"   // here, in the terminal
	byBrowser  way = "browser" // at the cluster's page, on this machine
	byDevice   way = "device"  // at the cluster's page, elsewhere
)

// way decides. Who names a user or a password means the terminal; scripts have
// no eyes for a browser; without a browser there is a code to type elsewhere.
func (c *loginCmd) way(p *program, ping *sallyportv1.PingResponse) (way, error) {
	if w := way(p.Auth); w != "" {
		if w != byPassword && !ping.GetBrowserLogin() {
			return "", problem(errInvalid, "this cluster's version has no login in the browser", "sally login --user=NAME")
		}
		return w, nil
	}
	switch {
	case p.User != "" || c.PasswordFile != "" || c.OTP != "" || !p.terminal() || !ping.GetBrowserLogin():
		return byPassword, nil
	case c.Browser == "none" || opener() != "":
		return byBrowser, nil
	}
	return byDevice, nil
}

// opener is the program that shows an address in a browser, "" where nobody
// would see it.
func opener() string {
	name := "xdg-open"
	switch {
	case runtime.GOOS == "darwin":
		name = "open"
	case os.Getenv("SSH_CONNECTION") != "" || os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "":
		return ""
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

// viaBrowser logs in at the cluster's page. When the browser does not open, it
// goes on with a code to type elsewhere.
func (c *loginCmd) viaBrowser(p *program, w *web, f profile.Profile, k keyPair) (*sallyportv1.LoginResponse, error) {
	l, err := c.listen(p, w, k)
	if err != nil {
		return nil, err
	}
	defer l.close()
	page := origin(f) + "/cli?" + l.query().Encode()
	broken := make(chan error, 1)
	if program := opener(); program != "" && c.Browser != "none" {
		fmt.Fprintf(p.stderr, "Your browser opens to log you in. If it does not, go to:\n  %s\n", page)
		// What opens it may be the browser itself, and outlive us.
		cmd := exec.Command(program, page)
		if err := cmd.Start(); err != nil {
			broken <- err
		} else {
			go func() {
				if err := cmd.Wait(); err != nil {
					broken <- err
				}
			}()
		}
	} else {
		fmt.Fprintf(p.stderr, "To log in, open this in a browser on this machine:\n  %s\n", page)
	}
	ctx, cancel := context.WithTimeout(p.ctx, browserPatience)
	defer cancel()
	select {
	case r := <-l.done:
		return r.resp, r.err
	case <-broken:
		l.close()
		fmt.Fprintln(p.stderr, "The browser could not be opened.")
		return c.viaDevice(p, w, f, k)
	case <-ctx.Done():
		if p.ctx.Err() != nil {
			return nil, p.ctx.Err()
		}
		return nil, problem(sallyport.ErrUnauthorized, "nobody has approved the login in the browser", "run sally login again, with --auth=device when the browser is on another machine")
	}
}

// origin is the address of the cluster's pages.
func origin(f profile.Profile) string {
	return "https://" + strings.TrimSuffix(f.WebProxyAddr, ":443")
}

// receiver waits for the browser to bring a code (RFC 8252, section 7.3). Only
// who holds the verifier can use it (RFC 7636): to catch the code is not enough.
type receiver struct {
	p        *program
	w        *web
	server   *http.Server
	port     string // that the browser is led to
	verifier string
	state    string
	request  *sallyportv1.FinishLoginRequest
	left     chan struct{} // one token for each code that may still be tried
	done     chan result
}

type result struct {
	resp *sallyportv1.LoginResponse
	err  error
}

func (c *loginCmd) listen(p *program, w *web, k keyPair) (*receiver, error) {
	bind, port, err := callback(p.BindAddr, p.Callback)
	if err != nil {
		return nil, err
	}
	line, der, err := k.public()
	if err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(p.ctx, "tcp", bind)
	if err != nil {
		return nil, problem(errInvalid, "callback: "+err.Error(), "give another --bind-addr, or log in with --auth=device")
	}
	if port == "" {
		_, port, _ = net.SplitHostPort(ln.Addr().String())
	}
	l := &receiver{p: p, w: w, port: port, verifier: secret(), state: secret(), left: make(chan struct{}, maxCallbacks), done: make(chan result, 1),
		request: &sallyportv1.FinishLoginRequest{SshPublicKey: line, TlsPublicKey: der, TtlSeconds: int64(p.TTL) * 60}}
	for range maxCallbacks {
		l.left <- struct{}{}
	}
	l.server = &http.Server{Handler: http.HandlerFunc(l.serve), ReadTimeout: 5 * time.Second, WriteTimeout: webTimeout + 5*time.Second, MaxHeaderBytes: 16 << 10}
	go l.server.Serve(ln) // ends with close
	return l, nil
}

// callback reads tsh's flags: where to listen, and by which port of this
// machine the browser comes there, when something forwards it.
func callback(bind, from string) (listen, port string, err error) {
	if bind == "" {
		if from != "" {
			return "", "", problem(errInvalid, "--callback needs --bind-addr", "sally login --bind-addr=0.0.0.0:3000 --callback=127.0.0.1:3000")
		}
		return "127.0.0.1:0", "", nil
	}
	host, port, err := net.SplitHostPort(bind)
	if err != nil {
		return "", "", problem(errInvalid, fmt.Sprintf("--bind-addr=%s is not an address and a port", bind), "sally login --bind-addr=127.0.0.1:3000")
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if from == "" {
		return net.JoinHostPort(host, port), "", nil
	}
	at, port, err := net.SplitHostPort(strings.TrimPrefix(from, "http://"))
	if err != nil || at != "127.0.0.1" && at != "localhost" {
		return "", "", problem(errInvalid, fmt.Sprintf("--callback=%s is not a port of the machine that the browser is on", from),
			"give 127.0.0.1:PORT, or log in with --auth=device: then the browser may be anywhere")
	}
	return net.JoinHostPort(host, bindPort(bind)), port, nil
}

func bindPort(bind string) string {
	_, port, _ := net.SplitHostPort(bind)
	return port
}

// secret is 32 random bytes as text.
func secret() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// query is what the page is opened with: nothing in it is secret, for it is in
// the arguments of a process and in the browser's history.
func (l *receiver) query() url.Values {
	host, _ := os.Hostname()
	return url.Values{"challenge": {hashOf([]byte(l.verifier))}, "keys": {keysHash(l.request.GetTlsPublicKey(), l.request.GetSshPublicKey())},
		"port": {l.port}, "state": {l.state}, "host": {shownHost(host)}}
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// keysHash is as docs/web-sessions.md says.
func keysHash(tlsKey, sshKey []byte) string {
	a, b := sha256.Sum256(tlsKey), sha256.Sum256(sshKey)
	return hashOf(append(a[:], b[:]...))
}

// shownHost keeps what the page takes.
func shownHost(host string) string {
	host = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, host)
	return host[:min(len(host), 128)]
}

// serve takes the callback. Everything else that finds this port, such as a page
// that knocks on all ports, learns nothing and ends nothing.
func (l *receiver) serve(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.Method != http.MethodGet || r.URL.Path != "/callback" || r.Host != "127.0.0.1:"+l.port ||
		subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(l.state)) != 1 {
		http.NotFound(w, r)
		return
	}
	if q.Get("error") != "" {
		l.end(w, result{err: problem(sallyport.ErrDenied, "the login was refused in the browser", "")}, "The login was refused. You can close this page.")
		return
	}
	select {
	case <-l.left:
	default:
		http.NotFound(w, r)
		return
	}
	resp, err := l.redeem(r.Context(), q.Get("code"))
	if errors.Is(err, sallyport.ErrUnauthorized) {
		// It was not the page that sent this; the page's own may come yet.
		l.page(w, http.StatusForbidden, "This code is not good. Run sally login again if it should be.")
		return
	}
	if err != nil {
		l.end(w, result{err: err}, "The login did not work: "+err.Error()+". The terminal has more.")
		return
	}
	l.end(w, result{resp: resp}, "You are logged in as "+resp.GetUser()+". You can close this page and go back to the terminal.")
}

func (l *receiver) redeem(ctx context.Context, code string) (*sallyportv1.LoginResponse, error) {
	m := &sallyportv1.FinishLoginRequest{Code: code, Verifier: l.verifier, SshPublicKey: l.request.GetSshPublicKey(), TlsPublicKey: l.request.GetTlsPublicKey(), TtlSeconds: l.request.GetTtlSeconds()}
	resp, err := l.w.api.FinishLogin(ctx, connect.NewRequest(m))
	if err != nil {
		return nil, client.Problem(err)
	}
	return resp.Msg, nil
}

func (l *receiver) end(w http.ResponseWriter, r result, text string) {
	status := http.StatusOK
	if r.err != nil {
		status = http.StatusForbidden
	}
	l.page(w, status, text)
	select {
	case l.done <- r:
	default: // an answer is there already
	}
}

func (l *receiver) page(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer") // the address has the code
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>sally</title></head><body><p>%s</p></body></html>\n", html.EscapeString(text))
}

// close waits a moment for the page to reach the browser.
func (l *receiver) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if l.server.Shutdown(ctx) != nil {
		l.server.Close()
	}
}

// viaDevice shows a code to type at the cluster's page, and waits (RFC 8628).
func (c *loginCmd) viaDevice(p *program, w *web, f profile.Profile, k keyPair) (*sallyportv1.LoginResponse, error) {
	line, der, err := k.public()
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	begun, err := w.api.BeginDeviceLogin(p.ctx, connect.NewRequest(&sallyportv1.BeginDeviceLoginRequest{SshPublicKey: line, TlsPublicKey: der, TtlSeconds: int64(p.TTL) * 60, HostName: shownHost(host)}))
	if err != nil {
		return nil, client.Problem(err)
	}
	m := begun.Msg
	fmt.Fprintf(p.stderr, "To log in, open this in a browser anywhere:\n  %s%s\nand type this code, which nobody else needs to know:\n  %s\nIt is good until %s. To give your password here: sally login --proxy=%s --user=NAME\n",
		origin(f), fail.Clean(m.GetVerificationPath()), fail.Clean(m.GetUserCode()), m.GetExpires().AsTime().Local().Format(time.TimeOnly), f.WebProxyAddr)
	every := max(time.Duration(m.GetIntervalSeconds())*time.Second, time.Second)
	ctx, cancel := context.WithDeadline(p.ctx, m.GetExpires().AsTime())
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			if p.ctx.Err() != nil {
				return nil, p.ctx.Err()
			}
			return nil, problem(sallyport.ErrUnauthorized, "the code was not typed in time", "run sally login again")
		case <-time.After(every):
		}
		resp, err := w.api.PollDeviceLogin(ctx, connect.NewRequest(&sallyportv1.PollDeviceLoginRequest{DeviceCode: m.GetDeviceCode()}))
		if err != nil {
			if why := client.Problem(err); !errors.Is(why, sallyport.ErrUnavailable) && ctx.Err() == nil {
				return nil, why
			}
			continue // auth is away for a moment, or the time is over
		}
		switch resp.Msg.GetState() {
		case sallyportv1.PollDeviceLoginResponse_STATE_DONE:
			return resp.Msg.GetLogin(), nil
		case sallyportv1.PollDeviceLoginResponse_STATE_DENIED:
			return nil, problem(sallyport.ErrDenied, "the login was refused in the browser", "")
		case sallyportv1.PollDeviceLoginResponse_STATE_SLOW_DOWN:
			every += 5 * time.Second // RFC 8628, section 3.5
		}
	}
}
