// Package dynalite finds dynalite, a server that speaks as DynamoDB does, on this
// machine and runs it for tests.
package dynalite

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sallyport/sallyport/tools/peers/port"
)

// ErrMissing says that it is not here; tools/peers/install gets it.
var ErrMissing = errors.New("dynalite is not installed")

const ready = time.Minute

// Server is a running dynalite. It keeps its tables in memory.
type Server struct {
	Addr string // 127.0.0.1:port, for plain HTTP

	cmd  *exec.Cmd
	held io.Closer // its standard input
	done chan struct{}
}

// Start runs one on a free port of the loopback, until Stop, and at most as long
// as this process: it ends with its standard input.
func Start() (*Server, error) {
	node, script, err := find()
	if err != nil {
		return nil, err
	}
	addr, err := port.Reserve()
	if err != nil {
		return nil, err
	}
	_, number, _ := strings.Cut(addr, ":")
	const ends = `process.stdin.on("close", () => process.exit()).resume(); process.argv.splice(1, 1); require(process.argv[1])`
	cmd := exec.Command(node, "-e", ends, "--", "-", script, "--host", "127.0.0.1", "--port", number, "--createTableMs", "0", "--deleteTableMs", "0")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Server{Addr: addr, cmd: cmd, held: in, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_ = cmd.Wait()
	}()
	if err := s.await(); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// find returns the paths of node and of dynalite's program.
func find() (node, script string, err error) {
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", "", err
		}
		cache = filepath.Join(home, ".cache")
	}
	script = filepath.Join(cache, "sallyport-peers", "dynalite", "node_modules", "dynalite", "cli.js")
	if _, err := os.Stat(script); err != nil {
		return "", "", ErrMissing
	}
	if node, err = exec.LookPath("node"); err != nil {
		return "", "", ErrMissing
	}
	return node, script, nil
}

// await returns when it listens.
func (s *Server) await() error {
	for end := time.Now().Add(ready); time.Now().Before(end); {
		conn, err := net.Dial("tcp", s.Addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-s.done:
			return errors.New("dynalite has ended: " + s.cmd.ProcessState.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.New("dynalite does not listen")
}

// Stop ends it.
func (s *Server) Stop() {
	s.held.Close()
	select {
	case <-s.done:
	case <-time.After(ready):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}
