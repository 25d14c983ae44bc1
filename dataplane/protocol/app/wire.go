package app

import (
	"net/http"
	"net/url"
	"strings"
)

// CookiePrefix is how the names of our own cookies begin, at every origin. No
// application sees one, or sets one.
const CookiePrefix = "__Host-sallyport"

// oursOnly are headers that only we may write, by the beginnings of their
// folded names.
var oursOnly = [...]string{"sallyport-", "teleport-"}

// believed are headers that applications believe a proxy about, folded; those
// that end in a hyphen are beginnings. Who the user is, and where a request
// comes from, is ours to say.
var believed = [...]string{
	"forwarded", "via", "x-forwarded-", "x-forwarded", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original-", "x-rewrite-url", "true-client-ip", "client-ip",
	"x-http-method-override", "x-http-method", "x-method-override", "x-host",
	"remote-", "x-remote-", "x-user", "x-user-", "x-username", "x-email", "x-groups", "x-roles", "x-auth-", "x-authenticated-", "x-authentik-", "x-webauth-", "x-proxy-user", "x-sso-",
	"x-authelia-", "x-pomerium-", "cf-access-", "cf-connecting-ip", "x-goog-iap-", "x-goog-authenticated-user-", "x-amzn-oidc-", "x-ms-client-principal", "x-ms-client-principal-", "x-ms-token-",
	"x-vouch-", "x-token-", "x-client-cert", "x-client-cert-", "x-ssl-", "ssl-client-", "x-tailscale-", "tailscale-", "x-warpgate-",
}

// fold writes a header's name as servers that pass headers in environment
// variables see it: X_Forwarded-For, X.Forwarded.For and x-forwarded-for are one
// to them (RFC 3875, section 4.1.18, and those who write _ for whatever a variable's
// name cannot have).
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, name)
}

// ours says that a folded name is for us alone to write.
func ours(folded string) bool {
	for _, o := range &oursOnly {
		if strings.HasPrefix(folded, o) {
			return true
		}
	}
	return false
}

// told says that a folded name is one that a client may not write.
func told(folded string) bool {
	if ours(folded) {
		return true
	}
	for _, b := range &believed {
		if folded == b || strings.HasSuffix(b, "-") && strings.HasPrefix(folded, b) {
			return true
		}
	}
	return false
}

// cleanRequest takes out of a client's headers what it may not say: told, and
// those that set names in any spelling.
func cleanRequest(h http.Header, set []Header) {
	for name := range h {
		folded := fold(name)
		drop := told(folded)
		for i := 0; i < len(set) && !drop; i++ {
			drop = folded == fold(set[i].Name)
		}
		if drop {
			delete(h, name)
		}
	}
	CleanRequestCookies(h)
}

// CleanRequestCookies takes our cookies out of a request.
func CleanRequestCookies(h http.Header) {
	lines := h["Cookie"]
	kept := lines[:0:0]
	for _, line := range lines {
		if line = CleanCookie(line); line != "" {
			kept = append(kept, line)
		}
	}
	if len(kept) == 0 {
		h.Del("Cookie")
		return
	}
	h["Cookie"] = kept
}

// CleanCookie is a Cookie header without the cookies that are ours (RFC 6265,
// section 4.2.1). What is left is as the client wrote it.
func CleanCookie(line string) string {
	if !mentions(line) {
		return line
	}
	var kept []string
	for part := range strings.SplitSeq(line, ";") {
		part = strings.Trim(part, blanks)
		if part != "" && !ourCookie(part) {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, "; ")
}

// blanks are what one reader or another takes away around a cookie.
const blanks = " \t\r\n"

// mentions is a quick look for our prefix in any case.
func mentions(s string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(CookiePrefix))
}

// ourCookie says that a pair has a name of ours, or would have one for somebody
// who takes a pair without a name for a name.
func ourCookie(pair string) bool {
	pair = strings.TrimLeft(pair, blanks+"=\"")
	return len(pair) >= len(CookiePrefix) && strings.EqualFold(pair[:len(CookiePrefix)], CookiePrefix)
}

// CleanSetCookie is a Set-Cookie header as an application may send it: not of
// our name, and for its own origin alone (RFC 6265, section 5.2.3: without Domain
// a cookie goes back to the very host). "" drops it, as browsers drop what has
// control characters (RFC 6265bis, section 5.6): readers trim different ones.
func CleanSetCookie(line string) string {
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return ""
	}
	pair, rest, more := strings.Cut(line, ";")
	if ourCookie(pair) {
		return ""
	}
	if !more || !strings.Contains(strings.ToLower(rest), "domain") {
		return line
	}
	out := []string{pair}
	for attr := range strings.SplitSeq(rest, ";") {
		name, _, _ := strings.Cut(attr, "=")
		if !strings.EqualFold(strings.Trim(name, " \t"), "domain") {
			out = append(out, attr)
		}
	}
	return strings.Join(out, ";")
}

// CleanResponse takes out of an application's answer what would reach beyond its
// own origin.
func CleanResponse(h http.Header) {
	lines := h["Set-Cookie"]
	kept := lines[:0:0]
	for _, line := range lines {
		if line = CleanSetCookie(line); line != "" {
			kept = append(kept, line)
		}
	}
	if len(lines) > 0 {
		h["Set-Cookie"] = kept
	}
	// Alt-Svc would lead browsers around the gateway (RFC 7838); Clear-Site-Data
	// clears the cookies of all origins of the domain.
	for name := range h {
		if f := fold(name); f == "alt-svc" || f == "clear-site-data" || ours(f) {
			delete(h, name)
		}
	}
	if len(h["Set-Cookie"]) == 0 {
		h.Del("Set-Cookie")
	}
}

// Bodiless makes an answer that has no body by its status one that has none. A 304 may
// tell the length that the body of a 200 would have (RFC 9110, section 8.6), which over
// HTTP/2 net/http takes for a body that is missing; a 204 may not, and clients refuse it.
func Bodiless(r *http.Response) {
	if r.StatusCode != http.StatusNotModified && r.StatusCode != http.StatusNoContent {
		return
	}
	r.Header.Del("Content-Length")
	r.Body.Close()
	r.Body = http.NoBody
}

// Untyped keeps net/http from guessing the type of an answer that says none, from
// its first bytes. The guess would stand in the answer as the application's word: an
// upload that begins as HTML does would become a page of its origin, also where
// X-Content-Type-Options forbids browsers to guess.
func Untyped(h http.Header) {
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil
	}
}

// Outward is where a redirect of an application leads for its client: to its
// outer name when it names one of the inner ones, else where it says. scheme is
// the application's own, for a redirect that names none.
func Outward(location, scheme, outer string, inner []string) string {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" || u.Opaque != "" {
		return location
	}
	named := strings.ToLower(u.Scheme)
	if named == "" {
		named = scheme
	}
	if named != "http" && named != "https" {
		return location
	}
	for _, host := range inner {
		if withPort(u.Host, named) == host {
			u.Scheme, u.Host, u.User = "https", outer, nil
			return u.String()
		}
	}
	return location
}
