package api

import (
	"crypto/x509"
	"errors"
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

func (w *world) asVisitor(t testing.TB, from string) sallyportv1connect.PublicServiceClient {
	_, cert := w.host(t, sallyport.KindGateway)
	return sallyportv1connect.NewPublicServiceClient(w.http(t, visitor(cert, from)), base)
}

// lockOn puts a lock in force.
func (w *world) lockOn(t testing.TB, target string) {
	t.Helper()
	doc := `{"kind":"lock","version":"v2","metadata":{"name":"lock-` + uuid.NewString()[:8] + `"},"spec":{"target":` + target + `,"message":"come to room 5"}}`
	if _, err := w.localAdmin(t).PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc})); err != nil {
		t.Fatal(err)
	}
}

// TestWebSessionEnds: by a lock, a new password, the removal of the user, and at
// another address where roles say so; other sessions go on.
func TestWebSessionEnds(t *testing.T) {
	w := the()
	b := w.server.Browser()
	for name, end := range map[string]func(p *surfer) error{
		"lock":    func(p *surfer) error { w.lockOn(t, `{"user":"`+p.name+`"}`); return nil },
		"reset":   func(p *surfer) error { _, err := w.users.ResetUser(t.Context(), p.name, 0); return err },
		"removal": func(p *surfer) error { return w.users.DeleteUser(t.Context(), p.name) },
		"new password": func(p *surfer) error {
			link, err := w.users.ResetUser(t.Context(), p.name, 0)
			if err != nil {
				return err
			}
			_, err = w.users.Claim(t.Context(), login.Claim{Token: link.Token, Password: password})
			return err
		},
	} {
		p, other := w.surfer(t, w.appRole(t)), w.surfer(t, w.appRole(t))
		cookie, ws := p.logIn(t)
		others, _ := other.logIn(t)
		if _, err := b.Visit(p.ctx, cookie); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := end(p); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err := b.Visit(p.ctx, cookie)
		if name == "lock" && (!errors.Is(err, sallyport.ErrDenied) || !strings.Contains(err.Error(), "room 5")) || name != "lock" && !errors.Is(err, sallyport.ErrUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
		_, err = b.Visit(p.ctx, cookie)
		unauthorized(t, name+", again", err)
		if _, err := w.server.web.Of(t.Context(), p.name, ws.ID); !errors.Is(err, sallyport.ErrUnauthorized) {
			t.Errorf("%s: the session is still there: %v", name, err)
		}
		if _, err := b.Visit(other.ctx, others); err != nil {
			t.Errorf("%s: somebody else's session: %v", name, err)
		}
	}
	pin := `{"kind":"role","version":"v7","metadata":{"name":"web-pinned"},"spec":{"options":{"pin_source_ip":true},"allow":{}}}`
	if _, err := w.localAdmin(t).PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: pin, Overwrite: true})); err != nil {
		t.Fatal(err)
	}
	p := w.surfer(t, "web-pinned")
	cookie, _ := p.logIn(t)
	if _, err := b.Visit(from(t.Context(), "198.51.100.4"), cookie); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("at another address: %v", err)
	}
	if _, err := b.Visit(p.ctx, cookie); err != nil {
		t.Errorf("at its own: %v", err)
	}
}

