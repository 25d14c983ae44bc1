package handover_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/handover/handovertest"
	"github.com/sallyport/sallyport/test/leak"
)

// TestMove hands live connections from instance to instance.
func TestMove(t *testing.T) {
	same := leak.Descriptors(t)
	e := newEcho()
	addr := fmt.Sprintf("127.0.0.1:%d", e.listen())
	e.start()
	tr := runPaced(addr, 10, 0)
	for range 5 {
		if !tr.more() {
			break
		}
		next := newEcho()
		report := handovertest.Move(t, []handover.Giver{e}, []handover.Taker{next})
		if !report.Committed || report.Failed != "" || report.Descriptors < 11 || report.Generation != handover.NewestGeneration {
			t.Errorf("report: %+v", report)
		}
		e.close()
		e = next
	}
	if !tr.more() {
		t.Error("nothing comes back")
	}
	tr.end(t)
	e.close()
	same()
}

// TestAbort fails before every step; the old instance serves on, and the next
// hand-over works.
func TestAbort(t *testing.T) {
	same := leak.Descriptors(t)
	e := newEcho()
	addr := fmt.Sprintf("127.0.0.1:%d", e.listen())
	e.start()
	tr := run(addr, 10)
	for _, at := range handover.Steps() {
		if at == handover.StepCheck || at == handover.StepStart || at == handover.StepLeave {
			continue
		}
		next := newEcho()
		handovertest.Plan{Stages: []handover.Stage{{Givers: []handover.Giver{e}}}, Takers: []handover.Taker{next}, Died: next.close}.Abort(t, at)
		if !tr.more() {
			t.Errorf("%s: nothing comes back", at)
			break
		}
	}
	next := newEcho()
	handovertest.Move(t, []handover.Giver{e}, []handover.Taker{next})
	e.close()
	tr.end(t)
	next.close()
	same()
}

// script is a part that notes what it is told.
type script struct {
	name string
	log  *[]string
	give []handover.Record

	copyErr, freezeErr, takeErr, completeErr error
	late                                     bool // sends after the freeze
	freeze                                   func(ctx context.Context) error
	w                                        handover.Writer
}

func (s *script) note(what string) { *s.log = append(*s.log, what+" "+s.name) }

func (s *script) Name() string { return s.name }

func (s *script) Copy(ctx context.Context, w handover.Writer) error {
	s.note("copy")
	s.w = w
	for _, r := range s.give {
		r.Part = s.name
		if err := w.Send(ctx, r); err != nil {
			return err
		}
	}
	return s.copyErr
}

func (s *script) Freeze(ctx context.Context, w handover.Writer) error {
	s.note("freeze")
	if s.freeze != nil {
		return s.freeze(ctx)
	}
	return s.freezeErr
}

func (s *script) Thaw() error { s.note("thaw"); return nil }
func (s *script) Leave()      { s.note("leave") }

func (s *script) Take(r handover.Record) error {
	for _, fd := range r.FDs {
		_ = unix.Close(fd)
	}
	*s.log = append(*s.log, fmt.Sprintf("take %s %d %q %d", s.name, r.Kind, r.Body, len(r.FDs)))
	return s.takeErr
}

func (s *script) Complete(ctx context.Context) error {
	s.note("complete")
	if _, ok := ctx.Deadline(); !ok && s.completeErr == nil && s.give != nil {
		return errors.New("no deadline")
	}
	return s.completeErr
}

func (s *script) Start() { s.note("start") }

