package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/libpq"
	"github.com/sallyport/sallyport/cmd/internal/output"
)

// someDatabase is one that the person may reach, as auth's answer would make it.
func someDatabase(t *testing.T, p *program) *database {
	t.Helper()
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.home.Credentials(f)
	if err != nil {
		t.Fatal(err)
	}
	return &database{
		cred: &credentials{Credentials: c}, name: "orders", service: serviceName(f, "orders"), host: "orders.db.gw.test", port: "8443",
		ca: p.home.CAsPath(f), cert: databaseFile(p.home, f, "orders", ".crt"), key: databaseFile(p.home, f, "orders", ".key"),
	}
}

func TestDatabaseLogin(t *testing.T) {
	t.Setenv("PGSERVICEFILE", "")
	p := newProgram(t)
	d := someDatabase(t, p)
	file := filepath.Join(os.Getenv("HOME"), ".pg_service.conf")
	const theirs = "[theirs]\nhost=a\n"
	if err := os.WriteFile(file, []byte(theirs), 0o644); err != nil {
		t.Fatal(err)
	}

	// Using a database writes what libpq reads keys from, and no more.
	if err := p.dbFiles(d); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(file); string(b) != theirs {
		t.Errorf("the service file: %q", b)
	}
	if got := p.databasesOf(d.cred.Profile); !slices.Equal(got, []string{"orders"}) {
		t.Errorf("logged in to %q", got)
	}
	for _, f := range []string{d.cert, d.key} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info, err)
		}
	}

	// A login chooses; what is used later goes by it, unless told otherwise.
	chosen := *d
	chosen.user, chosen.dbname = "reader", "shop"
	if err := p.dbLogin(&chosen); err != nil {
		t.Fatal(err)
	}
	later, told := *d, *d
	told.user = "writer"
	if err := errors.Join(p.dbFiles(&later), p.dbFiles(&told)); err != nil {
		t.Fatal(err)
	}
	if later.user != "reader" || later.dbname != "shop" || told.user != "writer" || told.dbname != "shop" {
		t.Errorf("later %q %q, told %q %q", later.user, later.dbname, told.user, told.dbname)
	}

	if err := p.dbLogout(d.cred.Profile, "orders"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(file); strings.TrimSpace(string(b)) != strings.TrimSpace(theirs) {
		t.Errorf("after the logout: %q", b)
	}
	if got := p.databasesOf(d.cred.Profile); len(got) > 0 {
		t.Errorf("still logged in to %q", got)
	}
}

// TestServiceFileOfAnother: PGSERVICEFILE is where libpq looks.
func TestServiceFileOfAnother(t *testing.T) {
	file := filepath.Join(t.TempDir(), "services")
	p := newProgram(t)
	t.Setenv("PGSERVICEFILE", file)
	if err := p.dbLogin(someDatabase(t, p)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(b), "[gw.test-orders]\nhost=orders.db.gw.test\n") {
		t.Errorf("%q, %v", b, err)
	}
	if exists(filepath.Join(os.Getenv("HOME"), ".pg_service.conf")) {
		t.Error("the other file was written too")
	}
}