// TestWebLogin: a session is one's own; the one that a browser came with ends;
// and a lock or a wrong password gives none.
func TestWebLogin(t *testing.T) {
	w := the()
	b := w.server.Browser()
	p, mallory := w.surfer(t, w.appRole(t)), w.surfer(t, w.appRole(t))
	planted, _ := mallory.logIn(t)
	cookie, ws, err := b.LogIn(p.ctx, login.Attempt{User: p.name, Password: password}, "Browser/1.0", planted)
	if err != nil || cookie == planted || ws.User != p.name || ws.Addr != home {
		t.Fatalf("%v %v", ws, err)
	}
	_, err = b.Visit(p.ctx, planted)
	unauthorized(t, "the session of before", err)
	for what, in := range map[string]login.Attempt{"wrong password": {User: p.name, Password: password + "!"}, "unknown": {User: "nobody-" + p.name, Password: password}} {
		cookie, _, err := b.LogIn(p.ctx, in, "", "")
		unauthorized(t, what, err)
		if cookie != "" {
			t.Errorf("%s: a cookie", what)
		}
	}
	if err := b.End(p.ctx, cookie, mustID(t, mallory)); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("ended somebody else's session: %v", err)
	}
	if list, err := b.Sessions(p.ctx, cookie); err != nil || len(list) != 1 || list[0].ID != ws.ID {
		t.Errorf("%v %v", list, err)
	}
	second, _ := p.logIn(t)
	if err := b.End(p.ctx, cookie, ""); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{cookie, second} {
		_, err := b.Visit(p.ctx, c)
		unauthorized(t, "logged out everywhere", err)
	}
	if !slices.ContainsFunc(w.events(t, audit.UserLogin), func(e sallyport.Event) bool {
		return e.User == p.name && e.Code == audit.UserLoginCode && e.Fields["web_session"] == ws.ID && e.Fields["method"] == "local" && strings.HasPrefix(e.Addr, home)
	}) {
		t.Error("no event of the login")
	}
	w.lockOn(t, `{"user":"`+p.name+`"}`)
	if _, _, err := b.LogIn(p.ctx, login.Attempt{User: p.name, Password: password}, "", ""); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("locked: %v", err)
	}
}

// TestWebSessionsBeyond: the login that is one too many ended the session that was unused
// for longest, and no event said so.
func TestWebSessionsBeyond(t *testing.T) {
	w := the()
	p := w.surfer(t, w.appRole(t))
	var all []string
	for {
		cookie, ws := p.logIn(t)
		all = append(all, ws.ID)
		list, err := w.server.Browser().Sessions(p.ctx, cookie)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) < len(all) {
			break
		}
	}
	ended := map[any]any{}
	for _, e := range w.events(t, audit.WebSessionEnd) {
		if e.User == p.name {
			ended[e.Fields["web_session"]] = e.Fields["reason"]
		}
	}
	if len(ended) != 1 || ended[all[0]] != "too many sessions of the user" {
		t.Errorf("after %d logins events tell the ends of %v, want that of %s", len(all), ended, all[0])
	}
}

func mustID(t testing.TB, p *surfer) string {
	_, ws := p.logIn(t)
	return ws.ID
}

// TestOwnWebSessions: by the API, too, one ends one's own and nobody else's.
func TestOwnWebSessions(t *testing.T) {
	w := the()
	p, other := w.surfer(t, w.appRole(t)), w.surfer(t, w.appRole(t))
	cookie, ws := p.logIn(t)
	c := w.asUser(t, w.certify(t, nil, p.name, w.appRole(t)))
	list, err := c.ListWebSessions(t.Context(), connect.NewRequest(&sallyportv1.ListWebSessionsRequest{}))
	if err != nil || len(list.Msg.GetSessions()) != 1 || list.Msg.GetSessions()[0].GetId() != ws.ID || list.Msg.GetSessions()[0].GetAddress() != home {
		t.Errorf("%v %v", list, err)
	}
	end := func(m *sallyportv1.EndWebSessionRequest) error {
		_, err := c.EndWebSession(t.Context(), connect.NewRequest(m))
		return err
	}
	codeIs(t, "somebody else's", end(&sallyportv1.EndWebSessionRequest{Id: mustID(t, other)}), connect.CodeNotFound)
	codeIs(t, "a path", end(&sallyportv1.EndWebSessionRequest{Id: "../" + ws.ID}), connect.CodeNotFound)
	codeIs(t, "nothing", end(&sallyportv1.EndWebSessionRequest{}), connect.CodeInvalidArgument)
	codeIs(t, "both", end(&sallyportv1.EndWebSessionRequest{Id: ws.ID, All: true}), connect.CodeInvalidArgument)
	if err := end(&sallyportv1.EndWebSessionRequest{Id: ws.ID}); err != nil {
		t.Error(err)
	}
	_, err = w.server.Browser().Visit(p.ctx, cookie)
	unauthorized(t, "ended", err)
}

