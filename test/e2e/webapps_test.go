package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
)

// jar is curl with a cookie jar: a browser that does one step at a time.
type jar struct {
	t    *testing.T
	p    *person
	file string
}

func newJar(t *testing.T, p *person) *jar {
	if _, err := exec.LookPath("curl"); err != nil {
		peers.Missing(t, "curl")
	}
	return &jar{t, p, filepath.Join(shortDir(t), "jar")}
}

// curl returns head and body of the one answer.
func (j *jar) curl(args ...string) string {
	j.t.Helper()
	args = append([]string{"-sSki", "--max-time", "60", "-b", j.file, "-c", j.file, "--connect-to", "::127.0.0.1:"}, args...)
	return j.p.run("curl", args...)
}

var locationHeader = regexp.MustCompile(`(?mi)^location: (\S+)`)

// led is where an answer leads.
func led(answer string) string {
	if m := locationHeader.FindStringSubmatch(answer); m != nil {
		return m[1]
	}
	return ""
}

func (j *jar) logIn(cluster, user string) {
	j.t.Helper()
	out := j.curl("-H", "Sec-Fetch-Site: same-origin", "-d", "username="+user, "--data-urlencode", "password="+clusterPassword, "-d", "next=/", cluster+"/login/password")
	if !strings.Contains(out, "303") {
		j.t.Fatalf("login:\n%s", out)
	}
}

// code goes up to the point at which a browser is sent back to the application.
func (j *jar) code(a *webApp, path string) (callback string) {
	j.t.Helper()
	launch := led(j.curl(a.origin() + path))
	if !strings.HasPrefix(launch, "https://"+clusterName+":"+a.port+"/web/launch/"+a.name+"?challenge=") {
		j.t.Fatalf("without a session %s leads to %q", a.name, launch)
	}
	callback = led(j.curl(launch))
	if !strings.HasPrefix(callback, a.origin()+"/.sallyport/callback?code=") {
		j.t.Fatalf("the login leads to %q", callback)
	}
	return callback
}

func status(answer string) string {
	for line := range strings.Lines(answer) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "HTTP/") && f[1] != "100" {
			return f[1]
		}
	}
	return answer
}

