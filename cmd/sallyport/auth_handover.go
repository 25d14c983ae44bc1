package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/handover"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	authPart = "auth"

	// Kinds of the part's records.
	authSocketKind = 1

	// authWithin is for the stage: what is under way ends, the store closes and
	// opens. Calls of the API wait that long at most; clients have more patience.
	authWithin = 8 * time.Second

	// authDrain is what calls that are under way get of it. Those that take
	// longer wait for something that may never come, and are cut.
	authDrain = 3 * time.Second

	// reopenEvery is the time between attempts to open the store again.
	reopenEvery = time.Second

	maxAuthSockets = 64
)

// authGiver is the part "auth" of the old process: its sockets move, and the
// store and the audit log are closed until the new process opens them.
type authGiver struct{ a *auth }

// Name meets handover.Giver.
func (g *authGiver) Name() string { return authPart }

// Copy sends the sockets: they do not change.
func (g *authGiver) Copy(ctx context.Context, w handover.Writer) error {
	for _, ln := range g.a.listeners {
		if err := g.a.send(ctx, w, ln); err != nil {
			return fmt.Errorf("%s: %w", ln.name, err)
		}
	}
	return nil
}

func (a *auth) send(ctx context.Context, w handover.Writer, ln listening) error {
	body, err := proto.Marshal(&handoverv1.AuthSocket{Name: ln.name, DataDir: a.cfg.DataDir})
	if err != nil {
		return err
	}
	sc, ok := ln.Listener.(syscall.Conn)
	if !ok {
		return errors.New("this socket has no descriptor")
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = rc.Control(func(fd uintptr) {
		sent = w.Send(ctx, handover.Record{Part: authPart, Kind: authSocketKind, Body: body, FDs: []int{int(fd)}})
	})
	return errors.Join(err, sent)
}

// Freeze lets calls end, and closes the audit log and the store. New calls wait
// at the sockets, those of the admin socket at its gate.
func (g *authGiver) Freeze(ctx context.Context, _ handover.Writer) error { return g.a.freeze(ctx) }

// Thaw opens the store again and serves on the same sockets.
func (g *authGiver) Thaw() error { return g.a.thaw() }

// Leave lets go of the sockets. Their files stay: they are the new process's.
func (g *authGiver) Leave() {
	a := g.a
	a.changing.Lock()
	defer a.changing.Unlock()
	for _, ln := range a.listeners {
		keepFile(ln.Listener)
		if err := ln.Close(); err != nil {
			a.log.Warn("close a socket that has moved", "socket", ln.name, "error", err)
		}
	}
	a.listeners = nil
	a.admin.Leave()
}

// keepFile keeps the socket's file when the listener is closed.
func keepFile(ln net.Listener) {
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
}

func (a *auth) freeze(ctx context.Context) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	if a.serving == nil {
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "auth does not serve at the moment", Hint: "its log says why"}
	}
	if err := a.shownStore.Load().Room(); err != nil {
		return err // opened again, here or there, it might never be
	}
	a.frozen = true
	began := time.Now()
	a.drainLocked(ctx)
	drained := time.Now()
	if err := a.shut(); err != nil {
		return fmt.Errorf("close the store and the audit log: %w", err)
	}
	a.log.Info("auth is closed for its change over", "calls", drained.Sub(began), "store", time.Since(drained))
	return nil
}

// drainLocked ends serving: calls that are under way end first.
func (a *auth) drainLocked(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, authDrain)
	defer cancel()
	a.server.Drain()
	var g errgroup.Group
	g.Go(func() error { return a.admin.Shut(ctx) })
	for _, l := range a.serving.listeners {
		g.Go(func() error { return l.Drain(ctx) })
	}
	if err := g.Wait(); err != nil {
		a.log.Warn("calls of the API did not end in time and are cut", "error", err)
	}
	a.serving.cancel()
	a.serving.group.Wait()
	a.serving = nil
}

// thaw serves again. What cannot be opened now is tried again until it can:
// gateways and agents go on meanwhile by what they have.
func (a *auth) thaw() error {
	a.changing.Lock()
	defer a.changing.Unlock()
	if !a.frozen {
		return nil
	}
	a.frozen = false
	if a.serving != nil {
		return nil
	}
	err := a.reopenLocked(context.Background())
	if err != nil {
		select {
		case a.broken <- struct{}{}:
		default:
		}
		return fmt.Errorf("auth does not serve yet, and goes on trying: %w", err)
	}
	return nil
}

