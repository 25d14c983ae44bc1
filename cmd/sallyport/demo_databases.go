package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
)

// The databases that a demo may offer.
const (
	demoPostgreSQL = "postgres"
	demoMariaDB    = "mariadb"
	demoRedis      = "redis"
	demoNone       = "none"
)

func (c *demoCmd) checkDatabases() error {
	for _, name := range c.Databases {
		switch name {
		case demoPostgreSQL, demoMariaDB, demoRedis, demoNone:
		default:
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--databases: %q is none of postgres, mariadb, redis, none", name)}
		}
	}
	return nil
}

// openDatabases brings up PostgreSQL, and makes the others ready to start: they
// may be reached a little later than the demo.
func (d *demo) openDatabases(ctx context.Context) error {
	n, cfg := d.node, d.node.cfg
	d.users = []string{"reader", "writer"}
	offer := func(name, protocol, address, what string) {
		cfg.Agent.Databases = append(cfg.Agent.Databases, databaseConfig{Name: name, Protocol: protocol, Address: address, Description: what + " of the demo",
			Labels: map[string]string{"env": "demo"}, TLS: databaseTLS{Mode: "verify-full"}})
	}
	at := func(name string) string { return filepath.Join(cfg.DataDir, name) }
	for _, kind := range d.Databases {
		var s *demoServer
		var err error
		what, protocol := "", ""
		switch kind {
		case demoPostgreSQL:
			d.openPostgres(ctx, offer)
		case demoMariaDB:
			what, protocol = "MariaDB", protocolMySQL
			s, err = newMariaDB(at(kind), n.auth.keys, d.users, n.log)
		case demoRedis:
			what, protocol = "Redis", protocolRedis
			s, err = newRedis(at(kind), n.auth.keys, n.log)
		}
		if err != nil {
			return err
		}
		if s != nil {
			s.leash = n.keeping.leash
			d.servers = append(d.servers, s)
			offer(s.name, protocol, s.address(), what)
		}
	}
	return nil
}

func (d *demo) openPostgres(ctx context.Context, offer func(name, protocol, address, what string)) {
	log := d.node.log
	if findPostgres() == "" {
		log.Info("no postgres binary was found: the demo has no PostgreSQL (Debian: apt install postgresql)")
		return
	}
	at := serverPlace{dir: filepath.Join(d.node.cfg.DataDir, "postgres"), keys: d.node.auth.keys, leash: d.node.keeping.leash, log: log}
	pg, err := startPostgres(ctx, at, d.users)
	if err != nil {
		log.Warn("the demo's database did not start", "error", err)
		return
	}
	d.postgres = pg
	offer(demoDatabase, protocolPostgres, pg.address(), "PostgreSQL")
}

// has says that the demo offers a server.
func (d *demo) has(name string) bool {
	for _, s := range d.servers {
		if s.name == name {
			return true
		}
	}
	return false
}

// unready names a server that is still being installed: the process that does that
// is not to hand over.
func (d *demo) unready() string {
	for _, s := range d.servers {
		if !s.settled.Load() {
			return s.name
		}
	}
	return ""
}

// closeDatabases waits until all servers have ended, which the leash has told to.
func (d *demo) closeDatabases() {
	for _, s := range d.servers {
		if s.cancel != nil {
			s.stop()
		}
	}
	if d.postgres != nil {
		<-d.postgres.done
	}
	for _, s := range d.servers {
		if s.ended != nil {
			<-s.ended
		}
	}
}

