package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// DefaultTimeout is what a new process has from its start until it is ready.
const DefaultTimeout = 10 * time.Second

// Gift is what the old process gives, and how it rids itself of a new process
// that fails.
type Gift struct {
	Program Program
	Stages  []Stage
	Timeout time.Duration // from now until the new process is ready; 0: DefaultTimeout

	// Process is told the new process's number before it is sent anything. An
	// error refuses it. nil: any will do.
	Process func(pid int) error

	// Kill ends the new process and returns when it is dead: nothing may read or
	// write what it has been given after that. It is called before Thaw.
	Kill func()

	// Step is called before each step from StepHello to StepCommit. An error
	// fails the upgrade there. nil: nothing is called.
	Step func(Step) error
}

// Give is the old process's side of an upgrade, from the hello to Leave or
// Thaw. When ctx ends before the commit, with whatever cause, the upgrade has
// failed. The link is closed when it returns. With an error everything goes on
// as before.
func Give(ctx context.Context, l *Link, gift Gift) (Report, error) {
	g := &giving{Gift: gift, link: l, w: newWriter(l), heard: make(chan *handoverv1.Packet, 4), ended: make(chan struct{})}
	g.report = Report{Began: time.Now(), From: gift.Program.Version}
	if g.Timeout <= 0 {
		g.Timeout = DefaultTimeout
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	go g.listen(fail)
	err := g.convince(ctx)
	if err == nil {
		err = g.commit()
	}
	if g.slow != nil {
		g.slow()
	}
	g.w.end(errOver)
	if err != nil {
		err = g.back(g.reason(ctx, err))
	} else {
		g.leave()
	}
	l.Close()
	<-g.ended
	total := g.w.counted()
	g.report.Records, g.report.Descriptors, g.report.Bytes = total.records, total.descriptors, total.bytes
	g.report.Total = time.Since(g.report.Began)
	return g.report, err
}

// giving is an upgrade under way.
type giving struct {
	Gift
	link   *Link
	w      *writer
	heard  chan *handoverv1.Packet // what is no acknowledgement
	ended  chan struct{}           // nobody listens any more
	step   Step
	copied bool // a part has begun: all have to thaw
	frozen time.Time
	slow   func() // ends the haste; nil before it
	report Report
}

// convince brings the new process to the point where it is ready.
func (g *giving) convince(ctx context.Context) error {
	if err := checkStages(g.Stages); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, g.Timeout, fmt.Errorf("the new process was not ready within %v", g.Timeout))
	defer cancel()
	if err := g.meet(ctx); err != nil {
		return err
	}
	if err := g.copy(ctx); err != nil {
		return err
	}
	stages := slices.DeleteFunc(slices.Clone(g.Stages), func(s Stage) bool { return len(s.Givers) == 0 })
	for i, s := range stages {
		if i == len(stages)-1 { // in which connections stand still
			g.slow = hasten()
		}
		if err := g.stage(ctx, i+1, s); err != nil {
			return err
		}
	}
	if err := g.at(ctx, StepReady); err != nil {
		return err
	}
	if _, err := g.expect(ctx, handoverv1.Packet_STEP_READY); err != nil {
		return err
	}
	if err := g.at(ctx, StepCommit); err != nil {
		return err
	}
	return g.w.finish()
}

// meet exchanges hellos and waits until the new process wants records.
func (g *giving) meet(ctx context.Context) error {
	began := time.Now()
	if err := g.at(ctx, StepHello); err != nil {
		return err
	}
	if err := g.say(ctx, g.Program.hello(os.Getpid(), partsOf(g.Stages))); err != nil {
		return err
	}
	p, err := g.expect(ctx, handoverv1.Packet_STEP_HELLO)
	if err != nil {
		return err
	}
	g.report.Start = time.Since(began)
	g.report.To, g.report.PID = p.GetHello().GetVersion(), int(p.GetHello().GetPid())
	if g.Process != nil {
		if err := g.Process(g.report.PID); err != nil {
			return err
		}
	}
	if g.report.Generation, err = g.Program.agree(p.GetHello()); err != nil {
		return err
	}
	if err := g.at(ctx, StepPrepare); err != nil {
		return err
	}
	began = time.Now()
	_, err = g.expect(ctx, handoverv1.Packet_STEP_PREPARED)
	g.report.Prepare = time.Since(began)
	return err
}

