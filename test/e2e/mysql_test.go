package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/mariadb"
)

// TestMariaDB is a person with the stock client: by sally's own command, and by
// a local port.
func TestMariaDB(t *testing.T) {
	if _, err := exec.LookPath("mariadb"); err != nil {
		peers.Missing(t, "mariadb")
	}
	p := newPerson(t)
	c := startCluster(t, p, func(c *cluster) string {
		c.admin(p, "auth", "sign", "--format=db", "--host=127.0.0.1", "--out="+c.path("my"))
		return fmt.Sprintf("  databases: [{name: orders, protocol: mysql, address: %q}]\n", startMariaDB(t, c).Addr)
	}, func(c *cluster) string { return c.gateway })
	c.user(p, "ann")
	c.online(p, "db")

	const who = "select current_user(), database()"
	if out := p.run("sally", "db", "connect", "--db-user=app", "--db-name=app", "orders", "--", "-Ne", who); !strings.Contains(out, "app@%") {
		t.Errorf("db connect: %q", out)
	}
	p.run("sally", "db", "login", "--db-user=app", "--db-name=app", "orders")
	if out := p.run("sally", "db", "connect", "orders", "--", "-Ne", who); !strings.Contains(out, "app@%") {
		t.Errorf("after db login: %q", out)
	}
	p.refused(1, []string{"ERROR 1045 (28000)", `"root"`, "app"}, "sally", "db", "connect", "--db-user=root", "orders", "--", "-e", "select 1")
	p.refused(1, []string{"send no server name", "sally proxy db orders"}, "sally", "db", "env", "orders")
	if out := p.run("sally", "db", "config", "-f", "cmd", "orders"); out != "sally db connect --db-user=app --db-name=app orders\n" {
		t.Errorf("db config: %q", out)
	}

	aSocketOfItsOwn(t, p, "UNIX socket", false, "db", "connect", "orders", "--", "-e", "status")
	aSocketOfItsOwn(t, p, "under way", true, "db", "connect", "orders", "--", "--unbuffered", "-e", "select 'under way'; select sleep(3600)")

	addr := p.listens(t, `on (127\.0\.0\.1:\d+)`, "proxy", "db", "--tunnel", "orders")
	_, port, _ := net.SplitHostPort(addr)
	if out := p.run("mariadb", "--no-defaults", "--skip-ssl", "--host=127.0.0.1", "--port="+port, "--user=app", "-Ne", "select 'through the port'", "app"); out != "through the port\n" {
		t.Errorf("proxy db: %q", out)
	}
	await(t, "the statement is in the audit log", upWait, func() bool {
		r := p.try("", "sallyctl", "--data-dir="+c.path("auth"), "audit", "search", "--event=db.session.query", "--limit=1000")
		return r.code == 0 && strings.Contains(r.stdout, "through the port")
	})
}

// aSocketOfItsOwn is a client of "sally db connect" that comes by a socket which others
// cannot reach, and which is gone when it ends: by itself, or by SIGTERM once it has
// said what it says.
func aSocketOfItsOwn(t *testing.T, p *person, says string, terminated bool, args ...string) {
	t.Helper()
	tmp := shortDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), upWait)
	defer cancel()
	cmd := p.command(ctx, "sally", args...)
	cmd.Env = append(cmd.Env, "TMPDIR="+tmp)
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if terminated {
		await(t, "the client is at work", upWait, func() bool { return strings.Contains(out.String(), says) })
		dirs, err := os.ReadDir(tmp)
		if err != nil || len(dirs) != 1 {
			t.Fatalf("for the client's socket: %v, %v", dirs, err)
		}
		if info, err := dirs[0].Info(); err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("its directory: %v, %v", info, err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); (err != nil) != terminated || !strings.Contains(out.String(), says) {
		t.Errorf("%q: %v\n%s", args, err, &out)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("%q: %v stay, %v", args, left, err)
	}
}

func startMariaDB(t testing.TB, c *cluster) *mariadb.Server {
	t.Helper()
	read := func(suffix string) []byte {
		b, err := os.ReadFile(c.path("my" + suffix))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	db, err := mariadb.Start(mariadb.Options{Cert: read(".crt"), Key: read(".key"), ClientCA: read(".cas"),
		SQL: []string{"CREATE USER app REQUIRE SUBJECT '/CN=app'", "CREATE DATABASE app", "GRANT ALL ON app.* TO app"}})
	if errors.Is(err, mariadb.ErrMissing) {
		peers.Missing(t, "mariadb")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Stop)
	return db
}
