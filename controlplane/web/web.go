// Package web serves the pages of the cluster's origin: claiming an account,
// logging in, what one may reach, one's sessions, and approving programs and
// applications. They work without JavaScript and have none.
//
// What changes something is a POST from a page of this very origin: another
// application below the cluster's name is the same site, so cookies come with
// its requests too (docs/web-sessions.md).
package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"html/template"
	"image/png"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/pquerna/otp"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/login"
)

const (
	maxForm     = 16 << 10
	qrSize      = 232 // pixels
	pageTimeout = 20 * time.Second
)

//go:embed pages/*.html pages/style.css
var files embed.FS

// Accounts is what the pages need of package login.
type Accounts interface {
	Offer(ctx context.Context, token string) (login.Offer, error)
	Claim(ctx context.Context, claim login.Claim) (login.User, error)
	SecondFactor() login.Policy
}

// Config says what the pages show.
type Config struct {
	Accounts Accounts
	Desk     Desk
	Cluster  string
	Address  string   // host:port of the gateway, for commands to copy
	Pins     []string // of the host CA

	// KeySet is what tokens for applications are verified by, as JSON; nil for
	// none.
	KeySet []byte

	// Claimed records that somebody claims an account, when all has been
	// checked and before the account changes. device is the id of the one for
	// codes that is added, "" for none. With an error the claim is not made, and
	// the link stays good.
	Claimed func(ctx context.Context, user, device string, from netip.Addr) error

	// Visitor is the address that a request came from.
	Visitor func(r *http.Request) netip.Addr

	Log *slog.Logger
}

// Handler serves the pages.
func Handler(cfg Config) (http.Handler, error) {
	pages, err := template.ParseFS(files, "pages/*.html")
	if err != nil {
		return nil, err
	}
	style, err := files.ReadFile("pages/style.css")
	if err != nil {
		return nil, err
	}
	s := &site{Config: cfg, pages: pages, style: template.CSS(style), policy: policy(style)}
	s.methods = []Method{passwords{cfg.Desk, cfg.Accounts.SecondFactor(), pages}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("POST /login/{method}", s.own(s.logIn))
	mux.HandleFunc("POST /logout", s.own(s.logOut))
	mux.HandleFunc("POST /sessions/end", s.own(s.endSession))
	mux.HandleFunc("GET /cli", s.visited(s.program))
	mux.HandleFunc("POST /cli", s.own(s.visited(s.decideProgram)))
	mux.HandleFunc("GET /device", s.visited(s.device))
	mux.HandleFunc("POST /device", s.own(s.visited(s.findDevice)))
	mux.HandleFunc("POST /device/decide", s.own(s.visited(s.decideDevice)))
	mux.HandleFunc("GET /web/launch/{app}", s.visited(s.launch))
	mux.HandleFunc("POST /web/launch/{app}", s.own(s.visited(s.decideLaunch)))
	mux.HandleFunc("GET /.well-known/jwks.json", s.keys)
	mux.HandleFunc("GET /claim/{token}", s.offer)
	mux.HandleFunc("POST /claim/{token}", s.claim)
	mux.HandleFunc("/", s.unknown)
	// A form of another origin cannot claim an account in a visitor's name.
	h := http.NewCrossOriginProtection().Handler(mux)
	return s.headers(http.TimeoutHandler(h, pageTimeout, "timed out")), nil
}

type site struct {
	Config
	pages   *template.Template
	style   template.CSS
	policy  string
	methods []Method
}

// policy is the Content-Security-Policy: nothing but our one style and the QR
// code, which is part of the page.
func policy(style []byte) string {
	sum := sha256.Sum256(style)
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
}

func (s *site) headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", s.policy)
		h.Set("Cache-Control", "no-store")
		// Not no-referrer: forms would be sent with "Origin: null" (Fetch, section 3.1), which
		// sameOrigin believes of browsers without Sec-Fetch-Site.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("X-Content-Type-Options", "nosniff")
		// Applications are of the same site, so cookies come with what their pages ask for. Who has opened
		// the window of a login does not hold it, and nothing of it can be part of another page.
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Strict-Transport-Security", "max-age=31536000")
		next.ServeHTTP(w, r)
	})
}

