package webapp

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// foreign says that a page of another origin makes the browser send this, and
// does more by it than to follow a link. Another application below the cluster's
// name, and the cluster's own pages, are other origins (of the same site: cookies
// go along).
//
// Sec-Fetch-Site is believed alone where there is one: a page cannot set it (Fetch
// Metadata, section 2). Without it Origin must be ours where something is changed,
// and nobody else's anywhere.
func foreign(r *http.Request) bool {
	if site := r.Header["Sec-Fetch-Site"]; len(site) > 0 {
		if len(site) == 1 && (site[0] == "same-origin" || site[0] == "none") { // none: by the user
			return false
		}
		return len(site) != 1 || !navigates(r)
	}
	if len(r.Header["Origin"]) == 0 {
		return r.Method != http.MethodGet && r.Method != http.MethodHead
	}
	return !ownOrigin(r)
}

// ownOrigin says that the request tells its origin, and that it is this one.
func ownOrigin(r *http.Request) bool {
	o := r.Header["Origin"]
	return len(o) == 1 && strings.EqualFold(o[0], "https://"+r.Host)
}

// navigates says that a link is followed: the answer becomes a page of its own in
// the browser, not one in a frame, and nothing that a script or a page asks for. What says nothing
// of that is no browser, or an old one.
//
// Without a destination it is the application's own service worker that passes a
// navigation on (Fetch, a copied request has none; nobody else can ask in this mode, and
// a worker only within its origin). It may be that of a frame, which shows nothing:
// frame-ancestors is in every answer.
func navigates(r *http.Request) bool {
	if isUpgrade(r.Header) {
		return false
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	mode, dest := r.Header["Sec-Fetch-Mode"], r.Header["Sec-Fetch-Dest"]
	if len(mode) == 0 && len(dest) == 0 {
		return true
	}
	return len(mode) == 1 && mode[0] == "navigate" && len(dest) == 1 && (dest[0] == "document" || dest[0] == "empty")
}

// isUpgrade says that a request asks for another protocol on its connection (RFC
// 9110, section 7.8).
func isUpgrade(h http.Header) bool {
	return len(h["Upgrade"]) > 0 || httpguts.HeaderValuesContainsToken(h["Connection"], "Upgrade")
}

// isWebSocket says that the one protocol asked for is that of RFC 6455.
func isWebSocket(h http.Header) bool {
	u := h["Upgrade"]
	return len(u) == 1 && strings.EqualFold(u[0], "websocket") && httpguts.HeaderValuesContainsToken(h["Connection"], "Upgrade")
}