// testLogin: the steps of a login at an application one by one, and what comes of
// each when somebody else has a hand in it.
func (c *webCluster) testLogin(t *testing.T) {
	p, bank, evil, cluster := c.p, c.bank, c.evil, c.origin
	ann, mallory := newJar(t, p), newJar(t, p)
	ann.logIn(cluster, "ann")
	mallory.logIn(cluster, "ann") // in the same account or not: the code is another browser's

	stolen := ann.code(bank, "/stolen")
	mallory.code(bank, "/")
	if out := mallory.curl(stolen); status(out) != "403" || strings.Contains(out, ours+"-app=") {
		t.Errorf("A code of another browser:\n%s", out)
	}
	if out := ann.curl(stolen); status(out) != "403" {
		t.Errorf("a code that was tried elsewhere:\n%s", out)
	}
	other := ann.code(bank, "/")
	ann.code(evil, "/")
	if out := ann.curl(strings.Replace(other, "https://bank.", "https://evil.", 1)); status(out) != "403" || strings.Contains(out, ours+"-app=") {
		t.Errorf("a code at another application:\n%s", out)
	}
	callback := ann.code(bank, "/deep/link?q=%2F%2Fevil.test&x=1")
	out := ann.curl(callback)
	if status(out) != "303" || led(out) != "/deep/link?q=%2F%2Fevil.test&x=1" || !strings.Contains(out, ours+"-app=") {
		t.Fatalf("the callback:\n%s", out)
	}
	for _, attribute := range []string{"Path=/", "HttpOnly", "Secure", "SameSite=Lax"} {
		if !regexp.MustCompile(`(?i)set-cookie: ` + ours + `-app=[^\n]*` + attribute).MatchString(out) {
			t.Errorf("the cookie has no %s:\n%s", attribute, out)
		}
	}
	if out := ann.curl(callback); status(out) != "303" || led(out) != "/" || strings.Contains(out, ours+"-app=") {
		t.Errorf("a code for the second time:\n%s", out)
	}
	if out := newJar(t, p).curl(callback); status(out) != "403" {
		t.Errorf("a used code in a fresh browser:\n%s", out)
	}
	if out := ann.curl(bank.origin() + "/"); status(out) != "200" || !strings.Contains(out, "your account") {
		t.Fatalf("logged in:\n%s", out)
	}

	t.Run("where paths lead", func(t *testing.T) {
		fresh := newJar(t, p)
		fresh.logIn(cluster, "ann")
		for path, want := range map[string]string{"//evil.test/x": "/", "/%5Cevil.test": "/%5Cevil.test", "/%09/evil.test": "/%09/evil.test"} {
			callback := fresh.code(evil, path)
			if to := led(fresh.curl(callback)); to != want {
				t.Errorf("%s led to %q, want %q", path, to, want)
			}
			if out := fresh.curl("-X", "POST", "-H", "Sec-Fetch-Site: same-origin", evil.origin()+"/.sallyport/logout"); status(out) != "200" {
				t.Errorf("log out:\n%s", out)
			}
		}
	})
	t.Run("whose request", func(t *testing.T) {
		for name, args := range map[string][]string{
			"another host":         {"-H", "Host: evil." + clusterName + ":" + bank.port, bank.origin() + "/misdirected"},
			"the cluster's":        {"-H", "Host: " + clusterName, bank.origin() + "/misdirected"},
			"below":                {"-H", "Host: bank.app." + clusterName, bank.origin() + "/misdirected"},
			"at the cluster":       {"-H", "Host: bank." + clusterName, cluster + "/"},
			"another, by HTTP/1.1": {"--http1.1", "-H", "Host: evil." + clusterName, bank.origin() + "/misdirected"},
		} {
			if out := ann.curl(args...); status(out) != "421" {
				t.Errorf("%s: %s", name, status(out))
			}
		}
		if bank.got("GET /misdirected") || evil.got("GET /misdirected") {
			t.Error("a misdirected request has arrived")
		}
	})
	t.Run("no session", func(t *testing.T) {
		for name, args := range map[string][]string{
			"a script":      {"-H", "Sec-Fetch-Mode: cors", "-H", "Sec-Fetch-Dest: empty", "-H", "Sec-Fetch-Site: same-origin"},
			"a form":        {"-H", "Sec-Fetch-Site: same-origin", "-d", "a=b"},
			"a wrong one":   {"-H", "Sec-Fetch-Site: same-origin", "-d", "a=b", "-H", "Cookie: " + ours + "-app=" + strings.Repeat("A", 75)},
			"two cookies":   {"-H", "Sec-Fetch-Site: same-origin", "-d", "a=b", "-H", "Cookie: " + ours + "-app=" + strings.Repeat("A", 75) + "; " + ours + "-app=" + strings.Repeat("B", 75)},
			"the cluster's": {"-H", "Sec-Fetch-Site: same-origin", "-d", "a=b", "-H", "Cookie: " + ours + "-session=" + strings.Repeat("A", 75)},
		} {
			if out := newJar(t, p).curl(append(args, bank.origin()+"/nobody")...); status(out) != "401" {
				t.Errorf("%s: %s", name, status(out))
			}
		}
		if bank.got("GET /nobody") || bank.got("POST /nobody") {
			t.Error("a request without a session has arrived")
		}
	})
}

// visitor is somebody who is logged in at an application.
func (c *webCluster) visitor(t *testing.T, a *webApp) *jar {
	j := newJar(t, c.p)
	j.logIn(c.origin, "ann")
	if out := j.curl(j.code(a, "/")); status(out) != "303" {
		t.Fatalf("the callback:\n%s", out)
	}
	return j
}

// testUpload: what passes the gateway is not kept there.
func (c *webCluster) testUpload(t *testing.T) {
	const size, most = 256 << 20, 64 << 10 // bytes, and kB of memory
	ann := c.visitor(t, c.bank)
	pid := c.proc["gateway"].cmd.Process.Pid
	for _, protocol := range []string{"--http1.1", "--http2"} {
		before := peak(t, pid)
		cmd := c.p.command(t.Context(), "sh", "-c", fmt.Sprintf("head -c %d /dev/zero", size)+` | curl -sSk --max-time 300 -b "$1" --connect-to ::127.0.0.1: `+protocol+` -T - -X POST -H "Origin: $2" "$2/upload"`, "sh", ann.file, c.bank.origin())
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != fmt.Sprintf("%d bytes", size) {
			t.Errorf("%s: %v %s", protocol, err, out)
		}
		if grown := peak(t, pid) - before; grown > most && !underRace {
			t.Errorf("%s: the gateway has grown by %d kB", protocol, grown)
		}
	}
}

// peak is the most memory that a process has had, in kB; 0 where nobody knows.
func peak(t *testing.T, pid int) (kB int) {
	t.Helper()
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				n, err := strconv.Atoi(strings.Fields(v)[0])
				if err != nil {
					t.Fatal(err)
				}
				kB += n
			}
		}
	}
	return kB
}

