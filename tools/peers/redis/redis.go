// Package redis finds a Redis on this machine and runs servers of it in
// throw-away directories, for tests and benchmarks.
package redis

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	reserve "github.com/sallyport/sallyport/tools/peers/port"
)

// ErrMissing says that there is no Redis here.
var ErrMissing = errors.New("redis is not installed")

// Options describe a server. It speaks TLS only, and asks for a certificate.
type Options struct {
	Cert, Key []byte   // PEM
	ClientCA  []byte   // PEM of who may issue client certificates
	ACL       []string // users: lines of an ACL file
	Settings  []string // further options, each with its value: "maxmemory", "1mb"
	Ready     time.Duration
}

// Server is a running Redis.
type Server struct {
	Addr string // 127.0.0.1:port
	Dir  string
	PID  int

	done chan struct{}
	once sync.Once
}

// Find returns the path of redis-server, or ErrMissing.
func Find() (string, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", ErrMissing
	}
	return path, nil
}

// Start runs a server in a temporary directory, on a free port of 127.0.0.1,
// until Stop. Nothing of it is kept.
func Start(o Options) (*Server, error) {
	server, err := Find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		return nil, err
	}
	s := &Server{Dir: dir}
	if err := s.start(server, o); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return s, nil
}

func (s *Server) start(server string, o Options) error {
	args, err := s.configure(o)
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

// configure writes the files, and returns the server's options.
func (s *Server) configure(o Options) ([]string, error) {
	path := func(name string) string { return filepath.Join(s.Dir, name) }
	for name, text := range map[string][]byte{
		"cert.pem": o.Cert, "key.pem": o.Key, "ca.pem": o.ClientCA, "users.acl": []byte(strings.Join(o.ACL, "\n") + "\n"),
	} {
		if err := os.WriteFile(path(name), text, 0o600); err != nil {
			return nil, err
		}
	}
	args := []string{
		"--bind", "127.0.0.1", "--port", "0", "--dir", s.Dir, "--save", "", "--appendonly", "no", "--daemonize", "no",
		"--tls-cert-file", path("cert.pem"), "--tls-key-file", path("key.pem"), "--tls-ca-cert-file", path("ca.pem"), "--tls-auth-clients", "yes",
		"--aclfile", path("users.acl"),
	}
	for i := 0; i+1 < len(o.Settings); i += 2 {
		args = append(args, "--"+o.Settings[i], o.Settings[i+1])
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
	cmd := exec.Command(server, append(args, "--tls-port", port)...)
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

// await waits until the server says that it takes connections: somebody else
// may listen on its port.
func (s *Server) await(ready time.Duration) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(ready)
	for {
		if strings.Contains(s.Log(), "Ready to accept connections") {
			return nil
		}
		select {
		case <-s.done:
			return errors.New("redis-server ended")
		case <-late:
			return errors.New("redis-server did not become ready")
		case <-tick.C:
		}
	}
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