// serverFiles are a key and a certificate of the db CA for a server on the
// loopback, and the CAs of its clients.
func serverFiles(keys *ca.Keys) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	cert, err := keys.IssueDatabaseServer(ca.DatabaseServerRequest{TLSKey: pub, Names: []string{"localhost"}, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var roots []byte
	for _, c := range keys.Authority(ca.Database).Certificates {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return map[string][]byte{
		"server.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.X509}),
		"server.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"root.crt":   roots,
	}, nil
}

// findServer finds a program that need not be on a user's PATH; "" without it.
func findServer(name string) string {
	for _, at := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(at); err == nil {
			return path
		}
	}
	return ""
}

// newMariaDB is a MariaDB whose users come by certificate only; nobody comes
// otherwise, since it has no socket. It is nil where none is installed.
func newMariaDB(dir string, keys *ca.Keys, users []string, log *slog.Logger) (*demoServer, error) {
	server, installer := findServer("mariadbd"), findServer("mariadb-install-db")
	if server == "" || installer == "" {
		log.Info("no mariadbd was found: the demo has no MariaDB (Debian: apt install mariadb-server)")
		return nil, nil
	}
	s, err := newDemoServer(demoMariaDB, dir, log)
	if err != nil {
		return nil, err
	}
	files, err := serverFiles(keys)
	if err != nil {
		return nil, err
	}
	sql := []string{"DROP USER IF EXISTS ''@'localhost'", "CREATE DATABASE IF NOT EXISTS " + demoDatabase}
	for _, u := range users {
		right := "SELECT"
		if u != "reader" {
			right = "ALL"
		}
		sql = append(sql, fmt.Sprintf("CREATE USER IF NOT EXISTS '%s' REQUIRE SUBJECT '/CN=%s'", u, u), fmt.Sprintf("GRANT %s ON %s.* TO '%s'", right, demoDatabase, u))
	}
	files["init.sql"] = []byte(strings.Join(sql, ";\n") + ";\n")
	common := []string{"--no-defaults", "--datadir=" + s.file("data"), "--user=" + currentUser(), "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M"}
	s.program, s.env = server, []string{"UMASK=0600", "UMASK_DIR=0700"}
	s.args = append(common, "--bind-address=127.0.0.1", "--port="+strconv.Itoa(s.port), "--socket=", "--pid-file=pid", "--skip-name-resolve", "--performance-schema=OFF", "--max-connections=50",
		"--init-file="+s.file("init.sql"), "--ssl-cert="+s.file("server.crt"), "--ssl-key="+s.file("server.key"), "--ssl-ca="+s.file("root.crt"))
	s.prepare = func(ctx context.Context, s *demoServer) error {
		install := append(common, "--auth-root-authentication-method=socket", "--skip-test-db", "--skip-name-resolve")
		return s.install(func() error { return s.once(ctx, installer, install...) })
	}
	return s, s.write(files)
}

// install makes the server's data, and again from the start when it was cut
// short: the marker file comes last.
func (s *demoServer) install(fill func() error) error {
	if _, err := os.Stat(s.file("ready")); err == nil {
		return nil
	}
	if err := os.RemoveAll(s.file("data")); err != nil {
		return err
	}
	if err := fill(); err != nil {
		return err
	}
	if err := onlyOurs(s.file("data")); err != nil {
		return err
	}
	return os.WriteFile(s.file("ready"), nil, 0o600)
}

// onlyOurs takes others' rights from files that somebody else's program made.
func onlyOurs(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := e.Info()
		if err != nil || info.Mode().Perm()&0o077 == 0 {
			return err
		}
		return os.Chmod(path, info.Mode().Perm()&0o700)
	})
}

// newRedis is a Redis that keeps nothing, whose users need a certificate of the
// db CA. It is nil where none is installed.
func newRedis(dir string, keys *ca.Keys, log *slog.Logger) (*demoServer, error) {
	server := findServer("redis-server")
	if server == "" {
		log.Info("no redis-server was found: the demo has no Redis (Debian: apt install redis-server)")
		return nil, nil
	}
	s, err := newDemoServer(demoRedis, dir, log)
	if err != nil {
		return nil, err
	}
	files, err := serverFiles(keys)
	if err != nil {
		return nil, err
	}
	files["users.acl"] = []byte("user default off\nuser reader on nopass ~* &* +@read +@connection +@pubsub +@transaction\nuser writer on nopass ~* &* +@all -@admin -@scripting -migrate\n")
	s.program = server
	s.args = []string{
		"--bind", "127.0.0.1", "--port", "0", "--tls-port", strconv.Itoa(s.port), "--dir", s.dir, "--save", "", "--appendonly", "no", "--daemonize", "no",
		"--tls-cert-file", s.file("server.crt"), "--tls-key-file", s.file("server.key"), "--tls-ca-cert-file", s.file("root.crt"), "--tls-auth-clients", "yes",
		"--aclfile", s.file("users.acl"),
	}
	s.prepare = func(context.Context, *demoServer) error { return nil }
	return s, s.write(files)
}
