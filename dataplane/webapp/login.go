package webapp

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/sallyport/sallyport"
)

var b64 = base64.RawURLEncoding.Strict()

// begin leads to the login at the cluster's origin. The verifier stays in this
// browser, so that a code is good in no other one. Tabs may begin at once, and each
// comes back to its own page: a login is a cookie of its own.
func (v *visit) begin(w http.ResponseWriter, r *http.Request) {
	if begun := loginsOf(r); len(begun) >= maxLogins {
		for _, l := range begun[:len(begun)-maxLogins+1] { // the oldest (RFC 6265, section 5.4)
			setCookie(w, l.cookie, "", 0)
		}
	}
	verifier := newVerifier()
	challenge := challengeOf(verifier)
	path := localPath(r.URL.RequestURI())
	setCookie(w, loginCookie+"-"+challenge[:loginName], verifier+"."+b64.EncodeToString([]byte(path)), loginTime)
	ours(w.Header())
	q := url.Values{"challenge": {challenge}, "from": {v.client.Addr().String()}}
	w.Header().Set("Location", "https://"+v.clusterHost(r)+"/web/launch/"+v.app+"?"+q.Encode())
	w.WriteHeader(http.StatusFound)
}

// loginName is how many letters of its challenge name a login's cookie.
const loginName = 10

// login is one that this browser has begun.
type login struct{ cookie, verifier, path string }

// loginsOf are those of a request, in its order.
func loginsOf(r *http.Request) []login {
	var all []login
	for _, c := range r.Cookies() {
		if !strings.HasPrefix(c.Name, loginCookie) {
			continue
		}
		if verifier, path, ok := parseLogin(c.Value); ok {
			all = append(all, login{c.Name, verifier, path})
		}
	}
	return all
}

// loginOf is the one with the challenge that auth says. An auth of before says none: then
// it is the youngest.
func loginOf(r *http.Request) (l login, ok bool) {
	all := loginsOf(r)
	challenge, said := r.URL.Query()["challenge"]
	if !said && len(all) > 0 {
		return all[len(all)-1], true
	}
	for _, l := range all {
		if len(challenge) == 1 && challengeOf(l.verifier) == challenge[0] {
			return l, true
		}
	}
	return login{}, false
}

// challengeOf is what stands for a verifier where others see it (RFC 7636, section 4.2).
func challengeOf(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return b64.EncodeToString(sum[:])
}

func newVerifier() string {
	var b [32]byte
	rand.Read(b[:])
	return b64.EncodeToString(b[:])
}

// parseLogin takes the value of the login's cookie apart. What is not ours is none.
func parseLogin(value string) (verifier, path string, ok bool) {
	verifier, coded, _ := strings.Cut(value, ".")
	raw, err := b64.DecodeString(coded)
	if err != nil || !letters(verifier, codeSize) {
		return "", "", false
	}
	return verifier, localPath(string(raw)), true
}

// clusterHost is the cluster's origin, at the port by which the browser came.
func (v *visit) clusterHost(r *http.Request) string {
	if _, port, ok := strings.Cut(r.Host, ":"); ok && port != "443" {
		return net.JoinHostPort(v.Cluster, port)
	}
	return v.Cluster
}

// callback takes the code that comes back from the login, and makes a session.
func (v *visit) callback(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !navigates(r) {
		tell(w, http.StatusMethodNotAllowed, "the end of a login is a page that the browser is led to", "")
		return
	}
	begun, ok := loginOf(r)
	code := r.URL.Query()["code"]
	if len(code) != 1 || !letters(code[0], codeSize) {
		v.notHere(w, r)
		return
	}
	if !ok { // not this browser's login: the code is used up all the same
		begun.verifier = newVerifier()
	}
	cookie, err := v.redeem(r.Context(), code[0], begun.verifier)
	if errors.Is(err, sallyport.ErrUnauthorized) {
		v.notHere(w, r)
		return
	}
	if err != nil {
		v.without(w, r, err)
		return
	}
	ours(w.Header())
	setCookie(w, sessionCookie, cookie, 0)
	setCookie(w, begun.cookie, "", 0)
	w.Header().Set("Location", begun.path)
	w.WriteHeader(http.StatusSeeOther)
}

// notHere is for a code that this browser's login did not bring, or that has been
// used. Who is logged in already goes on. Else it leads nowhere by itself: a
// browser without cookies would go in circles.
func (v *visit) notHere(w http.ResponseWriter, r *http.Request) {
	if _, err := v.session(r.Context(), cookieOf(r, sessionCookie)); err == nil {
		ours(w.Header())
		w.Header().Set("Location", "/")
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	show(w, http.StatusForbidden, page{Title: "This login is not good here",
		Text: "It was begun in another browser, at another address, too long ago, or has been used. Nothing has changed.", Link: "Open the application"})
}

// logout asks, and ends this browser's session at the application.
func (v *visit) logout(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		show(w, http.StatusOK, page{Title: "Log out of " + v.app + "?", Button: "Log out",
			Text: "You stay logged in at " + v.Cluster + ", where you can log out of everything."})
		return
	case http.MethodPost:
	default:
		tell(w, http.StatusMethodNotAllowed, "log out by the form on this page", "")
		return
	}
	if cookie := cookieOf(r, sessionCookie); letters(cookie, sessionSize) {
		if err := v.end(r.Context(), cookie); err != nil {
			v.without(w, r, err)
			return
		}
	}
	setCookie(w, sessionCookie, "", 0)
	show(w, http.StatusOK, page{Title: "Logged out of " + v.app, Link: "Open the application again"})
}

func gone() *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "you are not logged in, or not any more", Hint: "open the application again"}
}
