package webapp

import (
	"net/http"
	"strings"
	"time"

	"github.com/sallyport/sallyport/dataplane/protocol/app"
)

// Our cookies at an application's origin. The prefix holds browsers to Secure,
// the whole origin and no Domain (RFC 6265bis, section 4.1.3.2): no other host,
// and so no other application, can set or read one.
const (
	sessionCookie = app.CookiePrefix + "-app"
	loginCookie   = app.CookiePrefix + "-login" // a beginning: each login has its own
)

const (
	sessionSize = 75 // letters of a session
	codeSize    = 43 // letters of a code, and of a verifier: 32 bytes
	loginTime   = 30 * time.Minute
	maxLogins   = 8 // of one browser at a time
	maxPath     = 2 << 10
)

// cookieOf is a cookie of ours, "" without one. Two of the name are none: which
// of them the browser means cannot be known.
func cookieOf(r *http.Request, name string) string {
	found := r.CookiesNamed(name)
	if len(found) != 1 {
		return ""
	}
	return found[0].Value
}

// setCookie sets a cookie of ours; "" removes it.
func setCookie(w http.ResponseWriter, name, value string, keep time.Duration) {
	c := &http.Cookie{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(keep.Seconds())}
	if value == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// letters says that s has so many letters of base64url (RFC 4648, section 5).
func letters(s string, n int) bool {
	return len(s) == n && !strings.ContainsFunc(s, func(r rune) bool {
		return (r|0x20 < 'a' || r|0x20 > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// localPath is a path and query within this origin, "/" for anything else. What
// browsers take for a slash, or pass over (URL, section 4.4), is in none.
func localPath(p string) string {
	if len(p) > maxPath || !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") || strings.HasPrefix(p, ownPaths) {
		return "/"
	}
	for i := range len(p) {
		if p[i] <= ' ' || p[i] >= 0x7f || p[i] == '\\' {
			return "/"
		}
	}
	return p
}