// socket opens a WebSocket; what it says from then on are frames.
func (j *jar) socket(a *webApp) net.Conn {
	j.t.Helper()
	b, err := os.ReadFile(j.file)
	if err != nil {
		j.t.Fatal(err)
	}
	cookie := regexp.MustCompile(`(?m)` + a.name + `\..*\s(` + ours + `-app)\s(\S+)$`).FindSubmatch(b)
	if cookie == nil {
		j.t.Fatal("no session")
	}
	conn, err := tls.Dial("tcp", "127.0.0.1:"+a.port, &tls.Config{ServerName: a.name + "." + clusterName, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		j.t.Fatal(err)
	}
	j.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(runWait))
	fmt.Fprintf(conn, "GET /socket HTTP/1.1\r\nHost: %s\r\nOrigin: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nCookie: %s=%s\r\n\r\n",
		strings.TrimPrefix(a.origin(), "https://"), a.origin(), cookie[1], cookie[2])
	head := bufio.NewReaderSize(conn, 16) // nothing follows the answer's head yet
	resp, err := http.ReadResponse(head, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || head.Buffered() > 0 {
		j.t.Fatalf("%v, %v", resp, err)
	}
	return conn
}

// testUpgrade: what runs goes on in the old process, which ends with it; and
// nobody logs in again.
func (c *webCluster) testUpgrade(t *testing.T) {
	ann := c.visitor(t, c.bank)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ticks := c.p.command(ctx, "curl", "-sSkN", "-b", ann.file, "--connect-to", "::127.0.0.1:", c.bank.origin()+"/ticks")
	var heard tail
	ticks.Stdout = &heard
	if err := ticks.Start(); err != nil {
		t.Fatal(err)
	}
	counts := func(more int) {
		t.Helper()
		from := strings.Count(heard.String(), "tick ")
		await(t, "the stream goes on", runWait, func() bool { return strings.Count(heard.String(), "tick ") >= from+more })
	}
	counts(3)
	file := c.path("gateway.yaml")
	var u upgraded
	if err := json.Unmarshal([]byte(c.p.run("sallyport", "upgrade", "-c", file, "-f", "json")), &u); err != nil || u.Outcome != "done" {
		t.Fatalf("%+v, %v", u, err)
	}
	counts(20)
	await(t, "a page by the new process, without a login", runWait, func() bool {
		out := ann.curl(c.bank.origin() + "/")
		if s := status(out); s != "200" && s != "502" && s != "503" {
			t.Fatalf("after the upgrade:\n%s", out)
		}
		return status(out) == "200"
	})
	var s struct {
		PID      int `json:"pid"`
		Remnants []struct {
			PID   int            `json:"pid"`
			Holds map[string]int `json:"holds"`
		} `json:"remnants"`
	}
	show := func() {
		t.Helper()
		s.Remnants = nil
		if err := json.Unmarshal([]byte(c.p.run("sallyport", "status", "-c", file, "-f", "json")), &s); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the old process holds the stream", runWait, func() bool {
		show()
		return s.PID == u.ToPID && len(s.Remnants) == 1 && s.Remnants[0].Holds["browsers at applications"] == 1
	})
	counts(3)
	cancel()
	_ = ticks.Wait() // it was killed
	await(t, "the old process to end", runWait, func() bool { show(); return len(s.Remnants) == 0 })
}

// testLock: a lock ends what runs.
func (c *webCluster) testLock(t *testing.T) {
	p, bank, ann := c.p, c.bank, c.visitor(t, c.bank)
	ctx, cancel := context.WithTimeout(t.Context(), runWait)
	defer cancel()
	events := p.command(ctx, "curl", "-sSkN", "-b", ann.file, "--connect-to", "::127.0.0.1:", bank.origin()+"/events")
	var heard tail
	events.Stdout = &heard
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "an event passes at once", runWait, func() bool { return strings.Contains(heard.String(), "data: first") })
	began := time.Now()
	lock := "kind: lock\nversion: v2\nmetadata: {name: stop}\nspec: {target: {user: ann}, message: for the test}\n"
	if r := p.try(lock, "sallyctl", "--data-dir="+c.path("auth"), "create", "-"); r.code != 0 {
		t.Fatalf("lock: %+v", r)
	}
	_ = events.Wait() // by a reset: it was cut
	if ctx.Err() != nil {
		t.Errorf("a stream outlived the lock by %s", time.Since(began))
	}
	if out := ann.curl(bank.origin() + "/locked"); status(out) == "200" || bank.got("GET /locked") {
		t.Errorf("while locked:\n%s", out)
	}
}

// testGoodbye: a WebSocket is told when the gateway goes.
func (c *webCluster) testGoodbye(t *testing.T) {
	c.admin(c.p, "rm", "lock/stop")
	ann := c.visitor(t, c.bank)
	await(t, "the agent knows that the lock is gone", upWait, func() bool { return status(ann.curl(c.bank.origin()+"/")) == "200" })
	socket := ann.socket(c.bank)
	c.proc["gateway"].stop()
	if end, err := io.ReadAll(socket); string(end) != "\x88\x02\x03\xf4" {
		t.Errorf("the WebSocket ends with %x, not by code 1012: %v", end, err)
	}
}
