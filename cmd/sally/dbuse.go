package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/libpq"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/dataplane/dial"
)

type dbLoginCmd struct {
	databaseFlags
	Name string `arg:"" help:"Name of the database, as sally db ls shows it."`
}

// Run writes ~/.pg_service.conf and says how to use it.
func (c *dbLoginCmd) Run(p *program) error {
	d, err := p.database(c.Name, c.databaseFlags)
	if err != nil {
		return err
	}
	if err := d.allowed(); err != nil {
		return err
	}
	if err := p.dbLogin(d); err != nil {
		return err
	}
	p.warnEnded(d.cred, "a client that sally does not start", "sally db connect "+d.name+", or sally proxy db "+d.name)
	switch d.protocol {
	case protocolMySQL:
		return p.saidMySQL(d)
	case protocolRedis:
		return p.saidRedis(d)
	}
	return p.saidPostgres(d)
}

// allowed refuses what would be saved and then be denied, where auth has said what is
// not.
func (d *database) allowed() error {
	for _, part := range []struct {
		what, value string
		all         []string
	}{{"users", d.user, d.users}, {"database names", d.dbname, d.names}} {
		literal := !slices.ContainsFunc(part.all, func(s string) bool { return strings.ContainsAny(s, "*^") })
		if part.value != "" && len(part.all) > 0 && literal && !slices.Contains(part.all, part.value) {
			return problem(sallyport.ErrDenied, fmt.Sprintf("database %q: your roles allow the %s %s; %q is not among them", d.name, part.what, fail.Clean(strings.Join(part.all, ", ")), part.value),
				"ask an administrator for a role with it, and log in again then: sally login --force")
		}
	}
	return nil
}

// saidPostgres says how to go on after a login.
func (p *program) saidPostgres(d *database) error {
	connect, conn := "sally db connect "+d.name, "service="+d.service
	if d.user == "" {
		connect, conn = connect+" --db-user=USER", conn+" user=USER"
	}
	if d.dbname == "" {
		connect, conn = connect+" --db-name=DATABASE", conn+" dbname=DATABASE"
	}
	names := ""
	if d.dbname == "" && d.bounded() {
		names = "\nDATABASE is one of: " + fail.Clean(strings.Join(d.names, ", ")) + "\n"
	}
	_, err := fmt.Fprintf(p.stdout, "Connection information for database %q has been saved.\n\nConnect with:\n  %s\n  psql %s\n%s", d.name, connect, shell.Word(conn), names)
	return err
}

type dbLogoutCmd struct {
	Name string `arg:"" optional:"" help:"Name of the database; all without."`
}

// Run removes certificates and sections of the service file.
func (c *dbLogoutCmd) Run(p *program) error {
	f, err := p.selected()
	if err != nil {
		return err
	}
	names := p.databasesOf(f)
	if c.Name != "" {
		if !slices.Contains(names, c.Name) {
			return problem(sallyport.ErrNotFound, fmt.Sprintf("not logged in to database %q", c.Name), "sally db ls")
		}
		names = []string{c.Name}
	}
	return p.home.Locked(func() error {
		for _, name := range names {
			if err := p.dbLogout(f, name); err != nil {
				return err
			}
			fmt.Fprintf(p.stdout, "Logged out of database %q.\n", name)
		}
		return nil
	})
}

type dbConnectCmd struct {
	databaseFlags
	Tunnel bool     `name:"tunnel" hidden:""`
	Name   string   `arg:"" optional:"" help:"Name of the database; without, the one that you have logged in to."`
	Args   []string `arg:"" optional:"" passthrough:"partial" help:"Arguments for psql, mariadb, mysql or redis-cli, after --."`
}

// Run starts the database's own client.
func (c *dbConnectCmd) Run(p *program) error {
	c.separate()
	d, err := p.database(c.Name, c.databaseFlags)
	if err != nil {
		return err
	}
	if err := p.dbFiles(d); err != nil {
		return err
	}
	if d.user == "" {
		return problem(errInvalid, fmt.Sprintf("database %q: which user?", d.name), "sally db connect --db-user=USER "+d.name+"; sally db ls shows the users")
	}
	switch d.protocol {
	case protocolMySQL:
		return p.connectMySQL(d, c.Args)
	case protocolRedis:
		return p.connectRedis(d, c.Args)
	}
	return c.psql(p, d)
}

