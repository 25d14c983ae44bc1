package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/postgres"
)

// dialogue is a program that answers each line with lines.
type dialogue struct {
	t    *testing.T
	what string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs tail
}

func (p *person) dialogue(t *testing.T, name string, args ...string) *dialogue {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := &dialogue{t: t, what: name, cmd: p.command(ctx, name, args...)}
	in, err := d.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.in, d.out, d.cmd.Stderr = in, bufio.NewReader(out), &d.errs
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = d.cmd.Wait()
	})
	return d
}

// say sends a line and wants one back.
func (d *dialogue) say(line, want string) {
	d.t.Helper()
	if _, err := fmt.Fprintln(d.in, line); err != nil {
		d.t.Fatalf("%s: %v\n%s", d.what, err, &d.errs)
	}
	got, err := d.out.ReadString('\n')
	if err != nil || strings.TrimSpace(got) != want {
		d.t.Fatalf("%s: %q was answered %q, %v\n%s", d.what, line, got, err, &d.errs)
	}
}

// leave ends it in order.
func (d *dialogue) leave() {
	d.t.Helper()
	d.in.Close()
	if _, err := io.Copy(io.Discard, d.out); err != nil {
		d.t.Error(err)
	}
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("%s: %v\n%s", d.what, err, &d.errs)
	}
}

// TestAgentUpgrade upgrades an agent's process three times. A shell and a psql
// that were opened before the first live through all of them, a lock still ends
// one, Ctrl-C finds its statement in an old process, and every session's start and
// end is in auth's log once.
func TestAgentUpgrade(t *testing.T) {
	if _, err := exec.LookPath("psql"); err != nil {
		peers.Missing(t, "psql")
	}
	if _, err := postgres.Find(); err != nil {
		peers.Missing(t, "postgres")
	}
	p := newPerson(t)
	c := startCluster(t, p, func(c *cluster) string {
		return "  ssh: {enabled: true}\n" + c.orders(p)
	}, func(c *cluster) string { return c.gateway })
	c.upgradeUnderSessions(p, "agent.yaml")
}

// TestWholeUpgrade is the same with everything in one process: the relays move,
// and what they lead to stays.
func TestWholeUpgrade(t *testing.T) {
	if _, err := exec.LookPath("psql"); err != nil {
		peers.Missing(t, "psql")
	}
	if _, err := postgres.Find(); err != nil {
		peers.Missing(t, "postgres")
	}
	p := newPerson(t)
	c := &cluster{t: t, dir: shortDir(t), gateway: freePort(t), proc: map[string]*process{}}
	whole := fmt.Sprintf("version: 1\ncluster: %s\ndata_dir: auth\nroles: [auth, gateway, agent]\nauth: {second_factor: optional}\n"+
		"gateway: {listen: [%q], public_address: %q}\nagent:\n  ssh: {enabled: true}\n", clusterName, c.gateway, c.gateway)
	c.write("whole.yaml", whole)
	c.up("whole")
	var status struct {
		CAPins []string `json:"ca_pins"`
	}
	await(t, "auth", upWait, func() bool {
		r := p.try("", "sallyctl", "--data-dir="+c.path("auth"), "status", "--format=json")
		return r.code == 0 && json.Unmarshal([]byte(r.stdout), &status) == nil && len(status.CAPins) > 0
	})
	c.pin = status.CAPins[0]
	c.write("whole.yaml", whole+c.orders(p))
	await(t, "reload", upWait, func() bool {
		return p.try("", "sallyport", "reload", "--config="+c.path("whole.yaml")).code == 0
	})
	c.upgradeUnderSessions(p, "whole.yaml")
}

// orders is a database and its configuration.
func (c *cluster) orders(p *person) string {
	c.admin(p, "auth", "sign", "--format=db", "--host=localhost,127.0.0.1", "--out="+c.path("pg"))
	_, port, _ := net.SplitHostPort(startDatabase(c.t, c).Addr)
	return fmt.Sprintf("  databases: [{name: orders, protocol: postgres, address: %q}]\n", net.JoinHostPort("127.0.0.1", port))
}

// upgradeUnderSessions upgrades the process with the agent.
func (c *cluster) upgradeUnderSessions(p *person, config string) {
	t := c.t.(*testing.T)
	node, service := c.ready(p)
	shell := p.dialogue(t, "sally", "ssh", node, "while read line; do echo $line; done")
	shell.say("before", "before")
	psql := p.dialogue(t, "psql", service, "-Atq")
	psql.say("select 'before';", "before")
	sleeper := p.command(context.Background(), "psql", service, "-Atc", "select pg_sleep(300)")
	var said tail
	sleeper.Stdout, sleeper.Stderr = &said, &said
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleeper.Process.Kill()
	c.sleeps(p, service)

	for i := range 3 {
		p.run("sallyport", "upgrade", "--config="+c.path(config))
		shell.say(fmt.Sprint("upgrade ", i), fmt.Sprint("upgrade ", i))
		psql.say(fmt.Sprintf("select %d;", i), fmt.Sprint(i))
		if out := p.run("sally", "ssh", node, "echo new"); out != "new\n" {
			t.Errorf("upgrade %d: a new session said %q", i, out)
		}
	}
	if err := sleeper.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Wait(); err == nil || !strings.Contains(said.String(), "canceling statement due to user request") {
		t.Errorf("Ctrl-C: %v\n%s", err, &said)
	}
	psql.leave()
	locked := "kind: lock\nversion: v2\nmetadata: {name: stop}\nspec: {target: {user: ann}, message: for the test}\n"
	if r := p.try(locked, "sallyctl", "--data-dir="+c.path("auth"), "create", "-"); r.code != 0 {
		t.Fatalf("lock: %+v", r)
	}
	if _, err := io.Copy(io.Discard, shell.out); err != nil {
		t.Error(err)
	}
	if err := shell.cmd.Wait(); err == nil || !strings.Contains(shell.errs.String(), "for the test") {
		t.Errorf("the locked session: %v\n%s", err, &shell.errs)
	}
	for _, kind := range []string{"session", "db.session"} {
		await(t, kind+": as many ends as starts", upWait, func() bool {
			all := c.sessions(p, kind)
			whole := len(all) > 2
			for sid, s := range all {
				if s.starts > 1 || s.ends > 1 {
					t.Fatalf("%s %s: %d starts and %d ends", kind, sid, s.starts, s.ends)
				}
				// What one process has begun and another one has ended comes from both,
				// in any order.
				whole = whole && s.starts == 1 && s.ends == 1
			}
			return whole
		})
	}
}

