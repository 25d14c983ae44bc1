package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
)

func (d *demo) serving(p *person) (s serving) {
	d.t.Helper()
	if err := json.Unmarshal([]byte(p.run("sallyport", "status", "--data-dir="+d.data, "-f", "json")), &s); err != nil {
		d.t.Fatal(err)
	}
	return s
}

// TestDemoUpgrade: people will try it with the demo first. A shell and a psql that
// were opened before go on through upgrades; what is new is the new process's; the
// database is the same process as before; a link to claim an account is still
// good; and the demo ends as one, however it ends.
func TestDemoUpgrade(t *testing.T) {
	for _, peer := range []string{"psql", "curl"} {
		if _, err := exec.LookPath(peer); err != nil {
			peers.Missing(t, peer)
		}
	}
	d := startDemo(t)
	if d.name("db") == "" {
		peers.Missing(t, "postgres")
	}
	p := newPerson(t)
	p.login(d)
	ready, err := os.ReadFile(filepath.Join(filepath.Dir(d.data), "ready.json"))
	if err != nil {
		t.Fatal(err)
	}
	var link struct{ URL string }
	if err := json.Unmarshal([]byte(p.run("sallyctl", "--data-dir="+d.data, "users", "add", "--roles=access", "--format=json", "bob")), &link); err != nil {
		t.Fatal(err)
	}
	node, service := login(t)+"@"+d.name("node"), "service="+d.Cluster+"-"+d.name("db")
	p.run("sally", "db", "login", "--db-user=writer", "--db-name=demo", d.name("db"))
	shell := p.dialogue(t, "sally", "ssh", node, "while read line; do echo $line; done")
	shell.say("before", "before")
	psql := p.dialogue(t, "psql", service, "-Atq")
	psql.say("select 'before';", "before")
	first, database := d.serving(p).PID, postmaster(t, d)

	for i := range 2 {
		p.run("sallyport", "upgrade", "--data-dir="+d.data)
		shell.say(fmt.Sprint("upgrade ", i), fmt.Sprint("upgrade ", i))
		psql.say(fmt.Sprintf("select %d;", i), fmt.Sprint(i))
		if out := p.run("sally", "ssh", node, "echo new"); out != "new\n" {
			t.Errorf("upgrade %d: a new shell said %q", i, out)
		}
		if out := p.run("psql", service, "-Atc", "select 6*7"); out != "42\n" {
			t.Errorf("upgrade %d: a new psql said %q", i, out)
		}
		if r := p.try("hello\n", "sally", "proxy", "tcp", "--stdio", "echo"); r.stdout != "hello\n" {
			t.Errorf("upgrade %d: echo: %+v", i, r)
		}
		if out := p.run("sh", "-c", strings.TrimSpace(p.run("sally", "apps", "config", "--format=curl", "whoami"))+" -sS"); !strings.Contains(out, "X-Demo-Logins: "+login(t)) {
			t.Errorf("upgrade %d: whoami: %s", i, out)
		}
	}
	s := d.serving(p)
	if s.PID == first || len(s.Upgrades) != 2 || s.Upgrades[0].FromPID != first || s.Upgrades[1].Outcome != "done" {
		t.Errorf("%+v", s)
	}
	if now := postmaster(t, d); now != database {
		t.Errorf("the database was process %d and is %d", database, now)
	}
	if now, err := os.ReadFile(filepath.Join(filepath.Dir(d.data), "ready.json")); err != nil || !bytes.Equal(now, ready) {
		t.Errorf("what scripts read has changed: %v", err)
	}
	web := &http.Client{Timeout: runWait, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	if resp, err := web.Get(link.URL); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the link: %v, %+v", err, resp)
	} else {
		resp.Body.Close()
	}
	p.refused(1, []string{"no configuration file"}, "sallyport", "reload", "--data-dir="+d.data)
	testSecondDemo(t, d, s.PID)
	psql.leave()

	// The process that works is killed, while the first one still has the shell
	// and is its parent: nobody has its status.
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-d.done
	if code := d.cmd.ProcessState.ExitCode(); code != 128+9 {
		t.Errorf("exit code %d", code)
	}
	await(t, "the end of the database", runWait, func() bool { return !alive(database) })

	// All comes back, and ends in order.
	d = startDemoIn(t, filepath.Dir(d.data))
	database = postmaster(t, d)
	before := d.serving(p).PID
	if err := d.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	await(t, "the upgrade by SIGUSR2", runWait, func() bool { return d.serving(p).PID != before })
	now := d.serving(p).PID
	await(t, "the first is the supervisor alone", runWait, func() bool {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", before))
		return strings.Contains(string(line), "\x00supervise\x00")
	})
	await(t, "the supervisor listens", runWait, func() bool { return listens(before, syscall.SIGUSR2) })
	d.stop()
	if d.err != nil {
		t.Errorf("it ended with %v", d.err)
	}
	await(t, "the end of its processes", runWait, func() bool { return !alive(now) && !alive(database) })
}

// listens says that a thread of a process takes a signal that was blocked when its
// program began: a supervisor takes it together with those that end it.
func listens(pid int, s syscall.Signal) bool {
	all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range all {
		text, _ := os.ReadFile(file) // the thread may have ended
		for line := range strings.Lines(string(text)) {
			var blocked uint64
			if _, err := fmt.Sscanf(line, "SigBlk: %x", &blocked); err == nil && blocked&(1<<(s-1)) == 0 {
				return true
			}
		}
	}
	return false
}

func testSecondDemo(t *testing.T, d *demo, pid int) {
	newPerson(t).refused(1, []string{"is in use by another sallyport", fmt.Sprintf("process %d", pid)}, "sallyport", "demo", "--listen=127.0.0.1:0", "--data="+d.data)
}
