package api

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/websession"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// surfer is a user with a password, and the browser's end of the pages.
type surfer struct {
	w    *world
	name string
	ctx  context.Context // of requests of a browser
}

const home = "192.0.2.44"

// away is the address of somebody else.
const away = "198.51.100.44"

func (w *world) surfer(t testing.TB, roles ...string) *surfer {
	t.Helper()
	name := "web-" + uuid.NewString()[:8]
	link, err := w.users.CreateUser(t.Context(), login.User{Name: name, Roles: roles}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.users.Claim(t.Context(), login.Claim{Token: link.Token, Password: password}); err != nil {
		t.Fatal(err)
	}
	return &surfer{w, name, from(t.Context(), home)}
}

func from(ctx context.Context, addr string) context.Context {
	return WithCaller(ctx, Caller{Web: true, Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 4000)})
}

func (p *surfer) logIn(t testing.TB) (cookie string, ws websession.Session) {
	t.Helper()
	cookie, ws, err := p.w.server.Browser().LogIn(p.ctx, login.Attempt{User: p.name, Password: password}, "Browser/1.0", "")
	if err != nil {
		t.Fatal(err)
	}
	return cookie, ws
}

// app registers an application that everybody with role access may see.
func (w *world) app(t testing.TB) string {
	t.Helper()
	id, _ := w.host(t, sallyport.KindAgent)
	name := "app-" + uuid.NewString()[:8]
	a, err := w.inventory.Announce(t.Context(), id, []sallyport.Resource{{Kind: sallyport.KindApp, Name: name}}, nil)
	if err != nil || len(a.Refusals) > 0 {
		t.Fatal(err, a.Refusals)
	}
	return name
}

func (w *world) appRole(t testing.TB) string {
	return w.role(t, "all-apps", `{"app_labels":{"*":"*"}}`)
}

