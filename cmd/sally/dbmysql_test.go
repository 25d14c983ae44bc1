package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// TestMySQLLogin: what a login chose is kept beside the keys, and libpq's file
// is left alone.
func TestMySQLLogin(t *testing.T) {
	t.Setenv("PGSERVICEFILE", "")
	p := newProgram(t)
	d := someDatabase(t, p)
	d.protocol = protocolMySQL
	chosen := *d
	chosen.user, chosen.dbname = "reader", `sh"op`
	if err := p.dbLogin(&chosen); err != nil {
		t.Fatal(err)
	}
	later, told := *d, *d
	told.user = "writer"
	if err := errors.Join(p.dbFiles(&later), p.dbFiles(&told)); err != nil {
		t.Fatal(err)
	}
	if later.user != "reader" || later.dbname != `sh"op` || told.user != "writer" || told.dbname != `sh"op` {
		t.Errorf("later %q %q, told %q %q", later.user, later.dbname, told.user, told.dbname)
	}
	f := d.cred.Profile
	if got := p.databasesOf(f); !slices.Equal(got, []string{"orders"}) {
		t.Errorf("logged in to %q", got)
	}
	if exists(filepath.Join(os.Getenv("HOME"), ".pg_service.conf")) {
		t.Error("libpq's file was written")
	}
	// Without auth, its protocol is known still.
	if got := p.protocolOf(f, "orders", nil); got != protocolMySQL {
		t.Errorf("protocol %q", got)
	}
	if got := p.protocolOf(f, "orders", &sallyportv1.AccessibleResource{Resource: &sallyportv1.Resource{Protocol: "postgres"}}); got != protocolPostgres {
		t.Errorf("auth says otherwise: %q", got)
	}
	if err := p.dbLogout(f, "orders"); err != nil {
		t.Fatal(err)
	}
	if got := p.protocolOf(f, "orders", nil); got != protocolPostgres || len(p.databasesOf(f)) > 0 {
		t.Errorf("after the logout: %q %q", got, p.databasesOf(f))
	}
	if err := p.dbFiles(d); err != nil {
		t.Errorf("without a choice: %v", err)
	}
}

// TestA29_MySQLArguments: names and the user's environment do not lead the
// client away.
func TestA29_MySQLArguments(t *testing.T) {
	d := &database{name: "orders", user: "--host=evil", dbname: "-e x"}
	for mariadb, ssl := range map[bool]string{true: "--skip-ssl", false: "--ssl-mode=DISABLED"} {
		want := []string{"--protocol=TCP", "--host=127.0.0.1", "--port=4", "--user=--host=evil", ssl, "--database=-e x"}
		if got := (stock{mariadb: mariadb}).arguments(d, byPort("4")); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	}
	if got, want := bySocket("/tmp/a/orders"), []string{"--protocol=SOCKET", "--host=localhost", "--socket=/tmp/a/orders"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	environ := []string{"PATH=/bin", "MYSQL_HOST=evil", "MYSQL_PWD=x", "MYSQL_TCP_PORT=1", "MYSQL_UNIX_PORT=/evil", "MYSQL_GROUP_SUFFIX=_evil", "MYSQL_PS1=>"}
	if got := mysqlEnv(environ); !slices.Equal(got, []string{"PATH=/bin", "MYSQL_PS1=>"}) {
		t.Errorf("%q", got)
	}
	if got := d.connectCommand(); got != "sally db connect --db-user='--host=evil' --db-name='-e x' orders" {
		t.Errorf("%s", got)
	}
	if err := checkChoice("a\nb", ""); err == nil || !strings.Contains(err.Error(), "control characters") {
		t.Error(err)
	}
}
