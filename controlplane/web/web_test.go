package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"html"
	"image/png"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
	"github.com/sallyport/sallyport/controlplane/websession"
	"github.com/sallyport/sallyport/test/leak"
)

var update = flag.Bool("update", false, "write testdata/*.html")

const password = "correct horse battery staple"

// house is users in a store.
type house struct {
	dir    string
	store  store.Store
	sealer *ca.FileKey
}

var made = false

var the = sync.OnceValue(func() *house {
	made = true
	dir, err := os.MkdirTemp("", "web")
	if err != nil {
		panic(err)
	}
	h := &house{dir: dir}
	if h.store, err = etcd.OpenEmbedded(context.Background(), etcd.EmbeddedConfig{Dir: filepath.Join(dir, "etcd"), Log: slog.New(slog.DiscardHandler)}); err != nil {
		panic(err)
	}
	if h.sealer, err = ca.OpenKeyFile(filepath.Join(dir, "kek")); err != nil {
		panic(err)
	}
	return h
})

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	leak.Main(m, func() {
		if made {
			if err := errors.Join(the().store.Close(), os.RemoveAll(the().dir)); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	})
}

// site is the pages, and what they record.
type pagesUnderTest struct {
	http.Handler
	users    *login.Login
	desk     *desk
	recorded []string
	fail     error // of recording
	log      bytes.Buffer
}

