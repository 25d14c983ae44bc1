package handovertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/handover"
)

// within is how long a hand-over may take on a busy machine before a test is
// called stuck.
const within = 2 * time.Minute

// Move hands the givers' work over to the takers, in one stage. The test fails
// when it is not committed.
func Move(t testing.TB, givers []handover.Giver, takers []handover.Taker) handover.Report {
	t.Helper()
	return Plan{Stages: []handover.Stage{{Givers: givers}}, Takers: takers}.Move(t)
}

// Abort fails before a step, from handover.StepHello to handover.StepCommit, and
// returns when everything has been thawed.
func Abort(t testing.TB, at handover.Step, givers []handover.Giver, takers []handover.Taker) {
	t.Helper()
	Plan{Stages: []handover.Stage{{Givers: givers}}, Takers: takers}.Abort(t, at)
}

// Plan is a hand-over in more detail.
type Plan struct {
	Stages []handover.Stage
	Takers []handover.Taker

	// Old, New are what the two sides say about themselves.
	Old, New handover.Program

	// Step is called before each step of the old side; an error fails the
	// hand-over there.
	Step func(handover.Step) error

	// Died stands for the end of the new process when the hand-over has failed: it
	// lets go of what the takers have made beside what they were given. It is
	// called before the givers thaw. nil: nothing has to be done.
	Died func()
}

// Move fails the test when the hand-over is not committed.
func (p Plan) Move(t testing.TB) handover.Report {
	t.Helper()
	report, err := p.Run(t)
	if err != nil {
		t.Fatalf("hand-over: %v", err)
	}
	return report
}

// errPlanned ends a hand-over that is to fail.
var errPlanned = errors.New("the test wants it to fail here")

// Abort fails before a step, from handover.StepHello to handover.StepCommit.
func (p Plan) Abort(t testing.TB, at handover.Step) {
	t.Helper()
	step := p.Step
	p.Step = func(s handover.Step) error {
		if s == at {
			return errPlanned
		}
		if step == nil {
			return nil
		}
		return step(s)
	}
	report, err := p.Run(t)
	if !errors.Is(err, errPlanned) || report.Failed != at {
		t.Fatalf("hand-over: failed at %q: %v; it was to fail at %s", report.Failed, err, at)
	}
}

// Run hands over and returns what came of it: the old side's error and, when
// both sides have one, the new side's too.
func (p Plan) Run(t testing.TB) (handover.Report, error) {
	t.Helper()
	old, new, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	heir := &heir{link: new, plan: p, done: make(chan struct{})}
	heirCtx, kill := context.WithCancel(ctx)
	defer kill()
	go heir.run(heirCtx)
	report, err := handover.Give(ctx, old, handover.Gift{
		Program: p.Old, Stages: p.Stages, Timeout: within, Step: p.Step,
		Kill: func() { kill(); heir.die() }})
	<-heir.done
	if err == nil {
		return report, heir.err
	}
	return report, err
}

// heir is the new process's side.
type heir struct {
	link *handover.Link
	plan Plan
	done chan struct{}
	err  error // to be read after done

	mu    sync.Mutex // guards given
	given []object
}

// object is a descriptor and what it stood for when it was given.
type object struct {
	fd       int
	dev, ino uint64
}

func (h *heir) run(ctx context.Context) {
	defer close(h.done)
	heir, err := handover.Receive(ctx, h.link, h.plan.New)
	if err != nil {
		h.err = fmt.Errorf("the new side: %w", err)
		return
	}
	var takers []handover.Taker
	for _, t := range h.plan.Takers {
		takers = append(takers, &noting{Taker: t, heir: h})
	}
	if err := heir.Take(ctx, takers...); err != nil {
		h.err = fmt.Errorf("the new side: %w", err)
	}
}

// die returns when the takers get no other call and have no descriptor.
func (h *heir) die() {
	<-h.done
	if h.plan.Died != nil {
		h.plan.Died()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.given {
		if now, ok := objectOf(o.fd); ok && now == o {
			_ = unix.Close(o.fd)
		}
	}
}

// noting remembers what its taker was given.
type noting struct {
	handover.Taker
	heir *heir
}

func (n *noting) Take(r handover.Record) error {
	n.heir.mu.Lock()
	for _, fd := range r.FDs {
		if o, ok := objectOf(fd); ok {
			n.heir.given = append(n.heir.given, o)
		}
	}
	n.heir.mu.Unlock()
	return n.Taker.Take(r)
}

func objectOf(fd int) (object, bool) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return object{}, false
	}
	return object{fd: fd, dev: uint64(st.Dev), ino: st.Ino}, true
}
