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
	"github.com/sallyport/sallyport/tools/peers/redis"
)

// TestRedis is a person with the stock client: by sally's own command, straight
// to the gateway, and by a local port.
func TestRedis(t *testing.T) {
	if _, err := exec.LookPath("redis-cli"); err != nil {
		peers.Missing(t, "redis-cli")
	}
	p := newPerson(t)
	c := startCluster(t, p, func(c *cluster) string {
		c.admin(p, "auth", "sign", "--format=db", "--host=127.0.0.1", "--out="+c.path("redis"))
		return fmt.Sprintf("  databases: [{name: cache, protocol: redis, address: %q}]\n", startRedis(t, c).Addr)
	}, func(c *cluster) string { return c.gateway })
	role := "kind: role\nversion: v7\nmetadata: {name: cache}\nspec:\n  allow:\n    db_labels: {'*': '*'}\n    db_users: [app, locked]\n"
	if r := p.try(role, "sallyctl", "--data-dir="+c.path("auth"), "create", "-"); r.code != 0 {
		t.Fatalf("create: %+v", r)
	}
	c.userWith(p, "ann", "cache")
	c.online(p, "db")

	whoami := []string{"acl", "whoami"}
	if out := p.run("sally", append([]string{"db", "connect", "--db-user=app", "cache", "--"}, whoami...)...); out != "app\n" {
		t.Errorf("db connect: %q", out)
	}
	if out := p.run("sally", "db", "login", "--db-user=app", "cache"); !strings.Contains(out, "--sni cache.db.") {
		t.Errorf("db login: %q", out)
	}
	if out := p.run("sally", append([]string{"db", "connect", "cache", "--", "-3"}, whoami...)...); out != "app\n" {
		t.Errorf("after db login: %q", out)
	}
	aSocketOfItsOwn(t, p, "app\n", false, "db", "connect", "cache", "--", "acl", "whoami")
	aSocketOfItsOwn(t, p, "subscribe", true, "db", "connect", "cache", "--", "subscribe", "news")
	// A server that wants a password gets it from the client.
	if r := p.try("", "env", "REDISCLI_AUTH=secret", program(t, "sally"), "db", "connect", "--db-user=locked", "cache", "--", "acl", "whoami"); r.stdout != "locked\n" {
		t.Errorf("with a password: %+v", r)
	}
	if r := p.try("", "sally", "db", "connect", "--db-user=locked", "cache", "--", "acl", "whoami"); !strings.Contains(r.stdout+r.stderr, "NOAUTH") {
		t.Errorf("without a password: %+v", r)
	}
	if r := p.try("", "sally", "db", "connect", "--db-user=default", "cache", "--", "acl", "whoami"); !strings.Contains(r.stdout+r.stderr, `NOPERM`) || !strings.Contains(r.stdout+r.stderr, `"default" is not among them`) {
		t.Errorf("a user that is not allowed: %+v", r)
	}
	p.refused(1, []string{"sally db config -f cmd cache"}, "sally", "db", "env", "cache")

	straight := p.run("sally", "db", "config", "-f", "cmd", "cache")
	if out := p.run("sh", "-c", strings.TrimSpace(straight)+" set through 'the one port'"); out != "OK\n" {
		t.Errorf("%s: %q", straight, out)
	}
	if r := p.try("", "sh", "-c", strings.TrimSpace(strings.Replace(straight, "--user app", "--user default", 1))+" get through"); !strings.Contains(r.stdout+r.stderr, `"default" is not among them`) {
		t.Errorf("straight, a user that is not allowed: %+v", r)
	}
	addr := p.listens(t, `on (127\.0\.0\.1:\d+)`, "proxy", "db", "cache")
	_, port, _ := net.SplitHostPort(addr)
	if out := p.run("redis-cli", "-h", "127.0.0.1", "-p", port, "get", "through"); out != "the one port\n" {
		t.Errorf("proxy db: %q", out)
	}
	await(t, "the command is in the audit log", upWait, func() bool {
		r := p.try("", "sallyctl", "--data-dir="+c.path("auth"), "audit", "search", "--event=db.session.query", "--limit=1000")
		return r.code == 0 && strings.Contains(r.stdout, "set through") && !strings.Contains(r.stdout, "secret")
	})

	// A machine without the client.
	if r := p.try("", "env", "PATH=/nowhere", program(t, "sally"), "db", "connect", "--db-user=app", "cache"); r.code != 1 || !strings.Contains(r.stderr, "neither redis-cli nor valkey-cli is on the PATH") || !strings.Contains(r.stderr, "redis-tools") {
		t.Errorf("without redis-cli: %+v", r)
	}
}

func startRedis(t testing.TB, c *cluster) *redis.Server {
	t.Helper()
	read := func(suffix string) []byte {
		b, err := os.ReadFile(c.path("redis" + suffix))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	db, err := redis.Start(redis.Options{Cert: read(".crt"), Key: read(".key"), ClientCA: read(".cas"),
		ACL: []string{"user default on nopass ~* &* +@all", "user app on nopass ~* &* +@all", "user locked on >secret ~* &* +@all"}})
	if errors.Is(err, redis.ErrMissing) {
		peers.Missing(t, "redis")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Stop)
	return db
}
