package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/webapp"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// browsers are served applications by this process.
type browsers struct {
	apps    *webapp.Server
	web     *webServer
	gateway atomic.Pointer[gateway.Gateway] // nil until it has been opened
}

func newBrowsers(host *client.Host, log *slog.Logger) *browsers {
	b := &browsers{}
	b.apps = &webapp.Server{Cluster: host.Cluster(), Desk: desk{host.API()}, Dial: b.dial, Roots: host.Keeper().Roots, Log: log}
	b.web = newWebServer(b.apps, log)
	b.web.server.ConnContext = webapp.ConnContext
	return b
}

// end is how TLS of applications' names is ended.
func (b *browsers) end(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) gateway.End {
	return gateway.End{
		TLS:      &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: certificate},
		Handlers: map[string]gateway.Handler{"h2": b.web.serve, "http/1.1": b.web.serve},
	}
}

// open is what browsers hold of this process.
func (b *browsers) open() int { return int(b.web.open.Load()) + b.apps.Upgraded() }

// working is what of that has a request under way, or is a WebSocket.
func (b *browsers) working() int { return b.web.working() + b.apps.Upgraded() }

// dial is a webapp.Dialer.
func (b *browsers) dial(ctx context.Context, app string, browser netip.AddrPort, cfg *tls.Config) (net.Conn, error) {
	g := b.gateway.Load()
	if g == nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the gateway is starting", Hint: "try again in a moment"}
	}
	return g.Dial(ctx, gateway.Destination{Kind: sallyport.KindApp, Name: app, Client: browser}, func(ctx context.Context, stream net.Conn) (net.Conn, error) {
		conn := tls.Client(stream, cfg)
		return conn, conn.HandshakeContext(ctx)
	})
}

// desk is auth, as package webapp asks it.
type desk struct {
	api sallyportv1connect.HostServiceClient
}

// Redeem meets webapp.Desk.
func (d desk) Redeem(ctx context.Context, c webapp.Code) (webapp.Grant, error) {
	return grantOf(d.api.RedeemAppCode(ctx, connect.NewRequest(&sallyportv1.RedeemAppCodeRequest{
		Code: c.Code, Verifier: c.Verifier, App: c.App, TlsPublicKey: c.Key, ClientAddr: c.Client.String()})))
}

// Renew meets webapp.Desk.
func (d desk) Renew(ctx context.Context, q webapp.Question) (webapp.Grant, error) {
	return grantOf(d.api.RenewAppSession(ctx, connect.NewRequest(&sallyportv1.RenewAppSessionRequest{
		Session: q.Session, App: q.App, TlsPublicKey: q.Key, ClientAddr: q.Client.String(), Quiet: q.Quiet})))
}

// End meets webapp.Desk.
func (d desk) End(ctx context.Context, session, app string) error {
	_, err := d.api.EndAppSession(ctx, connect.NewRequest(&sallyportv1.EndAppSessionRequest{Session: session, App: app}))
	return client.Problem(err)
}

func grantOf(resp *connect.Response[sallyportv1.AppSessionResponse], err error) (webapp.Grant, error) {
	if err != nil {
		return webapp.Grant{}, client.Problem(err)
	}
	m := resp.Msg
	g := webapp.Grant{Session: m.GetSession(), User: m.GetUser(), Roles: m.GetRoles(), Certificate: m.GetTlsCertificate(), Expires: timeOf(m.GetExpires()),
		Ends: timeOf(m.GetSessionExpires())}
	if len(g.Certificate) > 0 && g.Expires.IsZero() {
		return webapp.Grant{}, errors.New("auth did not say when a certificate ends")
	}
	g.Traits = make(map[string][]string, len(m.GetTraits()))
	for name, list := range m.GetTraits() {
		g.Traits[name] = list.GetValues()
	}
	return g, nil
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// onlyOwn keeps requests for other hosts from the cluster's origin: a browser sends
// one for an application on a connection to the cluster when the certificate is
// good for both (RFC 9113, section 9.1.1).
func onlyOwn(cluster string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := strings.Cut(strings.ToLower(r.Host), ":")
		if strings.HasSuffix(strings.TrimSuffix(host, "."), "."+cluster) { // certificates know no dot at the end, so browsers share there too
			http.Error(w, "this connection is not for the host that the request names", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