// TestFinishLogin: a program's certificates are for the keys that the page was
// given, and carry what the user has.
func TestFinishLogin(t *testing.T) {
	w := the()
	b := w.server.Browser()
	p := w.surfer(t, w.appRole(t))
	api := w.asVisitor(t, "198.51.100.7:900")
	k, other := newKeyPair(t), newKeyPair(t)
	verifier := strings.Repeat("p", 42) + "A"
	approved := func(cookie string) *sallyportv1.FinishLoginRequest {
		t.Helper()
		code, err := b.ApproveProgram(p.ctx, cookie, websession.Challenge(verifier), websession.KeysHash(k.tlsPub, k.sshPub))
		if err != nil {
			t.Fatal(err)
		}
		return &sallyportv1.FinishLoginRequest{Code: code, Verifier: verifier, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub, TtlSeconds: 600}
	}
	cookie, ws := p.logIn(t)
	m := approved(cookie)
	got, err := api.FinishLogin(t.Context(), connect.NewRequest(m))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(got.Msg.GetTlsCertificate())
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromX509(leaf)
	if err != nil || id.Name != p.name || id.Usage != "" || id.LoginAddr != "198.51.100.7" || time.Until(leaf.NotAfter) > 10*time.Minute {
		t.Errorf("%+v until %v, %v", id, leaf.NotAfter, err)
	}
	_, err = api.FinishLogin(t.Context(), connect.NewRequest(m))
	codeIs(t, "twice", err, connect.CodeUnauthenticated)
	for what, change := range map[string]func(*sallyportv1.FinishLoginRequest){
		"another key":          func(m *sallyportv1.FinishLoginRequest) { m.TlsPublicKey = other.tlsPub },
		"another SSH key":      func(m *sallyportv1.FinishLoginRequest) { m.SshPublicKey = other.sshPub },
		"another verifier":     func(m *sallyportv1.FinishLoginRequest) { m.Verifier = strings.Repeat("q", 42) + "A" },
		"no verifier":          func(m *sallyportv1.FinishLoginRequest) { m.Verifier = "" },
		"logged out meanwhile": func(*sallyportv1.FinishLoginRequest) { b.LogOut(p.ctx, cookie) },
	} {
		if what == "logged out meanwhile" {
			cookie, _ = p.logIn(t)
		}
		own := cookie
		if _, err := b.Visit(p.ctx, own); err != nil {
			own, _ = p.logIn(t)
		}
		m := approved(own)
		cookie = own
		change(m)
		_, err := api.FinishLogin(t.Context(), connect.NewRequest(m))
		codeIs(t, what, err, connect.CodeUnauthenticated)
	}
	if !slices.ContainsFunc(w.events(t, audit.UserLogin), func(e sallyport.Event) bool {
		return e.User == p.name && e.Code == audit.UserLoginCode && e.Fields["method"] == "browser" && e.Fields["web_session"] == ws.ID
	}) {
		t.Error("no event of the login")
	}
}

