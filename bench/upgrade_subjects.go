package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/bench/flow"
)

// upgradable is a program that serves and can be replaced by another process.
type upgradable struct {
	to      string // where clients connect
	session int    // all its processes are of one session, and nobody else's
	stays   int    // a process that serves nobody and outlives upgrades; 0 for none
	replace func(ctx context.Context) error
	log     func() string
}

// pids are its processes.
func (u *upgradable) pids() ([]int, error) { return ofSession(u.session) }

// serving are those that clients' connections may be in.
func (u *upgradable) serving() ([]int, error) {
	all, err := u.pids()
	var out []int
	for _, pid := range all {
		if pid != u.stays {
			out = append(out, pid)
		}
	}
	return out, err
}

// stop ends all processes.
func (u *upgradable) stop() error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for deadline := time.Now().Add(stopWait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			pids, err := u.pids()
			if err != nil || len(pids) == 0 {
				return err
			}
			for _, pid := range pids {
				_ = syscall.Kill(pid, sig) // it may have ended
			}
		}
	}
	return fmt.Errorf("session %d did not end", u.session)
}

// ofSession are the processes of a session that have not ended.
func ofSession(session int) ([]int, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		s, err := parseStat(b)
		if err != nil {
			return nil, err
		}
		if s.session == session && s.state != 'Z' {
			out = append(out, s.pid)
		}
	}
	return out, nil
}

// upgradeSubject is something whose upgrades are measured.
type upgradeSubject struct {
	name, title, missing string
	once                 bool // a second upgrade has to wait for the end of what the first has left
	start                func(ctx context.Context, p place) (*upgradable, error)
}

// upgradeWorld is what upgrades are measured in.
type upgradeWorld struct {
	dir, bin string
	number   int
}

// place makes a directory for one start, with one route.
func (w *upgradeWorld) place(name, server string) (place, error) {
	w.number++
	p := place{dir: filepath.Join(w.dir, fmt.Sprintf("%s-%d", name, w.number)), routes: []flow.Route{{Name: crowdName, Address: server}}, files: files()}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return p, err
	}
	var err error
	p.listen, err = freeAddress()
	return p, err
}

func (w *upgradeWorld) ours() upgradeSubject {
	return upgradeSubject{name: "sallyport", title: "sallyport upgrade", start: func(ctx context.Context, p place) (*upgradable, error) {
		program := filepath.Join(w.bin, "sallyport")
		file, pidFile := filepath.Join(p.dir, "sallyport.yaml"), filepath.Join(p.dir, "pid")
		if err := os.WriteFile(file, []byte(sallyportConfig(p)), 0o600); err != nil {
			return nil, err
		}
		u, _, err := launch(ctx, p, exec.Command(program, "start", "-c", file, "--pid-file", pidFile))
		if err != nil {
			return nil, err
		}
		u.replace = func(ctx context.Context) error {
			_, err := output(exec.CommandContext(ctx, program, "upgrade", "-c", file))
			return err
		}
		return u, nil
	}}
}

// launch starts a program in a session of its own that stays in the foreground.
func launch(ctx context.Context, p place, cmd *exec.Cmd) (*upgradable, *process, error) {
	cmd.Env = bareEnv(p.dir)
	apart(cmd)
	proc, err := startProcess(p.dir, "subject", cmd)
	if err != nil {
		return nil, nil, err
	}
	u := &upgradable{to: p.listen, session: proc.pid(), log: proc.tail}
	if err := proc.await(ctx, listens(p.listen)); err != nil {
		return nil, nil, errors.Join(err, u.stop())
	}
	return u, proc, nil
}