func (g *giving) copy(ctx context.Context) error {
	if err := g.at(ctx, StepCopy); err != nil {
		return err
	}
	began := time.Now()
	g.copied = true
	for _, s := range g.Stages {
		for _, part := range s.Givers {
			if part, ok := part.(Speaker); ok {
				part.Speak(g.report.Generation)
			}
			if err := part.Copy(ctx, g.w); err != nil {
				return g.fault(ctx, part, err)
			}
			if err := g.w.flush(ctx); err != nil {
				return g.fault(ctx, part, err)
			}
		}
	}
	// What is still under way would be part of the stall.
	if err := g.w.drain(ctx); err != nil {
		return cause(ctx, err)
	}
	g.report.Copy = time.Since(began)
	return nil
}

// stage freezes the parts of a stage, and waits until the new process has them.
func (g *giving) stage(ctx context.Context, n int, s Stage) error {
	if s.Within <= 0 {
		s.Within = g.Timeout
	}
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.Within, fmt.Errorf("stage %d was not complete within %v", n, s.Within))
	defer cancel()
	if err := g.at(ctx, StepFreeze); err != nil {
		return err
	}
	parts := partsOf([]Stage{s})
	if err := g.say(ctx, stagePacket(handoverv1.Packet_STEP_BEGIN, n, parts, left(ctx))); err != nil {
		return err
	}
	g.frozen = time.Now()
	for _, part := range s.Givers {
		if err := part.Freeze(ctx, g.w); err != nil {
			return g.fault(ctx, part, err)
		}
		if err := g.w.flush(ctx); err != nil {
			return g.fault(ctx, part, err)
		}
	}
	if err := g.at(ctx, StepComplete); err != nil {
		return err
	}
	if err := g.say(ctx, stagePacket(handoverv1.Packet_STEP_END, n, parts, left(ctx))); err != nil {
		return err
	}
	p, err := g.expect(ctx, handoverv1.Packet_STEP_COMPLETE)
	if err != nil {
		return err
	}
	if got := p.GetStage().GetNumber(); got != uint32(n) {
		return fmt.Errorf("the new process speaks of stage %d, not of %d", got, n)
	}
	g.report.Stages = append(g.report.Stages, time.Since(began))
	return nil
}

// commit says the word. When it could not be sent, nothing has been said.
func (g *giving) commit() error {
	encoded, err := appendPacket(nil, &handoverv1.Packet{Step: handoverv1.Packet_STEP_COMMIT})
	if err != nil {
		return err
	}
	if err := g.link.send(encoded, nil); err != nil {
		return err
	}
	g.step = StepLeave
	g.report.Committed, g.report.CommittedAt = true, time.Now()
	if !g.frozen.IsZero() {
		g.report.Stall = g.report.CommittedAt.Sub(g.frozen)
	}
	return nil
}

// leave lets everything go. The loops come first: their descriptors are most.
func (g *giving) leave() {
	pass(StepLeave)
	for _, s := range slices.Backward(g.Stages) {
		for _, part := range s.Givers {
			part.Leave()
		}
	}
}

// reason is what the new process has said last, when err only tells that it
// could not be sent anything any more. All that it had sent is still there, and
// the one who listens comes to the end; the bound is for a part whose error has
// nothing to do with the link.
func (g *giving) reason(ctx context.Context, err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	select {
	case <-g.ended:
	case <-time.After(lastWords):
	}
	return cause(ctx, err)
}

// lastWords is how long what a process has said before its end takes at most.
const lastWords = time.Second

// back makes the old process what it was. The word has not been said.
func (g *giving) back(err error) error {
	g.report.Failed, g.report.Reason = g.step, err.Error()
	abort := &handoverv1.Packet{Step: handoverv1.Packet_STEP_ABORT, Reason: clipped(err.Error(), maxReason)}
	if encoded, enc := appendPacket(nil, abort); enc == nil {
		_ = g.link.send(encoded, nil) // it will be killed anyway
	}
	if g.Kill != nil {
		g.Kill()
	}
	if !g.copied {
		return err
	}
	for _, s := range slices.Backward(g.Stages) {
		for _, part := range slices.Backward(s.Givers) {
			if thaw := part.Thaw(); thaw != nil {
				err = errors.Join(err, fmt.Errorf("part %s: going on: %w", part.Name(), thaw))
			}
		}
	}
	return err
}

