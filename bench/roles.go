package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sallyport/sallyport/bench/flow"
)

// This program also is what it measures with: each part is a process of its own.
const (
	roleServers = "@servers" // ADDRESSES
	roleTraffic = "@traffic" // an order on standard input, a result on standard output
	roleCopy    = "@copy"    // LISTEN ROUTES: a plain Go proxy

	roleEnder      = "@ender"       // LISTEN ENDING: a server that ends TLS
	roleSSHGateway = "@ssh-gateway" // LISTEN AGENTS: the public end of an SSH tunnel
	roleSSHAgent   = "@ssh-agent"   // GATEWAY ENDING: its far end
)

// isRole says that the program was started as a part of a run.
func isRole(args []string) bool { return len(args) > 1 && strings.HasPrefix(args[1], "@") }

// play does a role until ctx is done.
func play(ctx context.Context, args []string) error {
	switch role := args[0]; {
	case role == roleServers && len(args) == 2:
		var to flow.Backends
		if err := json.Unmarshal([]byte(args[1]), &to); err != nil {
			return err
		}
		return flow.Serve(ctx, to)
	case role == roleTraffic && len(args) == 1:
		return makeTraffic(ctx, os.Stdin, os.Stdout)
	case role == roleCopy && len(args) == 3:
		var routes []flow.Route
		if err := json.Unmarshal([]byte(args[2]), &routes); err != nil {
			return err
		}
		return copyProxy(ctx, args[1], routes)
	case role == roleSSHGateway && len(args) == 3:
		return sshGateway(ctx, args[1], args[2])
	case role == roleEnder && len(args) == 3, role == roleSSHAgent && len(args) == 3:
		e, err := newEnder(args[2])
		if err != nil {
			return err
		}
		if role == roleSSHAgent {
			return sshAgent(ctx, args[1], e)
		}
		return listenUntil(ctx, args[1], e.serve)
	default:
		return fmt.Errorf("no role %q with %d arguments", role, len(args)-1)
	}
}

// order is what the traffic's process is told.
type order struct {
	Job  flow.Job         `json:"job"`
	PIDs map[string][]int `json:"pids"` // processes to watch, by name
	Core int              `json:"core"` // that they run on
}

// makeTraffic does one order.
func makeTraffic(ctx context.Context, in io.Reader, out io.Writer) error {
	var o order
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	r, err := flow.Run(ctx, o.Job, meter{pids: o.PIDs, core: o.Core})
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// meter reads processes by their names.
type meter struct {
	pids map[string][]int
	core int
}

// Core implements flow.Meter.
func (m meter) Core() (busy, whole time.Duration) {
	b, w := coreTimes(fmt.Sprintf("cpu%d", m.core))
	return time.Duration(b / hz * 1e9), time.Duration(w / hz * 1e9)
}

// CPU implements flow.Meter.
func (m meter) CPU() (map[string]time.Duration, error) {
	out := map[string]time.Duration{}
	for name, pids := range m.pids {
		for _, pid := range pids {
			d, err := cpuTime(pid)
			if err != nil {
				return nil, err
			}
			out[name] += d
		}
	}
	return out, nil
}

// Held implements flow.Meter.
func (m meter) Held() (map[string]flow.Footprint, error) {
	out := map[string]flow.Footprint{}
	for name, pids := range m.pids {
		var sum flow.Footprint
		for _, pid := range pids {
			mem, err := memoryOf(pid)
			if err != nil {
				return nil, err
			}
			fds, pipes, err := descriptorsOf(pid)
			if err != nil {
				return nil, err
			}
			sum.RSS, sum.FDs, sum.Pipes = sum.RSS+mem.RSS, sum.FDs+float64(fds), sum.Pipes+float64(pipes)
		}
		out[name] = sum
	}
	return out, nil
}

// descriptorsOf counts a process's descriptors, and which of them are pipes.
func descriptorsOf(pid int) (all, pipes int, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		what, err := os.Readlink(dir + "/" + e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return 0, 0, err
		}
		if all++; strings.HasPrefix(what, "pipe:") {
			pipes++
		}
	}
	return all, pipes, nil
}

// bareEnv is the environment of programs that are measured: a login shell
// finds nothing to read in an empty home, and no one's settings take part.
func bareEnv(home string, more ...string) []string {
	return append([]string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}, more...)
}
