package kube

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

func mustParse(t testing.TB, method, target string) *request {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	r, why := parse(method, u)
	if why != "" {
		t.Fatalf("%s %s: %s", method, target, why)
	}
	return r
}

// TestParse has the cases of the API server's own tests of NewRequestInfo.
func TestParse(t *testing.T) {
	for _, tt := range []struct{ method, target, want string }{
		{"GET", "/api/v1/namespaces", "list /namespaces//"},
		{"GET", "/api/v1/namespaces/other", "get /namespaces/other/other"},
		{"GET", "/api/v1/namespaces/other/pods", "list /pods/other/"},
		{"GET", "/api/v1/namespaces/other/pods/foo", "get /pods/other/foo"},
		{"HEAD", "/api/v1/namespaces/other/pods/foo", "get /pods/other/foo"},
		{"GET", "/api/v1/pods", "list /pods//"},
		{"GET", "/api/v1/pods/", "list /pods//"},
		{"POST", "/api/v1/namespaces/other/pods", "create /pods/other/"},
		{"PUT", "/api/v1/namespaces/other/pods/foo", "update /pods/other/foo"},
		{"DELETE", "/api/v1/namespaces/other/pods", "deletecollection /pods/other/"},
		{"DELETE", "/api/v1/namespaces/other/pods/foo", "delete /pods/other/foo"},
		{"GET", "/api/v1/namespaces/other/pods/foo/log", "get /pods/other/foo/log"},
		{"PUT", "/api/v1/namespaces/other/finalize", "update /namespaces/other/other/finalize"},
		{"PUT", "/api/v1/namespaces/other/status", "update /namespaces/other/other/status"},
		{"GET", "/api/v1/namespaces/other/pods?watch=true", "watch /pods/other/"},
		{"GET", "/api/v1/namespaces/other/pods?watch=0", "list /pods/other/"},
		{"GET", "/api/v1/namespaces/other/pods/foo?watch=true", "get /pods/other/foo"},
		{"GET", "/apis/apps/v1/namespaces/other/deployments/web", "get apps/deployments/other/web"},
		{"GET", "/apis/apps/v1/deployments", "list apps/deployments//"},
		{"GET", "/apis/apps/v1", "get ///"},
		{"GET", "/apis/apps", "get ///"},
		{"GET", "/api", "get ///"},
		{"GET", "/", "get ///"},
		{"GET", "/version", "get ///"},
		{"PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:x", "patch rbac.authorization.k8s.io/clusterroles//system:x"},
		{"GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Ax", "get rbac.authorization.k8s.io/clusterroles//system:x"},
		{"GET", "/api/v1/nodes/n/proxy/run/x", "get /nodes//n/proxy"},
	} {
		r := mustParse(t, tt.method, tt.target)
		got := strings.Join([]string{r.verb + " " + r.group, r.resource, r.namespace, r.name}, "/")
		if r.subresource != "" {
			got += "/" + r.subresource
		}
		if got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.method, tt.target, got, tt.want)
		}
	}
}

// TestA123_Paths: what two readers could read in two ways is refused.
func TestA123_Paths(t *testing.T) {
	for _, target := range []string{
		"/api/v1/../v1/pods", "/api/v1/./pods", "/api/v1//pods", "//api/v1/pods", "/api/v1/namespaces/a/../b/pods",
		"/api/v1/namespaces/a/%2e%2e/b/secrets", "/api/v1/%2e/pods", "/api/v1/namespaces/a%2fpods%2f..", "/api/v1/namespaces/a\\b/pods",
		"/api/v1/namespaces/a%5cb/pods", "/api/v1/namespaces/a%00/pods", "/api/v1/namespaces/a;x=y/pods", "/api/v1/namespaces/%252e%252e/pods",
		"/api/v1/namespaces/a%3fb/pods", "/api/v1/namespaces/a%23b/pods", "/api/v1/namespaces/a%0ab/pods", "/api/v1/namespaces/%ff/pods",
		"/api/v1/watch/namespaces/a/pods", "/api/v1/proxy/namespaces/a/pods/b", "/apis/apps/v1/watch/deployments",
		"/api/v1/namespaces/a/services/:/proxy", "/api/v1/namespaces/a/services/:80/proxy", "/api/v1/namespaces/a/pods/ftp:b:80/proxy/x",
		"/api/v1/namespaces/a/services/https:b:80:c/proxy", "/api/v1/nodes/HTTPS:n:1/proxy", "/api/v1/namespaces/a/services/https::80/proxy",
		"/api/v1/namespaces/a/pods/b/log/c", "/api/v1/namespaces/a/pods?watch=true&watch=false", "/api/v1/namespaces/a/pods?watch=maybe",
		"/api/v1/namespaces/a/pods?watch", "/api/v1/pods?a=%zz", "/api/v1/pods?a;watch=true",
		"/api/v1/namespaces/" + strings.Repeat("a", 254) + "/pods", "/" + strings.Repeat("a/", 65), "/" + strings.Repeat("a", 5000),
		strings.Repeat("/"+strings.Repeat("a", 200), maxPath/200+1), "/api/v1/pods?labelSelector=" + strings.Repeat("a", maxQuery),
	} {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			continue // net/http refuses it before
		}
		if r, why := parse("GET", u); why == "" {
			t.Errorf("%s is taken as %+v", target, r)
		}
	}
	for _, method := range []string{"CONNECT", "OPTIONS", "TRACE", "get", "PROPFIND", ""} {
		if _, why := parse(method, &url.URL{Path: "/api/v1/pods"}); why == "" {
			t.Errorf("method %q is taken", method)
		}
	}
}

