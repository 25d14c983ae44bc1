package web

import (
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/websession"
)

// programView is what somebody approves: a program, or a browser at an application.
type programView struct {
	Host      string // or the application
	Addr      string
	Here      string // the visitor's address
	Time      string
	Elsewhere bool   // the request came from another address than the visitor's
	Path      string // of the page, with what was asked
}

// fields asks for the password again, where it is too long since it was given.
func (s *site) provingFields(v visitor) (template.HTML, error) {
	if s.Desk.Fresh(v.Session) {
		return "", nil
	}
	return passwords{s.Desk, s.Accounts.SecondFactor(), s.pages}.fields("prove", "")
}

// program shows which program wants to act as the visitor, and asks.
func (s *site) program(w http.ResponseWriter, r *http.Request, v visitor) {
	p, ok := parseProgram(r.URL.Query())
	if !ok {
		s.refuse(w, badProgram())
		return
	}
	s.programPage(w, r, v, p, nil)
}

func badProgram() error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the address of this page is not complete", Hint: "run sally login again"}
}

func (s *site) programPage(w http.ResponseWriter, r *http.Request, v visitor, p program, fault *sallyport.Problem) {
	page := s.view()
	page.User = v.User
	page.Program = &programView{Host: p.Host, Addr: s.Visitor(r).String(), Time: moment(time.Now()), Path: p.path()}
	s.ask(w, v, "cli.html", page, fault)
}

// ask shows a page that asks for approval.
func (s *site) ask(w http.ResponseWriter, v visitor, name string, page view, fault *sallyport.Problem) {
	status := http.StatusOK
	if fault != nil {
		page.Problem, page.Hint, status = fault.Fact, fault.Hint, http.StatusForbidden
	}
	var err error
	if page.Prove, err = s.provingFields(v); err != nil {
		s.refuse(w, err)
		return
	}
	s.show(w, status, name, page)
}

// decideProgram takes the visitor's word, and leads to the program.
func (s *site) decideProgram(w http.ResponseWriter, r *http.Request, v visitor) {
	to, err := url.ParseRequestURI(r.PostForm.Get("next"))
	if err != nil || to.Path != "/cli" {
		s.refuse(w, badProgram())
		return
	}
	p, ok := parseProgram(to.Query())
	if !ok {
		s.refuse(w, badProgram())
		return
	}
	if r.PostForm.Get("decision") != "approve" {
		s.goOn(w, p.callback(url.Values{"error": {"access_denied"}})) // RFC 6749, section 4.1.2.1
		return
	}
	if fault, err := s.proved(r, v); err != nil {
		s.refuse(w, err)
		return
	} else if fault != nil {
		s.programPage(w, r, v, p, fault)
		return
	}
	code, err := s.Desk.ApproveProgram(r.Context(), v.cookie, p.Challenge, p.Keys)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.goOn(w, p.callback(url.Values{"code": {code}}))
}

// proved takes the password that came with an approval, where it is wanted.
// fault is for the same page again.
func (s *site) proved(r *http.Request, v visitor) (wrong *sallyport.Problem, err error) {
	if s.Desk.Fresh(v.Session) {
		return nil, nil
	}
	err = s.Desk.Prove(r.Context(), v.cookie, r.PostForm.Get("password"), strings.TrimSpace(r.PostForm.Get("code")))
	if _, p := fault(err); p != nil {
		return p, nil
	}
	return nil, err
}

// device asks for the code that a program shows elsewhere.
func (s *site) device(w http.ResponseWriter, _ *http.Request, v visitor) {
	s.devicePage(w, v, nil)
}

func (s *site) devicePage(w http.ResponseWriter, v visitor, fault *sallyport.Problem) {
	page := s.view()
	page.User = v.User
	status := http.StatusOK
	if fault != nil {
		page.Problem, page.Hint, status = fault.Fact, fault.Hint, http.StatusForbidden
	}
	s.show(w, status, "device.html", page)
}

// findDevice shows which program waits for the code that was typed, and asks.
func (s *site) findDevice(w http.ResponseWriter, r *http.Request, v visitor) {
	code, d, ok := s.typed(w, r, v)
	if ok {
		s.deviceAsk(w, r, v, code, d, nil)
	}
}

// typed finds the program of the code in the form; else the page is answered.
func (s *site) typed(w http.ResponseWriter, r *http.Request, v visitor) (code string, d websession.Device, ok bool) {
	code, ok = websession.ParseUserCode(r.PostForm.Get("user_code"))
	if !ok {
		s.devicePage(w, v, &sallyport.Problem{Fact: "this is not a code", Hint: "a code is eight letters, as sally shows it"})
		return "", d, false
	}
	d, err := s.Desk.Device(r.Context(), v.cookie, code)
	var p *sallyport.Problem
	if errors.As(err, &p) && (errors.Is(err, sallyport.ErrNotFound) || errors.Is(err, sallyport.ErrExhausted)) {
		s.devicePage(w, v, p)
		return "", d, false
	}
	if err != nil {
		s.refuse(w, err)
		return "", d, false
	}
	return code, d, true
}