func (a *auth) reopenLocked(ctx context.Context) error {
	err := a.shut()
	if err == nil {
		err = a.open(ctx)
	}
	if err == nil {
		err = a.serveLocked()
	}
	if err != nil {
		err = errors.Join(err, a.shut())
	}
	return err
}

// reopen tries until the store is open again, or ctx is done.
func (a *auth) reopen(ctx context.Context) {
	for {
		t := time.NewTimer(reopenEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		a.changing.Lock()
		if a.frozen || a.serving != nil {
			a.changing.Unlock()
			return
		}
		err := a.reopenLocked(ctx)
		a.changing.Unlock()
		if err == nil {
			a.log.Info("auth serves again")
			return
		}
		a.log.Error("auth cannot serve; trying again", "error", err, "in", reopenEvery)
	}
}

// authTaker is the part "auth" of the new process. start is called once, with
// auth open and its sockets taken; it calls run.
type authTaker struct {
	cfg   *config
	log   *slog.Logger
	start func(*auth)

	fds map[string]int // sockets by name; taken
	a   *auth          // after Complete
}

func newAuthTaker(cfg *config, log *slog.Logger, start func(*auth)) *authTaker {
	return &authTaker{cfg: cfg, log: log, start: start, fds: map[string]int{}}
}

// Name meets handover.Taker.
func (t *authTaker) Name() string { return authPart }

// Take gets a socket.
func (t *authTaker) Take(r handover.Record) error {
	err := t.take(r)
	if err != nil {
		closeAll(r.FDs)
	}
	return err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd) // the other process has its own
	}
}

func (t *authTaker) take(r handover.Record) error {
	if r.Kind != authSocketKind {
		return fmt.Errorf("record of kind %d is not known", r.Kind)
	}
	var m handoverv1.AuthSocket
	if err := proto.Unmarshal(r.Body, &m); err != nil {
		return err
	}
	if m.GetDataDir() != t.cfg.DataDir {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("data_dir was %s and is %s now", m.GetDataDir(), t.cfg.DataDir), Hint: "the data directory changes by a restart, not by an upgrade"}
	}
	if _, twice := t.fds[m.GetName()]; twice || len(t.fds) >= maxAuthSockets || len(r.FDs) != 1 {
		return fmt.Errorf("socket %q: sent twice, too many, or without one descriptor", m.GetName())
	}
	if on, err := syscall.GetsockoptInt(r.FDs[0], syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN); err != nil || on == 0 {
		return errors.Join(fmt.Errorf("socket %q does not listen", m.GetName()), err)
	}
	t.fds[m.GetName()] = r.FDs[0]
	return nil
}

// Complete opens the store, the audit log, and the sockets that are new in this
// configuration.
func (t *authTaker) Complete(ctx context.Context) error {
	a := newAuth(t.cfg, t.log)
	began := time.Now()
	err := a.open(ctx)
	if err == nil {
		err = a.listen(t.inherited())
	}
	if err != nil {
		a.close()
		return err
	}
	t.a = a
	t.log.Info("auth is open in this process", "took", time.Since(began))
	return nil
}

func (t *authTaker) inherited() map[string]bool {
	out := map[string]bool{}
	for name := range t.fds {
		out[name] = true
	}
	return out
}

// Start serves on the sockets that were taken. They become listeners only now:
// net turns O_NONBLOCK off for a moment, which the old process would notice.
func (t *authTaker) Start() {
	wanted := map[string]bool{authSocket: true}
	for _, addr := range t.cfg.Auth.Listen {
		wanted[tcpName(addr)] = true
	}
	for name, fd := range t.fds {
		if !wanted[name] {
			_ = syscall.Close(fd) // this configuration does not have it any more
			continue
		}
		ln, err := listenerOf(fd, name)
		if err != nil {
			t.a.report(fmt.Errorf("%s: %w", name, err))
			continue
		}
		t.a.listeners = append(t.a.listeners, listening{ln, name, name == authSocket})
	}
	clear(t.fds)
	t.start(t.a)
}

// listenerOf makes a listener of a descriptor, and closes that. The file of a
// Unix socket goes with the listener, as if it had been made here.
func listenerOf(fd int, name string) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	ln, err := net.FileListener(f)
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(true)
	}
	return ln, err
}

var (
	_ handover.Giver = (*authGiver)(nil)
	_ handover.Taker = (*authTaker)(nil)
)
