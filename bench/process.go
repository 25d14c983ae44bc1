package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/tools/peers/port"
)

const (
	upWait   = 60 * time.Second // for a program to serve; the machine may be busy
	stopWait = 20 * time.Second
	runWait  = time.Minute // for one command
)

// process is a program that runs beside the harness. Its log is a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// startProcess starts a program; its output goes to a file of its name in dir.
func startProcess(dir, name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, cmd: cmd, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go p.reap()
	return p, nil
}

func (p *process) reap() {
	defer close(p.done)
	_ = p.cmd.Wait() // how it ended is in its log
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop asks, and then insists.
func (p *process) stop() {
	if p == nil {
		return
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if p.cmd.Process.Signal(sig) != nil {
			break
		}
		select {
		case <-p.done:
			return
		case <-time.After(stopWait):
		}
	}
	<-p.done
}

// await asks again and again until holds has no error. It ends when the
// process does.
func (p *process) await(ctx context.Context, holds func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, upWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error // before the time was over: what comes then says only that
	for {
		err := holds(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %s", p.name, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s: not up: %w: %s", p.name, last, p.tail())
		case <-tick.C:
		}
	}
}

// tail is the end of what the process said.
func (p *process) tail() string {
	b, _ := os.ReadFile(p.log)
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

func listens(addr string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// freeAddress is a loopback address that nobody listens on.
func freeAddress() (string, error) {
	return port.Reserve()
}

// output runs a command to its end and returns what it printed.
func output(cmd *exec.Cmd) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), nil
}

// buildPrograms builds ours as a release is built.
func buildPrograms(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir+"/",
		"./cmd/sallyport", "./cmd/sally", "./cmd/sallyctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := output(cmd)
	return err
}

// missingPeer says that a foreign program is not here.
type missingPeer struct{ name string }

func (m missingPeer) Error() string { return m.name + " is not installed; tools/peers installs it" }

// lookPeer finds a foreign program on the PATH, or where Debian keeps servers.
func lookPeer(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		return "", missingPeer{name}
	}
	return path, nil
}

// nameMissing turns the lack of a peer into its name; other errors stay.
func nameMissing(err error) (string, error) {
	if m, ok := errors.AsType[missingPeer](err); ok {
		return m.name, nil
	}
	return "", err
}
