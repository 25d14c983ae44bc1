package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/cmd/internal/libpq"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// database is one database as a stock client reaches it.
type database struct {
	cred      *credentials
	name      string
	protocol  string // as the agent serves it
	user      string
	dbname    string
	users     []string // that roles allow for user; none when auth has not said
	names     []string // the same for dbname
	host      string   // the server name, which libpq sends and checks
	hostaddr  string   // where to connect, when the name is not in the DNS
	port      string
	ca        string
	cert, key string
	service   string // section of the service file
}

// database fills in user and name: from flags, or the only one that is allowed.
func (p *program) database(name string, flags databaseFlags) (*database, error) {
	if err := flags.unserved(); err != nil {
		return nil, err
	}
	name, err := p.databaseName(name)
	if err != nil {
		return nil, err
	}
	cred, found, err := p.reachable(sallyport.KindDatabase, name)
	if err != nil {
		return nil, err
	}
	d := &database{
		cred: cred, name: name, service: serviceName(cred.Profile, name), protocol: p.protocolOf(cred.Profile, name, found),
		user: only(flags.User, found.GetDatabaseUsers()), dbname: only(flags.DBName, found.GetDatabaseNames()), users: found.GetDatabaseUsers(), names: found.GetDatabaseNames(),
		ca: p.home.CAsPath(cred.Profile), cert: databaseFile(p.home, cred.Profile, name, ".crt"), key: databaseFile(p.home, cred.Profile, name, ".key"),
	}
	proxyHost, port, err := net.SplitHostPort(cred.Profile.WebProxyAddr)
	if err != nil {
		return nil, err
	}
	d.host, d.port = name+".db."+cred.Profile.Cluster, port
	if d.protocol == protocolMySQL {
		return d, checkChoice(d.user, d.dbname)
	}
	d.hostaddr = hostaddr(p, d.host, proxyHost)
	if d.protocol == protocolRedis {
		return d, checkChoice(d.user, d.dbname)
	}
	return d, libpq.Check(d.settings())
}

// databaseName is the one that was named, else the one that the user has logged in to.
func (p *program) databaseName(name string) (string, error) {
	if name == "" {
		f, err := p.selected()
		if err != nil {
			return "", err
		}
		in := p.databasesOf(f)
		switch len(in) {
		case 0:
			return "", problem(errInvalid, "no database is named, and you have logged in to none", "sally db ls shows them")
		case 1:
			return in[0], nil
		}
		return "", problem(errInvalid, "no database is named, and you have logged in to "+strings.Join(in, ", "), "name one")
	}
	if !alpn.ValidLabel(name) {
		return "", problem(errInvalid, fmt.Sprintf("%q cannot be a database's name here", name), "sally db ls")
	}
	return name, nil
}

// only is what was said, else the only possibility.
func only(said string, all []string) string {
	if said == "" && len(all) == 1 && all[0] != "*" {
		return all[0]
	}
	return said
}

func databaseFile(home profile.Dir, f profile.Profile, name, suffix string) string {
	return filepath.Join(home.DBDir(f), name+suffix)
}

func serviceName(f profile.Profile, name string) string { return f.Cluster + "-" + name }

// databasesOf are those that the user has logged in to.
func (p *program) databasesOf(f profile.Profile) []string {
	files, err := os.ReadDir(p.home.DBDir(f))
	if err != nil {
		return nil
	}
	var out []string
	for _, file := range files {
		if name, ok := strings.CutSuffix(file.Name(), ".crt"); ok {
			out = append(out, name)
		}
	}
	return out
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

// settings are libpq's, in order; what is not known is left out.
func (d *database) settings() []libpq.Setting {
	all := []libpq.Setting{
		{Key: "host", Value: d.host}, {Key: "hostaddr", Value: d.hostaddr}, {Key: "port", Value: d.port},
		{Key: "user", Value: d.user}, {Key: "dbname", Value: d.dbname},
		{Key: "sslmode", Value: "verify-full"}, {Key: "sslrootcert", Value: d.ca}, {Key: "sslcert", Value: d.cert}, {Key: "sslkey", Value: d.key},
		{Key: "gssencmode", Value: "disable"},
	}
	return slices.DeleteFunc(all, func(s libpq.Setting) bool { return s.Value == "" })
}

// chosen says that what "db login" chose is kept by us: its clients have no file
// of their own for it.
func (d *database) chosen() bool { return d.protocol == protocolMySQL || d.protocol == protocolRedis }

// dbLogin writes the database's certificate and the service file's section.
func (p *program) dbLogin(d *database) error {
	return p.home.Locked(func() error {
		if err := p.dbKeys(d); err != nil {
			return err
		}
		if d.chosen() {
			return p.keepChoice(d)
		}
		return editService(func(text string) string { return libpq.Put(text, d.service, d.settings()) })
	})
}

// dbFiles writes what settings name, and leaves the service file alone: it is
// for commands that use the database now. User and database that nobody named
// are those that "db login" chose.
func (p *program) dbFiles(d *database) error {
	return p.home.Locked(func() error {
		if err := p.dbKeys(d); err != nil {
			return err
		}
		if d.chosen() {
			return p.choose(d)
		}
		path, err := serviceFile()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil // nobody chose
		}
		chosen, _ := libpq.Get(string(text), d.service)
		for _, s := range chosen {
			switch s.Key {
			case "user":
				d.user = or(d.user, s.Value)
			case "dbname":
				d.dbname = or(d.dbname, s.Value)
			}
		}
		return libpq.Check(d.settings())
	})
}

// dbKeys puts the login's certificate and key where the settings say.
func (p *program) dbKeys(d *database) error {
	for from, to := range map[string]string{p.home.KeyPath(d.cred.Profile, ".crt"): d.cert, p.home.KeyPath(d.cred.Profile, ".key"): d.key} {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := profile.WriteFile(to, b); err != nil {
			return err
		}
	}
	return nil
}

// dbLogout removes them again.
func (p *program) dbLogout(f profile.Profile, name string) error {
	return errors.Join(
		os.Remove(databaseFile(p.home, f, name, ".crt")),
		os.Remove(databaseFile(p.home, f, name, ".key")),
		removeChoice(p.home, f, name),
		removeService(f, name))
}

func removeService(f profile.Profile, name string) error {
	return editService(func(text string) string { return libpq.Remove(text, serviceName(f, name)) })
}

// editService changes the service file.
func editService(edit func(string) string) error {
	path, err := serviceFile()
	if err != nil {
		return err
	}
	return profile.EditFile(path, edit)
}

// serviceFile is libpq's own (PostgreSQL documentation, 34.17).
func serviceFile() (string, error) {
	if path := os.Getenv("PGSERVICEFILE"); path != "" {
		return path, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", problem(errInvalid, "no home directory is known", "set HOME, or PGSERVICEFILE")
	}
	return filepath.Join(home, ".pg_service.conf"), nil
}

// listing finds a name in what the user may reach.
func listing(all []*sallyportv1.AccessibleResource, name string) *sallyportv1.AccessibleResource {
	for _, a := range all {
		if a.GetResource().GetName() == name {
			return a
		}
	}
	return nil
}