// listen is the one goroutine that receives. It ends with the link.
func (g *giving) listen(fail context.CancelCauseFunc) {
	defer close(g.ended)
	for {
		p, fds, err := g.link.receive()
		closeAll(fds)
		switch {
		case err != nil:
			err = fmt.Errorf("the new process has ended the link: %w", err)
		case len(fds) > 0 || p.GetBatch() > 0:
			err = errors.New("the new process has sent descriptors or records")
		case p.GetTaken() > 0:
			err = g.w.acknowledge(p.GetTaken())
		case p.GetStep() == handoverv1.Packet_STEP_FAILED:
			err = fmt.Errorf("the new process refuses: %s", p.GetReason())
		default:
			err = g.hand(p)
		}
		if err != nil {
			fail(err)
			g.w.end(err)
			return
		}
	}
}

func (g *giving) hand(p *handoverv1.Packet) error {
	select {
	case g.heard <- p:
		return nil
	default:
		return errors.New("the new process says more than it was asked")
	}
}

// expect waits for a step of the new process. What it has said counts, also when
// it has ended after that: the next step notices.
func (g *giving) expect(ctx context.Context, step handoverv1.Packet_Step) (*handoverv1.Packet, error) {
	var p *handoverv1.Packet
	select {
	case p = <-g.heard:
	case <-ctx.Done():
		select {
		case p = <-g.heard:
		default:
			return nil, context.Cause(ctx)
		}
	}
	if p.GetStep() != step {
		return nil, fmt.Errorf("the new process says %v where %v was expected", p.GetStep(), step)
	}
	return p, nil
}

// say sends a step behind all records.
func (g *giving) say(ctx context.Context, p *handoverv1.Packet) error {
	if err := g.w.flush(ctx); err != nil {
		return cause(ctx, err)
	}
	return sendPacket(ctx, g.link, p)
}

// at is called before each step.
func (g *giving) at(ctx context.Context, s Step) error {
	g.step = s
	if err := pass(s); err != nil {
		return err
	}
	if g.Step != nil {
		if err := g.Step(s); err != nil {
			return err
		}
	}
	return cause(ctx, nil)
}

// pass is a failpoint before each step of the old process.
func pass(s Step) error {
	if !failpoint.Enabled {
		return nil
	}
	return failpoint.Hit("handover.old." + string(s))
}

// fault says why a part could not: the reason that ended ctx, if one did.
func (g *giving) fault(ctx context.Context, part Giver, err error) error {
	if ended := cause(ctx, nil); ended != nil {
		return ended
	}
	return fmt.Errorf("part %s: %w", part.Name(), err)
}

// cause is why ctx has ended, or else err.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// left is what is left of a time that was given.
func left(ctx context.Context) time.Duration {
	t, ok := ctx.Deadline()
	if !ok {
		return DefaultTimeout
	}
	return time.Until(t)
}

// sendPacket sends a packet without descriptors, and waits for room.
func sendPacket(ctx context.Context, l *Link, p *handoverv1.Packet) error {
	encoded, err := appendPacket(nil, p)
	if err != nil {
		return err
	}
	for {
		err := l.send(encoded, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errLater) {
			return cause(ctx, err)
		}
		if err := wait(ctx, nil); err != nil {
			return err
		}
	}
}

func partsOf(stages []Stage) (names []string) {
	for _, s := range stages {
		for _, part := range s.Givers {
			names = append(names, part.Name())
		}
	}
	return names
}

// checkStages finds what is wrong before anything has begun.
func checkStages(stages []Stage) error {
	names := partsOf(stages)
	if len(names) > maxParts {
		return fmt.Errorf("%d parts, more than %d", len(names), maxParts)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if err := checkRecord(Record{Part: name}); err != nil {
			return err
		}
		if seen[name] {
			return fmt.Errorf("two parts are called %s", name)
		}
		seen[name] = true
	}
	return nil
}
