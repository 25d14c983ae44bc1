package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// ours is how the names of the gateway's cookies begin.
const ours = "__Host-sallyport"

// webApp is an application that notes what reaches it.
type webApp struct {
	name, port string
	*httptest.Server

	mu   sync.Mutex
	seen []string // method, path, cookies
}

func startWebApp(t testing.TB, name string, pages func(a *webApp, w http.ResponseWriter, r *http.Request)) *webApp {
	t.Helper()
	a := &webApp{name: name}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.seen = append(a.seen, r.Method+" "+r.URL.Path+" cookies="+strings.Join(r.Header["Cookie"], "|"))
		a.mu.Unlock()
		pages(a, w, r)
	}))
	t.Cleanup(a.CloseClientConnections)
	t.Cleanup(a.Close)
	return a
}

func (a *webApp) log() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seen)
}

// got says that a request whose line begins so has come.
func (a *webApp) got(line string) bool {
	return slices.ContainsFunc(a.log(), func(s string) bool { return strings.HasPrefix(s, line) })
}

func (a *webApp) origin() string { return "https://" + a.name + "." + clusterName + ":" + a.port }

// bankPages is an application with something to lose.
func bankPages(a *webApp, w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/":
		w.Header().Add("Set-Cookie", "account=42; Domain="+clusterName+"; Path=/")
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<title>bank</title><p>your account<p id=cookies></p><script>document.getElementById('cookies').textContent = 'cookies: ' + document.cookie</script>")
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case "/socket":
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		kind, b, err := c.Read(r.Context())
		if err == nil {
			_ = c.Write(r.Context(), kind, append([]byte("bank says "), b...))
			_, _, _ = c.Read(r.Context()) // until the page leaves
		}
	case "/ticks":
		for n := 0; r.Context().Err() == nil; n++ {
			fmt.Fprintf(w, "tick %d\n", n)
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	case "/upload":
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d bytes", n)
	default:
		// As trusting as an application can be.
		w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		w.Header().Set("Access-Control-Allow-Credentials", "true")
		io.WriteString(w, "the secret")
	}
}