// span counts the events of a session.
type span struct{ starts, ends int }

// sessions are those of a kind that auth's log knows, as it is at one moment.
func (c *cluster) sessions(p *person, kind string) map[string]span {
	c.t.Helper()
	out := map[string]span{}
	for line := range strings.Lines(c.admin(p, "audit", "search", "--limit=10000", "--event="+kind+".start,"+kind+".end")) {
		var e struct{ SID, Event string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			c.t.Fatalf("%v: %s", err, line)
		}
		s := out[e.SID]
		switch e.Event {
		case kind + ".start":
			s.starts++
		case kind + ".end":
			s.ends++
		default:
			c.t.Fatalf("another event: %s", line)
		}
		out[e.SID] = s
	}
	return out
}

// TestAgentDrain: when the time of an old process is over, its sessions are told so
// in their protocols, and it ends.
func TestAgentDrain(t *testing.T) {
	if _, err := exec.LookPath("psql"); err != nil {
		peers.Missing(t, "psql")
	}
	if _, err := postgres.Find(); err != nil {
		peers.Missing(t, "postgres")
	}
	p := newPerson(t)
	c := startCluster(t, p, func(c *cluster) string {
		return "  ssh: {enabled: true}\n" + c.orders(p) + "upgrade: {drain: 2s}\n"
	}, func(c *cluster) string { return c.gateway })
	node, service := c.ready(p)
	shell := p.dialogue(t, "sally", "ssh", node, "while read line; do echo $line; done")
	shell.say("before", "before")
	sleeper := p.command(context.Background(), "psql", service, "-v", "VERBOSITY=verbose", "-Atc", "select pg_sleep(300)")
	var said tail
	sleeper.Stdout, sleeper.Stderr = &said, &said
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleeper.Process.Kill()
	c.sleeps(p, service)
	p.run("sallyport", "upgrade", "--config="+c.path("agent.yaml"))
	if err := sleeper.Wait(); err == nil || !strings.Contains(said.String(), "57P01: sallyport was upgraded here") {
		t.Errorf("psql: %v\n%s", err, &said)
	}
	if _, err := io.Copy(io.Discard, shell.out); err != nil {
		t.Error(err)
	}
	if err := shell.cmd.Wait(); err == nil || !strings.Contains(shell.errs.String(), "sallyport was upgraded here") {
		t.Errorf("ssh: %v\n%s", err, &shell.errs)
	}
	await(t, "no old process", upWait, func() bool {
		return !strings.Contains(p.run("sallyport", "status", "--config="+c.path("agent.yaml"), "--format=json"), `"holds"`)
	})
	if out := p.run("sally", "ssh", node, "echo new"); out != "new\n" {
		t.Errorf("a new session said %q", out)
	}
	c.drains(t, p, node)
}

// drains sends an agent's work elsewhere: its gateway is told, what runs goes on, and
// the command says what that is until nothing is.
func (c *cluster) drains(t *testing.T, p *person, node string) {
	shell := p.dialogue(t, "sally", "ssh", node, "while read line; do echo $line; done")
	shell.say("before", "before")
	drain := func(timeout string) []string {
		return []string{"drain", "--config=" + c.path("agent.yaml"), "--timeout=" + timeout}
	}
	p.refused(1, []string{"1 node session is left"}, "sallyport", drain("1s")...)
	shell.say("after", "after")
	if r := p.try("", "sally", "ssh", node, "true"); r.code == 0 {
		t.Error("an agent that drains got another session")
	}
	p.refused(1, []string{"is being drained"}, "sallyport", "upgrade", "--config="+c.path("agent.yaml"))
	wait := p.command(t.Context(), "sallyport", drain("1m")...)
	if err := wait.Start(); err != nil {
		t.Fatal(err)
	}
	shell.leave()
	if err := wait.Wait(); err != nil {
		t.Errorf("in the end: %v", err)
	}
	await(t, "two whole sessions in auth's log", upWait, func() bool {
		whole := 0
		for _, s := range c.sessions(p, "session") {
			if s.starts == 1 && s.ends == 1 {
				whole++
			}
		}
		return whole >= 2
	})
}

// ready waits for the resources, and says where the node and the database are.
func (c *cluster) ready(p *person) (node, service string) {
	c.t.Helper()
	c.user(p, "ann")
	c.online(p, "node")
	c.online(p, "db")
	p.run("sally", "db", "login", "--db-user=app", "--db-name=app", "orders")
	return login(c.t) + "@" + nodeName(c.t, p), "service=" + clusterName + "-orders"
}

// sleeps waits until the long statement runs.
func (c *cluster) sleeps(p *person, service string) {
	c.t.Helper()
	await(c.t, "the statement runs", upWait, func() bool {
		return strings.TrimSpace(p.run("psql", service, "-Atc", "select count(*) from pg_stat_activity where query like '%sleep(300)'")) == "1"
	})
}
