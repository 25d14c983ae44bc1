package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
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
