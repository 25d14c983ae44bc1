// Package postgres finds a PostgreSQL on this machine and runs servers of it in
// throw-away directories, for tests and benchmarks.
package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	reserve "github.com/sallyport/sallyport/tools/peers/port"
)

// ErrMissing says that there is no PostgreSQL here.
var ErrMissing = errors.New("postgres is not installed")

// Options describe a server. The zero value is one without TLS that lets
// everybody in from 127.0.0.1.
type Options struct {
	Cert, Key []byte   // PEM; both or none. With them ssl is on
	ClientCA  []byte   // PEM of who may issue client certificates
	HBA       []string // lines of pg_hba.conf; none: see the zero value
	Settings  []string // further lines of postgresql.conf
	SQL       []string // statements to run as superuser before the server starts, a line each
	Ready     time.Duration
}

// Server is a running PostgreSQL.
type Server struct {
	Addr string // 127.0.0.1:port
	Dir  string // holds "data" and "log"
	PID  int    // of the postmaster

	own  bool // Dir was made here
	done chan struct{}
	once sync.Once
}

// Find returns the directory of the newest PostgreSQL's programs, or
// ErrMissing.
func Find() (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(path), nil
	}
	var found []string
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin",
		"/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin",
	} {
		dirs, _ := filepath.Glob(pattern)
		found = append(found, dirs...)
	}
	sort.Slice(found, func(i, j int) bool { return version(found[i]) > version(found[j]) })
	for _, dir := range found {
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err == nil {
			return dir, nil
		}
	}
	return "", ErrMissing
}

// version is the number in a path of programs, 0 without.
func version(dir string) int {
	digits := strings.TrimFunc(dir, func(r rune) bool { return r < '0' || r > '9' })
	n, _ := strconv.Atoi(digits)
	return n
}