// launched is an application's session as a gateway gets it.
func (p *surfer) launched(t testing.TB, gw sallyportv1connect.HostServiceClient, cookie, app string, k keyPair) *sallyportv1.AppSessionResponse {
	t.Helper()
	verifier := strings.Repeat("v", 42) + "A"
	code, err := p.w.server.Browser().Launch(p.ctx, cookie, app, websession.Challenge(verifier), netip.MustParseAddr(home))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := gw.RedeemAppCode(t.Context(), connect.NewRequest(&sallyportv1.RedeemAppCodeRequest{Code: code, Verifier: verifier, App: app, TlsPublicKey: k.tlsPub, ClientAddr: home}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg
}

// TestAppSession: the certificate of a browser is for one gateway, one
// application and ten minutes, and ends with the session.
func TestAppSession(t *testing.T) {
	w := the()
	gatewayID, cert := w.host(t, sallyport.KindGateway)
	gw, app, k := w.asHost(t, cert), w.app(t), newKeyPair(t)
	p := w.surfer(t, w.appRole(t))
	cookie, ws := p.logIn(t)
	got := p.launched(t, gw, cookie, app, k)
	if got.GetUser() != p.name || got.GetSessionId() != ws.ID || got.GetSession() == "" || !slices.Contains(got.GetRoles(), "all-apps") {
		t.Errorf("%v", got)
	}
	leaf, err := x509.ParseCertificate(got.GetTlsCertificate())
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromX509(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if id.Usage != sallyport.UsageWeb || id.BoundTo != "spiffe://"+cluster+"/gateway/"+gatewayID || !slices.Equal(id.AllowedResources, []string{"/" + cluster + "/app/" + app}) ||
		!id.DisallowReissue || id.Name != p.name || len(id.Principals) > 0 {
		t.Errorf("identity %+v", id)
	}
	w.recorded(t, "web", got.GetTlsCertificate())
	if life := time.Until(leaf.NotAfter); life > 10*time.Minute {
		t.Errorf("lives for %v", life)
	}
	renew := func(session, app string, key []byte) (*sallyportv1.AppSessionResponse, error) {
		r, err := gw.RenewAppSession(t.Context(), connect.NewRequest(&sallyportv1.RenewAppSessionRequest{Session: session, App: app, TlsPublicKey: key, ClientAddr: home}))
		if err != nil {
			return nil, err
		}
		return r.Msg, nil
	}
	if r, err := renew(got.GetSession(), app, k.tlsPub); err != nil || len(r.GetTlsCertificate()) == 0 || r.GetSession() != "" {
		t.Errorf("renew: %v %v", r, err)
	}
	if r, err := renew(got.GetSession(), app, nil); err != nil || len(r.GetTlsCertificate()) != 0 {
		t.Errorf("check: %v %v", r, err)
	}
	// A cookie of one origin is good at no other.
	other := w.app(t)
	_, err = renew(got.GetSession(), other, nil)
	codeIs(t, "another application", err, connect.CodeUnauthenticated)
	_, err = renew(cookie, app, nil)
	codeIs(t, "the cluster's cookie", err, connect.CodeUnauthenticated)
	_, err = w.server.Browser().Visit(p.ctx, got.GetSession())
	unauthorized(t, "the application's cookie at the cluster's origin", err)

	// The log-out of one application leaves others; that of the browser none.
	second := p.launched(t, gw, cookie, other, k)
	if _, err := gw.EndAppSession(t.Context(), connect.NewRequest(&sallyportv1.EndAppSessionRequest{Session: got.GetSession(), App: app})); err != nil {
		t.Error(err)
	}
	_, err = renew(got.GetSession(), app, nil)
	codeIs(t, "logged out", err, connect.CodeUnauthenticated)
	if _, err := renew(second.GetSession(), other, nil); err != nil {
		t.Errorf("the other application: %v", err)
	}
	if err := w.server.Browser().LogOut(p.ctx, cookie); err != nil {
		t.Error(err)
	}
	_, err = renew(second.GetSession(), other, nil)
	codeIs(t, "logged out of the cluster", err, connect.CodeUnauthenticated)
	for _, reason := range []string{"ended by the user", "logged out"} {
		if !slices.ContainsFunc(w.events(t, audit.WebSessionEnd), func(e sallyport.Event) bool {
			return e.User == p.name && e.Fields["web_session"] == ws.ID && e.Fields["reason"] == reason
		}) {
			t.Errorf("no event of %q", reason)
		}
	}
}

func unauthorized(t testing.TB, what string, err error) {
	t.Helper()
	if !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("%s: %v, want that it is not authenticated", what, err)
	}
}

// TestAppCode: a code is good once, for its application, with its verifier,
// while its session is.
func TestAppCode(t *testing.T) {
	w := the()
	_, cert := w.host(t, sallyport.KindGateway)
	gw, app, other, k := w.asHost(t, cert), w.app(t), w.app(t), newKeyPair(t)
	p := w.surfer(t, w.appRole(t))
	verifier, wrong := strings.Repeat("a", 42)+"A", strings.Repeat("b", 42)+"A"
	for name, c := range map[string]struct {
		change func(*sallyportv1.RedeemAppCodeRequest, string)
		want   connect.Code
	}{
		"right":               {func(*sallyportv1.RedeemAppCodeRequest, string) {}, 0},
		"wrong verifier":      {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.Verifier = wrong }, connect.CodeUnauthenticated},
		"no verifier":         {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.Verifier = "" }, connect.CodeUnauthenticated},
		"challenge":           {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.Verifier = websession.Challenge(verifier) }, connect.CodeUnauthenticated},
		"another application": {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.App = other }, connect.CodeUnauthenticated},
		"no application":      {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.App = "" }, connect.CodeUnauthenticated},
		"another code":        {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.Code = wrong }, connect.CodeUnauthenticated},
		"another address":     {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.ClientAddr = away }, connect.CodeUnauthenticated},
		"no address":          {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.ClientAddr = "here" }, connect.CodeInvalidArgument},
		"no key":              {func(m *sallyportv1.RedeemAppCodeRequest, _ string) { m.TlsPublicKey = nil }, connect.CodeInvalidArgument},
		"logged out": {func(_ *sallyportv1.RedeemAppCodeRequest, cookie string) {
			w.server.Browser().LogOut(p.ctx, cookie)
		}, connect.CodeUnauthenticated},
	} {
		cookie, _ := p.logIn(t)
		code, err := w.server.Browser().Launch(p.ctx, cookie, app, websession.Challenge(verifier), netip.MustParseAddr(home))
		if err != nil {
			t.Fatal(err)
		}
		m := &sallyportv1.RedeemAppCodeRequest{Code: code, Verifier: verifier, App: app, TlsPublicKey: k.tlsPub, ClientAddr: home}
		c.change(m, cookie)
		_, err = gw.RedeemAppCode(t.Context(), connect.NewRequest(m))
		if c.want == 0 && err != nil || c.want != 0 && connect.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if c.want == connect.CodeInvalidArgument || name == "another code" || name == "no verifier" {
			continue // what cannot be meant costs nothing
		}
		// Right or wrong, the code is used up.
		_, err = gw.RedeemAppCode(t.Context(), connect.NewRequest(&sallyportv1.RedeemAppCodeRequest{Code: code, Verifier: verifier, App: app, TlsPublicKey: k.tlsPub, ClientAddr: home}))
		codeIs(t, name+", once more", err, connect.CodeUnauthenticated)
	}
	for name, c := range map[string]struct {
		visitor, from, redeemed string
		good                    bool
	}{
		"approved elsewhere":  {home, away, away, true},
		"elsewhere, and home": {home, away, home, false},
		"same network":        {"2001:db8:0:1::a", "2001:db8:0:1::b", "2001:db8:0:1::c", true},
		"next network":        {"2001:db8:0:1::a", "2001:db8:0:1::a", "2001:db8:0:2::a", false},
		"mapped":              {"::ffff:" + home, home, "::ffff:" + home, true},
	} {
		cookie, _ := p.logIn(t)
		code, err := w.server.Browser().Launch(from(t.Context(), c.visitor), cookie, app, websession.Challenge(verifier), netip.MustParseAddr(c.from))
		if err != nil {
			t.Fatal(err)
		}
		_, err = gw.RedeemAppCode(t.Context(), connect.NewRequest(&sallyportv1.RedeemAppCodeRequest{Code: code, Verifier: verifier, App: app, TlsPublicKey: k.tlsPub, ClientAddr: c.redeemed}))
		if (err == nil) != c.good || err != nil && connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	stale, _ := p.logIn(t)
	late, err := w.serverOn(t.Context(), w.store, w.log)
	if err != nil {
		t.Fatal(err)
	}
	late.cfg.Now = func() time.Time { return time.Now().Add(freshness + time.Second) }
	if _, err := late.Browser().Launch(p.ctx, stale, app, websession.Challenge(verifier), netip.MustParseAddr(home)); err != nil {
		t.Errorf("at home, later: %v", err)
	}
	if _, err := late.Browser().Launch(p.ctx, stale, app, websession.Challenge(verifier), netip.MustParseAddr(away)); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("elsewhere, later: %v", err)
	}
	if _, err := w.server.Browser().Launch(p.ctx, "", app, websession.Challenge(verifier), netip.MustParseAddr(home)); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("nobody: %v", err)
	}
	cookie, _ := p.logIn(t)
	// What may not be seen does not exist.
	_, hidden := w.server.Browser().Launch(p.ctx, cookie, "no-such-app", websession.Challenge(verifier), netip.MustParseAddr(home))
	blind := w.surfer(t, w.role(t, "no-apps", "{}"))
	theirs, _ := blind.logIn(t)
	_, unseen := w.server.Browser().Launch(blind.ctx, theirs, app, websession.Challenge(verifier), netip.MustParseAddr(home))
	if !errors.Is(hidden, sallyport.ErrNotFound) || fmt.Sprint(hidden) != fmt.Sprint(unseen) {
		t.Errorf("no such application: %v; not to be seen: %v", hidden, unseen)
	}
}
