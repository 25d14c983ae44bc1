package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/cmd/internal/notify"
	"github.com/sallyport/sallyport/tools/peers/port"
)

const (
	testedUp    = 30 * time.Second // to serve; the machine may be busy
	testedStop  = 10 * time.Second
	upgradeMost = 60 * time.Second // for one upgrade; its own bounds are lower

	glance = 2 * time.Millisecond // between two looks at the old process

	memoryGlance = 25 * time.Millisecond
)

// testedGateway is a gateway that the self-test has started, in whatever
// process it is by now.
type testedGateway struct {
	dir, program, config, listen string
	other                        []string        // programs to change to, in turn; empty for none
	outside                      map[string]bool // sockets that all its processes have from what started us
	turn                         int

	pid    int
	notes  *net.UnixConn // what it tells its service manager, which is us
	log    *os.File
	ended  chan struct{} // the first process, which is our child
	reaped sync.WaitGroup
}

// startTested starts a gateway with one route, to the servers.
func startTested(ctx context.Context, dir string, servers []string) (*testedGateway, error) {
	g := &testedGateway{dir: dir, program: filepath.Join(dir, "sallyport"), config: filepath.Join(dir, "sallyport.yaml"), outside: passedOn()}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := copyProgram(self, g.program); err != nil {
		return nil, err
	}
	if g.listen, err = port.Reserve(); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("version: 1\nroles: [gateway]\ndata_dir: %q\ngateway:\n  listen: [%q]\n  routes:\n    - {names: [%s], to: [%s]}\nlog: {level: warn}\n",
		filepath.Join(dir, "data"), g.listen, selftestServer, `"`+strings.Join(servers, `", "`)+`"`)
	if err := os.WriteFile(g.config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := g.start(ctx); err != nil {
		g.stop()
		return nil, err
	}
	return g, nil
}

// copyProgram makes a file of its own: the program is replaced by a rename, as
// an installation does. No process starts meanwhile: it would hold the copy open
// for writing until its exec, and the kernel refuses to run such a file.
func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// start starts the process as a service manager does: it says itself when it is
// ready, and which process it is.
func (g *testedGateway) start(ctx context.Context) error {
	adoptOrphans()
	socket := filepath.Join(g.dir, "notify")
	var err error
	if g.notes, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"}); err != nil {
		return err
	}
	if g.log, err = os.OpenFile(filepath.Join(g.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600); err != nil {
		return err
	}
	cmd := exec.Command(g.program, "start", "--config="+g.config)
	cmd.Dir, cmd.Stdout, cmd.Stderr = g.dir, g.log, g.log
	cmd.Env = append(os.Environ(), notify.Variable+"="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the self-test, which stops it
	if err := cmd.Start(); err != nil {
		return err
	}
	g.pid, g.ended = cmd.Process.Pid, make(chan struct{})
	g.reaped.Go(func() {
		defer close(g.ended)
		_ = cmd.Wait() // how it ended is in its log
	})
	ctx, cancel := context.WithTimeout(ctx, testedUp)
	defer cancel()
	for {
		note, err := g.note(ctx)
		if err != nil {
			return fmt.Errorf("the gateway of the self-test did not start: %w%s", err, g.lastWords())
		}
		if strings.Contains(note, "READY=1") {
			return nil
		}
	}
}

// note waits for the next message.
func (g *testedGateway) note(ctx context.Context) (string, error) {
	stop := context.AfterFunc(ctx, func() { _ = g.notes.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, 4096)
	n, err := g.notes.Read(b)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return string(b[:n]), err
}

// lastWords are the end of what the gateway has logged.
func (g *testedGateway) lastWords() string {
	if g.log == nil {
		return ""
	}
	info, err := g.log.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(info.Size(), 2000))
	n, _ := g.log.ReadAt(b, info.Size()-int64(len(b)))
	if n == 0 {
		return ""
	}
	return "\n" + string(bytes.TrimSpace(b[:n]))
}

// alternate makes upgrades change to the program of file, and back, in turn.
func (g *testedGateway) alternate(file string) error {
	for i, from := range []string{file, g.program} {
		to := filepath.Join(g.dir, "program"+strconv.Itoa(i))
		if err := copyProgram(from, to); err != nil {
			return err
		}
		g.other = append(g.other, to)
	}
	return nil
}

// install puts the next program in place.
func (g *testedGateway) install() error {
	if len(g.other) == 0 {
		return nil
	}
	next := g.program + ".next"
	if err := copyProgram(g.other[g.turn%len(g.other)], next); err != nil {
		return err
	}
	g.turn++
	return os.Rename(next, g.program)
}

// upgradeSeen is what was seen of one upgrade from outside.
type upgradeSeen struct {
	took     time.Duration // until the commit
	released time.Duration // from the commit until the old process had no connection and no listening socket
	exited   time.Duration // from the commit until it had ended
	speed    float64       // connections per second, as the old process says
	memory   uint64        // of both processes at the peak; 0 when it was not looked at
}

// upgrade upgrades the gateway as a user does, by the command.
func (g *testedGateway) upgrade(ctx context.Context, memory bool) (*upgradeSeen, error) {
	if err := g.install(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, upgradeMost)
	defer cancel()
	watched := watchOld(g.pid, g.outside)
	defer watched.stop()
	var peak *memoryWatch
	if memory {
		peak = watchMemory(g.pid)
		defer peak.stop()
	}
	report, err := g.command(ctx)
	if err != nil {
		return nil, err
	}
	commit := *report.Committed
	seen := &upgradeSeen{took: commit.Sub(report.Time), speed: float64(report.Relays) / (report.CopyMS + report.StallMS) * 1000}
	old := g.pid
	g.pid = report.ToPID
	if err := watched.wait(ctx, selftestPatient); err != nil {
		return nil, fmt.Errorf("%w%s", err, g.lastWords())
	}
	g.reap(old)
	seen.released, seen.exited = max(0, watched.released.Sub(commit)), max(0, watched.gone.Sub(commit))
	if peak != nil {
		seen.memory = peak.stop()
	}
	return seen, g.drainNotes()
}

// command runs the command that users run.
func (g *testedGateway) command(ctx context.Context) (*upgradeReport, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "upgrade", "--config="+g.config, "--format=json")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("sallyport upgrade: %w: %s%s", err, strings.TrimSpace(errs.String()), g.lastWords())
	}
	var r upgradeReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return nil, fmt.Errorf("sallyport upgrade says nothing that can be read: %w", err)
	}
	if r.Outcome != upgradeDone || r.Committed == nil || r.ToPID <= 0 || r.ToPID == g.pid {
		return nil, &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: fmt.Sprintf("sallyport upgrade: %s, process %d: %s", r.Outcome, r.ToPID, r.Problem)}
	}
	return &r, nil
}

