package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
)

// TestDemoDatabases: the demo's MariaDB and Redis come up beside it, keep what
// they keep, and end with it.
func TestDemoDatabases(t *testing.T) {
	for _, peer := range []string{"mariadbd", "mariadb", "redis-server", "redis-cli"} {
		if _, err := exec.LookPath(peer); err != nil {
			if _, err := exec.LookPath("/usr/sbin/" + peer); err != nil {
				peers.Missing(t, peer)
			}
		}
	}
	dir := shortDir(t)
	d := startDemoWith(t, dir, "mariadb,redis")
	p := newPerson(t)
	p.login(d)
	if out := p.run("sally", "db", "ls", "-v"); !strings.Contains(out, "mysql") || !strings.Contains(out, "redis") || strings.Contains(out, "postgres") {
		t.Errorf("db ls: %s", out)
	}
	maria := func(user, sql string) result {
		return p.try("", "sally", "db", "connect", "--db-user="+user, "--db-name=demo", "mariadb", "--", "-Ne", sql)
	}
	redis := func(user string, command ...string) result {
		return p.try("", "sally", append([]string{"db", "connect", "--db-user=" + user, "redis", "--"}, command...)...)
	}
	await(t, "Redis is up", upWait, func() bool { return redis("writer", "set", "k", "v").stdout == "OK\n" })
	if r := redis("reader", "get", "k"); r.stdout != "v\n" {
		t.Errorf("reader: %+v", r)
	}
	if r := redis("reader", "set", "k", "w"); !strings.Contains(r.stdout+r.stderr, "NOPERM") {
		t.Errorf("reader writes: %+v", r)
	}
	await(t, "MariaDB is up", upWait, func() bool { return maria("writer", "select 6*7").stdout == "42\n" })
	if r := maria("writer", "create table kept (a int); insert into kept values (7)"); r.code != 0 {
		t.Fatalf("writer: %+v", r)
	}
	if r := maria("reader", "insert into kept values (8)"); r.code == 0 {
		t.Errorf("reader writes: %+v", r)
	}
	testModes(t, d, p)

	// An upgrade leaves them as they are.
	p.run("sallyport", "upgrade", "--data-dir="+d.data)
	if r := maria("writer", "select a from kept"); r.stdout != "7\n" {
		t.Errorf("MariaDB after an upgrade: %+v", r)
	}
	if r := redis("reader", "get", "k"); r.stdout != "v\n" { // it keeps nothing but while it runs
		t.Errorf("Redis after an upgrade: %+v", r)
	}

	// A demo that is killed leaves none of them; the next one has the data.
	main := d.serving(p).PID
	d.kill()
	await(t, "its main process has ended", runWait, func() bool { return !alive(main) })
	d = startDemoWith(t, dir, "mariadb,redis")
	p = newPerson(t)
	p.login(d)
	await(t, "MariaDB is up again", upWait, func() bool { return maria("reader", "select a from kept").stdout == "7\n" })
	d.stop()
	await(t, "its servers have ended", upWait, func() bool {
		out, err := exec.Command("ps", "-eo", "args").Output()
		return err == nil && !strings.Contains(string(out), filepath.Join(dir, "data"))
	})
}