// TestApprovalIsFresh: who gave his password long ago gives it again, and that
// is for auth to say, not for the page.
func TestApprovalIsFresh(t *testing.T) {
	w := the()
	late, err := w.serverOn(t.Context(), w.store, w.log)
	if err != nil {
		t.Fatal(err)
	}
	late.cfg.Now = func() time.Time { return time.Now().Add(freshness + time.Second) }
	b := late.Browser()
	p := w.surfer(t, w.appRole(t))
	cookie, ws := p.logIn(t)
	challenge := websession.Challenge("x")
	if _, err := b.ApproveProgram(p.ctx, cookie, challenge, challenge); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("a program: %v", err)
	}
	_, code, _, err := w.server.web.BeginDevice(t.Context(), p.name, websession.Device{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.DecideDevice(p.ctx, cookie, code, true); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("a device: %v", err)
	}
	if b.Fresh(ws) || !w.server.Browser().Fresh(ws) {
		t.Error("freshness")
	}
	unauthorized(t, "wrong", w.server.Browser().Prove(p.ctx, cookie, password+"!", ""))
	if err := w.server.Browser().Prove(p.ctx, cookie, password, ""); err != nil {
		t.Error(err)
	}
	if now, err := w.server.Browser().Visit(p.ctx, cookie); err != nil || !now.Proved.After(ws.Proved) {
		t.Errorf("%v %v", now, err)
	}
	if err := b.DecideDevice(p.ctx, cookie, code, false); err != nil {
		t.Errorf("a refusal: %v", err)
	}
}

// TestDeviceLogin: by a code that is typed elsewhere; a few wrong ones, and no
// more are looked at.
func TestDeviceLogin(t *testing.T) {
	w := the()
	b := w.server.Browser()
	p := w.surfer(t, w.appRole(t))
	cookie, ws := p.logIn(t)
	api := w.asVisitor(t, "198.51.100.8:900")
	k := newKeyPair(t)
	begun, err := api.BeginDeviceLogin(t.Context(), connect.NewRequest(&sallyportv1.BeginDeviceLoginRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub, HostName: "server"}))
	if err != nil {
		t.Fatal(err)
	}
	code, ok := websession.ParseUserCode(begun.Msg.GetUserCode())
	if !ok || begun.Msg.GetVerificationPath() != "/device" || begun.Msg.GetIntervalSeconds() != 5 {
		t.Errorf("%v", begun.Msg)
	}
	if d, err := b.Device(p.ctx, cookie, code); err != nil || d.Host != "server" || d.Addr != "198.51.100.8" {
		t.Errorf("%+v %v", d, err)
	}
	if err := b.DecideDevice(p.ctx, cookie, code, true); err != nil {
		t.Fatal(err)
	}
	poll := func() (*sallyportv1.PollDeviceLoginResponse, error) {
		r, err := api.PollDeviceLogin(t.Context(), connect.NewRequest(&sallyportv1.PollDeviceLoginRequest{DeviceCode: begun.Msg.GetDeviceCode()}))
		if err != nil {
			return nil, err
		}
		return r.Msg, nil
	}
	got, err := poll()
	if err != nil || got.GetState() != sallyportv1.PollDeviceLoginResponse_STATE_DONE || got.GetLogin().GetUser() != p.name || len(got.GetLogin().GetTlsCertificate()) == 0 {
		t.Fatalf("%v %v", got, err)
	}
	w.recorded(t, "user", got.GetLogin().GetTlsCertificate())
	_, err = poll()
	codeIs(t, "twice", err, connect.CodeNotFound)
	if !slices.ContainsFunc(w.events(t, audit.UserLogin), func(e sallyport.Event) bool {
		return e.User == p.name && e.Code == audit.UserLoginCode && e.Fields["method"] == "device" && e.Fields["web_session"] == ws.ID
	}) {
		t.Error("no event of the login")
	}
	for i := range 6 {
		want := sallyport.ErrNotFound
		if i == 5 {
			want = sallyport.ErrExhausted
		}
		if _, err := b.Device(p.ctx, cookie, "BBBBBBBB"); !errors.Is(err, want) {
			t.Errorf("guess %d: %v", i+1, err)
		}
	}
	// Even the right one is not looked at then.
	_, right, _, err := w.server.web.BeginDevice(t.Context(), p.name, websession.Device{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.DecideDevice(p.ctx, cookie, right, true); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("after too many guesses: %v", err)
	}
}
