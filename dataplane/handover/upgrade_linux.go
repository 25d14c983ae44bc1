package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cloudflare/tableflip"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
)

// Upgrader is this process's part in upgrades: first as the new one, if an
// upgrade has started it, later as the old one. A process has one.
type Upgrader struct {
	Config
	flip   *tableflip.Upgrader
	parent *parentPipe // nil: no upgrade has started this process

	mu   sync.Mutex // held during an upgrade
	left bool       // this process has handed over what it had
}

// mailName is the one file that tableflip carries.
const mailName = "sallyport-handover"

// backstop is how much later than we tableflip kills a new process by itself.
// It is the last resort when the process has not said its number and /proc does
// not show it. After a commit it would kill a process that has not run for that
// long.
const backstop = time.Minute

// New is called once, early: before other processes are started, and before
// anything looks at the environment variables with which tableflip tells a new
// process that it is one. They are gone when New has returned.
func New(c Config) (*Upgrader, error) {
	u := &Upgrader{Config: c.full()}
	var err error
	if u.Path, err = program(u.Path); err != nil {
		return nil, err
	}
	if u.parent, err = inheritPipe(); err != nil {
		return nil, err
	}
	// tableflip starts os.Args[0]. It is read here for the last time, and by
	// tableflip only under u.mu.
	os.Args[0] = u.Path
	u.flip, err = tableflip.New(tableflip.Options{UpgradeTimeout: u.Timeout + backstop})
	forgetParent()
	if err != nil {
		return nil, err
	}
	if u.parent == nil {
		return u, u.flip.Ready()
	}
	return u, nil
}

// Inherited says hello to the old process. Without an error and without an Heir
// no upgrade has started this process. The Heir's Take or Refuse has to follow.
func (u *Upgrader) Inherited(ctx context.Context) (*Heir, error) {
	if u.parent == nil {
		return nil, nil
	}
	if err := failpoint.Hit("handover.new.inherited"); err != nil {
		return nil, err
	}
	l, err := u.inheritLink()
	if err != nil {
		return nil, fmt.Errorf("the old process's socket: %w", err)
	}
	h, err := Receive(ctx, l, u.Program)
	if err != nil {
		return nil, err
	}
	h.commit = u.committed
	return h, nil
}

// inheritLink takes the link's end out of the socket that tableflip carried.
func (u *Upgrader) inheritLink() (*Link, error) {
	f, err := u.flip.File(mailName)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, errors.New("none was inherited")
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var l *Link
	var failed error
	if err := raw.Control(func(fd uintptr) { l, failed = openMail(int(fd)) }); err != nil {
		return nil, err
	}
	return l, failed
}

// committed lets tableflip know what has long been decided. The old process may
// be gone, and then there is nobody to tell.
func (u *Upgrader) committed() error {
	u.parent.release()
	if err := u.flip.Ready(); err != nil && !isBrokenPipe(err) {
		u.Log.Warn("handover: the old process does not hear that this one is ready", "err", err)
	}
	return nil
}

// isBrokenPipe knows the error by its words too: tableflip wraps none.
func isBrokenPipe(err error) bool {
	return errors.Is(err, unix.EPIPE) || strings.HasSuffix(err.Error(), unix.EPIPE.Error())
}

// Upgrade starts the new program and hands everything over to it. When it
// returns without an error, this process has let go of all that moved and is a
// remnant; it starts no other upgrade. With an error everything is as before.
func (u *Upgrader) Upgrade(ctx context.Context, stages []Stage) (Report, error) {
	if !u.mu.TryLock() {
		return Report{}, refused("an upgrade is under way", "wait until it has ended; sallyport status shows it")
	}
	defer u.mu.Unlock()
	if u.left {
		return Report{}, refused("this process has handed over to a newer one", "ask the newer one")
	}
	began := time.Now()
	report, err := u.upgrade(ctx, stages)
	report.Began, report.Total = began, time.Since(began)
	u.left = report.Committed
	if err != nil {
		err = failed(err)
	}
	return report, err
}

func (u *Upgrader) upgrade(ctx context.Context, stages []Stage) (Report, error) {
	report := Report{From: u.Program.Version}
	began := time.Now()
	if err := u.check(ctx); err != nil {
		report.Failed, report.Reason = StepCheck, err.Error()
		return report, err
	}
	checked := time.Since(began)
	c, l, err := u.start()
	if err != nil {
		report.Check, report.Failed, report.Reason = checked, StepStart, err.Error()
		return report, err
	}
	defer c.forget()
	report, err = Give(ctx, l, Gift{Program: u.Program, Stages: stages, Timeout: u.Timeout,
		Process: c.know, Kill: c.kill, Step: u.Step})
	report.Check = checked
	if err != nil {
		err = c.explain(err)
		report.Reason = err.Error()
	}
	return report, err
}

func (u *Upgrader) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, u.Timeout)
	defer cancel()
	if err := u.at(StepCheck); err != nil {
		return err
	}
	if u.Check == nil {
		return nil
	}
	return u.Check(ctx)
}

// start starts the new process and has the link to it.
func (u *Upgrader) start() (*child, *Link, error) {
	if err := u.at(StepStart); err != nil {
		return nil, nil, err
	}
	mine, theirs, err := Pair()
	if err != nil {
		return nil, nil, err
	}
	m, err := newMail(theirs)
	theirs.drop()
	if err != nil {
		mine.Close()
		return nil, nil, err
	}
	if err := u.carry(m); err != nil {
		m.close()
		mine.Close()
		return nil, nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &child{mail: m, log: u.Log, stop: stop, dead: make(chan struct{})}
	go c.watch(ctx, u.flipOver)
	return c, mine, nil
}

// carry gives tableflip the mail socket. It makes a descriptor of its own.
func (u *Upgrader) carry(m *mail) error {
	fd, err := own(m.theirs)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), mailName)
	defer f.Close()
	return u.flip.AddFile(mailName, f)
}

// flipOver is tableflip's upgrade: it ends when the new process has, or when
// that has been told the commit.
func (u *Upgrader) flipOver(ctx context.Context) error {
	for {
		err := u.flip.Upgrade()
		// tableflip hears a moment after us that it need not wait for this
		// process's own predecessor.
		if err == nil || err.Error() != "parent hasn't exited" || wait(ctx, nil) != nil {
			return err
		}
	}
}

func (u *Upgrader) at(s Step) error {
	if err := pass(s); err != nil {
		return err
	}
	if u.Step == nil {
		return nil
	}
	return u.Step(s)
}