// separate takes the name and the client's arguments apart. After -- the first of
// these stands where the name does when none is given; no name begins with a hyphen.
func (c *dbConnectCmd) separate() {
	if strings.HasPrefix(c.Name, "-") {
		c.Name, c.Args = "", append([]string{c.Name}, c.Args...)
	}
	if len(c.Args) > 0 && c.Args[0] == "--" {
		c.Args = c.Args[1:]
	}
}

// psql is started straight to the gateway, with the environment that libpq reads,
// or, where something on the way ends TLS, on a socket.
func (c *dbConnectCmd) psql(p *program, d *database) error {
	psql, err := exec.LookPath("psql")
	if err != nil {
		return problem(sallyport.ErrNotFound, "psql is not on the PATH", "install it (Debian: postgresql-client), or use sally proxy db")
	}
	if d.dbname == "" {
		if err := d.defaults(c.Args); err != nil {
			return err
		}
		d.dbname = d.user // libpq's own default, said here so that PGDATABASE is not asked
	}
	cmd := exec.Command(psql, c.Args...)
	if d.cred.ended() {
		return p.psqlOnSocket(d, cmd)
	}
	cmd.Env = libpqEnv(os.Environ(), d.settings())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	return childExit(runClient(cmd))
}

// psqlOnSocket starts psql on a socket that is there as long as it runs.
func (p *program) psqlOnSocket(d *database, psql *exec.Cmd) error {
	const port = "5432" // of the name that libpq looks for
	l, err := listenForClient(".s.PGSQL." + port)
	if err != nil {
		return err
	}
	defer l.remove()
	psql.Env = libpqEnv(os.Environ(), []libpq.Setting{
		{Key: "host", Value: l.dir}, {Key: "port", Value: port}, {Key: "user", Value: d.user}, {Key: "dbname", Value: d.dbname},
		{Key: "sslmode", Value: "disable"}, {Key: "gssencmode", Value: "disable"},
	})
	return p.runOn(&dial.LocalProxy{Listener: l, Postgres: true, Dial: p.lasting(d.cred).to(sallyport.KindDatabase, d.name, protocolDB)}, psql)
}

// bounded says that it is known which names may be opened in the server.
func (d *database) bounded() bool { return len(d.names) > 0 && !slices.Contains(d.names, "*") }

// defaults asks for a name where psql's arguments give none and its default, the
// user's name, is refused.
func (d *database) defaults(args []string) error {
	if !d.bounded() || slices.Contains(d.names, d.user) || mayNameDatabase(args) {
		return nil
	}
	return problem(errInvalid, fmt.Sprintf("database %q: which database in the server?", d.name), "--db-name=NAME; yours: "+fail.Clean(strings.Join(d.names, ", ")))
}

// Options of psql (PostgreSQL 17) that name no database and need one. What is not
// among them may name one.
const (
	psqlFlags  = "aAbeEHnqsStwWxXz01"
	psqlValues = "cfFhLopPRTUv"
)

// mayNameDatabase says whether psql's arguments could name a database, or need
// none.
func mayNameDatabase(args []string) bool {
	for i := 0; i < len(args); i++ {
		letters, option := strings.CutPrefix(args[i], "-")
		if !option || letters == "" {
			return true
		}
		end := strings.IndexFunc(letters, func(r rune) bool { return !strings.ContainsRune(psqlFlags, r) })
		switch {
		case end < 0:
		case !strings.Contains(psqlValues, letters[end:end+1]):
			return true // -d, -l, or a long one
		case end == len(letters)-1:
			i++ // the next one is its value
		}
	}
	return false
}

// libpqEnv is the environment for a program that is to connect as settings say
// and not otherwise.
func libpqEnv(environ []string, settings []libpq.Setting) []string {
	var out []string
	for _, kv := range environ {
		if name, _, _ := strings.Cut(kv, "="); !slices.Contains(libpq.Steering(), name) {
			out = append(out, kv)
		}
	}
	for _, s := range libpq.Env(settings) {
		out = append(out, s.Key+"="+s.Value)
	}
	return out
}