func (s *site) deviceAsk(w http.ResponseWriter, r *http.Request, v visitor, code string, d websession.Device, fault *sallyport.Problem) {
	page := s.view()
	page.User, page.UserCode = v.User, websession.ShowUserCode(code)
	page.Program = &programView{Host: d.Host, Addr: d.Addr, Time: moment(d.Created), Elsewhere: d.Addr != s.Visitor(r).String()}
	s.ask(w, v, "devicedecide.html", page, fault)
}

// decideDevice takes the visitor's word; the program asks for it by itself.
func (s *site) decideDevice(w http.ResponseWriter, r *http.Request, v visitor) {
	code, d, ok := s.typed(w, r, v)
	if !ok {
		return
	}
	approve := r.PostForm.Get("decision") == "approve"
	if approve {
		if fault, err := s.proved(r, v); err != nil {
			s.refuse(w, err)
			return
		} else if fault != nil {
			s.deviceAsk(w, r, v, code, d, fault)
			return
		}
	}
	if err := s.Desk.DecideDevice(r.Context(), v.cookie, code, approve); err != nil {
		s.refuse(w, err)
		return
	}
	page := s.view()
	page.User = v.User
	name := "refused.html"
	if approve {
		name = "approved.html"
	}
	s.show(w, http.StatusOK, name, page)
}

// navigates says that the answer becomes a page in a window of its own. What says
// nothing of that is no browser, or an old one.
func navigates(r *http.Request) bool {
	mode, dest := r.Header["Sec-Fetch-Mode"], r.Header["Sec-Fetch-Dest"]
	if len(mode) == 0 && len(dest) == 0 {
		return r.Method == http.MethodGet
	}
	return r.Method == http.MethodGet && len(mode) == 1 && mode[0] == "navigate" && len(dest) == 1 && dest[0] == "document"
}

// launch takes the session to an application's origin. The address is made of
// the application's name alone, one label below the cluster's.
//
// It makes a code, so nothing but a page of a window leads here: what a browser asks
// for by itself, an image or a frame of any page, does not.
//
// A script of the application can lead here too, with a verifier that it has elsewhere, and
// take the code from the browser. So a code is good from one network: that of the visitor,
// or another one that he has been shown, and has approved.
func (s *site) launch(w http.ResponseWriter, r *http.Request, v visitor) {
	if !navigates(r) {
		s.refuse(w, sallyport.Denied("an application is opened as a page of its own", "open the application in a window"))
		return
	}
	l, ok := parseLaunch(r.PathValue("app"), r.URL.Query())
	if !ok {
		s.refuse(w, badLaunch())
		return
	}
	if !l.From.IsValid() {
		l.From = s.Visitor(r)
	}
	if !s.Desk.Here(r.Context(), l.From) {
		s.launchPage(w, r, v, l, nil)
		return
	}
	to, err := s.launched(r, v, l)
	if err != nil {
		s.refuse(w, err)
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func badLaunch() error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the address of this page is not complete", Hint: "open the application again"}
}

func (s *site) launchPage(w http.ResponseWriter, r *http.Request, v visitor, l launch, fault *sallyport.Problem) {
	page := s.view()
	page.User = v.User
	page.Program = &programView{Host: l.App, Addr: l.From.String(), Here: s.Visitor(r).String(), Path: l.path()}
	s.ask(w, v, "launch.html", page, fault)
}

// launched is the address at the application's origin that begins its session. It has the
// challenge too: a browser may have begun several logins.
func (s *site) launched(r *http.Request, v visitor, l launch) (to string, err error) {
	code, err := s.Desk.Launch(r.Context(), v.cookie, l.App, l.Challenge, l.From)
	if err != nil {
		return "", err
	}
	return "https://" + s.appHost(r, l.App) + "/.sallyport/callback?code=" + code + "&challenge=" + l.Challenge, nil
}

// decideLaunch takes the visitor's word about a login from another address.
func (s *site) decideLaunch(w http.ResponseWriter, r *http.Request, v visitor) {
	to, err := url.ParseRequestURI(r.PostForm.Get("next"))
	if err != nil || to.Path != launchPath+r.PathValue("app") {
		s.refuse(w, badLaunch())
		return
	}
	l, ok := parseLaunch(r.PathValue("app"), to.Query())
	if !ok || !l.From.IsValid() {
		s.refuse(w, badLaunch())
		return
	}
	if r.PostForm.Get("decision") != "approve" {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	if fault, err := s.proved(r, v); err != nil {
		s.refuse(w, err)
		return
	} else if fault != nil {
		s.launchPage(w, r, v, l, fault)
		return
	}
	target, err := s.launched(r, v, l)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.goOn(w, target)
}
