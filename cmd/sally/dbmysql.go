package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/dataplane/dial"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	protocolPostgres = "postgres"
	protocolMySQL    = "mysql"
	protocolRedis    = "redis"
)

// choice is what "db login" keeps for a database whose clients have no file of
// their own that could say it.
type choice struct {
	Protocol string `json:"protocol"`
	User     string `json:"user,omitempty"`
	Database string `json:"database,omitempty"`
}

const choiceSuffix = ".json"

// protocolOf is what auth says, or what was kept when it does not answer.
func (p *program) protocolOf(f profile.Profile, name string, found *sallyportv1.AccessibleResource) string {
	if said := found.GetResource().GetProtocol(); said != "" {
		return said
	}
	if kept, err := readChoice(p.home, f, name); err == nil && kept.Protocol != "" {
		return kept.Protocol
	}
	return protocolPostgres
}

func readChoice(home profile.Dir, f profile.Profile, name string) (choice, error) {
	var c choice
	b, err := os.ReadFile(databaseFile(home, f, name, choiceSuffix))
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}

func removeChoice(home profile.Dir, f profile.Profile, name string) error {
	err := os.Remove(databaseFile(home, f, name, choiceSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (p *program) keepChoice(d *database) error {
	b, err := json.Marshal(choice{d.protocol, d.user, d.dbname})
	if err != nil {
		return err
	}
	return profile.WriteFile(databaseFile(p.home, d.cred.Profile, d.name, choiceSuffix), b)
}

// choose fills in what "db login" chose and nobody has named since.
func (p *program) choose(d *database) error {
	kept, err := readChoice(p.home, d.cred.Profile, d.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nobody chose
	}
	if err != nil {
		return err
	}
	d.user, d.dbname = or(d.user, kept.User), or(d.dbname, kept.Database)
	return checkChoice(d.user, d.dbname)
}

// checkChoice refuses what a client would take for something else than a name.
func checkChoice(user, dbname string) error {
	for _, s := range []struct{ what, name string }{{"user", user}, {"dbname", dbname}} {
		if strings.ContainsFunc(s.name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return problem(errInvalid, fmt.Sprintf("%s %q holds control characters", s.what, s.name), "")
		}
	}
	return nil
}

// connectCommand is the command that connects, to be pasted.
func (d *database) connectCommand() string {
	command := "sally db connect "
	if d.user != "" {
		command += "--db-user=" + shell.Word(d.user) + " "
	}
	if d.dbname != "" {
		command += "--db-name=" + shell.Word(d.dbname) + " "
	}
	return command + d.name
}

func shellWords(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = shell.Word(w)
	}
	return strings.Join(out, " ")
}

// saidMySQL says how to go on after a login.
func (p *program) saidMySQL(d *database) error {
	at := *d
	at.user = or(d.user, "USER")
	_, err := fmt.Fprintf(p.stdout, "Connection information for database %q has been saved.\n\nConnect with:\n  %s\n\nOther clients need a local port, since they send no server name:\n  sally proxy db %s\n", d.name, at.connectCommand(), d.name)
	return err
}

// stock is one of the two makers' clients.
type stock struct {
	path    string
	mariadb bool
}

// stockMySQL finds one on the PATH.
func stockMySQL(ctx context.Context) (stock, error) {
	if path, err := exec.LookPath("mariadb"); err == nil {
		return stock{path, true}, nil
	}
	path, err := exec.LookPath("mysql")
	if err != nil {
		return stock{}, problem(sallyport.ErrNotFound, "neither mariadb nor mysql is on the PATH", "install one (Debian: mariadb-client), or use sally proxy db")
	}
	version, err := exec.CommandContext(ctx, path, "--version").Output()
	return stock{path, strings.Contains(string(version), "MariaDB")}, err
}

// byPort and bySocket lead a client here, whatever its option files say: without the
// host's name it may be one of theirs.
func byPort(port string) []string {
	return []string{"--protocol=TCP", "--host=127.0.0.1", "--port=" + port}
}

func bySocket(path string) []string {
	return []string{"--protocol=SOCKET", "--host=localhost", "--socket=" + path}
}

// arguments are those of a client that is led here.
func (s stock) arguments(d *database, way []string) []string {
	args := append(slices.Clone(way), "--user="+d.user)
	if s.mariadb {
		args = append(args, "--skip-ssl") // the way from here on is TLS
	} else {
		args = append(args, "--ssl-mode=DISABLED")
	}
	if d.dbname != "" {
		args = append(args, "--database="+d.dbname)
	}
	return args
}

// mysqlEnv is the environment without what leads clients elsewhere, or gives
// them a password that nobody asks for.
func mysqlEnv(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"MYSQL_HOST", "MYSQL_TCP_PORT", "MYSQL_UNIX_PORT", "MYSQL_PWD", "MYSQL_GROUP_SUFFIX"}, name)
	})
}

// connectMySQL starts a client on a socket that is there as long as it runs.
func (p *program) connectMySQL(d *database, args []string) error {
	s, err := stockMySQL(p.ctx)
	if err != nil {
		return err
	}
	l, err := listenForClient(d.name)
	if err != nil {
		return err
	}
	defer l.remove()
	cmd := exec.Command(s.path, append(s.arguments(d, bySocket(l.path)), args...)...)
	cmd.Env = mysqlEnv(os.Environ())
	return p.runOn(p.mysqlProxy(d, l), cmd)
}

// mysqlProxy passes bytes as they are: the agent speaks first.
func (p *program) mysqlProxy(d *database, l net.Listener) *dial.LocalProxy {
	return &dial.LocalProxy{Listener: l, MySQL: true, Dial: p.lasting(d.cred).to(sallyport.KindDatabase, d.name, protocolDB)}
}

// mysql serves "proxy db" of such a database.
func (c *proxyDBCmd) mysql(p *program, d *database) error {
	if err := errors.Join(checkChoice(d.user, d.dbname), p.choose(d)); err != nil {
		return err
	}
	l, err := c.open()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	d.user = or(d.user, "USER")
	theirs := shellWords(append([]string{"mariadb"}, stock{mariadb: true}.arguments(d, byPort(port))...))
	other := shellWords(append([]string{"mysql"}, stock{}.arguments(d, byPort(port))...))
	fmt.Fprintf(p.stdout, "Started authenticated tunnel for the MySQL database %q in cluster %q on %s.\n\nUse:\n  $ %s\n  $ %s\n",
		d.name, d.cred.Profile.Cluster, l.Addr(), theirs, other)
	return p.serve(p.mysqlProxy(d, l))
}