// childExit passes a program's exit code on; a signal's is 128 and its number.
func childExit(err error) error {
	var ee *exec.ExitError
	if !errors.As(err, &ee) {
		return err
	}
	if status, ok := ee.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fail.Exit{Code: 128 + int(status.Signal())}
	}
	return fail.Exit{Code: ee.ExitCode()}
}

type dbConfigCmd struct {
	databaseFlags
	Format string `name:"format" short:"f" enum:"text,cmd,json,yaml" default:"text" placeholder:"FORMAT" help:"text, cmd, json or yaml."`
	Name   string `arg:"" optional:"" help:"Name of the database; without, the one that you have logged in to."`
}

type dbConfigJSON struct {
	Name     string `json:"name"`
	Host     string `json:"host"`
	Hostaddr string `json:"hostaddr,omitempty"`
	Port     int    `json:"port"`
	User     string `json:"user,omitempty"`
	Database string `json:"database,omitempty"`
	CA       string `json:"ca"`
	Cert     string `json:"cert"`
	Key      string `json:"key"`
}

// Run prints the settings; the files are written so that they are there.
func (c *dbConfigCmd) Run(p *program) error {
	d, err := p.database(c.Name, c.databaseFlags)
	if err != nil {
		return err
	}
	if err := p.dbFiles(d); err != nil {
		return err
	}
	switch c.Format {
	case "json", "yaml":
		j, err := d.json()
		if err != nil {
			return err
		}
		return output.Write(p.stdout, c.Format, j)
	case "cmd":
		switch d.protocol {
		case protocolMySQL:
			_, err := fmt.Fprintln(p.stdout, d.connectCommand())
			return err
		case protocolRedis:
			_, err := fmt.Fprintln(p.stdout, d.redisCommand())
			return err
		}
		_, err := fmt.Fprintln(p.stdout, "psql "+shell.Word(libpq.Conninfo(d.settings())))
		return err
	}
	for _, row := range [][2]string{{"Name", d.name}, {"Host", d.host}, {"Hostaddr", d.hostaddr}, {"Port", d.port}, {"User", d.user}, {"Database", d.dbname}, {"CA", d.ca}, {"Cert", d.cert}, {"Key", d.key}} {
		fmt.Fprintf(p.stdout, "%-11s%s\n", row[0]+":", row[1])
	}
	return nil
}

func (d *database) json() (dbConfigJSON, error) {
	port, err := strconv.Atoi(d.port)
	return dbConfigJSON{d.name, d.host, d.hostaddr, port, d.user, d.dbname, d.ca, d.cert, d.key}, err
}

type dbEnvCmd struct {
	databaseFlags
	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
	Name   string `arg:"" optional:"" help:"Name of the database; without, the one that you have logged in to."`
}

// Run prints what a shell may evaluate. Variables that would lead libpq
// elsewhere are unset by it.
func (c *dbEnvCmd) Run(p *program) error {
	d, err := p.database(c.Name, c.databaseFlags)
	if err != nil {
		return err
	}
	if err := p.dbFiles(d); err != nil {
		return err
	}
	switch d.protocol {
	case protocolRedis:
		return problem(errInvalid, "redis-cli takes no address from the environment", "sally db config -f cmd "+d.name+", or "+d.connectCommand())
	case protocolMySQL:
		return problem(errInvalid, "clients of MySQL cannot reach the gateway by themselves: they send no server name", "sally proxy db "+d.name+", or "+d.connectCommand())
	}
	values := map[string]string{}
	for _, s := range libpq.Env(d.settings()) {
		values[s.Key] = s.Value
	}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, values)
	}
	for _, name := range libpq.Steering() {
		if _, ours := values[name]; !ours && os.Getenv(name) != "" {
			fmt.Fprintln(p.stdout, "unset "+name)
		}
	}
	for _, s := range libpq.Env(d.settings()) {
		fmt.Fprintf(p.stdout, "export %s=%s\n", s.Key, shell.Word(s.Value))
	}
	return nil
}
