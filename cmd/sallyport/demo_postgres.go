package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/tools/peers/port"
)

const (
	postgresReady = 15 * time.Second
	postgresRetry = 100 * time.Millisecond // while another has the files

	demoDatabase = "demo"
)

// demoPostgres is the demo's database server, in the demo's directory.
type demoPostgres struct {
	bin  string // directory of initdb and postgres
	dir  string
	port int
	log  *slog.Logger
	as   *syscall.SysProcAttr // postgres refuses to run as root

	handle *os.File // of dir
	leash  *leash
	*kept
}

// serverPlace is what a server of the demo's is given.
type serverPlace struct {
	dir   string // the server's own
	keys  *ca.Keys
	leash *leash // ends it
	log   *slog.Logger
}

// findPostgres returns the directory of the newest postgres, "" without one.
func findPostgres() string {
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), "initdb")); err == nil {
			return filepath.Dir(path)
		}
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	best, at := "", 0
	for _, d := range dirs {
		if n, err := strconv.Atoi(strings.Split(d, "/")[4]); err == nil && n > at {
			best, at = filepath.Dir(d), n
		}
	}
	return best
}

// startPostgres makes the server's directory on the first run, gives it a
// certificate of the db CA, and starts it on a free loopback port: clients'
// certificates of the same CA are the only way in.
func startPostgres(ctx context.Context, s serverPlace, users []string) (*demoPostgres, error) {
	p := &demoPostgres{bin: findPostgres(), dir: s.dir, leash: s.leash, log: s.log}
	if p.bin == "" {
		return nil, errors.New("no postgres binary was found")
	}
	if err := p.chooseUser(); err != nil {
		return nil, err
	}
	defer func() { p.handle.Close() }()
	if err := p.prepare(ctx, s.keys, users); err != nil {
		return nil, err
	}
	return p, p.start(ctx)
}

func (p *demoPostgres) chooseUser() error {
	p.as = &syscall.SysProcAttr{Setpgid: true}
	tieToUs(p.as, syscall.SIGINT) // its fast shutdown
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		p.as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		return nil
	}
	return errors.New("as root, a user postgres or nobody is needed to run it")
}

// place makes the server's directory. As root it is given to the user that the
// server runs as, who cannot walk through the closed directories above it: the
// server gets the directory as a descriptor and names it by that.
func (p *demoPostgres) place() error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	if err := p.own(p.dir); err != nil {
		return err
	}
	var err error
	p.handle, err = os.Open(p.dir)
	return err
}

// inChild is the server's name of a path below its directory: descriptor 3 of
// every process that command starts.
func inChild(name string) string { return "/proc/self/fd/3/" + name }

// prepare is done again from the start when it was cut short: the marker file
// comes last.
func (p *demoPostgres) prepare(ctx context.Context, keys *ca.Keys, users []string) error {
	if err := p.place(); err != nil {
		return err
	}
	data, marker := filepath.Join(p.dir, "data"), filepath.Join(p.dir, "ready")
	if _, err := os.Stat(marker); err != nil {
		if err := os.RemoveAll(data); err != nil {
			return err
		}
		if err := p.run(ctx, "", "initdb", "-D", inChild("data"), "-U", "postgres", "--auth=reject", "--encoding=UTF8", "--no-locale", "--no-sync"); err != nil {
			return err
		}
		if err := p.run(ctx, schema(users), "postgres", "--single", "-j", "-D", inChild("data"), "postgres"); err != nil {
			return err
		}
		if err := os.WriteFile(marker, nil, 0o600); err != nil {
			return err
		}
	}
	return p.configure(data, keys)
}

// schema makes the users and something to look at. In single-user mode with -j
// a statement ends at a semicolon and an empty line.
func schema(users []string) string {
	var b strings.Builder
	add := func(statement string) { b.WriteString(statement + ";\n\n") }
	for _, u := range users {
		add("CREATE ROLE " + quoteIdent(u) + " LOGIN")
		add("GRANT pg_read_all_data TO " + quoteIdent(u))
		if u != "reader" {
			add("GRANT pg_write_all_data TO " + quoteIdent(u))
		}
	}
	owner := ""
	if len(users) > 0 {
		owner = " OWNER " + quoteIdent(users[len(users)-1])
	}
	add("CREATE DATABASE " + demoDatabase + owner)
	return b.String()
}

func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func (p *demoPostgres) configure(data string, keys *ca.Keys) error {
	var err error
	if p.port, err = freePort(); err != nil {
		return err
	}
	files, err := serverFiles(keys)
	if err != nil {
		return err
	}
	files["pg_hba.conf"] = []byte("hostssl all all 127.0.0.1/32 cert\n")
	files["postgresql.auto.conf"] = fmt.Appendf(nil, "listen_addresses = '127.0.0.1'\nport = %d\nunix_socket_directories = ''\nssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'root.crt'\nmax_connections = 50\nlogging_collector = off\n",
		p.port)
	for name, text := range files {
		path := filepath.Join(data, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return err
		}
		if err := p.own(path); err != nil {
			return err
		}
	}
	return nil
}

// freePort is one that stays free until the server that is told it has started.
func freePort() (int, error) {
	address, err := port.Reserve()
	if err != nil {
		return 0, err
	}
	at, err := netip.ParseAddrPort(address)
	return int(at.Port()), err
}

func (p *demoPostgres) own(path string) error {
	if p.as.Credential == nil {
		return nil
	}
	return os.Chown(path, int(p.as.Credential.Uid), int(p.as.Credential.Gid))
}

func (p *demoPostgres) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, name), args...)
	cmd.SysProcAttr, cmd.Dir, cmd.ExtraFiles = p.as, "/", []*os.File{p.handle}
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PG") }), "LC_ALL=C")
	return cmd
}

func (p *demoPostgres) run(ctx context.Context, input, name string, args ...string) error {
	runtime.LockOSThread() // as runTied does
	defer runtime.UnlockOSThread()
	cmd := p.command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// start starts the server. One of an earlier demo that was killed may take a
// moment to let go of the files: its own end has begun, since it was tied too.
func (p *demoPostgres) start(ctx context.Context) error {
	late := time.Now().Add(postgresReady)
	for {
		if err := p.launch(); err != nil {
			return err
		}
		err := p.await(ctx)
		if !errors.Is(err, errPostgresStopped) || !p.held() || time.Now().After(late) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(postgresRetry):
		}
	}
}

func (p *demoPostgres) launch() error {
	cmd := p.command(context.Background(), "postgres", "-D", inChild("data"))
	out, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	p.kept, err = p.leash.startKept(cmd, syscall.SIGINT, syscall.SIGQUIT) // fast, then immediate shutdown
	return err
}

func (p *demoPostgres) logFile() string { return filepath.Join(p.dir, "server.log") }

// held says that the server stopped because another has the files.
func (p *demoPostgres) held() bool {
	text, err := os.ReadFile(p.logFile())
	return err == nil && bytes.Contains(text, []byte("postmaster.pid"))
}

var errPostgresStopped = errors.New("postgres stopped at once")

// await returns when the port takes connections.
func (p *demoPostgres) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, postgresReady)
	defer cancel()
	for {
		if conn, err := net.DialTimeout("tcp", p.address(), time.Second); err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			p.stop()
			return errors.New("postgres did not start in time; see " + p.logFile())
		case <-p.done:
			return fmt.Errorf("%w; see %s", errPostgresStopped, p.logFile())
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func (p *demoPostgres) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }
