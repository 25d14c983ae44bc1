package web

import (
	"bytes"
	"context"
	"errors"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/websession"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// Cookie holds a web session at the cluster's origin. The prefix holds browsers
// to Secure, the whole origin, and no Domain (RFC 6265bis, section 4.1.3.2): no
// other host, and so no application, can set or read it.
const Cookie = "__Host-sallyport-session"

// Desk is what the pages ask of auth. cookie is what the browser sent, good or
// not: whoever is asked judges it anew each time.
type Desk interface {
	LogIn(ctx context.Context, in login.Attempt, browser, was string) (cookie string, ws websession.Session, err error)
	Visit(ctx context.Context, cookie string) (websession.Session, error)
	LogOut(ctx context.Context, cookie string) error
	Sessions(ctx context.Context, cookie string) ([]websession.Session, error)
	End(ctx context.Context, cookie, id string) error
	Resources(ctx context.Context, cookie string) ([]*sallyportv1.AccessibleResource, error)

	Fresh(ws websession.Session) bool
	Prove(ctx context.Context, cookie, password, code string) error
	ApproveProgram(ctx context.Context, cookie, challenge, keys string) (code string, err error)
	Device(ctx context.Context, cookie, userCode string) (websession.Device, error)
	DecideDevice(ctx context.Context, cookie, userCode string, approve bool) error
	Here(ctx context.Context, addr netip.Addr) bool
	Launch(ctx context.Context, cookie, app, challenge string, from netip.Addr) (code string, err error)
}

// Method is a way to prove who one is. Each is a form of the login page.
type Method interface {
	// Name is one segment of a path: the form goes to /login/<name>.
	Name() string
	// Fields are what the form asks for, with its button. refused is the request of
	// one that comes back, whose secrets are not in it again; nil for a new one.
	Fields(refused *http.Request) (template.HTML, error)
	// LogIn judges the form, and begins a session. was is the cookie that the
	// browser came with. What is wrong with the form's content is a Problem.
	LogIn(r *http.Request, was string) (cookie string, ws websession.Session, err error)
}

// form is a method on a page.
type form struct {
	Name   string
	Fields template.HTML
}

// passwords is the method of local users: a password, and a one-time code.
type passwords struct {
	desk   Desk
	policy login.Policy
	pages  *template.Template
}

// Name meets Method.
func (passwords) Name() string { return "password" }

// maxUserField is the length of the field for a user's name.
const maxUserField = 64

// Fields meets Method.
func (p passwords) Fields(refused *http.Request) (template.HTML, error) {
	user := ""
	if refused != nil {
		user = strings.TrimSpace(refused.PostForm.Get("username"))
	}
	if utf8.RuneCountInString(user) > maxUserField {
		user = ""
	}
	return p.fields("password", user)
}

// fields renders one of the parts with the policy in view.
func (p passwords) fields(part, user string) (template.HTML, error) {
	var b bytes.Buffer
	err := p.pages.ExecuteTemplate(&b, part, view{CodeNeed: codeNeed(p.policy), User: user})
	return template.HTML(b.String()), err
}

// LogIn meets Method.
func (p passwords) LogIn(r *http.Request, was string) (string, websession.Session, error) {
	f := r.PostForm
	return p.desk.LogIn(r.Context(), login.Attempt{User: strings.TrimSpace(f.Get("username")), Password: f.Get("password"), Code: strings.TrimSpace(f.Get("code"))},
		r.UserAgent(), was)
}

func codeNeed(p login.Policy) string {
	switch p {
	case login.Off:
		return "off"
	case login.TOTP:
		return "required"
	}
	return "optional"
}

// cookieOf is the session's cookie, "" without one. Two of the name are none:
// which of them a browser means cannot be known.
func cookieOf(r *http.Request) string {
	found := r.CookiesNamed(Cookie)
	if len(found) != 1 {
		return ""
	}
	return found[0].Value
}

func setCookie(w http.ResponseWriter, value string) {
	c := &http.Cookie{Name: Cookie, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	if value == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// own lets a request in that comes from a page of this origin, with a form that
// can be read. A browser says where it comes from, and a page cannot make it lie:
// Sec-Fetch-Site is a forbidden header name, and so is Origin.
func (s *site) own(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !sameOrigin(r) {
			s.refuse(w, sallyport.Denied("this form was not sent from a page of this site", "open the page and try again; old browsers cannot be used"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			s.refuse(w, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the form could not be read"})
			return
		}
		next(w, r)
	}
}

// sameOrigin believes Sec-Fetch-Site alone where there is one. Without it an
// Origin must be there, and ours; a request that says nothing is refused.
func sameOrigin(r *http.Request) bool {
	if site := r.Header.Values("Sec-Fetch-Site"); len(site) > 0 {
		return len(site) == 1 && site[0] == "same-origin"
	}
	origin := r.Header.Values("Origin")
	return len(origin) == 1 && strings.EqualFold(origin[0], "https://"+r.Host)
}

// visitor is who is logged in, for a page that only such people see.
type visitor struct {
	websession.Session
	cookie string
}

// visited asks everybody else to log in first, and then leads back here.
func (s *site) visited(next func(w http.ResponseWriter, r *http.Request, v visitor)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		cookie := cookieOf(r)
		ws, err := s.Desk.Visit(r.Context(), cookie)
		if errors.Is(err, sallyport.ErrUnauthorized) {
			to := r.URL.RequestURI()
			if r.Method != http.MethodGet {
				to = r.URL.Path
				if q := r.PostForm.Get("next"); q != "" {
					to = q
				}
			}
			s.loginPage(w, http.StatusOK, local(to), nil, nil)
			return
		}
		if err != nil {
			s.refuse(w, err)
			return
		}
		next(w, r, visitor{ws, cookie})
	}
}

// home is the login page, or what somebody may reach.
func (s *site) home(w http.ResponseWriter, r *http.Request) {
	cookie := cookieOf(r)
	ws, err := s.Desk.Visit(r.Context(), cookie)
	if errors.Is(err, sallyport.ErrUnauthorized) {
		s.loginPage(w, http.StatusOK, "/", nil, nil)
		return
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.homeOf(w, r, visitor{ws, cookie})
}

// browser is one session on the page.
type browser struct {
	ID, Name, Agent, Addr, Created, Seen string
	This                                 bool
}

// resource is one resource on the page.
type resource struct {
	Kind, Name, About, As, How string
	Link                       string
	Online                     bool
}

func (s *site) homeOf(w http.ResponseWriter, r *http.Request, v visitor) {
	sessions, err := s.Desk.Sessions(r.Context(), v.cookie)
	if err != nil {
		s.refuse(w, err)
		return
	}
	resources, err := s.Desk.Resources(r.Context(), v.cookie)
	if err != nil {
		s.refuse(w, err)
		return
	}
	page := s.view()
	page.User, page.Expires = v.User, moment(v.Ends)
	for _, ws := range sessions {
		page.Browsers = append(page.Browsers, browser{ID: ws.ID, Name: browserName(ws.Browser), Agent: ws.Browser, Addr: ws.Addr, Created: moment(ws.Created), Seen: moment(ws.Seen), This: ws.ID == v.ID})
	}
	for _, a := range resources {
		page.Resources = append(page.Resources, s.resource(r, a))
	}
	s.show(w, http.StatusOK, "home.html", page)
}

func (s *site) resource(r *http.Request, a *sallyportv1.AccessibleResource) resource {
	m := a.GetResource()
	out := resource{Kind: m.GetKind(), Name: m.GetName(), About: m.GetDescription(), Online: a.GetOnline()}
	switch sallyport.Kind(m.GetKind()) {
	case sallyport.KindNode:
		out.As, out.How = strings.Join(a.GetLogins(), ", "), "sally ssh "+m.GetName()
	case sallyport.KindDatabase:
		out.As, out.How = strings.Join(a.GetDatabaseUsers(), ", "), databaseCommand(a)
	case sallyport.KindTCP:
		out.How = "sally proxy tcp " + m.GetName()
	case sallyport.KindKube:
		out.How = "sally kube login " + m.GetName()
	case sallyport.KindApp:
		out.Link = "https://" + s.appHost(r, m.GetName())
	}
	return out
}

// databaseCommand can be pasted as it is: sally chooses by itself where there is
// nothing to choose.
func databaseCommand(a *sallyportv1.AccessibleResource) string {
	m, command := a.GetResource(), "sally db connect "
	if users := a.GetDatabaseUsers(); len(users) != 1 || !plain.MatchString(users[0]) {
		command += "--db-user=" + first(users, "USER") + " "
	}
	if names := a.GetDatabaseNames(); m.GetProtocol() == "postgres" && (len(names) != 1 || !plain.MatchString(names[0])) {
		command += "--db-name=" + first(names, "DATABASE") + " "
	}
	return command + m.GetName()
}

// plain is what a shell takes as it is.
var plain = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// first is the first plain name of a list.
func first(names []string, without string) string {
	if i := slices.IndexFunc(names, plain.MatchString); i >= 0 {
		return names[i]
	}
	return without
}

// appHost is an application's host, with the port by which the browser came.
func (s *site) appHost(r *http.Request, app string) string {
	host := app + "." + s.Cluster
	if _, port, err := net.SplitHostPort(r.Host); err == nil && validPort(port) && port != "443" {
		host = net.JoinHostPort(host, port)
	}
	return host
}

func moment(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 MST") }

// loginPage shows the forms, or after a fault refused's again.
func (s *site) loginPage(w http.ResponseWriter, status int, next string, refused *http.Request, fault *sallyport.Problem) {
	v := s.view()
	v.Next = next
	if fault != nil {
		v.Problem, v.Hint = fault.Fact, fault.Hint
	}
	for _, m := range s.methods {
		fields, err := m.Fields(refused)
		if err != nil {
			s.refuse(w, err)
			return
		}
		v.Forms = append(v.Forms, form{m.Name(), fields})
	}
	s.show(w, status, "login.html", v)
}

// logIn takes a form of the login page. What is wrong brings the page back.
func (s *site) logIn(w http.ResponseWriter, r *http.Request) {
	next := local(r.PostForm.Get("next"))
	for _, m := range s.methods {
		if m.Name() != r.PathValue("method") {
			continue
		}
		cookie, _, err := m.LogIn(r, cookieOf(r))
		if status, fault := fault(err); fault != nil {
			s.loginPage(w, status, next, r, fault)
			return
		}
		if err != nil {
			s.refuse(w, err)
			return
		}
		setCookie(w, cookie)
		s.lead(w, r, next)
		return
	}
	s.unknown(w, r)
}

// fault is what a login page says of an error, and nil for what is not the
// visitor's.
func fault(err error) (status int, p *sallyport.Problem) {
	if !errors.As(err, &p) {
		return 0, nil
	}
	switch {
	case errors.Is(err, sallyport.ErrUnauthorized), errors.Is(err, sallyport.ErrDenied):
		return http.StatusForbidden, p
	case errors.Is(err, sallyport.ErrExhausted):
		return http.StatusTooManyRequests, p
	}
	return 0, nil
}

// lead goes on after a form. Browsers hold the whole chain of redirects after a
// form to form-action, and a launch ends at another origin: there a page leads
// on that is not part of the chain.
func (s *site) lead(w http.ResponseWriter, r *http.Request, next string) {
	if strings.HasPrefix(next, launchPath) {
		s.goOn(w, next)
		return
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// goOn shows a page that leads to a place by itself.
func (s *site) goOn(w http.ResponseWriter, target string) {
	v := s.view()
	v.Target = target
	s.show(w, http.StatusOK, "continue.html", v)
}

// logOut ends this browser's session.
func (s *site) logOut(w http.ResponseWriter, r *http.Request) {
	if err := s.Desk.LogOut(r.Context(), cookieOf(r)); err != nil {
		s.refuse(w, err)
		return
	}
	setCookie(w, "")
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// endSession ends one session of the list, or all.
func (s *site) endSession(w http.ResponseWriter, r *http.Request) {
	id := r.PostForm.Get("id")
	if all := r.PostForm.Get("all") == "yes"; all == (id != "") {
		s.refuse(w, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "name one session, or all"})
		return
	}
	err := s.Desk.End(r.Context(), cookieOf(r), id)
	if err != nil && !errors.Is(err, sallyport.ErrUnauthorized) && !errors.Is(err, sallyport.ErrNotFound) {
		s.refuse(w, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