func (h *house) pages(t *testing.T, p login.Policy) *pagesUnderTest {
	t.Helper()
	users, err := login.New(login.Config{Store: h.store, Sealer: h.sealer, Issuer: "gw.example.com", SecondFactor: p, Cost: login.Cost{Time: 1, Memory: 64, Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	s := &pagesUnderTest{users: users, desk: &desk{sessions: map[string]websession.Session{}, fresh: true}}
	s.Handler = s.on(t, users)
	return s
}

func (s *pagesUnderTest) on(t *testing.T, a Accounts) http.Handler {
	t.Helper()
	h, err := Handler(Config{
		Accounts: a, Desk: s.desk, Cluster: "gw.example.com", Address: "gw.example.com:443", Pins: []string{"sha256:abc"}, Log: slog.New(slog.NewTextHandler(&s.log, nil)),
		Visitor: func(*http.Request) netip.Addr { return netip.MustParseAddr("192.0.2.1") },
		Claimed: func(_ context.Context, user, device string, from netip.Addr) error {
			s.recorded = append(s.recorded, fmt.Sprintf("%s %v %s", user, device != "", from))
			return s.fail
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (s *pagesUnderTest) invite(t *testing.T) (name, path string) {
	t.Helper()
	name = "alice-" + uuid.NewString()[:8]
	link, err := s.users.CreateUser(t.Context(), login.User{Name: name, Roles: []string{"access"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return name, "/claim/" + link.Token
}

func do(h http.Handler, r *http.Request) (int, string, http.Header) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	b, _ := io.ReadAll(rec.Result().Body)
	return rec.Code, string(b), rec.Result().Header
}

func get(h http.Handler, path string) (int, string) {
	code, body, _ := do(h, httptest.NewRequest(http.MethodGet, "https://gw.example.com"+path, nil))
	return code, body
}

func post(h http.Handler, path string, form ...string) (int, string) {
	code, body, _ := do(h, formRequest(path, form...))
	return code, body
}

func formRequest(path string, form ...string) *http.Request {
	v := url.Values{}
	for i := 0; i < len(form); i += 2 {
		v.Set(form[i], form[i+1])
	}
	r := httptest.NewRequest(http.MethodPost, "https://gw.example.com"+path, strings.NewReader(v.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

// shown is the secret that a page shows.
func shown(t *testing.T, page string) string {
	t.Helper()
	m := regexp.MustCompile(`<code>([A-Z2-7]+)</code>`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no secret on the page:\n%s", page)
	}
	return m[1]
}

// TestClaim goes the whole way as a browser without JavaScript does: what is
// wrong keeps the link good, what is right uses it up.
func TestClaim(t *testing.T) {
	s := the().pages(t, login.TOTP)
	name, path := s.invite(t)
	code, page := get(s, path)
	if code != 200 {
		t.Fatalf("%d\n%s", code, page)
	}
	secret := shown(t, page)
	picture(t, page)
	otp, err := login.Code(secret, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	wrong := "000000"
	if otp == wrong {
		wrong = "111111"
	}
	for what, c := range map[string]struct {
		form []string
		tell string
	}{
		"passwords differ": {[]string{"password", password, "again", password + "!", "code", otp}, "differ"},
		"too short":        {[]string{"password", "short", "again", "short", "code", otp}, "password"},
		"too long":         {[]string{"password", strings.Repeat("x", 2000), "again", strings.Repeat("x", 2000), "code", otp}, "password"},
		"wrong code":       {[]string{"password", password, "again", password, "code", wrong}, "not right"},
		"no code":          {[]string{"password", password, "again", password}, "not right"},
		"nothing":          {nil, "password"},
	} {
		code, page := post(s, path, c.form...)
		if code != 400 || !strings.Contains(page, `role="alert"`) || !strings.Contains(page, c.tell) || !strings.Contains(page, "<form") {
			t.Errorf("%s: %d\n%s", what, code, page)
		}
		if strings.Contains(page, password) {
			t.Errorf("%s: the password comes back", what)
		}
		if got := shown(t, page); got != secret {
			t.Errorf("%s: another secret", what)
		}
	}
	if len(s.recorded) != 0 {
		t.Errorf("recorded %q", s.recorded)
	}
	code, page = post(s, path, "password", password, "again", password, "code", otp[:3]+" "+otp[3:])
	if code != 200 || !strings.Contains(page, "Done, "+name) || !strings.Contains(page, "--user="+name) || !strings.Contains(page, "--ca-pin=sha256:abc") {
		t.Fatalf("right: %d\n%s", code, page)
	}
	if len(s.recorded) != 1 || s.recorded[0] != name+" true 192.0.2.1" {
		t.Errorf("recorded %q", s.recorded)
	}
	if u, err := s.users.GetUser(t.Context(), name); err != nil || !u.Claimed || u.MFA == "" {
		t.Errorf("user %+v %v", u, err)
	}
	// A used link, one that never was, and what is no link look the same.
	_, unknown := get(s, "/claim/"+strings.Repeat("A", 43))
	for what, f := range map[string]func() (int, string){
		"used":         func() (int, string) { return get(s, path) },
		"used again":   func() (int, string) { return post(s, path, "password", password, "again", password, "code", otp) },
		"never was":    func() (int, string) { return get(s, "/claim/"+strings.Repeat("A", 43)) },
		"short":        func() (int, string) { return get(s, "/claim/x") },
		"with a slash": func() (int, string) { return get(s, "/claim/a%2Fb") },
		"form to unknown": func() (int, string) {
			return post(s, "/claim/"+strings.Repeat("B", 43), "password", password, "again", password)
		},
	} {
		if code, page := f(); code != 404 || page != unknown {
			t.Errorf("%s: %d\n%s", what, code, cmp.Diff(unknown, page))
		}
	}
}

// picture demands a QR code that is part of the page.
func picture(t *testing.T, page string) {
	t.Helper()
	m := regexp.MustCompile(`<img src="data:image/png;base64,([^"]+)"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no picture on the page")
	}
	b, err := base64.StdEncoding.DecodeString(html.UnescapeString(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil || img.Bounds().Dx() != qrSize || img.Bounds().Dy() != qrSize {
		t.Errorf("picture: %v", err)
	}
}

// TestClaimPolicies: the form asks for what the policy asks for.
func TestClaimPolicies(t *testing.T) {
	for policy, want := range map[login.Policy]struct {
		qr, required, without bool
	}{login.Off: {false, false, true}, login.Optional: {true, false, true}, login.TOTP: {true, true, false}} {
		s := the().pages(t, policy)
		name, path := s.invite(t)
		_, page := get(s, path)
		if strings.Contains(page, "data:image/png") != want.qr || regexp.MustCompile(`name="code"[^>]* required`).MatchString(page) != want.required {
			t.Errorf("%s:\n%s", policy, page)
		}
		if code, page := post(s, path, "password", password, "again", password); (code == 200) != want.without {
			t.Errorf("%s, without a code: %d\n%s", policy, code, page)
		}
		if want.without && (len(s.recorded) != 1 || s.recorded[0] != name+" false 192.0.2.1") {
			t.Errorf("%s: recorded %q", policy, s.recorded)
		}
	}
}

// TestClaimUnrecorded: what cannot be recorded is not done, and the link stays
// good for when it can.
func TestClaimUnrecorded(t *testing.T) {
	s := the().pages(t, login.Off)
	name, path := s.invite(t)
	s.fail = &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "audit log has no space left", Hint: "look at the disk"}
	code, page := post(s, path, "password", password, "again", password)
	if code != 503 || !strings.Contains(page, "no space left") {
		t.Errorf("%d\n%s", code, page)
	}
	if u, err := s.users.GetUser(t.Context(), name); err != nil || u.Claimed {
		t.Errorf("claimed: %+v %v", u, err)
	}
	s.fail = errors.New("at 10.1.2.3")
	if code, page := post(s, path, "password", password, "again", password); code != 500 || strings.Contains(page, "10.1.2.3") || !strings.Contains(s.log.String(), "10.1.2.3") {
		t.Errorf("%d\n%s\nlogged %s", code, page, s.log.String())
	}
	s.fail = nil
	if code, page := post(s, path, "password", password, "again", password); code != 200 {
		t.Errorf("later: %d\n%s", code, page)
	}
}

// TestClaimRace: of many who send the form at once one claims.
func TestClaimRace(t *testing.T) {
	s := the().pages(t, login.Off)
	_, path := s.invite(t)
	s.Handler = s.on(t, lockedRecorder{s.users, &sync.Mutex{}})
	codes := make([]int, 8)
	var wg sync.WaitGroup
	for i := range codes {
		wg.Go(func() {
			codes[i], _ = post(s, path, "password", fmt.Sprint(password, i), "again", fmt.Sprint(password, i))
		})
	}
	wg.Wait()
	won := 0
	for _, c := range codes {
		if c == 200 {
			won++
		} else if c != 404 && c != 503 {
			t.Errorf("answered %d", c)
		}
	}
	if won != 1 {
		t.Errorf("%d claimed: %v", won, codes)
	}
}

// lockedRecorder keeps the test's own list from races.
type lockedRecorder struct {
	*login.Login
	mu *sync.Mutex
}

func (l lockedRecorder) Claim(ctx context.Context, c login.Claim) (login.User, error) {
	record := c.Record
	c.Record = func(u login.User) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		return record(u)
	}
	return l.Login.Claim(ctx, c)
}

// fake answers as a test says.
type fake struct {
	offer login.Offer
	err   error
	wait  bool
}

func (f fake) Offer(ctx context.Context, _ string) (login.Offer, error) {
	if f.wait {
		<-ctx.Done()
		return login.Offer{}, ctx.Err()
	}
	return f.offer, f.err
}

func (f fake) Claim(context.Context, login.Claim) (login.User, error) {
	return login.User{Name: f.offer.User}, f.err
}

func (f fake) SecondFactor() login.Policy { return f.offer.SecondFactor }

// TestHeaders: every answer, whatever it is, forbids what pages could be abused
// for; and the style's hash is that of the style.
func TestHeaders(t *testing.T) {
	s := the().pages(t, login.Optional)
	_, path := s.invite(t)
	cross := formRequest(path, "password", password, "again", password)
	cross.Header.Set("Origin", "https://evil.example.com")
	requests := map[string]*http.Request{
		"home":         httptest.NewRequest(http.MethodGet, "https://gw.example.com/", nil),
		"claim":        httptest.NewRequest(http.MethodGet, "https://gw.example.com"+path, nil),
		"bad form":     formRequest(path),
		"unknown link": httptest.NewRequest(http.MethodGet, "https://gw.example.com/claim/x", nil),
		"unknown page": httptest.NewRequest(http.MethodGet, "https://gw.example.com/x", nil),
		"bad method":   httptest.NewRequest(http.MethodDelete, "https://gw.example.com"+path, nil),
		"cross origin": cross,
		"login":        ownForm("/login/password", "username", "alice", "password", "wrong"),
		"program":      httptest.NewRequest(http.MethodGet, "https://gw.example.com"+asked.path(), nil),
		"own session":  withCookie(httptest.NewRequest(http.MethodGet, "https://gw.example.com/", nil), s.desk.begin("alice")),
		"approved":     withCookie(ownForm("/cli", "next", asked.path(), "decision", "approve"), s.desk.begin("alice")),
	}
	for name, r := range requests {
		_, page, h := do(s, r)
		checkHeaders(t, name, h)
		if strings.Contains(strings.ToLower(page), "<script") {
			t.Errorf("%s: a script", name)
		}
		if m := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(page); m != nil {
			sum := sha256.Sum256([]byte(m[1]))
			if !strings.Contains(h.Get("Content-Security-Policy"), "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") {
				t.Errorf("%s: the style is not the one that the policy allows", name)
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		h := s.on(t, fake{wait: true})
		code, _, header := do(h, httptest.NewRequest(http.MethodGet, "https://gw.example.com/claim/x", nil))
		if code != http.StatusServiceUnavailable {
			t.Errorf("a page that takes too long: %d", code)
		}
		checkHeaders(t, "too long", header)
		synctest.Wait()
	})
}

func checkHeaders(t *testing.T, name string, h http.Header) {
	t.Helper()
	csp := h.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
		if !strings.Contains(csp, part) {
			t.Errorf("%s: policy %q lacks %s", name, csp, part)
		}
	}
	if strings.Contains(csp, "unsafe") || strings.Contains(csp, "script-src") || strings.Contains(csp, "*") {
		t.Errorf("%s: policy %q", name, csp)
	}
	for k, v := range map[string]string{"Cache-Control": "no-store", "Referrer-Policy": "same-origin", "X-Content-Type-Options": "nosniff",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin"} {
		if h.Get(k) != v {
			t.Errorf("%s: %s is %q", name, k, h.Get(k))
		}
	}
	if !strings.HasPrefix(h.Get("Strict-Transport-Security"), "max-age=") || h.Get("Set-Cookie") != "" {
		t.Errorf("%s: headers %v", name, h)
	}
}

// TestCrossOrigin: a form of another site claims nothing.
func TestCrossOrigin(t *testing.T) {
	s := the().pages(t, login.Off)
	_, path := s.invite(t)
	for _, c := range []struct {
		header, value string
		ok            bool
	}{
		{"Origin", "https://evil.example.com", false}, {"Origin", "null", false}, {"Sec-Fetch-Site", "cross-site", false}, {"Sec-Fetch-Site", "same-site", false},
		{"Origin", "http://gw.example.com.evil.example", false}, {"Origin", "https://gw.example.com", true},
	} {
		r := formRequest(path, "password", password, "again", password)
		r.Header.Set(c.header, c.value)
		if code, _, _ := do(s, r); (code == 200) != c.ok || !c.ok && code != 403 {
			t.Errorf("%s: %s: %d", c.header, c.value, code)
		}
	}
	if len(s.recorded) != 1 {
		t.Errorf("recorded %q", s.recorded)
	}
}

// TestBounds: a form has a size.
func TestBounds(t *testing.T) {
	s := the().pages(t, login.Off)
	_, path := s.invite(t)
	if code, page := post(s, path, "password", strings.Repeat("x", maxForm), "again", "x"); code != 400 || !strings.Contains(page, "could not be read") {
		t.Errorf("large: %d", code)
	}
	r := httptest.NewRequest(http.MethodPost, "https://gw.example.com"+path, strings.NewReader(`{"password":"x"}`))
	r.Header.Set("Content-Type", "application/json")
	if code, _, _ := do(s, r); code != 400 {
		t.Errorf("JSON: %d", code)
	}
	// Values in the address are no form: they would be in logs and histories.
	if code, _ := post(s, path+"?password="+url.QueryEscape(password)+"&again="+url.QueryEscape(password)); code != 400 {
		t.Errorf("in the address: %d", code)
	}
}

// TestEscaping: whatever a name or an error is, it is text on the page.
func TestEscaping(t *testing.T) {
	const evil = `"><script>alert(1)</script><x y='`
	s := the().pages(t, login.Optional)
	offer := login.Offer{User: evil, SecondFactor: login.Off, Secret: evil}
	for name, c := range map[string]struct {
		a Accounts
		r *http.Request
	}{
		"offer":   {fake{offer: offer}, httptest.NewRequest(http.MethodGet, "https://gw.example.com/claim/x", nil)},
		"done":    {fake{offer: offer}, formRequest("/claim/x", "password", password, "again", password)},
		"problem": {fake{err: &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: evil, Hint: evil}}, httptest.NewRequest(http.MethodGet, "https://gw.example.com/claim/x", nil)},
		"path":    {fake{offer: offer}, httptest.NewRequest(http.MethodGet, "https://gw.example.com/"+url.PathEscape(evil), nil)},
	} {
		_, page, _ := do(s.on(t, c.a), c.r)
		if strings.Contains(page, "<script") || strings.Contains(page, "<x y") || name != "path" && !strings.Contains(page, "&lt;script&gt;") {
			t.Errorf("%s:\n%s", name, page)
		}
	}
}

// TestStatus: refusals have the codes that programs expect.
func TestStatus(t *testing.T) {
	s := the().pages(t, login.Optional)
	for kind, want := range map[error]int{
		sallyport.ErrNotFound: 404, sallyport.ErrUnauthorized: 404, sallyport.ErrInvalid: 400, sallyport.ErrDenied: 403,
		sallyport.ErrExhausted: 503, sallyport.ErrUnavailable: 503, sallyport.ErrConflict: 500,
	} {
		h := s.on(t, fake{err: &sallyport.Problem{Kind: kind, Fact: "the fact", Hint: "the hint"}})
		if code, page := get(h, "/claim/x"); code != want || !strings.Contains(page, "the fact") || !strings.Contains(page, "the hint") {
			t.Errorf("%v: %d\n%s", kind, code, page)
		}
	}
}

// TestPages holds the pages to their golden files; what differs each time is
// taken out.
func TestPages(t *testing.T) {
	s := the().pages(t, login.Optional)
	name, path := s.invite(t)
	_, claim := get(s, path)
	secret := shown(t, claim)
	_, wrong := post(s, path, "password", "short", "again", "short")
	_, done := post(s, path, "password", password, "again", password)
	_, start := get(s, "/")
	_, gone := get(s, path)
	cookie := s.desk.begin("alice")
	_, home := as(s, cookie, httptest.NewRequest(http.MethodGet, "https://gw.example.com/", nil))
	_, cli := as(s, cookie, httptest.NewRequest(http.MethodGet, "https://gw.example.com"+asked.path(), nil))
	_, typed := as(s, cookie, ownForm("/device", "user_code", "bcdf-ghjk"))
	_, launch := as(s, cookie, httptest.NewRequest(http.MethodGet, "https://gw.example.com/web/launch/wiki?from=198.51.100.7&challenge="+asked.Challenge, nil))
	for file, page := range map[string]string{"launch": launch, "claim": claim, "wrong": wrong, "done": done, "login": start, "problem": gone, "home": home, "cli": cli, "devicedecide": typed} {
		page = strings.ReplaceAll(strings.ReplaceAll(page, name, "NAME"), secret, "SECRET")
		page = regexp.MustCompile(`base64,[^"]+`).ReplaceAllString(page, "base64,QR")
		page = regexp.MustCompile(`(until|since|used|<dd>)( ?)\d[^.<,]+, \d\d:\d\d UTC`).ReplaceAllString(page, "${1}${2}THEN")
		page = regexp.MustCompile(`(?s)<style>.*</style>`).ReplaceAllString(page, "<style></style>")
		golden := filepath.Join("testdata", file+".html")
		if *update {
			if err := os.WriteFile(golden, []byte(page), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), page); diff != "" {
			t.Errorf("%s (-update writes it):\n%s", golden, diff)
		}
	}
}
