package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/dial"
)

// maxSocketPath leaves room for the NUL, and for the systems that have 104 bytes for
// the address of a Unix socket (unix(7) has 108).
const maxSocketPath = 100

// clientSocket is a Unix socket for a client that this program starts. Whoever reaches
// it acts as the user: a port of the loopback any other user of the machine would
// reach, a directory of 0700 nobody but root.
type clientSocket struct {
	net.Listener
	dir, path string
	held      chan os.Signal // what would have ended this program before remove
}

// listenForClient makes a socket of that name, in a fresh directory; remove takes both
// away again. Where the directory of temporary files has a long path another one is
// taken: clients are given the whole path, and it must fit.
func listenForClient(name string) (*clientSocket, error) {
	held := holdSignals()
	var why []error
	for _, parent := range []string{os.TempDir(), "/tmp"} {
		s, err := listenIn(parent, name)
		if err == nil {
			s.held = held
			return s, nil
		}
		why = append(why, err)
	}
	signal.Stop(held)
	return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: errors.Join(why...), Fact: "no socket for the client can be made: " + why[len(why)-1].Error(),
		Hint: "set TMPDIR to a directory of yours with a short path, or use sally proxy db"}
}

func listenIn(parent, name string) (*clientSocket, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, "sally-") // 0700
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	if len(path) > maxSocketPath {
		return nil, errors.Join(fmt.Errorf("%s: longer than the %d bytes that a socket's address can have", path, maxSocketPath), os.Remove(dir))
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return &clientSocket{Listener: l, dir: dir, path: path}, nil
}

func (s *clientSocket) remove() {
	s.Close()           // as the proxy that served it has done
	os.RemoveAll(s.dir) // what stays is empty, and leads nowhere
	signal.Stop(s.held)
}

// runOn runs a client of the user's, and the proxy that it comes by as long as that.
func (p *program) runOn(lp *dial.LocalProxy, cmd *exec.Cmd) error {
	// At Ctrl-C clients kill their statement by another connection.
	ctx, stop := context.WithCancel(context.WithoutCancel(p.ctx))
	served := make(chan error, 1)
	go func() { served <- lp.Serve(ctx) }()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	err := childExit(runClient(cmd))
	stop()
	if failed := <-served; err == nil {
		err = failed
	}
	return err
}