// TestTarget: the API server gets what was read, and reads the same again.
func TestTarget(t *testing.T) {
	base := &url.URL{Scheme: "https", Host: "api:6443"}
	for target, want := range map[string]string{
		"/api/v1/pods?watch=1&limit=5":                           "https://api:6443/api/v1/pods?limit=5&watch=true",
		"/api/v1/pods/?watch=0":                                  "https://api:6443/api/v1/pods/",
		"/api/v1/namespaces/a/pods/b?watch=true":                 "https://api:6443/api/v1/namespaces/a/pods/b",
		"/api/v1/namespaces/a/pods/b/exec?command=a&command=b+c": "https://api:6443/api/v1/namespaces/a/pods/b/exec?command=a&command=b+c",
		"/apis/x/v1/y/system%3Az":                                "https://api:6443/apis/x/v1/y/system:z",
	} {
		if got := mustParse(t, "GET", target).target(base).String(); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
}

// TestA121_Questions: what a stream does counts, not the method that asks for it.
func TestA121_Questions(t *testing.T) {
	for _, tt := range []struct{ method, target, want string }{
		{"GET", "/api/v1/namespaces/a/pods/b/exec", "exec pods a/b"},
		{"POST", "/api/v1/namespaces/a/pods/b/exec", "exec pods a/b"},
		{"GET", "/api/v1/namespaces/a/pods/b/attach", "exec pods a/b"},
		{"POST", "/api/v1/namespaces/a/pods/b/attach", "exec pods a/b"},
		{"GET", "/api/v1/namespaces/a/pods/b/portforward", "portforward pods a/b"},
		{"POST", "/api/v1/namespaces/a/pods/b/portforward", "portforward pods a/b"},
		{"GET", "/api/v1/namespaces/a/pods/b/proxy/x", "portforward pods a/b"},
		{"GET", "/api/v1/namespaces/a/services/b/proxy/x", "portforward services a/b"},
		{"GET", "/api/v1/namespaces/a/pods/b:80/proxy/x", "portforward pods a/b"},
		{"GET", "/api/v1/namespaces/a/services/b:/proxy/x", "portforward services a/b"},
		{"GET", "/api/v1/namespaces/a/services/https:b:x-c/proxy", "portforward services a/b"},
		{"GET", "/api/v1/namespaces/a/services/:b:/proxy/x", "portforward services a/b"},
		{"GET", "/api/v1/namespaces/a/pods/b:80", "get pods a/b:80"},
		{"GET", "/apis/example.com/v1/things/x:y/proxy", "get things /x:y whole"},
		{"GET", "/api/v1/nodes/n:10250/proxy/exec", "get nodes /n whole"},
		{"GET", "/api/v1/nodes/n/proxy/exec", "get nodes /n whole"},
		{"POST", "/api/v1/nodes/n/proxy/run/a/b/c", "create nodes /n whole"},
		{"GET", "/apis/example.com/v1/things/x/proxy", "get things /x whole"},
		{"PATCH", "/api/v1/namespaces/a/pods/b/ephemeralcontainers", "patch pods a/b, exec pods a/b"},
		{"GET", "/api/v1/namespaces/a/pods/b/ephemeralcontainers", "get pods a/b"},
		{"POST", "/api/v1/namespaces/a/pods/b/eviction", "delete pods a/b"},
		{"GET", "/api/v1/namespaces/a/pods/b/log", "get pods a/b"},
		{"POST", "/api/v1/namespaces/a/serviceaccounts/b/token", "create serviceaccounts a/b"},
		{"GET", "/api/v1", "get  / open"},
		{"GET", "/apis/apps/v1", "get  / open"},
		{"GET", "/openapi/v3/apis/apps/v1", "get  / open"},
		{"GET", "/openapi/v2", "get  / open"},
		{"GET", "/openapi/v4", "get  /"},
		{"GET", "/version", "get  / open"},
		{"POST", "/version", "create  /"},
		{"GET", "/metrics", "get  /"},
		{"GET", "/logs/x", "get  /"},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "create selfsubjectaccessreviews / open"},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/a", "create selfsubjectaccessreviews /a"},
		{"POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "create subjectaccessreviews /"},
	} {
		var got []string
		for _, q := range mustParse(t, tt.method, tt.target).questions() {
			text := q.Verb + " " + q.Resource + " " + q.Namespace + "/" + q.Name
			if q.Whole {
				text += " whole"
			}
			if q.Open {
				text += " open"
			}
			got = append(got, text)
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.method, tt.target, s, tt.want)
		}
	}
}

