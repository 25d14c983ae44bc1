package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/websession"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// desk answers as auth would, and remembers what it was asked to change.
type desk struct {
	sessions map[string]websession.Session // by cookie
	fresh    bool
	made     int
	asked    []string
	fail     error
}

var _ Desk = (*desk)(nil)

var born = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (d *desk) begin(user string) string {
	d.made++
	cookie := fmt.Sprint("cookie-", d.made)
	d.sessions[cookie] = websession.Session{ID: fmt.Sprint("id-", d.made), User: user, Addr: "192.0.2.1", Browser: "Browser/1", Created: born, Seen: born, Ends: born}
	return cookie
}

func (d *desk) note(format string, a ...any) { d.asked = append(d.asked, fmt.Sprintf(format, a...)) }

func (d *desk) LogIn(_ context.Context, in login.Attempt, _, was string) (string, websession.Session, error) {
	if d.fail != nil {
		return "", websession.Session{}, d.fail
	}
	if in.Password != password {
		return "", websession.Session{}, &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "wrong"}
	}
	delete(d.sessions, was)
	cookie := d.begin(in.User)
	return cookie, d.sessions[cookie], nil
}

func (d *desk) Visit(_ context.Context, cookie string) (websession.Session, error) {
	if ws, ok := d.sessions[cookie]; ok {
		return ws, nil
	}
	return websession.Session{}, websession.Gone()
}

func (d *desk) LogOut(_ context.Context, cookie string) error {
	d.note("logout")
	delete(d.sessions, cookie)
	return nil
}

