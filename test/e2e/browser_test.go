package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/test/executable"
	"github.com/sallyport/sallyport/tools/peers"
)

// waitingLogin is a "sally login" that waits for its user.
type waitingLogin struct {
	p    *person
	said *tail
	done chan error
}

func (p *person) beginLogin(d *demo, args ...string) *waitingLogin {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*runWait)
	p.t.Cleanup(cancel)
	w := &waitingLogin{p: p, said: &tail{}, done: make(chan error, 1)}
	cmd := p.command(ctx, "sally", append([]string{"login", "--proxy=" + d.Proxy, "--ca-pin=" + d.CAPin}, args...)...)
	cmd.Stdout, cmd.Stderr = w.said, w.said
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { w.done <- cmd.Wait() }()
	return w
}

// shows waits for what the program prints.
func (w *waitingLogin) shows(pattern string) string {
	w.p.t.Helper()
	re, found := regexp.MustCompile(pattern), ""
	await(w.p.t, "sally says "+pattern, runWait, func() bool {
		found = re.FindString(w.said.String())
		return found != ""
	})
	return found
}

// succeeds waits for its end, and asks who is logged in.
func (w *waitingLogin) succeeds(user string) {
	w.p.t.Helper()
	if err := <-w.done; err != nil {
		w.p.t.Fatalf("sally login: %v\n%s", err, w.said)
	}
	if out := w.p.run("sally", "status"); !strings.Contains(out, "Logged in as:       "+user) {
		w.p.t.Errorf("status:\n%s", out)
	}
	if out := w.p.run("sally", "ls", "-f", "names"); out == "" {
		w.p.t.Error("the certificate reaches nothing")
	}
}

// TestBrowser: a person with a real browser and without JavaScript logs in,
// approves sally on this machine and elsewhere, and logs out.
func TestBrowser(t *testing.T) {
	c := startChromium(t)
	d := startDemo(t)
	origin := "https://" + d.Proxy

	here := newPerson(t).beginLogin(d, "--auth=browser", "--browser=none")
	c.open(here.shows(`https://\S+/cli\?\S+`))
	c.fill("username", d.User)
	c.fill("password", "not the password")
	c.click("form[action='/login/password'] button")
	c.says("wrong user name, password or one-time code")
	c.fill("username", d.User)
	c.fill("password", d.Password)
	c.fill("code", nextCode(t, d.TOTPSecret))
	c.click("form[action='/login/password'] button")
	c.says("Let sally act as " + d.User + "?")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	c.says(host)
	c.says("127.0.0.1")
	checkCookie(t, c, origin)
	c.click("button[value=approve]")
	c.says("You are logged in as " + d.User)
	here.succeeds(d.User)

	t.Run("foreign pages", func(t *testing.T) { testForeignForms(t, c, origin) })
	t.Run("refused", func(t *testing.T) {
		w := newPerson(t).beginLogin(d, "--auth=browser", "--browser=none")
		c.open(w.shows(`https://\S+/cli\?\S+`))
		c.click("button[value=refuse]")
		c.says("The login was refused")
		if err := <-w.done; err == nil || !strings.Contains(w.said.String(), "refused in the browser") {
			t.Errorf("%v\n%s", err, w.said)
		}
	})
	t.Run("opened", func(t *testing.T) { testOpened(t, c, d) })
	t.Run("elsewhere", func(t *testing.T) {
		w := newPerson(t).beginLogin(d, "--auth=device")
		c.open(w.shows(`https://\S+/device`))
		c.fill("user_code", strings.ToLower(w.shows(`[B-Z]{4}-[B-Z]{4}`)))
		c.click("form[action='/device'] button")
		c.says("Let sally act as " + d.User + "?")
		c.click("button[value=approve]")
		c.says("Approved")
		w.succeeds(d.User)
	})

	c.open(origin + "/")
	c.says("You are logged in as " + d.User)
	c.says("this one")
	c.says(d.name("node"))
	c.click("form:has([name=all]) button")
	c.see("form[action='/login/password']")
	c.open(origin + "/")
	c.see("form[action='/login/password']")
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.faults) > 0 {
		t.Errorf("pages break their own policy:\n%s", strings.Join(c.faults, "\n"))
	}
}

// checkCookie: the session is in one cookie of this host alone, and no script
// sees it.
func checkCookie(t *testing.T, c *chromium, origin string) {
	t.Helper()
	got := c.cookies(origin + "/")
	if len(got) != 1 {
		t.Fatalf("cookies %+v", got)
	}
	k := got[0]
	if k.Name != "__Host-sallyport-session" || !k.HTTPOnly || !k.Secure || k.SameSite != "Lax" || k.Path != "/" || strings.HasPrefix(k.Domain, ".") {
		t.Errorf("cookie %+v", k)
	}
	if seen := c.eval("document.cookie"); seen != "" {
		t.Errorf("a script sees %q", seen)
	}
}

// testForeignForms: a page of another origin, and one of the same site, log
// nobody out and approve nothing.
func testForeignForms(t *testing.T, c *chromium, origin string) {
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<form method="post" action="%s/sessions/end"><input name="all" value="yes"><button id="go">Win</button></form>`, origin)
	})
	plain := httptest.NewServer(page)
	defer plain.Close()
	other := httptest.NewTLSServer(page) // the same host, so the same site: its cookies go along
	defer other.Close()
	for _, s := range []*httptest.Server{plain, other} {
		c.open(s.URL)
		c.click("#go")
		c.says("cross-origin request detected")
		c.open(origin + "/")
		c.says("You are logged in as")
	}
}

// testOpened: sally opens the browser by xdg-open, and when that does not work
// goes on with a code.
func testOpened(t *testing.T, c *chromium, d *demo) {
	if _, err := exec.LookPath("sh"); err != nil {
		peers.Missing(t, "sh")
	}
	for _, works := range []bool{true, false} {
		p := newPerson(t)
		script := "#!/bin/sh\nexit 3\n"
		if works {
			script = "#!/bin/sh\nprintf 'opened: %s\\n' \"$1\" >\"$HOME/opened\"\n"
		}
		bin := p.home + "/bin"
		if err := os.Mkdir(bin, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := executable.Write(bin+"/xdg-open", []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		p.extra = []string{"DISPLAY=:0", "PATH=" + bin + ":" + os.Getenv("PATH")}
		w := p.beginLogin(d, "--auth=browser")
		if !works {
			w.shows(`could not be opened`)
			w.shows(`[B-Z]{4}-[B-Z]{4}`)
			continue
		}
		opened := ""
		await(t, "xdg-open", runWait, func() bool {
			b, _ := os.ReadFile(p.home + "/opened")
			url, ok := strings.CutPrefix(string(b), "opened: ")
			opened = strings.TrimSpace(url)
			return ok && strings.HasSuffix(url, "\n")
		})
		c.open(opened)
		c.click("button[value=approve]")
		c.says("You are logged in as " + d.User)
		w.succeeds(d.User)
	}
}
