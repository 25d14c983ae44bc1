package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/supervise"
	"github.com/sallyport/sallyport/dataplane/handover"
)

// inherit takes everything over from another process. Nothing is read, written
// or accepted before that one has said the word. With an error this process has
// to end, and the other goes on.
func (n *node) inherit(ctx context.Context, heir *handover.Heir) error {
	n.heirOnly = true
	takers, err := n.takers(ctx)
	if err != nil {
		heir.Refuse(err)
		return err
	}
	if err := heir.Take(ctx, takers...); err != nil {
		return err
	}
	n.heirOnly = false
	if n.gateway != nil {
		n.showGateway()
	}
	if n.agent != nil {
		n.showAgent()
	}
	return nil
}

// takers prepares the roles, and what takes them over.
func (n *node) takers(ctx context.Context) ([]handover.Taker, error) {
	if err := ownDir(n.cfg.DataDir); err != nil {
		return nil, err
	}
	takers := []handover.Taker{&processTaker{node: n}}
	if n.demo != nil {
		if err := n.demo.nameSockets(); err != nil {
			return nil, err
		}
		takers = append(takers, n.demo.taker())
	}
	if n.cfg.has(roleAuth) {
		if err := n.nameAuth(); err != nil {
			return nil, err
		}
		takers = append(takers, newAuthTaker(n.cfg, n.log, func(a *auth) {
			n.auth = a
			n.serveAuth(ctx, a)
		}))
	}
	if n.cfg.has(roleGateway) {
		if err := n.openGateway(ctx, true); err != nil {
			return nil, err
		}
		takers = append(takers, n.gateway.takers()...)
	}
	if n.cfg.has(roleAgent) {
		if err := n.openAgent(ctx, true); err != nil {
			return nil, err
		}
		takers = append(takers, n.agent.taker())
	}
	return takers, nil
}

// heed ends this process in order when its supervisor is gone.
func (n *node) heed(ctx context.Context, l *supervise.Line, stop context.CancelFunc) error {
	gone := make(chan error, 1)
	go func() { gone <- l.Wait() }() // ends with the line, which close closes
	select {
	case err := <-gone:
		if err == nil && !n.upgrades.isHanded() {
			n.log.Error("the supervisor is gone; this process ends")
			stop()
		}
	case <-ctx.Done():
	}
	return nil
}

// end says with what this process is about to end.
func (n *node) end(err error) {
	k := &n.keeping
	if k.line == nil || k.keeper != nil || n.heirOnly {
		return
	}
	code := 0
	var exit fail.Exit
	if errors.As(err, &exit) {
		code = exit.Code
	} else if err != nil {
		code = 1
	}
	n.tell(k.line.Over(k.generation, code))
}

// standIn is the first process once it has handed over: it is what the service
// is known by, and passes signals on to the process that does the work.
type standIn struct {
	keeper  *supervise.Keeper
	signals chan os.Signal
	stop    context.CancelFunc
	done    chan struct{} // closed when it listens no more
	code    int           // the exit code of the service, when over
	over    bool
}

func newStandIn(k *supervise.Keeper) *standIn {
	ctx, stop := context.WithCancel(context.Background())
	s := &standIn{keeper: k, signals: make(chan os.Signal, forwardedMost), stop: stop, done: make(chan struct{})}
	signal.Notify(s.signals, supervise.Forwarded()...)
	go func() {
		defer close(s.done)
		s.code, s.over = k.Run(ctx, supervise.Duties{Signals: s.signals})
	}()
	return s
}

// rest returns when it listens no more, and whether nobody is left.
func (s *standIn) rest() (code int, over bool) {
	s.stop()
	<-s.done
	return s.code, s.over
}

// ownImage is the program that this process runs, also when its file has been
// replaced or removed since: proc_pid_exe(5).
const ownImage = "/proc/self/exe"

// stepBack ends this process, or keeps nothing of it but its number. What it
// becomes is its own program: the file on disk may be another one by now, which
// nobody has tried, and with this process the service would end.
func (n *node) stepBack() error {
	if n.stand == nil {
		return nil
	}
	if n.lines != nil {
		n.lines.Close(lastLines)
	}
	if code, over := n.stand.rest(); over {
		return fail.Exit{Code: code}
	}
	err := n.stand.keeper.Become(ownImage, []string{n.upgrades.program, "supervise"}, quietEnvironment(os.Environ()), n.stand.signals)
	n.log.Warn("this process stays as it is, for its number", "error", err)
	if code, _ := newStandIn(n.stand.keeper).wait(); code != 0 {
		return fail.Exit{Code: code}
	}
	return nil
}

// wait returns when nobody is left.
func (s *standIn) wait() (code int, over bool) {
	<-s.done
	return s.code, s.over
}

// superviseCmd is what the first process becomes after the first upgrade.
type superviseCmd struct {
	Line       int    `name:"line" required:"" help:"Descriptor of the line to the main process."`
	Main       int    `name:"main" required:"" help:"Its process id."`
	Generation uint64 `name:"generation" required:"" help:"Upgrades before it."`
}

// Run ends with the main process, and with its exit code.
func (c *superviseCmd) Run(p *program) error {
	// The kernel names a process after the path that it was started by, ownImage.
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0) // only for people
	d, stop := supervise.Listen()
	defer stop()
	k, err := supervise.Resume(c.Line, supervise.State{Generation: c.Generation, Main: c.Main})
	if err != nil {
		return err
	}
	defer k.Close()
	return keep(p.ctx, k, d)
}
