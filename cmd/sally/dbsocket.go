package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

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
	lock      *os.File       // of dir, as long as this program lives
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
	sweep(parent)
	dir, err := os.MkdirTemp(parent, socketDir) // 0700
	if err != nil {
		return nil, err
	}
	s, err := listenBelow(dir, name)
	if err != nil {
		return nil, err
	}
	s.lock, _ = lockDir(dir) // where there are no locks, nobody sweeps either
	return s, nil
}

func listenBelow(dir, name string) (*clientSocket, error) {
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
	_ = s.lock.Close()  // nil has none
	signal.Stop(s.held)
}

const (
	socketDir = "sally." // and a number: the directory of one clientSocket

	// sweepAge is how old a directory is whose program must have locked it by now.
	sweepAge = time.Minute
)

// lockDir holds dir for this program alone, until it ends, be it by SIGKILL; the client
// that it starts does not inherit that.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := tryLock(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes what programs that were killed have left in parent. What cannot be is no
// error: it leads nowhere.
func sweep(parent string) {
	f, err := os.Open(parent)
	if err != nil {
		return
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1) // those that could be read
	for _, name := range names {
		if strings.HasPrefix(name, socketDir) {
			_ = sweepDir(filepath.Join(parent, name))
		}
	}
}

// sweepDir removes a directory of this user's that nobody holds, and in it a socket and nothing
// else: where others may rename what is in parent, it could be another one by then.
func sweepDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !ours(info) || info.Mode() != fs.ModeDir|0o700 || time.Since(info.ModTime()) < sweepAge {
		return errors.ErrUnsupported
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	list, err := lock.ReadDir(2)
	if err == nil && len(list) == 1 && list[0].Type() == fs.ModeSocket {
		err = os.Remove(filepath.Join(dir, list[0].Name()))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return os.Remove(dir) // if it is empty
}

// runOn runs a client of the user's, and the proxy that it comes by as long as that.
func (p *program) runOn(lp *dial.LocalProxy, cmd *exec.Cmd) error {
	// At Ctrl-C clients kill their statement by another connection.
	ctx, stop := context.WithCancel(context.WithoutCancel(p.ctx))
	served := make(chan error, 1)
	go func() { served <- lp.Serve(ctx) }()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	err := childExit(runClient(cmd))
	// What it said last is passed on, and its connections end as it has ended them: else
	// a session that ended is told of as one that was lost.
	lp.Listener.Close()
	late := time.AfterFunc(clientEnds, stop)
	failed := <-served
	late.Stop()
	stop()
	if err == nil && !errors.Is(failed, net.ErrClosed) {
		err = failed
	}
	return err
}

// clientEnds is how long a client's connections may take to end behind it.
const clientEnds = 2 * time.Second