// TestOrder is the story of a hand-over in two stages.
func TestOrder(t *testing.T) {
	var old, new []string
	part := func(log *[]string, name string, give ...handover.Record) *script {
		return &script{name: name, log: log, give: give}
	}
	stages := []handover.Stage{
		{Givers: []handover.Giver{part(&old, "a", handover.Record{Kind: 7, Body: []byte("x")})}},
		{}, // of no part: nothing happens
		{Givers: []handover.Giver{part(&old, "b"), part(&old, "c", handover.Record{Kind: 9, FDs: []int{0, 1}})}},
	}
	takers := []handover.Taker{part(&new, "unknown"), part(&new, "a"), part(&new, "c"), part(&new, "b")}
	var steps []string
	report := handovertest.Plan{Stages: stages, Takers: takers, Step: func(s handover.Step) error {
		steps = append(steps, string(s))
		return nil
	}}.Move(t)

	for _, c := range []struct{ what, got, want string }{
		{"old", strings.Join(old, ", "), "copy a, copy b, copy c, freeze a, freeze b, freeze c, leave b, leave c, leave a"},
		{"new", strings.Join(new, ", "), `take a 7 "x" 0, take c 9 "" 2, complete a, complete b, complete c, complete unknown, start b, start c, start a, start unknown`},
		{"steps", strings.Join(steps, " "), "hello prepare copy freeze complete freeze complete ready commit"},
	} {
		if c.got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.what, c.got, c.want)
		}
	}
	if report.Records != 2 || report.Descriptors != 2 || len(report.Stages) != 2 || report.Stall <= 0 {
		t.Errorf("report: %+v", report)
	}
}

// TestFailures: whatever a part does, the old side thaws, in reverse order, and
// says why.
func TestFailures(t *testing.T) {
	bad := errors.New("disk full")
	for _, c := range []struct {
		name     string
		old, new func(*script)
		plan     func(*handovertest.Plan)
		want     string
		at       handover.Step
		untouch  bool // the parts were not called
	}{
		{name: "copy", old: func(s *script) { s.copyErr = bad }, want: "part b: disk full", at: handover.StepCopy},
		{name: "freeze", old: func(s *script) { s.freezeErr = bad }, want: "part b: disk full", at: handover.StepFreeze},
		{name: "take", new: func(s *script) { s.takeErr = bad }, want: "the new process refuses: part b: a record of kind 5: disk full", at: handover.StepCopy},
		{name: "complete", new: func(s *script) { s.completeErr = bad }, want: "the new process refuses: part b: disk full", at: handover.StepComplete},
		{name: "no taker", plan: func(p *handovertest.Plan) { p.Takers = p.Takers[:1] }, want: `hands over "b", which this version does not know`, at: handover.StepPrepare, untouch: true},
		{name: "two takers", plan: func(p *handovertest.Plan) { p.Takers = append(p.Takers, p.Takers[0]) }, want: "two parts are called a", at: handover.StepPrepare, untouch: true},
		{name: "two givers", plan: func(p *handovertest.Plan) { p.Stages = append(p.Stages, p.Stages[0]) }, want: "two parts are called a", at: "", untouch: true},
		{name: "too new", plan: func(p *handovertest.Plan) { p.New = handover.Program{Oldest: 4, Newest: 5} }, want: "records of generation", at: handover.StepHello, untouch: true},
		{name: "too old", plan: func(p *handovertest.Plan) { p.Old = handover.Program{Oldest: 4, Newest: 5} }, want: "records of generation", at: handover.StepHello, untouch: true},
		{name: "big record", old: func(s *script) { s.give[0].Body = make([]byte, handover.MaxBody+1) }, want: "more than 98304", at: handover.StepCopy},
		{name: "many descriptors", old: func(s *script) { s.give[0].FDs = make([]int, handover.MaxFDs+1) }, want: "more than 240", at: handover.StepCopy},
		{name: "no descriptor", old: func(s *script) { s.give[0].FDs = []int{1 << 30} }, want: "bad file descriptor", at: handover.StepCopy},
		{name: "late", old: func(s *script) {
			s.freeze = func(context.Context) error { return nil }
			s.late = true
		}, want: "after its freeze", at: handover.StepCommit},
		{name: "slow stage", plan: func(p *handovertest.Plan) { p.Stages[0].Within = time.Millisecond }, old: func(s *script) {
			s.freeze = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}, want: "stage 1 was not complete within 1ms", at: handover.StepFreeze},
	} {
		t.Run(c.name, func(t *testing.T) {
			same := leak.Descriptors(t)
			var old, new []string
			a, b := &script{name: "a", log: &old}, &script{name: "b", log: &old, give: []handover.Record{{Kind: 5, FDs: []int{0}}}}
			ta, tb := &script{name: "a", log: &new}, &script{name: "b", log: &new}
			if c.old != nil {
				c.old(b)
			}
			if c.new != nil {
				c.new(tb)
			}
			plan := handovertest.Plan{Stages: []handover.Stage{{Givers: []handover.Giver{a, b}}}, Takers: []handover.Taker{ta, tb}}
			if c.plan != nil {
				c.plan(&plan)
			}
			plan.Step = func(s handover.Step) error {
				if s == handover.StepCommit && b.late {
					_, err := b.w.TrySend(handover.Record{Part: "b"})
					return err
				}
				return nil
			}
			report, err := plan.Run(t)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if report.Committed || report.Failed != c.at || report.Reason == "" {
				t.Errorf("committed %v, failed at %q, want %q (%s)", report.Committed, report.Failed, c.at, report.Reason)
			}
			thawed := slices.Contains(old, "thaw a")
			if c.untouch && len(old) > 0 || !c.untouch && !slices.Equal(old[len(old)-2:], []string{"thaw b", "thaw a"}) {
				t.Errorf("thawed %v: %v", thawed, old)
			}
			if slices.Contains(new, "start a") || slices.Contains(old, "leave a") {
				t.Errorf("started or left: %v %v", old, new)
			}
			same()
		})
	}
}

