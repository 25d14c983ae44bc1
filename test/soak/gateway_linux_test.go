package soak

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers/port"
)

// gatewayProcess is a gateway without a control plane, as users start it.
type gatewayProcess struct {
	t       testing.TB
	cmd     *exec.Cmd
	address string
	config  string
	out     output
	done    chan struct{}
}

// output keeps the end of what a process printed.
type output struct {
	mu sync.Mutex
	b  []byte
}

const outputKept = 64 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	if len(o.b) > 2*outputKept {
		o.b = append([]byte(nil), o.b[len(o.b)-outputKept:]...)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b)
}

func buildGateway(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "sallyport")
	args := []string{"build", "-buildvcs=false", "-o", bin}
	if underRace {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "../../cmd/sallyport")...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// startGateway serves <name>.soak.test for each name, at its addresses.
func startGateway(t testing.TB, routes map[string][]string) *gatewayProcess {
	t.Helper()
	bin, dir := buildGateway(t), t.TempDir()
	g := &gatewayProcess{t: t, address: freeAddress(t), config: filepath.Join(dir, "sallyport.yaml"), done: make(chan struct{})}
	g.write(dir, routes)
	g.cmd = exec.Command(bin, "start", "-c", g.config)
	g.cmd.Stdout, g.cmd.Stderr = &g.out, &g.out
	g.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1 exitcode=66")
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = g.cmd.Wait() // what it said is told below
		close(g.done)
	}()
	t.Cleanup(g.stop)
	g.await("listens", func() bool {
		c, err := net.Dial("tcp", g.address)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	return g
}

func freeAddress(t testing.TB) string {
	t.Helper()
	address, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// deadAddress is one where nobody listens, and that no connection gets as its
// own: who connects to it from it would be connected to himself.
func deadAddress(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port)
}

func (g *gatewayProcess) write(dir string, routes map[string][]string) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "version: 1\ncluster: soak.test\ndata_dir: %s\nroles: [gateway]\nlog: {level: warn}\ngateway:\n  listen: [%q]\n  routes:\n", filepath.Join(dir, "data"), g.address)
	for name := range routes {
		fmt.Fprintf(&b, "    - {match: {sni: [%s.soak.test]}, upstream: %s}\n", name, name)
	}
	b.WriteString("  upstreams:\n")
	for name, servers := range routes {
		fmt.Fprintf(&b, "    %s: {servers: [%s]}\n", name, `"`+strings.Join(servers, `", "`)+`"`)
	}
	if err := os.WriteFile(g.config, b.Bytes(), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gatewayProcess) stop() {
	_ = g.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-g.done:
	case <-time.After(30 * time.Second):
		g.t.Error("the gateway did not stop")
		_ = g.cmd.Process.Kill()
		<-g.done
	}
	said := g.out.String()
	if strings.Contains(said, "DATA RACE") || strings.Contains(said, "panic") {
		g.t.Error("the gateway broke")
	}
	if g.t.Failed() {
		g.t.Logf("the gateway said:\n%s", said)
	}
}

// await waits until something holds of the process.
func (g *gatewayProcess) await(what string, holds func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(2 * clientPatience); !holds(); time.Sleep(50 * time.Millisecond) {
		select {
		case <-g.done:
			g.t.Fatalf("the gateway has ended:\n%s", g.out.String())
		default:
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("the gateway: not %s in time: %v", what, g.belongings())
		}
	}
}

// belongings is what a process holds of the system.
type belongings struct {
	sockets, pipes, others int // descriptors
	connections            int // sockets of TCP that do not listen
	threads                int
	memory                 int // KiB resident
}

func (b belongings) String() string {
	return fmt.Sprintf("%d sockets, %d of them connections, %d pipe ends, %d other descriptors, %d threads, %d KiB", b.sockets, b.connections, b.pipes, b.others, b.threads, b.memory)
}

func (g *gatewayProcess) belongings() (b belongings) {
	proc := fmt.Sprintf("/proc/%d/", g.cmd.Process.Pid)
	entries, err := os.ReadDir(proc + "fd")
	if err != nil {
		g.t.Fatal(err)
	}
	waiting := g.waiting()
	for _, e := range entries {
		switch to, err := os.Readlink(proc + "fd/" + e.Name()); {
		case errors.Is(err, fs.ErrNotExist): // it was closed since it was listed
		case err != nil:
			g.t.Fatal(err)
		case strings.HasPrefix(to, "socket:"):
			b.sockets++
			if !waiting[to] {
				b.connections++
			}
		case strings.HasPrefix(to, "pipe:"):
			b.pipes++
		default:
			b.others++
		}
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		g.t.Fatal(err)
	}
	b.memory, b.threads = statusField(string(status), "VmRSS:"), statusField(string(status), "Threads:")
	return b
}

// waiting are the sockets on which connections arrive, and those of this machine
// alone, as the links of their descriptors have them: proc_pid_net(5). A connection
// that was reset is in no table; it is one until its descriptor is closed.
func (g *gatewayProcess) waiting() map[string]bool {
	g.t.Helper()
	const listening, state, inode = "0A", 3, 9
	out := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6", "unix"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", g.cmd.Process.Pid, table))
		if errors.Is(err, fs.ErrNotExist) { // no IPv6 here
			continue
		}
		if err != nil {
			g.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			switch f := strings.Fields(line); {
			case table == "unix" && len(f) > 6:
				out["socket:["+f[6]+"]"] = true
			case table != "unix" && len(f) > inode && f[state] == listening:
				out["socket:["+f[inode]+"]"] = true
			}
		}
	}
	return out
}

func statusField(status, name string) int {
	_, rest, _ := strings.Cut(status, name)
	if fields := strings.Fields(rest); len(fields) > 0 {
		n, _ := strconv.Atoi(fields[0])
		return n
	}
	return 0
}
