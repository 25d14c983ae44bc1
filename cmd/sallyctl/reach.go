package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/goccy/go-yaml"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/dial"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

const (
	adminSocket    = "admin.sock"
	defaultConfig  = "/etc/sallyport.yaml"
	defaultDataDir = "/var/lib/sallyport"
)

// admin reaches auth: by --data-dir or the configuration file on auth's own
// machine, else by the profile.
func (p *program) admin() (sallyportv1connect.AdminServiceClient, error) {
	if p.Proxy == "" {
		socket, err := p.socket()
		if err != nil {
			return nil, err
		}
		if socket != "" {
			return sallyportv1connect.NewAdminServiceClient(overSocket(socket), client.BaseURL), nil
		}
	}
	return p.byProfile()
}

// socket returns the admin socket's path, "" when this is not auth's machine. What
// was named is what is meant: no other cluster is taken in its place.
func (p *program) socket() (string, error) {
	l, err := p.local()
	if err != nil {
		return "", err
	}
	if !l.mayBeAuth() {
		if p.Config == "" {
			return "", nil
		}
		return "", &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: p.Config + ": this host has no role auth", Hint: "run sallyctl on auth's machine, or by your login: " + byProxy}
	}
	path := filepath.Join(l.dir, adminSocket)
	_, err = os.Stat(path)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, fs.ErrPermission):
		return "", &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: path + ": not yours to open", Hint: "run sallyctl as the user that runs sallyport, or by your login: " + byProxy}
	case l.sure:
		return "", &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: path + ": no such socket", Hint: "is sallyport with the role auth running there?"}
	}
	return "", nil
}

// byProxy is the way to auth from anywhere.
const byProxy = "sally login --proxy=HOST, then sallyctl --proxy=HOST"

// local is what this machine says of auth.
type local struct {
	dir   string
	sure  bool     // it was named, or a configuration says it: auth is there or away
	roles []string // that the configuration names; none when that is not known
}

func (l local) mayBeAuth() bool { return len(l.roles) == 0 || slices.Contains(l.roles, "auth") }

// local looks where --data-dir and --config say, else at the usual file, which need
// not be there.
func (p *program) local() (local, error) {
	if p.DataDir != "" {
		return local{dir: p.DataDir, sure: true}, nil
	}
	if p.Config == "" {
		l, err := readLocal(defaultConfig)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return local{dir: defaultDataDir}, nil
		}
		return l, err
	}
	l, err := readLocal(p.Config)
	if errors.Is(err, fs.ErrNotExist) {
		return l, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: p.Config + ": no such file", Hint: "name the configuration that auth was started with", Cause: err}
	}
	return l, err
}

// readLocal reads two fields of the configuration; its other fields are not
// this program's to judge.
func readLocal(config string) (local, error) {
	b, err := os.ReadFile(config)
	if err != nil {
		return local{}, err
	}
	var c struct {
		DataDir string   `yaml:"data_dir"`
		Roles   []string `yaml:"roles"`
	}
	if err := yaml.Unmarshal(b, &c); err != nil {
		return local{}, fmt.Errorf("%s: %w", config, err)
	}
	l := local{dir: c.DataDir, sure: true, roles: c.Roles}
	switch {
	case l.dir == "":
		l.dir = defaultDataDir
	case !filepath.IsAbs(l.dir):
		l.dir = filepath.Join(filepath.Dir(config), l.dir)
	}
	return l, nil
}

// overSocket makes a connection for each call: one that is kept can be closed by a
// process that leaves while a call is on its way there, and HTTP/1.1 has no word
// for that.
func overSocket(path string) *http.Client {
	return &http.Client{Transport: client.Again(&http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
		DisableKeepAlives:  true,
	})}
}

func (p *program) byProfile() (sallyportv1connect.AdminServiceClient, error) {
	home, err := profile.Home()
	if err != nil {
		return nil, err
	}
	if p.Proxy != "" {
		f, err := home.Named(p.Proxy)
		if err != nil {
			return nil, err
		}
		return byLogin(home, f)
	}
	f, err := home.Load("")
	if errors.Is(err, sallyport.ErrUnauthorized) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "this is not auth's machine, and nobody is logged in",
			Hint: "on auth's machine use --data-dir or --config; elsewhere sally login --proxy=HOST first"}
	}
	if err != nil {
		return nil, err
	}
	return byLogin(home, f)
}

// byLogin speaks with the certificate of a login.
func byLogin(home profile.Dir, f profile.Profile) (sallyportv1connect.AdminServiceClient, error) {
	c, err := home.Credentials(f)
	if err != nil {
		return nil, err
	}
	if !time.Now().Before(c.Identity.NotAfter) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "your certificate ended at " + c.Identity.NotAfter.Local().Format(time.DateTime), Hint: "sally login --proxy=" + f.WebProxyAddr}
	}
	d := &client.Dialer{
		Addresses:   func() []string { return []string{f.WebProxyAddr} },
		Cluster:     f.Cluster,
		Roots:       func() *x509.CertPool { return c.Roots },
		Certificate: func() (*tls.Certificate, error) { return &c.TLS, nil },
		Connect:     dial.ByEnvironment,
		Inside:      dial.Inside,
	}
	return sallyportv1connect.NewAdminServiceClient(d.HTTP(client.ProtocolAuth), client.BaseURL), nil
}

// call runs one method and turns its error into fact and hint.
func call[Req, Resp any](p *program, method func(context.Context, *connect.Request[Req]) (*connect.Response[Resp], error), req *Req) (*Resp, error) {
	ctx, cancel := context.WithTimeout(p.ctx, callTimeout)
	defer cancel()
	resp, err := method(ctx, connect.NewRequest(req))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "auth does not answer on its admin socket", Hint: "is sallyport running?", Cause: err}
	}
	if err != nil {
		return nil, client.Problem(err)
	}
	return resp.Msg, nil
}
