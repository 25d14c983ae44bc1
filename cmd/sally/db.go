package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

type dbCmd struct {
	Ls      dbLsCmd      `cmd:"" help:"List databases that you may reach."`
	Login   dbLoginCmd   `cmd:"" help:"Write what stock clients need to reach a database."`
	Logout  dbLogoutCmd  `cmd:"" help:"Remove it again."`
	Connect dbConnectCmd `cmd:"" help:"Start psql on a database."`
	Config  dbConfigCmd  `cmd:"" help:"Print connection settings."`
	Env     dbEnvCmd     `cmd:"" help:"Print environment variables for psql and libpq."`
}

// databaseFlags say as whom and where.
type databaseFlags struct {
	User   string `name:"db-user" short:"u" help:"Database user."`
	DBName string `name:"db-name" short:"n" help:"Database name."`
}

type dbLsCmd struct {
	filter
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"text, json or yaml."`
	Verbose bool   `name:"verbose" short:"v" help:"Show protocol and address, and labels uncut."`
}

type databaseJSON struct {
	Kind     string       `json:"kind"`
	Version  string       `json:"version"`
	Metadata metadataJSON `json:"metadata"`
	Spec     struct {
		Protocol string `json:"protocol"`
		URI      string `json:"uri"`
	} `json:"spec"`
	Users struct {
		Allowed []string `json:"allowed"`
	} `json:"users"`
}

// Run lists databases.
func (c *dbLsCmd) Run(p *program) error {
	list, err := p.listed(sallyport.KindDatabase, c.filter)
	if err != nil {
		return err
	}
	if c.Format != "text" {
		return encode(p.stdout, c.Format, databasesJSON(list))
	}
	f, err := p.selected()
	if err != nil {
		return err
	}
	active := p.databasesOf(f)
	header := []string{"Name", "Description", "Allowed Users", "Labels", "Connect"}
	if c.Verbose {
		header = []string{"Name", "Description", "Protocol", "URI", "Allowed Users", "Labels", "Connect"}
	}
	var rows [][]string
	for _, a := range list {
		r, name, connect := a.GetResource(), a.GetResource().GetName(), ""
		if slices.Contains(active, name) {
			name, connect = "> "+name, "sally db connect "+name
		}
		row := []string{name, fail.Clean(r.GetDescription()), "[" + strings.Join(a.GetDatabaseUsers(), " ") + "]", labels(r.GetLabels(), c.Verbose), connect}
		if c.Verbose {
			row = slices.Insert(row, 2, r.GetProtocol(), r.GetAddress())
		}
		rows = append(rows, row)
	}
	return p.table(c.Verbose, header, rows)
}

func databasesJSON(list []*sallyportv1.AccessibleResource) []databaseJSON {
	out := []databaseJSON{}
	for _, a := range list {
		r := a.GetResource()
		j := databaseJSON{Kind: "db", Version: "v3", Metadata: metadataJSON{Name: r.GetName(), Description: r.GetDescription(), Labels: r.GetLabels()}}
		j.Spec.Protocol, j.Spec.URI = r.GetProtocol(), r.GetAddress()
		j.Users.Allowed = a.GetDatabaseUsers()
		out = append(out, j)
	}
	return out
}

// database is one database as a stock client reaches it.
type database struct {
	cred       *credentials
	name       string
	user       string
	dbname     string
	host       string // the server name, which libpq sends and checks
	hostaddr   string // where to connect, when the name is not in the DNS
	port       string
	ca         string
	cert, key  string
	serviceTag string
}

// database fills in user and name: from flags, or the only one that is allowed.
func (p *program) database(name string, flags databaseFlags) (*database, error) {
	cred, err := p.reachable(sallyport.KindDatabase, name)
	if err != nil {
		return nil, err
	}
	list, err := cred.list(p.ctx, sallyport.KindDatabase, name)
	if err != nil {
		return nil, err
	}
	d := &database{cred: cred, name: name, user: flags.User, dbname: flags.DBName, serviceTag: cred.Profile.Cluster + "-" + name}
	for _, a := range list {
		if d.user == "" && len(a.GetDatabaseUsers()) == 1 && a.GetDatabaseUsers()[0] != "*" {
			d.user = a.GetDatabaseUsers()[0]
		}
		if d.dbname == "" && len(a.GetDatabaseNames()) == 1 && a.GetDatabaseNames()[0] != "*" {
			d.dbname = a.GetDatabaseNames()[0]
		}
	}
	for _, s := range []string{d.user, d.dbname} {
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, problem(errInvalid, "user and database names cannot hold control characters", "")
		}
	}
	proxyHost, port, err := net.SplitHostPort(cred.Profile.WebProxyAddr)
	if err != nil {
		return nil, err
	}
	d.host, d.port = name+".db."+cred.Profile.Cluster, port
	d.hostaddr = hostaddr(p, d.host, proxyHost)
	d.ca = p.home.CAsPath(cred.Profile)
	d.cert, d.key = filepath.Join(p.home.DBDir(cred.Profile), name+".crt"), filepath.Join(p.home.DBDir(cred.Profile), name+".key")
	return d, nil
}

// hostaddr is the gateway's address when the DNS does not lead the resource's
// name there.
func hostaddr(p *program, name, proxyHost string) string {
	if ip := net.ParseIP(proxyHost); ip != nil {
		return ip.String()
	}
	proxy, err := net.DefaultResolver.LookupHost(p.ctx, proxyHost)
	if err != nil || len(proxy) == 0 {
		return ""
	}
	own, err := net.DefaultResolver.LookupHost(p.ctx, name)
	if err == nil && slices.ContainsFunc(own, func(a string) bool { return slices.Contains(proxy, a) }) {
		return ""
	}
	for _, a := range proxy { // libpq tries one hostaddr: IPv4 is the likelier
		if net.ParseIP(a).To4() != nil {
			return a
		}
	}
	return proxy[0]
}

// pairs are libpq's keywords in order.
func (d *database) pairs() [][2]string {
	all := [][2]string{
		{"host", d.host}, {"hostaddr", d.hostaddr}, {"port", d.port}, {"user", d.user}, {"dbname", d.dbname},
		{"sslmode", "verify-full"}, {"sslrootcert", d.ca}, {"sslcert", d.cert}, {"sslkey", d.key}, {"gssencmode", "disable"},
	}
	return slices.DeleteFunc(all, func(p [2]string) bool { return p[1] == "" })
}

// env are the same as environment variables.
func (d *database) env() [][2]string {
	var out [][2]string
	for _, p := range d.pairs() {
		name, ok := map[string]string{"user": "PGUSER", "dbname": "PGDATABASE"}[p[0]]
		if !ok {
			name = "PG" + strings.ToUpper(p[0])
		}
		out = append(out, [2]string{name, p[1]})
	}
	return out
}

// login writes the database's certificate and the service file's section.
func (p *program) dbLogin(d *database) error {
	return p.home.Locked(func() error {
		for from, to := range map[string]string{p.home.KeyPath(d.cred.Profile, ".crt"): d.cert, p.home.KeyPath(d.cred.Profile, ".key"): d.key} {
			b, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			if err := profile.WriteFile(to, b); err != nil {
				return err
			}
		}
		return editServiceFile(d.serviceTag, d.pairs())
	})
}

type dbLoginCmd struct {
	databaseFlags
	Name string `arg:"" help:"Name of the database."`
}

// Run writes ~/.pg_service.conf and says how to use it.
func (c *dbLoginCmd) Run(p *program) error {
	d, err := p.database(c.Name, c.databaseFlags)
	if err != nil {
		return err
	}
	if err := p.dbLogin(d); err != nil {
		return err
	}
	var missing []string
	if d.user == "" {
		missing = append(missing, "user=USER")
	}
	if d.dbname == "" {
		missing = append(missing, "dbname=DATABASE")
	}
	fmt.Fprintf(p.stdout, "Connection information for database %q has been saved.\n\nConnect with:\n  sally db connect %s%s\n  psql %s\n",
		d.name, d.name, map[bool]string{true: " --db-user=USER"}[d.user == ""], quote(strings.Join(append([]string{"service=" + d.serviceTag}, missing...), " ")))
	return nil
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
			base := filepath.Join(p.home.DBDir(f), name)
			if err := errors.Join(os.Remove(base+".crt"), os.Remove(base+".key"), editServiceFile(f.Cluster+"-"+name, nil)); err != nil {
				return err
			}
			fmt.Fprintf(p.stdout, "Logged out of database %q.\n", name)
		}
		return nil
	})
}

type dbConnectCmd struct {
	databaseFlags
	Name string   `arg:"" help:"Name of the database."`
	Args []string `arg:"" optional:"" passthrough:"" help:"Arguments for psql, after --."`
}

// Run starts psql straight to the gateway, with the environment that libpq reads.
func (c *dbConnectCmd) Run(p *program) error {
	psql, err := exec.LookPath("psql")
	if err != nil {
		return problem(sallyport.ErrNotFound, "psql is not on the PATH", "install it (Debian: postgresql-client), or use sally proxy db "+c.Name)
	}
	d, err := p.database(c.Name, c.databaseFlags)
	if err != nil {
		return err
	}
	if d.user == "" {
		return problem(errInvalid, fmt.Sprintf("which user of %q?", c.Name), "sally db connect --db-user=USER "+c.Name+"; sally db ls shows the users")
	}
	if d.dbname == "" {
		d.dbname = d.user
	}
	if err := p.dbLogin(d); err != nil {
		return err
	}
	cmd := exec.Command(psql, c.args()...)
	cmd.Env = os.Environ()
	for _, kv := range d.env() {
		cmd.Env = append(cmd.Env, kv[0]+"="+kv[1])
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	return childExit(cmd.Run())
}

func (c *dbConnectCmd) args() []string {
	if len(c.Args) > 0 && c.Args[0] == "--" {
		return c.Args[1:]
	}
	return c.Args
}

// childExit passes a program's exit code on.
func childExit(err error) error {
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		if code := ee.ExitCode(); code >= 0 {
			return fail.Exit{Code: code}
		}
		return fail.Exit{Code: 1}
	}
	return err
}

type dbConfigCmd struct {
	databaseFlags
	Format string `name:"format" short:"f" enum:"text,cmd,json,yaml" default:"text" help:"text, cmd, json or yaml."`
	Name   string `arg:"" help:"Name of the database."`
}

type dbConfigJSON struct {
	Name     string `json:"name"`
	Host     string `json:"host"`
	Hostaddr string `json:"hostaddr,omitempty"`
	Port     string `json:"port"`
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
	if err := p.dbLogin(d); err != nil {
		return err
	}
	switch c.Format {
	case "json", "yaml":
		return encode(p.stdout, c.Format, dbConfigJSON{d.name, d.host, d.hostaddr, d.port, d.user, d.dbname, d.ca, d.cert, d.key})
	case "cmd":
		var conn []string
		for _, kv := range d.pairs() {
			conn = append(conn, kv[0]+"="+conninfo(kv[1]))
		}
		fmt.Fprintln(p.stdout, "psql "+quote(strings.Join(conn, " ")))
	default:
		for _, row := range [][2]string{{"Name", d.name}, {"Host", d.host}, {"Hostaddr", d.hostaddr}, {"Port", d.port}, {"User", d.user}, {"Database", d.dbname}, {"CA", d.ca}, {"Cert", d.cert}, {"Key", d.key}} {
			fmt.Fprintf(p.stdout, "%-11s%s\n", row[0]+":", row[1])
		}
	}
	return nil
}

// conninfo quotes a value of a libpq connection string.
func conninfo(s string) string {
	if s != "" && !strings.ContainsAny(s, ` '\`) {
		return s
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

type dbEnvCmd struct {
	databaseFlags
	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"text, json or yaml."`
	Name   string `arg:"" help:"Name of the database."`
}

// Run prints what a shell may evaluate.
func (c *dbEnvCmd) Run(p *program) error {
	d, err := p.database(c.Name, c.databaseFlags)
	if err != nil {
		return err
	}
	if err := p.dbLogin(d); err != nil {
		return err
	}
	values := map[string]string{}
	for _, kv := range d.env() {
		values[kv[0]] = kv[1]
		if c.Format == "text" {
			fmt.Fprintf(p.stdout, "export %s=%s\n", kv[0], quote(kv[1]))
		}
	}
	if c.Format != "text" {
		return encode(p.stdout, c.Format, values)
	}
	return nil
}

// serviceFile is libpq's own (PostgreSQL documentation, "The Connection Service File").
func serviceFile() (string, error) {
	if path := os.Getenv("PGSERVICEFILE"); path != "" {
		return path, nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".pg_service.conf"), err
}

// editServiceFile replaces one section and keeps all else; no pairs removes it.
func editServiceFile(section string, pairs [][2]string) error {
	path, err := serviceFile()
	if err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := withoutSection(string(old), section)
	if len(pairs) > 0 {
		if text != "" && !strings.HasSuffix(text, "\n\n") {
			text = strings.TrimRight(text, "\n") + "\n\n"
		}
		text += "[" + section + "]\n"
		for _, kv := range pairs {
			text += kv[0] + "=" + kv[1] + "\n"
		}
	}
	return profile.WriteFile(path, []byte(text))
}

func withoutSection(text, section string) string {
	var out strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		if trimmed := strings.TrimSpace(line); strings.HasPrefix(trimmed, "[") {
			inside = trimmed == "["+section+"]"
		}
		if !inside {
			out.WriteString(line)
		}
	}
	return out.String()
}