// TestA29_Environment: what the user's environment says of other databases
// does not lead psql away.
func TestA29_Environment(t *testing.T) {
	environ := []string{"PATH=/bin", "PGHOST=evil", "PGHOSTADDR=1.2.3.4", "PGSERVICE=evil", "PGSSLMODE=disable", "PGPASSWORD=x", "PGOPTIONS=-c a=b", "PGAPPNAME=a", "PGTZ=UTC"}
	got := libpqEnv(environ, []libpq.Setting{{Key: "host", Value: "orders.db.gw.test"}, {Key: "sslmode", Value: "verify-full"}})
	want := []string{"PATH=/bin", "PGOPTIONS=-c a=b", "PGAPPNAME=a", "PGTZ=UTC", "PGHOST=orders.db.gw.test", "PGSSLMODE=verify-full"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestOnly(t *testing.T) {
	for _, tt := range []struct {
		said string
		all  []string
		want string
	}{
		{"", nil, ""}, {"", []string{"a"}, "a"}, {"", []string{"*"}, ""}, {"", []string{"a", "b"}, ""}, {"x", []string{"a"}, "x"},
	} {
		if got := only(tt.said, tt.all); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

// TestWhichDatabase: with several databases allowed and none named, psql asked for
// one of the user's name, and was refused. What psql's own arguments name is theirs.
func TestWhichDatabase(t *testing.T) {
	several := []string{"shop", "sto\x1bck"}
	for _, tt := range []struct {
		names []string
		args  string
		asks  bool
	}{
		{several, "", true}, {several, "-c x", true}, {several, "-Atc x -f file -v ON_ERROR_STOP=1 -hthere -X", true}, {several, "-U bob", true},
		{several, "shop", false}, {several, "-At -c x shop", false}, {several, "-d shop", false}, {several, "-qdshop", false}, {several, "-l", false},
		{several, "--dbname=shop", false}, {several, "--no-psqlrc", false}, {several, "-- shop", false}, {several, "-", false}, {several, "-V", false},
		{[]string{"shop", "*"}, "", false}, {[]string{"shop", "reader"}, "", false}, {nil, "", false},
	} {
		d := &database{name: "orders", user: "reader", names: tt.names}
		err := d.defaults(strings.Fields(tt.args))
		var p *sallyport.Problem
		if !tt.asks && err != nil || tt.asks && (!errors.As(err, &p) || p.Fact != `database "orders": which database in the server?` || !strings.Contains(p.Hint, "--db-name=NAME; yours: shop, sto") || strings.Contains(p.Hint, "\x1b")) {
			t.Errorf("%q with %q: %v", tt.args, tt.names, err)
		}
	}
}

func TestSaidPostgres(t *testing.T) {
	for _, tt := range []struct {
		dbname string
		names  []string
		want   string // the end
	}{
		{"", []string{"shop", "stock"}, "dbname=DATABASE'\n\nDATABASE is one of: shop, stock\n"},
		{"", []string{"shop", "*"}, "dbname=DATABASE'\n"}, {"", nil, "dbname=DATABASE'\n"},
		{"shop", []string{"shop", "stock"}, "sally db connect orders\n  psql 'service=gw.test-orders'\n"},
	} {
		p, out := newProgram(t), &strings.Builder{}
		p.stdout = out
		if err := p.saidPostgres(&database{name: "orders", service: "gw.test-orders", user: "reader", dbname: tt.dbname, names: tt.names}); err != nil || !strings.HasSuffix(out.String(), tt.want) {
			t.Errorf("%+v: %v\n%s", tt, err, out)
		}
	}
}

func TestChildExit(t *testing.T) {
	for script, want := range map[string]error{"exit 0": nil, "exit 3": fail.Exit{Code: 3}, "kill -TERM $$": fail.Exit{Code: 143}} {
		if got := childExit(exec.Command("sh", "-c", script).Run()); got != want {
			t.Errorf("%s: %v", script, got)
		}
	}
}

func TestListener(t *testing.T) {
	for _, tt := range []struct {
		l    listener
		want string // an address, or what the error says
		ok   bool
	}{
		{listener{}, "127.0.0.1:0", true},
		{listener{Port: "5433"}, "127.0.0.1:5433", true},
		{listener{Listen: "127.0.0.1:1"}, "127.0.0.1:1", true},
		{listener{Listen: "[::1]:1"}, "[::1]:1", true},
		{listener{Listen: "localhost:1"}, "localhost:1", true},
		{listener{Listen: "0.0.0.0:1", Wide: true}, "0.0.0.0:1", true},
		{listener{Listen: "0.0.0.0:1"}, "other machines", false},
		{listener{Listen: ":1"}, "other machines", false},
		{listener{Listen: "192.0.2.1:1"}, "other machines", false},
		{listener{Listen: "evil.test:1"}, "other machines", false},
		{listener{Listen: "1"}, "not host:port", false},
		{listener{Port: "x"}, "not a port", false},
		{listener{Port: "70000"}, "not a port", false},
		{listener{Port: "1:2"}, "one port", false},
		{listener{Port: "1", Listen: "127.0.0.1:1"}, "exclude", false},
	} {
		got, err := tt.l.address()
		if tt.ok && (err != nil || got != tt.want) || !tt.ok && (!errors.Is(err, sallyport.ErrInvalid) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %q, %v", tt.l, got, err)
		}
	}
}

func TestDestination(t *testing.T) {
	p := newProgram(t)
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.home.Credentials(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ flag, arg, login, node string }{
		{"", "root@web", "root", "web"},
		{"ubuntu", "web", "ubuntu", "web"},
		{"ubuntu", "root@web", "root", "web"},
		{"", "root@web.gw.test", "root", "web"},
		{"", "root@web.node.gw.test", "root", "web"},
		{"", "root@WEB", "root", "web"},
		{"", "a@b@web", "a@b", "web"},
	} {
		p.LoginName = tt.flag
		login, node, err := p.destination(&credentials{Credentials: c}, tt.arg)
		if err != nil || login != tt.login || node != tt.node {
			t.Errorf("%+v: %q %q %v", tt, login, node, err)
		}
	}
	p.LoginName = ""
	if _, _, err := p.destination(&credentials{Credentials: c}, "root@"); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("no node: %v", err)
	}
}

// TestDatabaseJSON: the port is a number, as in tsh's "db config -f json".
func TestDatabaseJSON(t *testing.T) {
	d := someDatabase(t, newProgram(t))
	d.user = "writer"
	j, err := d.json()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := output.Write(&out, "json", j); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Name, Host, User, CA, Cert, Key string
		Port                            int
	}
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	if got.Port != 8443 || got.Host != d.host || got.Name != "orders" || got.User != "writer" || got.CA != d.ca || got.Cert != d.cert || got.Key != d.key {
		t.Errorf("%+v", got)
	}
}

// TestDBConnectNameless: without a name, -- and arguments of the client are no name of
// a database.
func TestDBConnectNameless(t *testing.T) {
	clearEnv(t)
	for argv, want := range map[string][]string{
		"sally db connect":                         {""},
		"sally db connect -- -c x":                 {"", "-c", "x"},
		"sally db connect -u reader -- --csv -c x": {"", "--csv", "-c", "x"},
		"sally db connect -- --csv -- x":           {"", "--csv", "--", "x"},
		"sally db connect orders -- -c x":          {"orders", "-c", "x"},
		"sally db connect orders -- -- x":          {"orders", "--", "x"},
		"sally db connect orders x":                {"orders", "x"},
	} {
		g, err := parse(strings.Fields(argv), io.Discard, io.Discard)
		if err != nil {
			t.Fatalf("%s: %v", argv, err)
		}
		c := &g.cli.DB.Connect
		c.separate()
		if got := append([]string{c.Name}, c.Args...); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", argv, got, want)
		}
	}
	p := newProgram(t)
	if _, err := p.login(alice()); err != nil {
		t.Fatal(err)
	}
	if err := (&dbConnectCmd{Name: "-c", Args: []string{"select 1"}}).Run(p); err == nil || !strings.HasPrefix(err.Error(), "no database is named") {
		t.Errorf("without a name: %v", err)
	}
}
