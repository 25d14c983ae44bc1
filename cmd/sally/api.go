package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"connectrpc.com/connect"
	"golang.org/x/net/http/httpproxy"
	"golang.org/x/term"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/dial"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// api is the control API with the user's certificate.
func (c *credentials) api() (sallyportv1connect.AccessServiceClient, *http.Client) {
	d := &client.Dialer{
		Addresses:   func() []string { return []string{c.Profile.WebProxyAddr} },
		Cluster:     c.Profile.Cluster,
		Roots:       func() *x509.CertPool { return c.Roots },
		Certificate: func() (*tls.Certificate, error) { return &c.TLS, nil },
		Connect:     dial.ByEnvironment,
		Inside:      dial.Inside,
	}
	c.asked.Store(d)
	hc := d.HTTP(client.ProtocolAuth)
	return sallyportv1connect.NewAccessServiceClient(hc, client.BaseURL), hc
}

// dialer reaches resources through the gateway.
func (c *credentials) dialer() *dial.Dialer {
	env := httpproxy.FromEnvironment()
	return &dial.Dialer{
		Proxy: c.Profile.WebProxyAddr, Cluster: c.Profile.Cluster, Roots: c.Roots,
		Certificate: func() (*tls.Certificate, error) { return &c.TLS, nil },
		HTTPSProxy:  env.HTTPSProxy, NoProxy: env.NoProxy, Ended: c.ended(),
	}
}

// list asks for what the user may reach.
func (c *credentials) list(ctx context.Context, kind sallyport.Kind, name string) ([]*sallyportv1.AccessibleResource, error) {
	api, hc := c.api()
	defer hc.CloseIdleConnections()
	resp, err := api.ListResources(ctx, connect.NewRequest(&sallyportv1.ListResourcesRequest{Kind: string(kind), Name: name}))
	if err != nil {
		return nil, unreachable(c.Profile.WebProxyAddr, err)
	}
	list := resp.Msg.GetResources()
	slices.SortFunc(list, func(a, b *sallyportv1.AccessibleResource) int {
		return strings.Compare(a.GetResource().GetName(), b.GetResource().GetName())
	})
	return list, nil
}

// explain turns a bare refusal or a loss into its reason: strangers get none, the
// user asks auth about his own. Whom auth itself refuses, by a lock, hears that.
func (c *credentials) explain(ctx context.Context, cause error, req *sallyportv1.ExplainRequest) error {
	api, hc := c.api()
	defer hc.CloseIdleConnections()
	resp, err := api.Explain(ctx, connect.NewRequest(req))
	if err != nil {
		if why := unreachable(c.Profile.WebProxyAddr, err); errors.Is(why, sallyport.ErrDenied) {
			return why
		}
		return cause
	}
	switch m := resp.Msg; {
	case !m.GetExists():
		return problem(sallyport.ErrNotFound, fmt.Sprintf("%s %q is not known, or not yours to see", kindName(req.GetKind()), req.GetName()), listHint(req.GetKind()))
	case !m.GetOnline():
		return problem(sallyport.ErrUnavailable, fmt.Sprintf("%s %q is offline: no agent that serves it is connected", kindName(req.GetKind()), req.GetName()), "ask who runs the agent, or try again")
	case !m.GetAllowed():
		return problem(sallyport.ErrDenied, m.GetReason(), m.GetHint())
	default:
		return cause
	}
}

func kindName(kind string) string {
	switch sallyport.Kind(kind) {
	case sallyport.KindDatabase:
		return "database"
	case sallyport.KindTCP:
		return "TCP service"
	case sallyport.KindKube:
		return "Kubernetes cluster"
	case sallyport.KindApp:
		return "application"
	default:
		return kind
	}
}

func listHint(kind string) string {
	switch sallyport.Kind(kind) {
	case sallyport.KindDatabase:
		return "sally db ls"
	case sallyport.KindTCP:
		return "sally tcp ls"
	case sallyport.KindKube:
		return "sally kube ls"
	case sallyport.KindApp:
		return "sally apps ls"
	default:
		return "sally ls"
	}
}

// width is the terminal's, 0 when standard output is none.
func (p *program) width() int {
	f, ok := p.stdout.(interface{ Fd() uintptr })
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return w
}

// credentials are those of the profile in use.
type credentials struct {
	*profile.Credentials
	asked atomic.Pointer[client.Dialer] // the last way to auth
}

// ended says that something on the way to the gateway ends TLS, as far as auth has
// been asked: clients that speak TLS themselves do not get through.
func (c *credentials) ended() bool {
	d := c.asked.Load()
	return d != nil && d.Ended()
}

// warnEnded says, where something on the way ends TLS, that a client which speaks TLS
// itself does not get through, and what does.
func (p *program) warnEnded(c *credentials, who, instead string) {
	if c.ended() {
		fmt.Fprintf(p.stderr, "WARNING: something between this machine and the gateway ends TLS: %s will not get through. Use: %s\n", who, instead)
	}
}

// errInvalid is short for the kind of bad input.
var errInvalid = sallyport.ErrInvalid

func problem(kind error, fact, hint string) error {
	return &sallyport.Problem{Kind: kind, Fact: fact, Hint: hint}
}
