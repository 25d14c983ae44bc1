package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport/bench/flow"
)

// subject is something that connections go through.
type subject struct {
	name    string // in names of measures
	title   string
	missing string // the program without which it cannot be measured
	spins   bool   // it uses its core even with nothing to do: stopped while the other side is measured
	most    int    // connections that it carries at most; 0: as many as there are descriptors
	start   func(ctx context.Context) (*running, error)
}

// running is a subject that serves.
type running struct {
	to      flow.Backends // where clients connect
	hello   bool          // clients say a ClientHello first
	process []*process
	keep    bool           // the processes are another's, who stops them
	also    func()         // to be done at the end; nil for nothing
	pids    map[string]int // further processes to watch

	names flow.Backends // what clients ask for; the usual where empty
	tls   *flow.TLS     // what clients speak; nil without
}

func (r *running) stop() {
	if r == nil {
		return
	}
	for _, p := range r.process {
		if r.keep {
			break
		}
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		p.stop()
	}
	if r.also != nil {
		r.also()
	}
}

// watched are the processes by name, with those below them: nginx works in a
// child.
func (r *running) watched() (map[string][]int, error) {
	out := map[string][]int{}
	for name, pid := range r.pids {
		out[name] = []int{pid}
	}
	for _, p := range r.process {
		pids := []int{p.pid()}
		below, err := descendants(p.pid())
		if err != nil {
			return nil, err
		}
		for _, s := range below {
			pids = append(pids, s.pid)
		}
		out[p.name] = pids
	}
	return out, nil
}

// signal reaches all processes of the subject.
func (r *running) signal(sig syscall.Signal) error {
	all, err := r.watched()
	if err != nil {
		return err
	}
	for _, pids := range all {
		for _, pid := range pids {
			err = errors.Join(err, syscall.Kill(pid, sig))
		}
	}
	return err
}

// relayWorld is what the relays are measured in: servers that are there for all
// of them, and cores.
type relayWorld struct {
	dir, self, bin string
	cores          cores
	servers        *process
	to             flow.Backends
	number         int  // of starts: each has a directory of its own
	loose          bool // nothing is kept to a core: what is measured is not ours to place
}

// on starts something on a core.
func (w *relayWorld) on(cpu int, start func() error) error {
	if w.loose {
		return start()
	}
	return pinned(cpu, start)
}