// drainNotes takes what the gateway has said meanwhile: a socket that nobody
// reads fills up, and an upgrade that cannot be announced is given up.
func (g *testedGateway) drainNotes() error {
	raw, err := g.notes.SyscallConn()
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	return raw.Control(func(fd uintptr) {
		for err := error(nil); err == nil || errors.Is(err, unix.EINTR); {
			_, _, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
		}
	})
}

// reap takes leave of a process that has become our child.
func (g *testedGateway) reap(pid int) {
	var s syscall.WaitStatus
	_, _ = syscall.Wait4(pid, &s, syscall.WNOHANG, nil) // the first one has its own goroutine
}

// stop ends the gateway.
func (g *testedGateway) stop() {
	if g.pid > 0 {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			if syscall.Kill(g.pid, sig) != nil || g.awaitEnd() {
				break
			}
		}
	}
	g.endRest()
	g.reaped.Wait()
	if g.notes != nil {
		g.notes.Close()
	}
	if g.log != nil {
		g.log.Close()
	}
}

// endRest ends processes of the gateway that nobody knows of: an upgrade that was
// cut short on our side may have gone on. They are our children when the one
// before them has ended.
func (g *testedGateway) endRest() {
	for _, pid := range children(os.Getpid()) {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(exe, g.dir+"/") {
			g.pid = pid
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				g.awaitEnd()
			}
		}
	}
}

func (g *testedGateway) awaitEnd() bool {
	for deadline := time.Now().Add(testedStop); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		g.reap(g.pid)
		if !runs(g.pid) {
			return true
		}
	}
	return false
}