// haproxy reloads in its master-worker mode: the master stays, the new worker
// inherits the listening sockets (Management Guide, section 4).
func (w *upgradeWorld) haproxy() upgradeSubject {
	s := upgradeSubject{name: "haproxy", title: "HAProxy's reload, master and worker"}
	path, err := lookPeer("haproxy")
	if err != nil {
		s.missing = "haproxy"
		return s
	}
	s.start = func(ctx context.Context, p place) (*upgradable, error) {
		file := filepath.Join(p.dir, "config")
		if err := os.WriteFile(file, []byte(haproxyConfig("tuned", p)), 0o600); err != nil {
			return nil, err
		}
		u, proc, err := launch(ctx, p, exec.Command(path, "-W", "-db", "-f", file))
		if err != nil {
			return nil, err
		}
		u.stays = proc.pid()
		u.replace = func(ctx context.Context) error {
			before, err := u.serving()
			if err == nil {
				err = syscall.Kill(u.stays, syscall.SIGUSR2)
			}
			if err != nil {
				return err
			}
			return u.awaitNew(ctx, before)
		}
		return u, nil
	}
	return s
}

// awaitNew waits until a process serves that did not before.
func (u *upgradable) awaitNew(ctx context.Context, before []int) error {
	known := map[int]bool{}
	for _, pid := range before {
		known[pid] = true
	}
	return u.await(ctx, "a new process", func() (bool, error) {
		now, err := u.serving()
		for _, pid := range now {
			if !known[pid] {
				return true, nil
			}
		}
		return false, err
	})
}

func (u *upgradable) await(ctx context.Context, what string, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, upWait)
	defer cancel()
	for {
		ok, err := holds()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %s", what, ctx.Err(), u.log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// nginx is upgraded as its documentation says (Controlling nginx, "Upgrading
// Executable on the Fly"): USR2 starts the new master, WINCH lets the old
// workers end when they can, QUIT ends the old master. That waits for its
// workers, and meanwhile the new master ignores USR2.
func (w *upgradeWorld) nginx() upgradeSubject {
	s := upgradeSubject{name: "nginx", title: "nginx's binary upgrade, USR2, WINCH, QUIT", once: true}
	path, err := lookPeer("nginx")
	if err != nil {
		s.missing = "nginx"
		return s
	}
	s.start = func(ctx context.Context, p place) (*upgradable, error) {
		file, pidFile := filepath.Join(p.dir, "config"), filepath.Join(p.dir, "nginx.pid")
		// It takes USR2 only when its parent has ended: as a daemon.
		text := strings.Replace(nginxConfig(streamModule(), p), "daemon off;", "daemon on;", 1)
		text = strings.Replace(text, "error_log stderr error;", "error_log "+filepath.Join(p.dir, "error.log")+" error;", 1)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, path, "-p", p.dir, "-e", filepath.Join(p.dir, "error.log"), "-c", file)
		cmd.Env = bareEnv(p.dir)
		if _, err := output(cmd); err != nil {
			return nil, err
		}
		u := &upgradable{to: p.listen, log: func() string {
			b, _ := os.ReadFile(filepath.Join(p.dir, "error.log"))
			return string(b[max(0, len(b)-2000):])
		}}
		if err := u.await(ctx, "nginx's pid", func() (bool, error) { u.session, _ = readPID(pidFile); return u.session > 0, nil }); err != nil {
			return nil, err
		}
		if err := u.await(ctx, "nginx", func() (bool, error) { return listens(p.listen)(ctx) == nil, nil }); err != nil {
			return nil, errors.Join(err, u.stop())
		}
		u.replace = func(ctx context.Context) error { return u.replaceNginx(ctx, pidFile) }
		return u, nil
	}
	return s
}

func (u *upgradable) replaceNginx(ctx context.Context, pidFile string) error {
	old, err := readPID(pidFile)
	if err != nil {
		return err
	}
	if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
		return err
	}
	err = u.await(ctx, "the new master", func() (bool, error) {
		now, err := readPID(pidFile)
		return err == nil && now != old, nil
	})
	if err != nil {
		return err
	}
	fresh, err := readPID(pidFile)
	if err != nil {
		return err
	}
	err = u.await(ctx, "the new worker", func() (bool, error) {
		below, err := descendants(fresh)
		return len(below) > 0, err
	})
	return errors.Join(err, syscall.Kill(old, syscall.SIGWINCH), syscall.Kill(old, syscall.SIGQUIT))
}

func readPID(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