// Start makes a cluster of databases in dir and runs a server on it, on a free
// port of 127.0.0.1, until Stop. The superuser is postgres. With "" the
// directory is a temporary one that Stop removes. A given directory must be
// reachable by another user when this process is root, since the server refuses
// to be root.
func Start(dir string, o Options) (*Server, error) {
	bin, err := Find()
	if err != nil {
		return nil, err
	}
	own := dir == ""
	if own {
		if dir, err = os.MkdirTemp("", "postgres"); err != nil {
			return nil, err
		}
	}
	s := &Server{Dir: dir, own: own, done: make(chan struct{})}
	if err := s.start(bin, o); err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(bin string, o Options) error {
	who, err := unprivileged()
	if err != nil {
		return err
	}
	if err := who.own(s.Dir); err != nil {
		return err
	}
	data := filepath.Join(s.Dir, "data")
	if err := who.run(nil, filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust",
		"-E", "UTF8", "--locale=C.UTF-8", "--no-sync"); err != nil {
		return err
	}
	if err := s.configure(data, who, o); err != nil {
		return err
	}
	if len(o.SQL) > 0 {
		script := strings.NewReader(strings.Join(o.SQL, "\n") + "\n")
		if err := who.run(script, filepath.Join(bin, "postgres"), "--single", "-D", data, "postgres"); err != nil {
			return err
		}
	}
	if o.Ready == 0 {
		o.Ready = 90 * time.Second // the machine may be busy
	}
	for try := 0; ; try++ {
		err := s.listen(bin, data, who, o.Ready)
		if err == nil || try == 4 || !errors.Is(err, errTaken) {
			return err
		}
	}
}

// configure writes the server's configuration and certificates.
func (s *Server) configure(data string, who account, o Options) error {
	conf := []string{
		"listen_addresses = '127.0.0.1'",
		"unix_socket_directories = ''",
		"fsync = off", "synchronous_commit = off", "full_page_writes = off",
		"shared_buffers = 16MB", "max_connections = 50",
		"logging_collector = off",
	}
	hba := o.HBA
	if len(hba) == 0 {
		hba = []string{"host all all 127.0.0.1/32 trust"}
	}
	files := map[string][]byte{"pg_hba.conf": []byte(strings.Join(hba, "\n") + "\n")}
	if o.Cert != nil {
		conf = append(conf, "ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'")
		files["server.crt"], files["server.key"] = o.Cert, o.Key
	}
	if o.ClientCA != nil {
		conf = append(conf, "ssl_ca_file = 'client-ca.crt'")
		files["client-ca.crt"] = o.ClientCA
	}
	conf = append(conf, o.Settings...)
	files["postgresql.auto.conf"] = []byte(strings.Join(conf, "\n") + "\n")
	for name, text := range files {
		path := filepath.Join(data, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return err
		}
		if err := who.own(path); err != nil {
			return err
		}
	}
	return nil
}

var errTaken = errors.New("the port was taken meanwhile")

// listen starts the server on a port that is kept for it, and waits until it
// serves.
func (s *Server) listen(bin, data string, who account, ready time.Duration) error {
	address, err := reserve.Reserve()
	if err != nil {
		return err
	}
	s.Addr = address
	_, port, _ := net.SplitHostPort(s.Addr)

	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := who.command(filepath.Join(bin, "postgres"), "-D", data, "-p", port)
	cmd.Stdout, cmd.Stderr = log, log
	started := make(chan error, 1)
	s.done = make(chan struct{})
	go s.supervise(cmd, started, s.done)
	if err := <-started; err != nil {
		return err
	}
	s.PID = cmd.Process.Pid
	if err := s.await(data, ready); err != nil {
		s.end(syscall.SIGQUIT)
		text, _ := os.ReadFile(log.Name())
		if bytes.Contains(text, []byte("Address already in use")) {
			return errTaken
		}
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// await waits for the line "ready" of postmaster.pid, which says that the
// server takes connections (src/include/utils/pidfile.h).
func (s *Server) await(data string, ready time.Duration) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(ready)
	for {
		text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if lines := strings.Split(string(text), "\n"); len(lines) >= 8 && strings.TrimSpace(lines[7]) == "ready" {
			return nil
		}
		select {
		case <-s.done:
			return errors.New("postgres ended")
		case <-late:
			return errors.New("postgres did not become ready")
		case <-tick.C:
		}
	}
}

// Signal sends a signal to the postmaster: SIGINT ends it in order, SIGQUIT at
// once.
func (s *Server) Signal(sig syscall.Signal) error { return syscall.Kill(s.PID, sig) }

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Log returns what the server has logged so far.
func (s *Server) Log() string {
	text, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
	return string(text)
}

// Stop ends the server, waits for it, and removes a directory that Start made.
func (s *Server) Stop() {
	s.once.Do(func() {
		s.end(syscall.SIGINT)
		s.remove()
	})
}

// insist is how long the server may take to obey a signal before it gets a harder
// one; the machine may be busy.
const insist = 30 * time.Second

func (s *Server) end(sig syscall.Signal) {
	for _, sig := range []syscall.Signal{sig, syscall.SIGQUIT, syscall.SIGKILL} {
		select {
		case <-s.done:
			return
		default:
		}
		syscall.Kill(s.PID, sig)
		select {
		case <-s.done:
			return
		case <-time.After(insist):
		}
	}
	<-s.done
}

func (s *Server) remove() {
	if s.own {
		os.RemoveAll(s.Dir)
	}
}

// account is who runs the server. The zero value is who we are.
type account struct {
	uid, gid uint32
	other    bool
}

// unprivileged returns an account that the server accepts.
func unprivileged() (account, error) {
	if os.Getuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return account{}, err
		}
		return account{uint32(uid), uint32(gid), true}, nil
	}
	return account{}, errors.New("we are root, postgres refuses to be, and there is no user postgres or nobody")
}

func (a account) own(path string) error {
	if !a.other {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

func (a account) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if a.other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return cmd
}

func (a account) run(in *strings.Reader, name string, args ...string) error {
	cmd := a.command(name, args...)
	if in != nil {
		cmd.Stdin = in
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, out)
	}
	return nil
}
