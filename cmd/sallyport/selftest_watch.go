package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// runs says that a process is there and has not ended: one that waits to be
// reaped has no program.
func runs(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil || errors.Is(err, os.ErrPermission)
}

// oldWatch looks at a process until it has let go of everything and has ended.
// It only looks: what the process says of itself does not count.
type oldWatch struct {
	pid            int
	done           chan struct{}
	stopped        chan struct{}
	once           sync.Once
	released, gone time.Time       // read after done
	held           string          // what it had at the last look; read after done
	outside        map[string]bool // sockets that it has from what started us
}

func watchOld(pid int, outside map[string]bool) *oldWatch {
	w := &oldWatch{pid: pid, done: make(chan struct{}), stopped: make(chan struct{}), outside: outside}
	go w.run()
	return w
}

func (w *oldWatch) stop() { w.once.Do(func() { close(w.stopped) }) }

func (w *oldWatch) run() {
	defer close(w.done)
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		if !runs(w.pid) {
			w.gone = time.Now()
			if w.released.IsZero() {
				w.released = w.gone
			}
			return
		}
		if w.released.IsZero() {
			what, yes := w.holds()
			if w.held = what; !yes {
				w.released = time.Now()
			}
		}
		select {
		case <-w.stopped:
			return
		case <-tick.C:
		}
	}
}

// wait waits for the process's end.
func (w *oldWatch) wait(ctx context.Context, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		w.stop()
		<-w.done
		switch {
		case !w.gone.IsZero():
			return nil
		case w.held != "":
			return fmt.Errorf("%w within %s: it has %s", errStayed, most, w.held)
		}
		return fmt.Errorf("%w within %s, though it has let go of all sockets", errStayed, most)
	}
}

// glanceRoom is for some twenty names. The kernel makes an inode for each that it
// lists, and a process with thousands of sockets has one among its first.
const glanceRoom = 512

// holds names a socket of the network that the process has: a listening one, a
// client's or a server's. It ends at the first that it finds, so that it costs
// little while there are thousands.
func (w *oldWatch) holds() (what string, yes bool) {
	dir := fmt.Sprintf("/proc/%d/fd", w.pid)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false // it ends
	}
	defer unix.Close(fd)
	var room [glanceRoom]byte
	for {
		n, err := unix.ReadDirent(fd, room[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return "", false
		}
		_, _, names := unix.ParseDirent(room[:n], -1, nil)
		for _, name := range names {
			if what, yes := w.network(dir + "/" + name); yes {
				return fmt.Sprintf("descriptor %s (%s)", name, what), true
			}
		}
	}
}

// network says that a descriptor is a socket, is not of this machine alone, and
// does not come from outside.
func (w *oldWatch) network(path string) (what string, yes bool) {
	inode, ok := socketOf(path)
	if !ok || w.outside[inode] {
		return "", false
	}
	protocol, err := socketProtocol(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", false // closed meanwhile
	case err != nil:
		return "a socket: " + err.Error(), true
	}
	return protocol, !strings.HasPrefix(protocol, "UNIX") && protocol != "NETLINK" // unix(7), netlink(7)
}

// socketOf is the number of the socket that a path in /proc/PID/fd leads to
// (proc_pid_fd(5)).
func socketOf(path string) (inode string, ok bool) {
	to, err := os.Readlink(path)
	if err != nil {
		return "", false // closed meanwhile
	}
	return strings.CutPrefix(to, "socket:[")
}

