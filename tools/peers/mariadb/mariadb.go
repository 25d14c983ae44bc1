// Package mariadb finds a MariaDB on this machine and runs servers of it in
// throw-away directories, for tests and benchmarks.
package mariadb

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	reserve "github.com/sallyport/sallyport/tools/peers/port"
)

// ErrMissing says that there is no MariaDB here.
var ErrMissing = errors.New("mariadb is not installed")

// Options describe a server.
type Options struct {
	Cert, Key []byte   // PEM; both or none. With them the server speaks TLS
	ClientCA  []byte   // PEM of who may issue client certificates
	SQL       []string // statements to run before the server listens, a line each
	Settings  []string // further options of mariadbd, without "--"
	Ready     time.Duration
}

// Server is a running MariaDB.
type Server struct {
	Addr string // 127.0.0.1:port
	Dir  string // holds "data" and "log"
	PID  int

	done chan struct{}
	once sync.Once
}

// Find returns the paths of mariadbd and mariadb-install-db, or ErrMissing.
func Find() (server, installer string, err error) {
	server, err1 := look("mariadbd")
	installer, err2 := look("mariadb-install-db")
	if err1 != nil || err2 != nil {
		return "", "", ErrMissing
	}
	return server, installer, nil
}

func look(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

// Start makes a data directory in a temporary one and runs a server on it, on a
// free port of 127.0.0.1, until Stop. There is no user but those of SQL.
func Start(o Options) (*Server, error) {
	server, installer, err := Find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mariadb")
	if err != nil {
		return nil, err
	}
	s := &Server{Dir: dir}
	if err := s.start(server, installer, o); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return s, nil
}

// common are the options of installing and of serving: small, and nothing waits
// for the disk.
func (s *Server) common() ([]string, error) {
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	return []string{
		"--no-defaults", "--datadir=" + filepath.Join(s.Dir, "data"), "--user=" + me.Username,
		"--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M", "--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0",
	}, nil
}

func (s *Server) start(server, installer string, o Options) error {
	common, err := s.common()
	if err != nil {
		return err
	}
	install := exec.Command(installer, append(common, "--auth-root-authentication-method=socket", "--skip-test-db", "--skip-name-resolve")...)
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("mariadb-install-db: %w\n%s", err, out)
	}
	args, err := s.configure(common, o)
	if err != nil {
		return err
	}
	if o.Ready == 0 {
		o.Ready = 90 * time.Second // the machine may be busy
	}
	for try := 0; ; try++ {
		err := s.listen(server, args, o.Ready)
		if err == nil || try == 4 || !errors.Is(err, errTaken) {
			return err
		}
	}
}

// configure writes certificates and statements, and returns the server's options.
func (s *Server) configure(common []string, o Options) ([]string, error) {
	sql := append([]string{"DROP USER IF EXISTS ''@'localhost'"}, o.SQL...)
	files := map[string][]byte{"init.sql": []byte(strings.Join(sql, ";\n") + ";\n")}
	args := append(common, "--bind-address=127.0.0.1", "--socket=s", "--skip-name-resolve", "--performance-schema=OFF", "--init-file="+filepath.Join(s.Dir, "init.sql"))
	if o.Cert != nil {
		files["cert.pem"], files["key.pem"] = o.Cert, o.Key
		args = append(args, "--ssl-cert="+filepath.Join(s.Dir, "cert.pem"), "--ssl-key="+filepath.Join(s.Dir, "key.pem"))
	}
	if o.ClientCA != nil {
		files["ca.pem"] = o.ClientCA
		args = append(args, "--ssl-ca="+filepath.Join(s.Dir, "ca.pem"))
	}
	for _, setting := range o.Settings {
		args = append(args, "--"+setting)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.Dir, name), text, 0o600); err != nil {
			return nil, err
		}
	}
	return args, nil
}

var errTaken = errors.New("the port was taken meanwhile")

// listen starts the server on a port that is kept for it, and waits until it
// serves.
func (s *Server) listen(server string, args []string, ready time.Duration) error {
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
	cmd := exec.Command(server, append(args, "--port="+port)...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{}
	started := make(chan error, 1)
	s.done = make(chan struct{})
	go s.supervise(cmd, started, s.done)
	if err := <-started; err != nil {
		return err
	}
	s.PID = cmd.Process.Pid
	if err := s.await(ready); err != nil {
		s.end(syscall.SIGKILL)
		text := s.Log()
		if strings.Contains(text, "Address already in use") {
			return errTaken
		}
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// await waits for the greeting.
func (s *Server) await(ready time.Duration) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(ready)
	for {
		if greets(s.Addr) {
			return nil
		}
		select {
		case <-s.done:
			return errors.New("mariadbd ended")
		case <-late:
			return errors.New("mariadbd did not become ready")
		case <-tick.C:
		}
	}
}

func greets(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 5)
	_, err = io.ReadFull(conn, b)
	return err == nil && b[4] == 10
}

// Port is the one of Addr.
func (s *Server) Port() int {
	_, port, _ := net.SplitHostPort(s.Addr)
	n, _ := strconv.Atoi(port)
	return n
}

// Signal sends a signal to the server.
func (s *Server) Signal(sig syscall.Signal) error { return syscall.Kill(s.PID, sig) }

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Log returns what the server has logged so far.
func (s *Server) Log() string {
	text, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
	return string(text)
}

// Stop ends the server, waits for it, and removes its directory.
func (s *Server) Stop() {
	s.once.Do(func() {
		s.end(syscall.SIGKILL) // nothing of it is kept
		os.RemoveAll(s.Dir)
	})
}

func (s *Server) end(sig syscall.Signal) {
	select {
	case <-s.done:
		return
	default:
	}
	syscall.Kill(s.PID, sig)
	<-s.done
}
