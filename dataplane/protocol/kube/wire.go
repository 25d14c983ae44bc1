package kube

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// Bounds of what a request may say.
const (
	maxPath  = 4 << 10 // bytes; names have at most 253, and nine parts are the most
	maxQuery = 32 << 10
	maxParts = 64
	maxName  = 253 // RFC 1123 subdomain
)

// request is one request, read as the API server reads it (NewRequestInfo).
type request struct {
	verb        string // of the method: get list watch create update patch delete deletecollection
	group       string
	version     string
	resource    string // plural; "" for a path that names no resource
	subresource string
	namespace   string
	name        string
	object      string // the name without what says where in the object to
	rest        string // of a proxy subresource: what follows, with its slash
	path        string // decoded, without a slash at the end
	query       url.Values
	slash       bool // the path ended with a slash
}

// parse reads a request. Its error says what two readers could read in two ways.
func parse(method string, u *url.URL) (*request, string) {
	if len(u.Path) > maxPath || len(u.RawQuery) > maxQuery {
		return nil, "the request's path is too long"
	}
	if why := badPath(u.Path); why != "" {
		return nil, why
	}
	r := &request{path: u.Path}
	if r.path != "/" {
		r.path = strings.TrimSuffix(u.Path, "/")
		r.slash = r.path != u.Path
	}
	var err error
	if r.query, err = url.ParseQuery(u.RawQuery); err != nil {
		return nil, "the request's query cannot be read"
	}
	if r.verb = verbs[method]; r.verb == "" {
		return nil, "the method " + printable(method) + " is not one of the API"
	}
	return r, r.split()
}

var verbs = map[string]string{
	http.MethodGet: "get", http.MethodHead: "get", http.MethodPost: "create",
	http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
}

// badPath finds what proxies and servers are known to read in different ways.
// The path is the decoded one: %2f and %2e are in it as what they stand for.
func badPath(path string) string {
	if !strings.HasPrefix(path, "/") {
		return "the request's path does not begin with a slash"
	}
	if !utf8.ValidString(path) || strings.ContainsFunc(path, func(r rune) bool {
		return unicode.IsControl(r) || r == '\\' || r == '%' || r == '#' || r == '?' || r == ';'
	}) {
		return "the request's path has characters that are not allowed"
	}
	parts := strings.Split(path[1:], "/")
	if len(parts) > maxParts {
		return "the request's path has too many parts"
	}
	for i, p := range parts {
		if p == "." || p == ".." || p == "" && i != len(parts)-1 {
			return "the request's path is not in its plain form"
		}
		if len(p) > maxName {
			return "the request's path has a name that is too long"
		}
	}
	return ""
}

// split takes the path apart. An empty answer is success.
func (r *request) split() string {
	parts := strings.Split(strings.TrimPrefix(r.path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) >= 3:
		r.version, parts = parts[1], parts[2:]
	case parts[0] == "apis" && len(parts) >= 4:
		r.group, r.version, parts = parts[1], parts[2], parts[3:]
	default:
		return ""
	}
	if parts[0] == "watch" || parts[0] == "proxy" {
		return "the old paths below /" + parts[0] + " are not served"
	}
	// A namespace's own subresources belong to the namespace.
	if parts[0] == "namespaces" && len(parts) > 1 {
		r.namespace = parts[1]
		if len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
			parts = parts[2:]
		}
	}
	r.resource = parts[0]
	if len(parts) > 1 {
		r.name, r.object = parts[1], parts[1]
	}
	if len(parts) > 2 {
		r.subresource = parts[2]
	}
	if r.group == "" && r.subresource == "proxy" {
		var why string
		if r.object, why = proxied(r.name); why != "" {
			return why
		}
	}
	if len(parts) > 3 {
		if r.subresource != "proxy" {
			return "the request's path has more parts than the API knows"
		}
		r.rest = "/" + strings.Join(parts[3:], "/")
	}
	return r.collection()
}

// proxied is the object that a proxy subresource leads to. API servers read the
// name as [scheme:]name[:port] there (SplitSchemeNamePort of
// k8s.io/apimachinery, used by the pods', services' and nodes' REST storage),
// and nowhere else.
func proxied(name string) (object, why string) {
	parts := strings.Split(name, ":")
	scheme := ""
	switch len(parts) {
	case 1, 2:
		object = parts[0]
	case 3:
		scheme, object = parts[0], parts[1]
	}
	if object == "" || scheme != "" && scheme != "http" && scheme != "https" {
		return "", "the request's path says proxy of what is not [scheme:]name[:port]"
	}
	return object, ""
}

// collection finds out what is asked of many objects. Whether it is a watch is
// said to the API server in one way only.
func (r *request) collection() string {
	if r.name != "" {
		r.query.Del("watch")
		return ""
	}
	switch r.verb {
	case "get":
		r.verb = "list"
		watch := r.query["watch"]
		r.query.Del("watch")
		if len(watch) == 0 {
			break
		}
		switch watch[0] {
		case "true", "1":
			r.verb = "watch"
			r.query.Set("watch", "true")
		case "false", "0":
		default:
			return "the query's watch is neither true nor false"
		}
		if len(watch) > 1 {
			return "the query says watch twice"
		}
	case "delete":
		r.verb = "deletecollection"
	case "update", "patch":
		return "a whole collection cannot be changed at once"
	}
	return ""
}