func (d *desk) Sessions(context.Context, string) (out []websession.Session, err error) {
	for _, ws := range d.sessions {
		out = append(out, ws)
	}
	slices.SortFunc(out, func(a, b websession.Session) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

func (d *desk) End(ctx context.Context, cookie, id string) error {
	if _, err := d.Visit(ctx, cookie); err != nil {
		return err
	}
	d.note("end %q", id)
	return nil
}

func (d *desk) Resources(context.Context, string) ([]*sallyportv1.AccessibleResource, error) {
	return []*sallyportv1.AccessibleResource{
		{Resource: &sallyportv1.Resource{Kind: "app", Name: "wiki", Description: "what <we> know"}, Online: true},
		{Resource: &sallyportv1.Resource{Kind: "db", Name: "orders"}, DatabaseUsers: []string{"reader"}},
		{Resource: &sallyportv1.Resource{Kind: "node", Name: "web1"}, Logins: []string{"root", "www"}, Online: true},
	}, nil
}

func (d *desk) Fresh(websession.Session) bool { return d.fresh }

func (d *desk) Prove(_ context.Context, _, given, _ string) error {
	if given != password {
		return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "wrong"}
	}
	d.fresh = true
	return nil
}

func (d *desk) ApproveProgram(_ context.Context, _, challenge, keys string) (string, error) {
	d.note("program %s %s", challenge[:2], keys[:2])
	return "CODE", nil
}

func (d *desk) Device(_ context.Context, _, code string) (websession.Device, error) {
	if code != "BCDFGHJK" {
		return websession.Device{}, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no login waits"}
	}
	return websession.Device{Host: "laptop", Addr: "198.51.100.9", Created: born}, nil
}

func (d *desk) DecideDevice(_ context.Context, _, code string, approve bool) error {
	d.note("device %s %v", code, approve)
	return nil
}

func (d *desk) Here(_ context.Context, addr netip.Addr) bool { return addr.String() == "192.0.2.1" }

func (d *desk) Launch(_ context.Context, _, app, challenge string, from netip.Addr) (string, error) {
	if app != "wiki" {
		return "", &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no such application"}
	}
	d.note("launch %s %s %v", app, challenge[:2], from)
	return "CODE", nil
}

// asked is what a program asks for.
var asked = program{Challenge: strings.Repeat("c", 42) + "A", Keys: strings.Repeat("k", 42) + "A", Port: "4711", State: strings.Repeat("s", 42) + "A", Host: "laptop"}

// ownForm is a form as a browser sends it from our own page.
func ownForm(path string, form ...string) *http.Request {
	r := formRequest(path, form...)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return r
}

func withCookie(r *http.Request, cookie string) *http.Request {
	r.AddCookie(&http.Cookie{Name: Cookie, Value: cookie})
	return r
}

func as(h http.Handler, cookie string, r *http.Request) (int, string) {
	code, page, _ := do(h, withCookie(r, cookie))
	return code, page
}

// TestLogIn: the cookie is the origin's own, and what was before it ends.
func TestLogIn(t *testing.T) {
	s := the().pages(t, login.Optional)
	code, page := get(s, "/")
	if code != 200 || !strings.Contains(page, `action="/login/password"`) || strings.Contains(page, "You are logged in") {
		t.Fatalf("%d\n%s", code, page)
	}
	code, page, h := do(s, ownForm("/login/password", "username", "alice", "password", "something wrong", "next", asked.path()))
	if code != 403 || !strings.Contains(page, "wrong") || h.Get("Set-Cookie") != "" || strings.Contains(page, "something wrong") || !strings.Contains(page, "challenge=") {
		t.Errorf("wrong: %d %v\n%s", code, h, page)
	}
	for user, want := range map[string]string{
		" alice ": `required value="alice">`, `"><b>`: `required value="&#34;&gt;&lt;b&gt;">`, "": `required autofocus>`, strings.Repeat("a", maxUserField+1): `required autofocus>`,
	} {
		if _, page, _ := do(s, ownForm("/login/password", "username", user, "password", "something wrong")); !strings.Contains(page, `maxlength="64" `+want) {
			t.Errorf("the page of %q again has no %q\n%s", user, want, page)
		}
	}
	s.desk.fail = &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many"}
	if code, page, _ := do(s, ownForm("/login/password", "username", "alice", "password", password)); code != 429 || !strings.Contains(page, "too many") {
		t.Errorf("too many: %d\n%s", code, page)
	}
	s.desk.fail = nil
	planted := s.desk.begin("mallory")
	code, _, h = do(s, withCookie(ownForm("/login/password", "username", " alice ", "password", password), planted))
	got, err := http.ParseSetCookie(h.Get("Set-Cookie"))
	if code != 303 || h.Get("Location") != "/" || err != nil {
		t.Fatalf("%d %v %v", code, h, err)
	}
	if got.Name != Cookie || !strings.HasPrefix(got.Name, "__Host-") || !got.Secure || !got.HttpOnly || got.Path != "/" || got.Domain != "" || got.SameSite != http.SameSiteLaxMode {
		t.Errorf("cookie %v", got)
	}
	if got.Value == planted || s.desk.sessions[planted].User != "" {
		t.Errorf("a session of before goes on")
	}
	code, page = as(s, got.Value, httptest.NewRequest(http.MethodGet, "https://gw.example.com:8443/", nil))
	for _, want := range []string{"<strong>alice</strong>", "this one", "https://wiki.gw.example.com:8443", "what &lt;we&gt; know", "sally ssh web1", "root, www"} {
		if !strings.Contains(page, want) {
			t.Errorf("%d: no %q on\n%s", code, want, page)
		}
	}
	code, _, h = do(s, withCookie(ownForm("/logout"), got.Value))
	if gone, err := http.ParseSetCookie(h.Get("Set-Cookie")); code != 303 || err != nil || gone.MaxAge >= 0 || gone.Name != Cookie {
		t.Errorf("log out: %d %v %v", code, h, err)
	}
	if _, page := as(s, got.Value, httptest.NewRequest(http.MethodGet, "https://gw.example.com/", nil)); !strings.Contains(page, "/login/password") {
		t.Errorf("after the log-out:\n%s", page)
	}
	// Two cookies of the name: one may be somebody else's.
	one := s.desk.begin("alice")
	two := withCookie(withCookie(httptest.NewRequest(http.MethodGet, "https://gw.example.com/", nil), one), s.desk.begin("mallory"))
	if _, page, _ := do(s, two); !strings.Contains(page, "/login/password") {
		t.Errorf("two cookies:\n%s", page)
	}
}

// TestA72_OwnOrigin: what changes something comes from a page of this origin, or
// not at all. Another application below the cluster's name is the same site.
func TestA72_OwnOrigin(t *testing.T) {
	s := the().pages(t, login.Optional)
	cookie := s.desk.begin("alice")
	forms := map[string][]string{
		"/login/password": {"username", "alice", "password", password}, "/logout": nil, "/sessions/end": {"all", "yes"},
		"/cli": {"next", asked.path(), "decision", "approve"}, "/device": {"user_code", "BCDFGHJK"}, "/device/decide": {"user_code", "BCDFGHJK", "decision", "approve"},
	}
	for path, form := range forms {
		for what, h := range map[string]http.Header{
			"nothing said":         {},
			"cross-site":           {"Sec-Fetch-Site": {"cross-site"}},
			"another application":  {"Sec-Fetch-Site": {"same-site"}, "Origin": {"https://wiki.gw.example.com"}},
			"typed":                {"Sec-Fetch-Site": {"none"}},
			"two words":            {"Sec-Fetch-Site": {"same-origin", "cross-site"}},
			"same-site, our name":  {"Sec-Fetch-Site": {"same-site"}, "Origin": {"https://gw.example.com"}},
			"foreign":              {"Origin": {"https://evil.example.com"}},
			"below us":             {"Origin": {"https://wiki.gw.example.com"}},
			"another port":         {"Origin": {"https://gw.example.com:8443"}},
			"in clear":             {"Origin": {"http://gw.example.com"}},
			"null":                 {"Origin": {"null"}},
			"empty":                {"Origin": {""}},
			"two origins":          {"Origin": {"https://gw.example.com", "https://evil.example.com"}},
			"our name as a prefix": {"Origin": {"https://gw.example.com.evil.example"}},
		} {
			r := withCookie(formRequest(path, form...), cookie)
			for k, v := range h {
				r.Header[k] = v
			}
			if code, _, got := do(s, r); code != 403 || got.Get("Set-Cookie") != "" {
				t.Errorf("%s, %s: %d %v", path, what, code, got)
			}
		}
		// The same by GET changes nothing either.
		q := url.Values{}
		for i := 0; i < len(form); i += 2 {
			q.Set(form[i], form[i+1])
		}
		do(s, withCookie(httptest.NewRequest(http.MethodGet, "https://gw.example.com"+path+"?"+q.Encode(), nil), cookie))
	}
	if len(s.desk.asked) > 0 || s.desk.sessions[cookie].User == "" {
		t.Errorf("changed: %q", s.desk.asked)
	}
	r := withCookie(formRequest("/logout"), cookie)
	r.Header.Set("Origin", "https://gw.example.com")
	if code, _, _ := do(s, r); code != 303 || len(s.desk.asked) != 1 {
		t.Errorf("our own page of an older browser: %d %q", code, s.desk.asked)
	}
}

// TestProgram: a program gets a code at the visitor's own machine, after a
// click, and nowhere else.
func TestProgram(t *testing.T) {
	s := the().pages(t, login.Optional)
	if _, page := get(s, asked.path()); !strings.Contains(page, "/login/password") || !strings.Contains(page, "challenge=") || strings.Contains(page, "Approve") {
		t.Errorf("nobody:\n%s", page)
	}
	cookie := s.desk.begin("alice")
	code, page := as(s, cookie, httptest.NewRequest(http.MethodGet, "https://gw.example.com"+asked.path(), nil))
	for _, want := range []string{"laptop", "192.0.2.1", "act as alice", `value="approve"`, `value="refuse"`} {
		if code != 200 || !strings.Contains(page, want) {
			t.Errorf("%d: no %q on\n%s", code, want, page)
		}
	}
	if strings.Contains(page, "CODE") || len(s.desk.asked) > 0 {
		t.Fatalf("approved without a click: %q", s.desk.asked)
	}
	code, page = as(s, cookie, ownForm("/cli", "next", asked.path(), "decision", "approve"))
	if code != 200 || !strings.Contains(page, `href="http://127.0.0.1:4711/callback?code=CODE&amp;state=`+asked.State+`"`) || !strings.Contains(page, `content="0;url=http://127.0.0.1:4711/callback?code=CODE`) {
		t.Errorf("approved: %d\n%s", code, page)
	}
	_, page = as(s, cookie, ownForm("/cli", "next", asked.path(), "decision", "refuse"))
	if !strings.Contains(page, "error=access_denied") || strings.Contains(page, "CODE") {
		t.Errorf("refused:\n%s", page)
	}
	if len(s.desk.asked) != 1 {
		t.Errorf("asked %q", s.desk.asked)
	}
	// After a while the password is wanted again.
	s.desk.fresh = false
	_, page = as(s, cookie, httptest.NewRequest(http.MethodGet, "https://gw.example.com"+asked.path(), nil))
	if !strings.Contains(page, `type="password"`) {
		t.Errorf("stale:\n%s", page)
	}
	code, page = as(s, cookie, ownForm("/cli", "next", asked.path(), "decision", "approve", "password", "wrong"))
	if code != 403 || strings.Contains(page, "CODE") || len(s.desk.asked) != 1 {
		t.Errorf("stale, wrong: %d\n%s", code, page)
	}
	if code, page = as(s, cookie, ownForm("/cli", "next", asked.path(), "decision", "approve", "password", password)); !strings.Contains(page, "CODE") {
		t.Errorf("stale, right: %d\n%s", code, page)
	}
	for what, bad := range map[string]string{
		"no port": strings.Replace(asked.path(), "4711", "", 1), "a host for a port": strings.Replace(asked.path(), "4711", "1@evil.example", 1),
		"large port": strings.Replace(asked.path(), "4711", "65536", 1), "short state": strings.Replace(asked.path(), "state=s", "state=", 1),
		"two challenges": asked.path() + "&challenge=" + asked.Keys, "control": asked.path() + "%0a", "another page": "/device", "foreign": "https://evil.example" + asked.path(),
	} {
		if code, page := as(s, cookie, ownForm("/cli", "next", bad, "decision", "approve")); what != "foreign" && (code != 400 || strings.Contains(page, "CODE")) || strings.Contains(page, "evil") {
			t.Errorf("%s: %d\n%s", what, code, page)
		}
	}
}

// TestDevice: who types a code sees where the program is before he approves.
func TestDevice(t *testing.T) {
	s := the().pages(t, login.Optional)
	cookie := s.desk.begin("alice")
	_, page := as(s, cookie, httptest.NewRequest(http.MethodGet, "https://gw.example.com/device?user_code=BCDF-GHJK", nil))
	if !strings.Contains(page, "do not type it") || strings.Contains(page, "BCDF") {
		t.Errorf("a link can carry the code:\n%s", page)
	}
	for _, typed := range []string{"bcdf-ghjk", " BCDF GHJK", "BCDFGHJK"} {
		if _, page := as(s, cookie, ownForm("/device", "user_code", typed)); !strings.Contains(page, "laptop") || !strings.Contains(page, "198.51.100.9") || !strings.Contains(page, "not the address where you are") {
			t.Errorf("%q:\n%s", typed, page)
		}
	}
	for _, typed := range []string{"", "BCDFGHJ", "BCDFGHJKL", "BCDFGHJX", "AAAAAAAA", "BCDF/GHJ", strings.Repeat("B", 5000)} {
		if code, page := as(s, cookie, ownForm("/device", "user_code", typed)); code != 403 || strings.Contains(page, "laptop") {
			t.Errorf("%.20q: %d\n%s", typed, code, page)
		}
	}
	if len(s.desk.asked) != 0 {
		t.Errorf("decided without a click: %q", s.desk.asked)
	}
	as(s, cookie, ownForm("/device/decide", "user_code", "BCDF-GHJK", "decision", "refuse"))
	s.desk.fresh = false
	if _, page := as(s, cookie, ownForm("/device/decide", "user_code", "BCDF-GHJK", "decision", "approve")); !strings.Contains(page, `type="password"`) {
		t.Errorf("stale:\n%s", page)
	}
	if _, page := as(s, cookie, ownForm("/device/decide", "user_code", "BCDF-GHJK", "decision", "approve", "password", password)); !strings.Contains(page, "Approved") {
		t.Errorf("approved:\n%s", page)
	}
	if !slices.Equal(s.desk.asked, []string{"device BCDFGHJK false", "device BCDFGHJK true"}) {
		t.Errorf("decided %q", s.desk.asked)
	}
}

// TestLaunch: the way to an application's origin, also when the login comes
// first, and to nowhere else.
func TestLaunch(t *testing.T) {
	s := the().pages(t, login.Optional)
	path := "/web/launch/wiki?challenge=" + asked.Challenge
	_, page := get(s, path)
	if !strings.Contains(page, `value="`+path+`"`) {
		t.Errorf("nobody:\n%s", page)
	}
	// Browsers hold the redirects after a form to this origin.
	code, page, _ := do(s, ownForm("/login/password", "username", "alice", "password", password, "next", path))
	if code != 200 || !strings.Contains(page, `href="`+path+`"`) {
		t.Errorf("after the login: %d\n%s", code, page)
	}
	cookie := s.desk.begin("alice")
	for host, want := range map[string]string{"gw.example.com": "wiki.gw.example.com", "gw.example.com:443": "wiki.gw.example.com", "gw.example.com:8443": "wiki.gw.example.com:8443",
		"gw.example.com:8443@evil.example": "wiki.gw.example.com", "evil.example:99999": "wiki.gw.example.com"} {
		r := withCookie(httptest.NewRequest(http.MethodGet, "https://gw.example.com"+path, nil), cookie)
		r.Host = host
		if code, _, h := do(s, r); code != 303 || h.Get("Location") != "https://"+want+"/.sallyport/callback?code=CODE&challenge="+asked.Challenge {
			t.Errorf("%s: %d %v", host, code, h)
		}
	}
	for _, how := range [][]string{{"no-cors", "image"}, {"navigate", "iframe"}, {"cors", "empty"}, {"navigate"}, {"navigate", "document"}} {
		r := withCookie(httptest.NewRequest(http.MethodGet, "https://gw.example.com"+path, nil), cookie)
		r.Header["Sec-Fetch-Mode"], r.Header["Sec-Fetch-Dest"] = how[:1], how[1:]
		want := 403
		if slices.Equal(how, []string{"navigate", "document"}) {
			want = 303
		}
		before := len(s.desk.asked)
		if code, _, h := do(s, r); code != want || (h.Get("Location") != "") != (want == 303) || (len(s.desk.asked) > before) != (want == 303) {
			t.Errorf("%q: %d %v", how, code, h)
		}
	}
	if code, _, _ := do(s, withCookie(httptest.NewRequest(http.MethodHead, "https://gw.example.com"+path, nil), cookie)); code != 403 {
		t.Errorf("HEAD: %d", code)
	}
	for _, bad := range []string{"/web/launch/other?challenge=" + asked.Challenge, "/web/launch/wiki", "/web/launch/wiki?challenge=x", "/web/launch/wi.ki?challenge=" + asked.Challenge,
		"/web/launch/evil.example%2F?challenge=" + asked.Challenge, "/web/launch/-a?challenge=" + asked.Challenge, "/web/launch/evil@x?challenge=" + asked.Challenge} {
		if code, _, h := do(s, withCookie(httptest.NewRequest(http.MethodGet, "https://gw.example.com"+bad, nil), cookie)); code != 404 && code != 400 || h.Get("Location") != "" {
			t.Errorf("%s: %d %v", bad, code, h)
		}
	}
}

// TestLaunchElsewhere: a script of an application could lead its visitor here with a verifier
// of its own, and take the code to another machine. Now a code is good at the address where
// the visitor is, or at one that he has seen and approved.
func TestLaunchElsewhere(t *testing.T) {
	s := the().pages(t, login.Optional)
	cookie := s.desk.begin("alice")
	launch := "/web/launch/wiki?challenge=" + asked.Challenge
	at := func(path string) (int, string, http.Header) {
		return do(s, withCookie(httptest.NewRequest(http.MethodGet, "https://gw.example.com"+path, nil), cookie))
	}
	for _, here := range []string{launch, launch + "&from=192.0.2.1", launch + "&from=%3A%3Affff%3A192.0.2.1"} {
		if code, page, h := at(here); code != 303 || !strings.Contains(h.Get("Location"), "code=CODE") {
			t.Errorf("%s: %d %v\n%s", here, code, h, page)
		}
	}
	elsewhere := launch + "&from=198.51.100.7"
	code, page, h := at(elsewhere)
	if code != 200 || h.Get("Location") != "" || !strings.Contains(page, "198.51.100.7") || !strings.Contains(page, "192.0.2.1") || strings.Contains(page, "CODE") {
		t.Errorf("elsewhere: %d %v\n%s", code, h, page)
	}
	for _, bad := range []string{"&from=x", "&from=", "&from=198.51.100.7&from=192.0.2.1", "&from=fe80::1%25eth0", "&challenge=" + asked.Challenge} {
		if code, _, h := at(launch + bad); bad != "&from=" && code != 400 || strings.Contains(h.Get("Location"), "198") {
			t.Errorf("%s: %d %v", bad, code, h)
		}
	}
	s.desk.asked = nil
	post := func(path, next, decision string, more ...string) *http.Request {
		return ownForm(path, append([]string{"next", next, "decision", decision}, more...)...)
	}
	foreign := post("/web/launch/wiki", elsewhere, "approve")
	foreign.Header.Set("Sec-Fetch-Site", "same-site")
	for name, tt := range map[string]struct {
		q    *http.Request
		want int
	}{
		"from another page":   {foreign, 403},
		"refused":             {post("/web/launch/wiki", elsewhere, "refuse"), 303},
		"nothing said":        {post("/web/launch/wiki", elsewhere, ""), 303},
		"another application": {post("/web/launch/other", elsewhere, "approve"), 400},
		"no address":          {post("/web/launch/wiki", launch, "approve"), 400},
		"another page":        {post("/web/launch/wiki", asked.path(), "approve"), 400},
		"not a place":         {post("/web/launch/wiki", "//evil.example", "approve"), 400},
	} {
		s.desk.fresh = true
		if code, page, h := do(s, withCookie(tt.q, cookie)); code != tt.want || strings.Contains(page+h.Get("Location"), "CODE") {
			t.Errorf("%s: %d %v\n%s", name, code, h, page)
		}
	}
	s.desk.fresh = false
	if code, page := as(s, cookie, post("/web/launch/wiki", elsewhere, "approve")); code != 403 || !strings.Contains(page, `type="password"`) || strings.Contains(page, "CODE") {
		t.Errorf("stale: %d\n%s", code, page)
	}
	if len(s.desk.asked) != 0 {
		t.Errorf("codes were made: %q", s.desk.asked)
	}
	if _, page := as(s, cookie, post("/web/launch/wiki", elsewhere, "approve", "password", password)); !strings.Contains(page, "https://wiki.gw.example.com/.sallyport/callback?code=CODE") {
		t.Errorf("approved:\n%s", page)
	}
	if want := []string{"launch wiki " + asked.Challenge[:2] + " 198.51.100.7"}; !slices.Equal(s.desk.asked, want) {
		t.Errorf("%q, want %q", s.desk.asked, want)
	}
}

// TestEndSessions: one of the list, or all.
func TestEndSessions(t *testing.T) {
	s := the().pages(t, login.Optional)
	cookie := s.desk.begin("alice")
	for _, c := range []struct {
		form []string
		code int
	}{{[]string{"id", "id-1"}, 303}, {[]string{"all", "yes"}, 303}, {nil, 400}, {[]string{"id", "x", "all", "yes"}, 400}, {[]string{"all", "no"}, 400}} {
		if code, _ := as(s, cookie, ownForm("/sessions/end", c.form...)); code != c.code {
			t.Errorf("%q: %d", c.form, code)
		}
	}
	if !slices.Equal(s.desk.asked, []string{`end "id-1"`, `end ""`}) {
		t.Errorf("ended %q", s.desk.asked)
	}
	if code, _, h := do(s, ownForm("/sessions/end", "all", "yes")); code != 303 || h.Get("Location") != "/" {
		t.Errorf("nobody: %d", code)
	}
}

// TestLocal: a login leads to places of this site alone.
func TestLocal(t *testing.T) {
	for in, want := range map[string]string{
		"": "/", "/": "/", "/device": "/device", "/device?user_code=X": "/device", asked.path(): asked.path(),
		"/web/launch/wiki?challenge=" + asked.Challenge:                      "/web/launch/wiki?challenge=" + asked.Challenge,
		"/web/launch/wiki?from=2001:db8::1&x=1&challenge=" + asked.Challenge: "/web/launch/wiki?challenge=" + asked.Challenge + "&from=2001%3Adb8%3A%3A1",
		"/web/launch/wiki?from=evil.example&challenge=" + asked.Challenge:    "/",
		"//evil.example/device": "/", "https://evil.example/device": "/", "/\\evil.example": "/", "/device/../x": "/", "javascript:alert(1)": "/", "/logout": "/",
		"/web/launch/a.b?challenge=" + asked.Challenge: "/", "/web/launch/wiki": "/", "/cli": "/", "/%2fevil.example": "/", "\t//evil.example": "/", "/device\r\nSet-Cookie: a=b": "/",
		"/cli?" + strings.Repeat("a", maxLocal): "/",
	} {
		if got := local(in); got != want {
			t.Errorf("%q leads to %q, want %q", in, got, want)
		}
	}
}

// FuzzLocal: whatever comes in, what comes out is one of our own addresses, and
// leads to itself.
func FuzzLocal(f *testing.F) {
	for _, s := range []string{"", "/", "/device", asked.path(), "/web/launch/wiki?challenge=" + asked.Challenge, "//evil.example", "/\\evil.example/device", "https:/device", "/cli?port=1@evil"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := local(in)
		u, err := url.Parse("https://gw.example.com" + out)
		if err != nil || u.Host != "gw.example.com" || u.User != nil || strings.ContainsAny(out, "\\\r\n\t \"<>") || strings.HasPrefix(out, "//") {
			t.Fatalf("%q leads to %q", in, out)
		}
		at, err := url.Parse("https://gw.example.com/")
		if err != nil {
			t.Fatal(err)
		}
		if to, err := at.Parse(out); err != nil || to.Host != "gw.example.com" || to.Scheme != "https" {
			t.Fatalf("%q leads to %v %v", in, to, err)
		}
		if local(out) != out {
			t.Fatalf("%q leads to %q, which leads to %q", in, out, local(out))
		}
	})
}