// passedOn are the sockets that this process has without having opened them for
// itself: what started it left them open for all below it, and no gateway lets
// go of what it does not know of.
func passedOn() map[string]bool {
	out := map[string]bool{}
	const own = "/proc/self/fd"
	all, err := os.ReadDir(own)
	if err != nil {
		return out
	}
	for _, f := range all {
		fd, err := strconv.Atoi(f.Name())
		if err != nil {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		if inode, ok := socketOf(own + "/" + f.Name()); ok {
			out[inode] = true
		}
	}
	return out
}

// memoryWatch adds up the memory of a process and of those below it.
type memoryWatch struct {
	pid     int
	below   func(pid int) []int
	most    uint64
	stopped chan struct{}
	done    chan struct{}
	once    sync.Once
}

func watchMemory(pid int) *memoryWatch {
	w := &memoryWatch{pid: pid, below: children, stopped: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

// stop returns the most that there was.
func (w *memoryWatch) stop() uint64 {
	w.once.Do(func() { close(w.stopped) })
	<-w.done
	return w.most
}

func (w *memoryWatch) run() {
	defer close(w.done)
	tick := time.NewTicker(memoryGlance)
	defer tick.Stop()
	for {
		w.most = max(w.most, w.sum())
		select {
		case <-w.stopped:
			return
		case <-tick.C:
		}
	}
}

// memoryLooks are taken until one is whole. Processes that start and end let go of
// them within a few milliseconds, which a look takes too.
const memoryLooks = 5

// sum is 0 when it cannot be told.
func (w *memoryWatch) sum() uint64 {
	for range memoryLooks {
		if sum, whole := w.look(); whole {
			return sum
		}
	}
	return 0
}

// memoryStir is how much may have moved between processes while one look lasts.
const memoryStir = 256 << 10

// look adds up. Three things would be counted twice: the memory that a child has of
// its parent until its execve, since it was made by clone(2) with CLONE_VM; pages
// of the program that a process has just begun to share, when the other one was
// looked at before; and pages that two share, when the first has been looked at, and
// ends before the second is, whose alone they are then. The first is left out. With
// the others the share of one that was looked at is another by now: that look is
// not whole.
func (w *memoryWatch) look() (sum uint64, whole bool) {
	type process struct{ pid, parent int }
	counted := map[int]memoryShare{}
	for next := []process{{w.pid, 0}}; len(next) > 0; next = next[1:] {
		p := next[0]
		if p.parent != 0 && sameMemory(p.pid, p.parent) {
			continue
		}
		m, err := memoryOf(p.pid)
		if err != nil {
			continue // it has ended
		}
		sum += m.all
		counted[p.pid] = m
		for _, child := range w.below(p.pid) {
			next = append(next, process{child, p.pid})
		}
	}
	var stir uint64
	for pid, before := range counted {
		after, err := memoryOf(pid)
		if err != nil || !runs(pid) {
			return 0, false
		}
		stir += max(before.shared(), after.shared()) - min(before.shared(), after.shared())
	}
	return sum, stir <= memoryStir
}

// children are those that any thread of a process has started and that run
// (proc_tid_children(5)).
func children(pid int) (out []int) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if err != nil {
			continue
		}
		for f := range bytes.FieldsSeq(b) {
			if n, err := strconv.Atoi(string(f)); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// memoryShare is a process's share of memory, in bytes: pages that several map
// count for each in part.
type memoryShare struct {
	all uint64
	own uint64 // of it, what it has written and no other process can have: not pages of files
}

// memoryOf reads Pss and Pss_Anon of smaps_rollup (proc_pid_smaps(5)).
func memoryOf(pid int) (m memoryShare, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return m, err
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) != 3 {
			continue
		}
		into := map[string]*uint64{"Pss:": &m.all, "Pss_Anon:": &m.own}[string(f[0])]
		if into == nil {
			continue
		}
		kb, err := strconv.ParseUint(string(f[1]), 10, 64)
		if err != nil {
			return m, fmt.Errorf("process %d: smaps_rollup: %w", pid, err)
		}
		*into = kb << 10
	}
	if m.all == 0 {
		return m, fmt.Errorf("process %d: no Pss in smaps_rollup", pid)
	}
	return m, nil
}

// shared is what others may have too.
func (m memoryShare) shared() uint64 { return m.all - m.own }
