package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/supervise"
	"github.com/sallyport/sallyport/dataplane/handover"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	processPart = "process"
	processKind = 1 // Process, once
)

// Names of the descriptors in a Process record.
const (
	fdLock       = "lock"
	fdAdmin      = "admin"
	fdMetrics    = "metrics"
	fdLine       = "line"
	fdLeashRead  = "leash-read"
	fdLeashWrite = "leash-write"
)

// processGiver is the process as such: its lock on the data directory, the
// sockets of operators, and how its id is kept.
type processGiver struct {
	node *node
	next keeping // of the new process
	shut []*gated
}

// Name meets handover.Giver.
func (*processGiver) Name() string { return processPart }

// Copy sends everything: none of it changes.
func (g *processGiver) Copy(ctx context.Context, w handover.Writer) error {
	n := g.node
	m := &handoverv1.Process{Generation: g.next.generation, Keeping: g.next.how, PidFile: g.next.pidFile, Version: version, StartedUnixMs: n.first.UnixMilli()}
	var fds []int
	defer func() { closeFDs(fds) }()
	add := func(name string, fd int, err error) error {
		if err == nil {
			m.Descriptors, fds = append(m.Descriptors, name), append(fds, fd)
		}
		return err
	}
	addOf := func(name string, c syscall.Conn) error {
		fd, err := dup(c)
		return add(name, fd, err)
	}
	err := errors.Join(addOf(fdLock, n.lock), addOf(fdAdmin, n.admin), addOf(fdLeashRead, g.next.leash.read), addOf(fdLeashWrite, g.next.leash.write))
	if n.metrics != nil {
		m.MetricsAddress = n.cfg.Metrics.Listen
		err = errors.Join(err, addOf(fdMetrics, n.metrics))
	}
	if g.next.line != nil {
		fd, lerr := g.next.line.Dup()
		err = errors.Join(err, add(fdLine, fd, lerr))
	}
	if err != nil {
		return err
	}
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return w.Send(ctx, handover.Record{Part: processPart, Kind: processKind, Body: body, FDs: fds})
}

// Freeze stops accepting. Who is connected is served on: this process answers
// whoever has asked for the upgrade.
func (g *processGiver) Freeze(context.Context, handover.Writer) error {
	for _, s := range g.node.operatorSockets() {
		if err := s.shut(); err != nil {
			return err
		}
		g.shut = append(g.shut, s)
	}
	return nil
}

// Thaw accepts again.
func (g *processGiver) Thaw() (err error) {
	for _, s := range g.shut {
		err = errors.Join(err, s.open())
	}
	g.shut = nil
	return err
}

// Leave lets go of the sockets and the lock, which is the new process's: a lock
// of flock(2) belongs to the open file, not to who opened it.
func (g *processGiver) Leave() {
	for _, s := range g.shut {
		_ = s.leave() // nothing that could be lost
	}
	g.shut = nil
	_ = g.node.lock.Close()
}

// operatorSockets are those of this part.
func (n *node) operatorSockets() []*gated {
	all := []*gated{n.admin}
	if n.metrics != nil {
		all = append(all, n.metrics)
	}
	return all
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// processTaker takes the process over.
type processTaker struct {
	node *node

	mu  sync.Mutex
	got *handoverv1.Process
	fds map[string]int
}

// Name meets handover.Taker.
func (*processTaker) Name() string { return processPart }

// Take keeps the descriptors until Complete.
func (t *processTaker) Take(r handover.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.Kind != processKind || t.got != nil {
		closeFDs(r.FDs)
		return fmt.Errorf("a record of kind %d was not expected", r.Kind)
	}
	m := &handoverv1.Process{}
	if err := proto.Unmarshal(r.Body, m); err != nil {
		closeFDs(r.FDs)
		return err
	}
	if len(m.GetDescriptors()) != len(r.FDs) {
		closeFDs(r.FDs)
		return fmt.Errorf("%d descriptors, and %d names of such", len(r.FDs), len(m.GetDescriptors()))
	}
	t.got, t.fds = m, map[string]int{}
	for i, name := range m.GetDescriptors() {
		if _, twice := t.fds[name]; twice {
			closeFDs(r.FDs[i : i+1])
			continue
		}
		t.fds[name] = r.FDs[i]
	}
	return nil
}

// Complete makes of the descriptors what the node has otherwise opened itself.
func (t *processTaker) Complete(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.got == nil {
		return errors.New("the old process did not say what it is")
	}
	defer t.closeRest()
	for _, name := range []string{fdLock, fdAdmin, fdLeashRead, fdLeashWrite} {
		if _, there := t.fds[name]; !there {
			return fmt.Errorf("the old process did not pass on its %s", name)
		}
	}
	n := t.node
	k := keeping{how: t.got.GetKeeping(), generation: t.got.GetGeneration(), upgraded: true, pidFile: t.got.GetPidFile(), manager: n.keeping.manager}
	if fd, there := t.take(fdLine); there {
		k.line = supervise.OpenLine(fd)
	}
	if k.how == handoverv1.Keeping_KEEPING_SUPERVISOR && k.line == nil {
		return errors.New("the old process did not pass on the line to its supervisor")
	}
	read, _ := t.take(fdLeashRead)
	write, _ := t.take(fdLeashWrite)
	k.leash = openLeash(read, write)
	lock, _ := t.take(fdLock)
	n.keeping, n.lock, n.first = k, os.NewFile(uintptr(lock), "lock"), time.UnixMilli(t.got.GetStartedUnixMs())
	admin, _ := t.take(fdAdmin)
	var err error
	if n.admin, err = inheritedListener(admin, adminSocket); err != nil {
		return err
	}
	return t.metrics()
}

// metrics takes the old process's socket when it is still the configured one.
func (t *processTaker) metrics() (err error) {
	n := t.node
	fd, there := -1, false
	if n.cfg.Metrics.Listen == t.got.GetMetricsAddress() {
		fd, there = t.take(fdMetrics)
	}
	if there {
		n.metrics, err = inheritedListener(fd, "metrics.listen")
		return err
	}
	return n.listenMetrics()
}

func (t *processTaker) take(name string) (fd int, there bool) {
	fd, there = t.fds[name]
	delete(t.fds, name)
	return fd, there
}

// closeRest closes what this version does not know, or has no use for.
func (t *processTaker) closeRest() {
	for _, fd := range t.fds {
		closeFDs([]int{fd})
	}
	t.fds = nil
}

// inheritedListener takes over the descriptor of a listening socket.
func inheritedListener(fd int, name string) (*gated, error) {
	f := os.NewFile(uintptr(fd), name)
	l, err := net.FileListener(f) // has a descriptor of its own
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return gate(l)
}

// Start writes the process's id where it is looked for, and answers operators.
func (t *processTaker) Start() {
	n := t.node
	n.tell(n.keeping.present())
	if err := n.writeLock(); err != nil {
		n.log.Error("the lock does not name this process", "error", err)
	}
	n.serveAdmin()
}

// listenMetrics opens metrics.listen, if it is configured.
func (n *node) listenMetrics() error {
	if n.cfg.Metrics.Listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", n.cfg.Metrics.Listen)
	if err != nil {
		return listenProblem(err, "metrics.listen", `metrics: {listen: "127.0.0.1:9091"}`)
	}
	n.metrics, err = gate(l)
	return err
}

// errNoUpgrade is for systems that cannot pass sockets on.
var errNoUpgrade = &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "an upgrade is offered on Linux only", Hint: "restart the service"}