// view is what a page shows.
type view struct {
	Style    template.CSS
	Cluster  string
	Address  string
	Pin      string
	User     string
	Expires  string
	Secret   string
	QR       template.URL // a data: URL that we made
	CodeNeed string       // off, optional, required
	Problem  string
	Hint     string

	// Of visitors who are logged in, or about to be.
	Forms     []form
	Next      string // where the login leads
	Browsers  []browser
	Resources []resource
	Program   *programView
	UserCode  string
	Prove     template.HTML // fields for who has to give his password again
	Target    string        // where the page leads by itself
}

func (s *site) view() view {
	v := view{Style: s.style, Cluster: s.Cluster, Address: s.Address}
	if len(s.Pins) > 0 {
		v.Pin = s.Pins[0]
	}
	return v
}

func (s *site) unknown(w http.ResponseWriter, _ *http.Request) {
	v := s.view()
	v.Problem, v.Hint = "There is no such page.", ""
	s.show(w, http.StatusNotFound, "problem.html", v)
}

// offer shows the form of a link that is good.
func (s *site) offer(w http.ResponseWriter, r *http.Request) {
	o, err := s.Accounts.Offer(r.Context(), r.PathValue("token"))
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.form(w, http.StatusOK, o, nil)
}

func (s *site) form(w http.ResponseWriter, status int, o login.Offer, fault *sallyport.Problem) {
	v := s.view()
	v.User, v.Expires, v.CodeNeed = o.User, moment(o.Expires), codeNeed(o.SecondFactor)
	if v.CodeNeed != "off" {
		qr, err := qrCode(o.URL)
		if err != nil {
			s.refuse(w, err)
			return
		}
		v.Secret, v.QR = o.Secret, qr
	}
	if fault != nil {
		v.Problem, v.Hint = fault.Fact, fault.Hint
	}
	s.show(w, status, "claim.html", v)
}

// claim takes the form. The same page comes back with the fault, and the link
// stays good, until everything is right.
func (s *site) claim(w http.ResponseWriter, r *http.Request) {
	token := r.PathValue("token")
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		s.refuse(w, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the form could not be read"})
		return
	}
	o, err := s.Accounts.Offer(r.Context(), token)
	if err != nil {
		s.refuse(w, err)
		return
	}
	if r.PostForm.Get("password") != r.PostForm.Get("again") {
		s.form(w, http.StatusBadRequest, o, &sallyport.Problem{Fact: "the two passwords differ"})
		return
	}
	u, err := s.Accounts.Claim(r.Context(), login.Claim{
		Token: token, Password: r.PostForm.Get("password"), Code: r.PostForm.Get("code"),
		Record: func(u login.User) error { return s.Claimed(r.Context(), u.Name, u.MFA, s.Visitor(r)) },
	})
	var fault *sallyport.Problem
	switch {
	case errors.As(err, &fault) && errors.Is(err, sallyport.ErrInvalid):
		s.form(w, http.StatusBadRequest, o, fault)
		return
	case err != nil:
		s.refuse(w, err)
		return
	}
	v := s.view()
	v.User = u.Name
	s.show(w, http.StatusOK, "done.html", v)
}

// refuse shows an error: a Problem as it is, any other as ours.
func (s *site) refuse(w http.ResponseWriter, err error) {
	v, status := s.view(), http.StatusInternalServerError
	var p *sallyport.Problem
	if errors.As(err, &p) {
		v.Problem, v.Hint = p.Fact, p.Hint
		switch {
		case errors.Is(err, sallyport.ErrNotFound), errors.Is(err, sallyport.ErrUnauthorized):
			status = http.StatusNotFound
		case errors.Is(err, sallyport.ErrInvalid):
			status = http.StatusBadRequest
		case errors.Is(err, sallyport.ErrDenied):
			status = http.StatusForbidden
		case errors.Is(err, sallyport.ErrExhausted), errors.Is(err, sallyport.ErrUnavailable):
			status = http.StatusServiceUnavailable
		}
	} else {
		v.Problem, v.Hint = "something went wrong here", "the log of auth has more"
		s.Log.Error("page", "error", err)
	}
	s.show(w, status, "problem.html", v)
}

func (s *site) show(w http.ResponseWriter, status int, page string, v view) {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, page, v); err != nil {
		s.Log.Error("page", "page", page, "error", err)
		http.Error(w, "something went wrong here", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

// qrCode draws an otpauth:// URL.
func qrCode(url string) (template.URL, error) {
	key, err := otp.NewKeyFromURL(url)
	if err != nil {
		return "", err
	}
	img, err := key.Image(qrSize, qrSize)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return "", err
	}
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())), nil
}