// TestF11_Generations: the newest one that both read is agreed on.
func TestF11_Generations(t *testing.T) {
	for _, c := range []struct{ old, new handover.Program }{
		{handover.Program{Oldest: 1, Newest: 3}, handover.Program{Oldest: 2, Newest: 5}},
		{handover.Program{Oldest: 2, Newest: 5}, handover.Program{Oldest: 1, Newest: 3}}, // a downgrade
	} {
		told := &speaker{}
		plan := handovertest.Plan{Old: c.old, New: c.new, Stages: []handover.Stage{{Givers: []handover.Giver{told}}}, Takers: []handover.Taker{told}}
		if r := plan.Move(t); r.Generation != 3 || !slices.Equal(told.heard, []uint32{3, 0}) {
			t.Errorf("%v and %v: generation %d, a part was told %v, want 3", c.old, c.new, r.Generation, told.heard)
		}
	}
}

// speaker is a part that wants to know the generation before it copies.
type speaker struct{ heard []uint32 }

func (*speaker) Name() string              { return "speaker" }
func (s *speaker) Speak(generation uint32) { s.heard = append(s.heard, generation) }
func (s *speaker) Copy(context.Context, handover.Writer) error {
	s.heard = append(s.heard, 0)
	return nil
}
func (*speaker) Freeze(context.Context, handover.Writer) error { return nil }
func (*speaker) Thaw() error                                   { return nil }
func (*speaker) Leave()                                        {}
func (*speaker) Take(handover.Record) error                    { return nil }
func (*speaker) Complete(context.Context) error                { return nil }
func (*speaker) Start()                                        {}

// BenchmarkRelays is 8,000 records of two descriptors each, as relays are,
// through a pair of sockets.
func BenchmarkRelays(b *testing.B) {
	const relays = 8000
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	records := make([]handover.Record, relays)
	for i := range records {
		records[i] = handover.Record{Kind: 1, Body: make([]byte, 64), FDs: []int{fd, fd}}
	}
	var took time.Duration
	for b.Loop() {
		old, new, err := handover.Pair()
		if err != nil {
			b.Fatal(err)
		}
		heard := make(chan error)
		go func() {
			heir, err := handover.Receive(context.Background(), new, handover.Program{})
			if err == nil {
				err = heir.Take(context.Background(), closing{})
			}
			heard <- err
		}()
		var log []string
		report, err := handover.Give(context.Background(), old, handover.Gift{
			Stages: []handover.Stage{{Givers: []handover.Giver{&script{name: "a", log: &log, give: records}}}}})
		if err := errors.Join(err, <-heard); err != nil {
			b.Fatal(err)
		}
		took += report.Copy
	}
	b.ReportMetric(float64(relays)*float64(b.N)/took.Seconds(), "relays/s")
}

// closing closes what it takes, as a process that dies would.
type closing struct{}

func (closing) Name() string { return "a" }
func (closing) Take(r handover.Record) error {
	for _, fd := range r.FDs {
		_ = unix.Close(fd)
	}
	return nil
}
func (closing) Complete(context.Context) error { return nil }
func (closing) Start()                         {}
