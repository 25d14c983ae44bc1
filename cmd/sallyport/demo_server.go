package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	demoRetry   = 500 * time.Millisecond // after a server has ended: one of an earlier demo may still have the files
	demoRetries = 40
)

// demoServer is a database server of the demo that comes up beside it: nothing
// waits for it. Its methods but run are called by one goroutine.
type demoServer struct {
	name    string // of the resource
	dir     string
	port    int
	log     *slog.Logger
	prepare func(context.Context, *demoServer) error // what the first start needs
	program string
	args    []string
	env     []string
	leash   *leash // ends it

	settled atomic.Bool // it runs, or will not
	cancel  context.CancelFunc
	ended   chan struct{} // run has returned, and so has the server
}

// newDemoServer makes the server's directory and finds it a port.
func newDemoServer(name, dir string, log *slog.Logger) (*demoServer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	at, err := freePort()
	return &demoServer{name: name, dir: dir, port: at, log: log}, err
}

// write puts files into the server's directory.
func (s *demoServer) write(files map[string][]byte) error {
	for name, text := range files {
		if err := os.WriteFile(s.file(name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *demoServer) file(name string) string { return filepath.Join(s.dir, name) }

func (s *demoServer) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// start begins to bring the server up, until stop.
func (s *demoServer) start(ctx context.Context) {
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.ended = make(chan struct{})
	go s.run(ctx)
}

// stop begins to end it; ended says when that is done.
func (s *demoServer) stop() { s.cancel() }

// run prepares the server and keeps it going.
func (s *demoServer) run(ctx context.Context) {
	defer close(s.ended)
	defer s.settled.Store(true)
	err := s.prepare(ctx, s)
	for try := 0; err == nil && ctx.Err() == nil && !s.leash.dropped.Load() && try < demoRetries; try++ {
		err = s.serve(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(demoRetry):
		}
	}
	if ctx.Err() == nil && !s.leash.dropped.Load() {
		s.log.Warn("a database of the demo is not served", "database", s.name, "log", s.file("server.log"), "error", err)
	}
}

// serve runs the server until it ends, or until ctx is done.
func (s *demoServer) serve(ctx context.Context) error {
	out, err := os.OpenFile(s.file("server.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := s.command(s.program, s.args...)
	cmd.Stdout, cmd.Stderr = out, out
	k, err := s.leash.startKept(cmd, syscall.SIGTERM)
	if err != nil {
		return err
	}
	s.settled.Store(true)
	select {
	case <-k.done:
	case <-ctx.Done():
		k.stop()
	}
	return nil
}

// command is a program of its own group, so that Ctrl-C is for the demo alone.
func (s *demoServer) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = s.dir, append(slices.Clone(os.Environ()), s.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	tieToUs(cmd.SysProcAttr, syscall.SIGTERM)
	return cmd
}

// once runs a program that ends by itself, with all that it starts.
func (s *demoServer) once(ctx context.Context, program string, args ...string) error {
	runtime.LockOSThread() // as runTied does
	defer runtime.UnlockOSThread()
	cmd := s.command(program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("%s: %w: %s", filepath.Base(program), err, strings.TrimSpace(out.String())))
	}
	return nil
}
