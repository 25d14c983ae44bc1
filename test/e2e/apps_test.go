package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
)

// testApps: an application by curl with the client certificate, and by the local
// port that a browser would use.
func testApps(t *testing.T, d *demo, p *person) {
	if _, err := exec.LookPath("curl"); err != nil {
		peers.Missing(t, "curl")
	}
	if out := p.run("sally", "apps", "ls"); !strings.Contains(out, "whoami") || !strings.Contains(out, "whoami.app.localhost") {
		t.Errorf("apps ls:\n%s", out)
	}
	out := p.run("sally", "apps", "login", "whoami")
	_, command, found := strings.Cut(out, "\n\n")
	if !found || !strings.Contains(out, "Logged into app") {
		t.Fatalf("apps login:\n%s", out)
	}
	curl := func(args string) string {
		return p.run("sh", "-c", strings.TrimSpace(command)+args)
	}
	for _, protocol := range []string{" --http2", " --http1.1"} {
		got := curl("/some/path?x=1 -sS -H 'Teleport-Jwt-Assertion: evil' -H 'X-Forwarded-For: 1.2.3.4' -H 'Cookie: a=1; __Host-sallyport-app=stolen'" + protocol)
		for _, want := range []string{"GET /some/path?x=1\n", "X-Demo-Logins: " + login(t) + "\n", "X-Forwarded-For: 127.0.0.1\n", "X-Forwarded-Host: whoami.app.localhost:", "Cookie: a=1\n", "Teleport-Jwt-Assertion: (a token of ", "Sallyport-Jwt-Assertion: (a token of ", "You are admin.\n", "  roles: access, "} {
			if !strings.Contains(got, want) {
				t.Errorf("%q is missing in\n%s", want, got)
			}
		}
		if strings.Contains(got, "evil") || strings.Contains(got, "stolen") || strings.Contains(got, "Assertion: ey") {
			t.Errorf("what the client may not say arrived:\n%s", got)
		}
	}
	var cfg struct{ URI, Curl string }
	if err := json.Unmarshal([]byte(p.run("sally", "apps", "config", "--format=json", "whoami")), &cfg); err != nil || cfg.Curl != strings.TrimSpace(command) {
		t.Errorf("%+v, %v", cfg, err)
	}
	if got := curl(" -sS -o /dev/null -w '%{http_code}' -H 'Host: other.app.localhost'"); got != "421" {
		t.Errorf("another host's name: %s", got)
	}

	keys := p.run("sh", "-c", "curl -sSk https://"+d.Proxy+"/.well-known/jwks.json")
	if !strings.Contains(keys, `"kty":"EC"`) || strings.Contains(keys, `"d"`) {
		t.Errorf("keys of tokens: %s", keys)
	}

	addr := p.listens(t, `on (127\.0\.0\.1:\d+)`, "proxy", "app", "whoami")
	resp, err := http.Get("http://" + addr + "/local")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := io.Copy(&b, resp.Body); err != nil || !strings.Contains(b.String(), "GET /local\n") {
		t.Errorf("by the local port: %s %q, %v", resp.Status, b.String(), err)
	}
	p.run("sally", "apps", "logout", "whoami")
	p.refused(1, []string{"not logged in to application"}, "sally", "apps", "logout", "whoami")
	p.refused(1, []string{`application "nothing"`, "sally apps ls"}, "sally", "apps", "login", "nothing")

	await(t, "the requests have come to auth", upWait, func() bool {
		for _, e := range d.events(t, p, "app.session.request") {
			if e["app_name"] == "whoami" && e["method"] == "GET" && e["path"] == "/some/path" && e["raw_query"] == "x=1" && e["user"] == "admin" {
				return true
			}
		}
		return false
	})
}