// TestA120_Anonymous: no spelling of a header says who the client is.
func TestA120_Anonymous(t *testing.T) {
	h := http.Header{"Accept": {"*/*"}, "User-Agent": {"kubectl"}, "Sec-Websocket-Protocol": {"v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.eHl6", "v4.channel.k8s.io"}}
	for _, name := range []string{"Impersonate-User", "impersonate-user", "IMPERSONATE-GROUP", "Impersonate_User", "impersonate-Extra-scopes", "Impersonate-Uid",
		"Authorization", "authorization", "Proxy-Authorization", "Cookie", "X-Remote-User", "x_remote_group", "X-Forwarded-For", "Forwarded",
		"Ssl-Client-Cert", "Teleport-Impersonate-User", "X-Real-IP"} {
		h[name] = []string{"evil"}
	}
	anonymous(h)
	for name, values := range h {
		if slices.Contains(values, "evil") {
			t.Errorf("%s is passed on", name)
		}
	}
	if len(h["Accept"]) != 1 || len(h["User-Agent"]) != 1 {
		t.Errorf("left: %v", h)
	}
	if got := h["Sec-Websocket-Protocol"]; len(got) != 1 || got[0] != "v5.channel.k8s.io, v4.channel.k8s.io" {
		t.Errorf("protocols: %q", got)
	}
}

// FuzzParse: the path that goes to the API server is the one that was decided
// on, and has nothing that a reader could take away.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"/api/v1/namespaces/a/pods/b/exec?command=x", "/apis/apps/v1/deployments?watch=1", "/api/v1/../x", "/api/v1/nodes/n/proxy/a//b", "/api/v1/namespaces/a/services/https:b:80/proxy/c", "/%2e%2e/a", "/version", "/api/v1/namespaces/a/finalize"} {
		f.Add("GET", s)
		f.Add("DELETE", s)
	}
	base := &url.URL{Scheme: "https", Host: "api"}
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r, why := parse(method, u)
		if why != "" {
			return
		}
		out := r.target(base)
		again, err := url.Parse(out.String())
		if err != nil {
			t.Fatalf("%q is not a URL: %v", out, err)
		}
		same, why := parse(method, again)
		if why != "" {
			t.Fatalf("%q is refused when it is read again: %s", out, why)
		}
		if a, b := same.questions(), r.questions(); !slices.Equal(a, b) {
			t.Fatalf("%q: read as %+v, then as %+v", out, b, a)
		}
		// The parts put together again are the path.
		want := oracle(r)
		if r.resource != "" && want != r.path {
			t.Fatalf("%q was read as %q", r.path, want)
		}
		for _, q := range r.questions() {
			if strings.ContainsAny(q.Namespace+q.Name+q.Resource+q.Group, "/\\%?#;") {
				t.Fatalf("a part of %q holds more than a name: %+v", r.path, q)
			}
			if r.group == "" && r.subresource == "proxy" && strings.Contains(q.Name, ":") {
				t.Fatalf("roles are asked for %q of %q, not for the object", q.Name, r.path)
			}
		}
	})
}

// oracle writes a path as the API reference has it.
func oracle(r *request) string {
	parts := []string{"", "api", r.version}
	if strings.HasPrefix(r.path, "/apis/") {
		parts = []string{"", "apis", r.group, r.version}
	}
	if r.namespace != "" && !(r.resource == "namespaces" && r.namespace == r.name && !strings.HasPrefix(r.path, strings.Join(append(parts, "namespaces", r.namespace, "namespaces"), "/"))) {
		parts = append(parts, "namespaces", r.namespace)
	}
	parts = append(parts, r.resource)
	if r.name != "" {
		parts = append(parts, r.name)
	}
	if r.subresource != "" {
		parts = append(parts, r.subresource)
	}
	return strings.Join(parts, "/") + r.rest
}

var _ sallyport.KubeGrant = grant(nil)