// openRelayWorld starts the servers.
func openRelayWorld(ctx context.Context, dir, bin string) (*relayWorld, error) {
	w := &relayWorld{dir: dir, bin: bin}
	var err error
	if w.cores, err = pickCores(); err != nil {
		return nil, err
	}
	if w.self, err = os.Executable(); err != nil {
		return nil, err
	}
	for _, a := range []*string{&w.to.Sink, &w.to.Echo, &w.to.One, &w.to.Source, &w.to.Count} {
		if *a, err = freeAddress(); err != nil {
			return nil, err
		}
	}
	if err := w.startServers(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

// startServers returns when all of them listen.
func (w *relayWorld) startServers(ctx context.Context) error {
	arg, err := json.Marshal(w.to)
	if err != nil {
		return err
	}
	err = w.on(w.cores.traffic, func() (err error) {
		w.servers, err = startProcess(w.dir, "servers", w.role(roleServers, string(arg)))
		return err
	})
	if err != nil {
		return err
	}
	if err := w.servers.await(ctx, w.serving); err != nil {
		w.close()
		return err
	}
	return nil
}

func (w *relayWorld) close() {
	if w != nil {
		w.servers.stop()
	}
}

// serving asks that all servers listen.
func (w *relayWorld) serving(ctx context.Context) error {
	for _, addr := range []string{w.to.Sink, w.to.Echo, w.to.One, w.to.Source, w.to.Count} {
		if err := listens(addr)(ctx); err != nil {
			return err
		}
	}
	return nil
}

// role is this program in another part. A Go program on one core is slower
// with one thread than with two, whoever wrote it.
func (w *relayWorld) role(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(w.self, append([]string{name}, args...)...)
	cmd.Env = bareEnv(w.dir, "GOMAXPROCS=2")
	apart(cmd)
	return cmd
}

// apart gives a process a session of its own. Where the scheduler shares time
// by sessions (sched_autogroup_enabled of sched(7)), the clients' load would
// otherwise be held against the relay, and more so the fewer threads it has.
func apart(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

// startRelay starts one program that listens at one address for all names.
func (w *relayWorld) startRelay(ctx context.Context, name string, make func(place) (*exec.Cmd, error)) (*running, error) {
	p, err := w.newPlace(name)
	if err != nil {
		return nil, err
	}
	cmd, err := make(p)
	if err != nil {
		return nil, err
	}
	if cmd.Env == nil {
		cmd.Env = bareEnv(p.dir, "GOMAXPROCS=2")
	}
	apart(cmd)
	var proc *process
	err = pinned(w.cores.relay, func() (err error) {
		proc, err = startProcess(p.dir, "relay", cmd)
		return err
	})
	if err != nil {
		return nil, err
	}
	r := &running{hello: true, process: []*process{proc}, to: flow.Backends{Sink: p.listen, Echo: p.listen, One: p.listen, Source: p.listen}}
	if err := proc.await(ctx, listens(p.listen)); err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

func (w *relayWorld) newPlace(name string) (place, error) {
	w.number++
	p := place{dir: filepath.Join(w.dir, fmt.Sprintf("%s-%d", name, w.number)), routes: w.to.Routes(), files: files()}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return p, err
	}
	var err error
	p.listen, err = freeAddress()
	return p, err
}

// foreign is a relay of others, with one configuration file.
func (w *relayWorld) foreign(program string, s subject, config func(place) string, args func(p place, file string) []string) subject {
	path, err := lookPeer(program)
	if err != nil {
		s.missing = program
		return s
	}
	s.start = func(ctx context.Context) (*running, error) {
		return w.startRelay(ctx, s.name, func(p place) (*exec.Cmd, error) {
			file := filepath.Join(p.dir, "config")
			if err := os.WriteFile(file, []byte(config(p)), 0o600); err != nil {
				return nil, err
			}
			return exec.Command(path, args(p, file)...), nil
		})
	}
	return s
}

// sslhMost is below FD_SETSIZE: above it sslh-select aborts.
const sslhMost = 400

// relayPeers are what our gateway is held against.
func (w *relayWorld) relayPeers() []subject {
	haproxy := func(mode, title string) subject {
		s := subject{name: "haproxy-" + mode, title: title, spins: mode == "busy"}
		return w.foreign("haproxy", s, func(p place) string { return haproxyConfig(mode, p) },
			func(_ place, file string) []string { return []string{"-db", "-f", file} })
	}
	out := []subject{
		haproxy("default", "HAProxy, splice-auto, 64 KiB pipes"),
		haproxy("tuned", "HAProxy, forced splice, 256 KiB pipes"),
		haproxy("busy", "HAProxy, forced splice, busy polling"),
		w.foreign("nginx", subject{name: "nginx", title: "nginx stream, ssl_preread"}, func(p place) string { return nginxConfig(streamModule(), p) },
			func(p place, file string) []string { return []string{"-p", p.dir, "-e", "stderr", "-c", file} }),
		w.foreign("sslh-select", subject{name: "sslh", title: "sslh-select", most: sslhMost}, sslhConfig,
			func(_ place, file string) []string { return []string{"-F" + file} }),
	}
	out = append(out, subject{name: "go", title: "a plain Go proxy: io.Copy, two goroutines a connection", start: func(ctx context.Context) (*running, error) {
		return w.startRelay(ctx, "go", func(p place) (*exec.Cmd, error) { return w.relayRole(roleCopy, p) })
	}})
	return out
}

// direct is no relay at all: what is least possible here.
func (w *relayWorld) direct() subject {
	return subject{name: "direct", title: "no relay: client to server", start: func(context.Context) (*running, error) {
		return &running{hello: true, to: w.to}, nil
	}}
}

// ours is the gateway with static routes and nothing else.
func (w *relayWorld) ours() subject {
	return w.oursWith(subject{name: "sallyport", title: "Sallyport's gateway, static routes"}, "")
}

// oursWith is the gateway with further fields, each with its indentation.
func (w *relayWorld) oursWith(s subject, more string) subject {
	s.start = func(ctx context.Context) (*running, error) {
		return w.startRelay(ctx, s.name, func(p place) (*exec.Cmd, error) {
			file := filepath.Join(p.dir, "sallyport.yaml")
			config := strings.Replace(sallyportConfig(p), "gateway:\n", "gateway:\n"+more, 1)
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				return nil, err
			}
			return exec.Command(filepath.Join(w.bin, "sallyport"), "start", "-c", file), nil
		})
	}
	return s
}

// relayRole is this program as a relay.
func (w *relayWorld) relayRole(role string, p place) (*exec.Cmd, error) {
	routes, err := json.Marshal(p.routes)
	if err != nil {
		return nil, err
	}
	return w.role(role, p.listen, string(routes)), nil
}

// relayVersions are the relays of others and their versions.
func relayVersions(ctx context.Context) []Peer {
	var out []Peer
	for _, p := range [][2]string{{"haproxy", "-v"}, {"nginx", "-v"}, {"sslh-select", "-V"}} {
		path, err := lookPeer(p[0])
		if err != nil {
			out = append(out, Peer{Name: p[0], Missing: true})
			continue
		}
		b, _ := exec.CommandContext(ctx, path, p[1]).CombinedOutput() // what it says counts
		line, _, _ := strings.Cut(string(b), "\n")
		out = append(out, Peer{Name: p[0], Version: strings.TrimSpace(line)})
	}
	return out
}