// TestLocked: who is locked is told so, once.
func TestLocked(t *testing.T) {
	s := the().pages(t, login.Optional)
	s.desk.fail = errors.Join(sallyport.Denied("you are locked: come to room 5", "ask your administrator"))
	if code, page, h := do(s, ownForm("/login/password", "username", "alice", "password", password)); code != 403 || !strings.Contains(page, "room 5") || h.Get("Set-Cookie") != "" {
		t.Errorf("%d\n%s", code, page)
	}
}

// TestDatabaseCommand: what the page shows can be pasted. It named no user where there
// was a choice, and sally asks for one then.
func TestDatabaseCommand(t *testing.T) {
	for _, tt := range []struct {
		protocol     string
		users, names []string
		want         string
	}{
		{"postgres", []string{"reader"}, []string{"shop"}, "sally db connect orders"},
		{"postgres", []string{"reader", "writer"}, []string{"demo", "postgres"}, "sally db connect --db-user=reader --db-name=demo orders"},
		{"postgres", []string{"*"}, []string{"*"}, "sally db connect --db-user=USER --db-name=DATABASE orders"},
		{"postgres", []string{"$(id)", "b"}, nil, "sally db connect --db-user=b --db-name=DATABASE orders"},
		{"mysql", []string{"a", "b"}, []string{"c", "d"}, "sally db connect --db-user=a orders"},
		{"redis", nil, nil, "sally db connect --db-user=USER orders"},
	} {
		a := &sallyportv1.AccessibleResource{Resource: &sallyportv1.Resource{Name: "orders", Protocol: tt.protocol}, DatabaseUsers: tt.users, DatabaseNames: tt.names}
		if got := databaseCommand(a); got != tt.want {
			t.Errorf("%v: %s", tt, got)
		}
	}
}