// evilPages is an application that wants another's.
func evilPages(bank func() string) func(*webApp, http.ResponseWriter, *http.Request) {
	return func(a *webApp, w http.ResponseWriter, r *http.Request) {
		for _, c := range []string{"tossed=yes; Domain=" + clusterName + "; Path=/", ours + "-app=evil; Path=/; Secure", ours + "-session=evil; Path=/; Secure",
			"=" + ours + "-app=evil; Path=/; Secure; Domain=" + clusterName, "__HOST-SALLYPORT-app=evil; Path=/; Domain=" + clusterName} {
			w.Header().Add("Set-Cookie", c)
		}
		w.Header().Set("Clear-Site-Data", `"cookies"`)
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<title>evil</title><a id="link" href=%[1]q>to the bank</a>
<form id="form" method="post" action="%[1]stransfer" target="hidden"><input name="to" value="evil"></form><iframe name="hidden"></iframe>
<script>
const bank = %[1]q, cluster = %[2]q, said = {}
for (const c of ["%[3]s-app=js; path=/; secure", "%[3]s-app=js; path=/; secure; domain=%[4]s", "%[3]s-session=js; path=/; secure; domain=%[4]s",
		"=%[3]s-app=js; path=/; secure; domain=%[4]s", "js=tossed; path=/; secure; domain=%[4]s"])
	document.cookie = c
said.cookies = document.cookie
const tell = (name, text) => { said[name] = text }
const ask = async (name, url, options) => {
	try { const r = await fetch(url, options); tell(name, r.type == "opaque" ? "opaque" : await r.text()) } catch (e) { tell(name, "refused") }
}
const frame = (name, url) => new Promise(done => {
	const f = document.createElement("iframe")
	f.onload = () => { try { tell(name, f.contentDocument.body.innerText) } catch (e) { tell(name, "closed") }; done() }
	f.src = url
	document.body.append(f)
})
const socket = (name, url) => new Promise(done => {
	const s = new WebSocket(url)
	s.onmessage = m => { tell(name, m.data); done() }
	s.onerror = () => { tell(name, said[name] || "refused"); done() }
	s.onopen = () => { tell(name, "open"); s.send("evil") }
})
const image = (name, url) => new Promise(done => {
	const i = new Image()
	i.onload = i.onerror = () => { tell(name, "asked"); done() }
	i.src = url
})
window.attack = (async () => {
	await Promise.all([
		ask("fetch", bank + "secret", {credentials: "include"}),
		ask("blind", bank + "blind", {credentials: "include", mode: "no-cors"}),
		ask("post", bank + "post", {credentials: "include", mode: "no-cors", method: "POST", body: "to=evil"}),
		ask("preflight", bank + "put", {credentials: "include", method: "PUT", body: "to=evil"}),
		ask("session", cluster, {credentials: "include"}),
		ask("launch", cluster + "web/launch/bank?challenge=" + "A".repeat(43), {credentials: "include"}),
		ask("own", "/own", {credentials: "include"}),
		frame("frame", bank + "framed"), frame("clusterframe", cluster), frame("logout", bank + ".sallyport/logout"),
		image("image", bank + "image"), socket("socket", bank.replace("https", "wss") + "socket"),
	])
	document.getElementById("form").submit()
	tell("done", "yes")
})()
</script>`, bank()+"/", "https://"+clusterName+":"+a.port+"/", ours, clusterName)
	}
}

// webCluster is a cluster with the two applications, and a user.
type webCluster struct {
	*cluster
	p          *person
	bank, evil *webApp
	origin     string
}

func startWebCluster(t *testing.T) *webCluster {
	c := &webCluster{p: newPerson(t)}
	c.bank = startWebApp(t, "bank", bankPages)
	c.evil = startWebApp(t, "evil", evilPages(func() string { return c.bank.origin() }))
	c.cluster = startCluster(t, c.p, func(*cluster) string {
		return fmt.Sprintf("  apps: [{name: bank, uri: %q}, {name: evil, uri: %q}]\n", c.bank.URL, c.evil.URL)
	}, func(c *cluster) string { return c.gateway })
	_, port, err := net.SplitHostPort(c.gateway)
	if err != nil {
		t.Fatal(err)
	}
	c.bank.port, c.evil.port, c.origin = port, port, "https://"+clusterName+":"+port
	c.user(c.p, "ann")
	await(t, "the applications are online", upWait, func() bool {
		r := c.p.try("", "sally", "apps", "ls", "--format=json")
		return r.code == 0 && strings.Contains(r.stdout, "bank") && strings.Contains(r.stdout, "evil")
	})
	return c
}

// TestWebApps: applications in the browser.
func TestWebApps(t *testing.T) {
	c := startWebCluster(t)
	t.Run("login", c.testLogin)
	t.Run("upload", c.testUpload)
	t.Run("upgrade", c.testUpgrade)
	t.Run("hostile", c.testHostile)
	t.Run("lock", c.testLock)
	t.Run("goodbye", c.testGoodbye)
}

// testHostile: in a real browser, one application below the cluster's name gets at
// nothing of another, nor of the cluster.
func (c *webCluster) testHostile(t *testing.T) {
	b := startChromium(t, "--host-resolver-rules=MAP "+clusterName+" 127.0.0.1, MAP *."+clusterName+" 127.0.0.1")
	p, bank, evil, cluster := c.p, c.bank, c.evil, c.origin

	b.open(bank.origin() + "/?from=the-link#part")
	b.fill("username", "ann")
	b.fill("password", clusterPassword)
	b.click("form[action='/login/password'] button")
	b.says("your account")
	if at := b.eval("location.href"); at != bank.origin()+"/?from=the-link" && at != bank.origin()+"/?from=the-link#part" {
		t.Errorf("the login led to %s", at)
	}
	checkAppCookie(t, b, bank)

	b.scripts(true)
	b.open(evil.origin() + "/")
	b.until("document.title == 'evil'")
	b.until("said.done == 'yes'")
	said := func(name string) string { return b.eval("said." + name) }
	for name, want := range map[string]string{"fetch": "refused", "preflight": "refused", "session": "refused", "launch": "refused", "socket": "refused", "image": "asked",
		"frame": "closed", "clusterframe": "closed", "logout": "closed"} {
		if got := said(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(said("own"), "<title>evil</title>") {
		t.Errorf("the application's own pages cannot be asked for: %q", said("own"))
	}
	if seen := b.eval("document.cookie"); strings.Contains(strings.ToLower(seen), "sallyport") || strings.Contains(seen, "account") {
		t.Errorf("a script of one application sees %q", seen)
	}
	// The bank has seen none of it: what a page of another origin asks for ends
	// at the gateway.
	b.open(bank.origin() + "/after")
	b.says("the secret")
	for _, line := range []string{"GET /secret", "GET /blind", "POST /post", "PUT /put", "OPTIONS /put", "GET /framed", "GET /image", "GET /socket", "POST /transfer"} {
		if bank.got(line) {
			t.Errorf("%s has reached the other application", line)
		}
	}
	if !evil.got("GET /own") {
		t.Errorf("evil has seen %q", evil.log())
	}

	// A link from one to the other is followed, and cookies that were tossed have
	// changed nobody's session.
	b.open(evil.origin() + "/")
	b.until("document.title == 'evil' && said.done == 'yes'")
	b.click("#link")
	b.says("your account")
	b.says("cookies: ")
	if seen := b.eval("document.getElementById('cookies').textContent"); !strings.Contains(seen, "account=42") || strings.Contains(seen, "tossed=yes") || strings.Contains(seen, ours) {
		t.Errorf("the bank's own script sees %q", seen)
	}
	if got := b.eval(`new Promise(d => { const s = new WebSocket(location.origin.replace("https", "wss") + "/socket"); s.onopen = () => s.send("me"); s.onmessage = m => { window.heard = m.data } }) && 1`); got != "1" {
		t.Errorf("a WebSocket: %q", got)
	}
	b.until("window.heard == 'bank says me'")
	checkAppCookie(t, b, bank)
	checkAppCookie(t, b, evil)
	for _, a := range []*webApp{bank, evil} {
		for _, line := range a.log() {
			if strings.Contains(strings.ToLower(line), "sallyport") || a == evil && strings.Contains(line, "account") || a == bank && strings.Contains(line, "tossed=yes") {
				t.Errorf("%s got %q", a.name, line)
			}
		}
	}

	// Out at the cluster's origin: out everywhere, the open WebSocket too.
	b.eval(`window.over = new Promise(d => { const s = new WebSocket(location.origin.replace("https", "wss") + "/socket"); s.onclose = () => { window.shut = "yes" }; s.onopen = () => { window.opened = "yes" } }) && 1`)
	b.until("window.opened == 'yes'")
	jar := newJar(t, p)
	jar.logIn(cluster, "ann")
	jar.curl("-X", "POST", "-H", "Sec-Fetch-Site: same-origin", "-d", "all=yes", cluster+"/sessions/end")
	b.until("window.shut == 'yes'")
	b.scripts(false)
	b.open(bank.origin() + "/")
	b.see("form[action='/login/password']")
	await(t, "the requests are in the audit log", upWait, func() bool {
		return strings.Contains(c.admin(p, "audit", "search", "--event=app.session.request", "--limit=1000"), "/after")
	})
}

// checkAppCookie: a session is in one cookie of its application's host alone.
func checkAppCookie(t *testing.T, b *chromium, a *webApp) {
	t.Helper()
	found := 0
	for _, k := range b.cookies(a.origin() + "/") {
		if !strings.HasPrefix(strings.ToLower(k.Name), strings.ToLower(ours)) {
			continue
		}
		found++
		if k.Name != ours+"-app" || len(k.Value) != 75 || !k.HTTPOnly || !k.Secure || k.SameSite != "Lax" || k.Path != "/" || k.Domain != a.name+"."+clusterName {
			t.Errorf("cookie %+v", k)
		}
	}
	if found != 1 {
		t.Errorf("%d cookies of ours at %s", found, a.name)
	}
}