// target is the URL for the API server: written anew from what was read, so
// that it reads the same.
func (r *request) target(base *url.URL) *url.URL {
	path := strings.TrimSuffix(base.Path, "/") + r.path
	if r.slash {
		path += "/"
	}
	return &url.URL{Scheme: base.Scheme, Host: base.Host, Path: path, RawQuery: r.query.Encode()}
}

// Streams are the subresources whose bytes are not HTTP.
const (
	subExec    = "exec"
	subAttach  = "attach"
	subForward = "portforward"
)

// stream is the subresource when the request asks for a stream to a pod.
func (r *request) stream() string {
	if r.group == "" && r.resource == "pods" && r.name != "" {
		switch r.subresource {
		case subExec, subAttach, subForward:
			return r.subresource
		}
	}
	return ""
}

// discovery are paths that tell what the API server can do, without objects.
func (r *request) discovery() bool {
	if r.resource != "" || r.verb != "get" {
		return false
	}
	first, rest, _ := strings.Cut(strings.TrimPrefix(r.path, "/"), "/")
	switch first {
	case "version", "healthz", "livez", "readyz":
		return true
	case "api", "apis":
		return strings.Count(rest, "/") <= 1
	case "openapi":
		return rest == "v2" || rest == "v3" || strings.HasPrefix(rest, "v3/")
	}
	return r.path == "/"
}

// selfReviews are the questions that a user asks about themselves.
func (r *request) selfReview() bool {
	if r.verb != "create" || r.name != "" {
		return false
	}
	switch r.group {
	case "authorization.k8s.io":
		return r.resource == "selfsubjectaccessreviews" || r.resource == "selfsubjectrulesreviews"
	case "authentication.k8s.io":
		return r.resource == "selfsubjectreviews"
	}
	return false
}

// questions are what roles must allow, all of them. A subresource counts as its
// object, with the verb of what it does.
func (r *request) questions() []sallyport.KubeRequest {
	q := sallyport.KubeRequest{Verb: r.verb, Group: r.group, Resource: r.resource, Namespace: r.namespace, Name: r.object}
	if r.discovery() || r.selfReview() {
		q.Open = true
		return []sallyport.KubeRequest{q}
	}
	core := r.group == ""
	switch {
	case core && r.resource == "pods" && (r.subresource == subExec || r.subresource == subAttach):
		// By GET or by POST: what is done is the same.
		q.Verb = "exec"
	case core && r.resource == "pods" && (r.subresource == subForward || r.subresource == "proxy"),
		core && r.resource == "services" && r.subresource == "proxy":
		q.Verb = "portforward"
	case core && r.resource == "pods" && r.subresource == "ephemeralcontainers" && r.verb != "get":
		// A container in a running pod runs commands there.
		exec := q
		exec.Verb = "exec"
		return []sallyport.KubeRequest{q, exec}
	case core && r.resource == "pods" && r.subresource == "eviction":
		q.Verb = "delete"
	case core && r.resource == "nodes" && r.subresource == "proxy", r.subresource == "proxy":
		// A kubelet runs commands in any of its pods.
		q.Whole = true
	}
	return []sallyport.KubeRequest{q}
}

// upgrade is the protocol that the client wants to switch to, or "".
func upgrade(h http.Header) string {
	for _, line := range h["Connection"] {
		for token := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return strings.ToLower(h.Get("Upgrade"))
			}
		}
	}
	return ""
}

// identityHeaders say who somebody is to the API server, or to an aggregated
// one behind it. Ours are set afterwards.
var identityHeaders = []string{"Authorization", "Proxy-Authorization", "Cookie", "Forwarded", "Via", "X-Forwarded-For",
	"X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "X-Client-Cert", "Ssl-Client-Cert", "X-Ssl-Client-Cert"}

// anonymous takes everything out that could say who the client is. Names are
// compared without case, and with _ as -: some servers read them alike.
func anonymous(h http.Header) {
	for name := range h {
		plain := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), "_", "-")
		if strings.HasPrefix(plain, "impersonate-") || strings.HasPrefix(plain, "x-remote-") ||
			strings.HasPrefix(plain, "teleport-") || strings.HasPrefix(plain, "sallyport-") ||
			slices.ContainsFunc(identityHeaders, func(n string) bool { return strings.EqualFold(n, plain) }) {
			delete(h, name)
		}
	}
	// A WebSocket client may bring a token in the protocol's name
	// (websocket.ProtocolAuthenticator): it must not reach the API server.
	if protocols, ok := h["Sec-Websocket-Protocol"]; ok {
		h["Sec-Websocket-Protocol"] = withoutBearer(protocols)
	}
}

func withoutBearer(lines []string) []string {
	var kept []string
	for _, line := range lines {
		for p := range strings.SplitSeq(line, ",") {
			if p = strings.TrimSpace(p); p != "" && !strings.HasPrefix(strings.ToLower(p), "base64url.bearer.") {
				kept = append(kept, p)
			}
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return []string{strings.Join(kept, ", ")}
}

// printable bounds and cleans what a client said for a message.
func printable(s string) string { return printableTo(s, 256) }

func printableTo(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	if len(s) > most {
		cut := most
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return s
}
