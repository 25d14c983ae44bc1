package handover

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/test/leak"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// quiet is a part that closes what it takes.
type quiet struct{ started bool }

func (*quiet) Name() string                         { return "a" }
func (*quiet) Copy(context.Context, Writer) error   { return nil }
func (*quiet) Freeze(context.Context, Writer) error { return nil }
func (*quiet) Thaw() error                          { return nil }
func (*quiet) Leave()                               {}
func (*quiet) Take(r Record) error                  { closeAll(r.FDs); return nil }
func (*quiet) Complete(context.Context) error       { return nil }
func (q *quiet) Start()                             { q.started = true }

func say(t *testing.T, l *Link, fds int, p *handoverv1.Packet) {
	t.Helper()
	if err := l.send(encoded(t, p), make([]int, fds)); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func batchOf(n uint64, records ...*handoverv1.Packet_Record) *handoverv1.Packet {
	return &handoverv1.Packet{Batch: n, Records: records}
}

func step(s handoverv1.Packet_Step) *handoverv1.Packet { return &handoverv1.Packet{Step: s} }

// TestStrangeOldProcess: what does not belong ends the upgrade, with every
// descriptor closed and nothing started.
func TestStrangeOldProcess(t *testing.T) {
	begin := stagePacket(handoverv1.Packet_STEP_BEGIN, 1, []string{"a"}, 1e9)
	end := stagePacket(handoverv1.Packet_STEP_END, 1, []string{"a"}, 1e9)
	type sent struct {
		p   *handoverv1.Packet
		fds int
	}
	for _, c := range []struct {
		name string
		sent []sent
		want string
	}{
		{"unknown part", []sent{{batchOf(1, record("a", 1, 1), record("b", 1, 2), record("a", 1, 1)), 4}}, `a record for "b"`},
		{"batch missing", []sent{{batchOf(2, record("a", 1, 1)), 1}}, "batch 2 comes after 0"},
		{"batch twice", []sent{{batchOf(1, record("a", 1, 1)), 1}, {batchOf(1, record("a", 1, 1)), 1}}, "batch 1 comes after 1"},
		{"end without a beginning", []sent{{end, 0}}, "stage 1 ends; 0 have begun"},
		{"begins twice", []sent{{begin, 0}, {begin, 0}}, "stage 1 begins after 1"},
		{"second stage first", []sent{{stagePacket(handoverv1.Packet_STEP_BEGIN, 2, []string{"a"}, 1), 0}}, "stage 2 begins after 0"},
		{"stage of nothing", []sent{{stagePacket(handoverv1.Packet_STEP_BEGIN, 1, nil, 1), 0}}, "stage 1 begins after 0"},
		{"part twice", []sent{{stagePacket(handoverv1.Packet_STEP_BEGIN, 1, []string{"a", "a"}, 1), 0}}, `stage 1 has "a"`},
		{"unknown part's stage", []sent{{stagePacket(handoverv1.Packet_STEP_BEGIN, 1, []string{"b"}, 1), 0}}, `stage 1 has "b"`},
		{"commit too early", []sent{{step(handoverv1.Packet_STEP_COMMIT), 0}}, "STEP_COMMIT, which does not belong here"},
		{"abort", []sent{{&handoverv1.Packet{Step: handoverv1.Packet_STEP_ABORT, Reason: "late"}, 0}}, "the old process has ended the upgrade: late"},
		{"abort at the end", []sent{{begin, 0}, {end, 0}, {step(handoverv1.Packet_STEP_ABORT), 0}}, "has ended the upgrade"},
		{"records at the end", []sent{{begin, 0}, {end, 0}, {batchOf(1, record("a", 1, 3)), 3}}, "does not belong here"},
		{"gone", nil, "has ended the link"},
		{"commit", []sent{{begin, 0}, {end, 0}, {step(handoverv1.Packet_STEP_COMMIT), 0}}, ""},
		{"gone at the end", []sent{{begin, 0}, {end, 0}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			same := leak.Descriptors(t)
			old, new := pair(t)
			part := &quiet{}
			took := make(chan error)
			go func() {
				heir, err := Receive(context.Background(), new, Program{})
				if err == nil {
					err = heir.Take(context.Background(), part)
				}
				took <- err
			}()
			say(t, old, 0, Program{}.hello(1, []string{"a"}))
			for _, s := range c.sent {
				say(t, old, s.fds, s.p)
			}
			old.Close()
			err := <-took
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if part.started != (c.want == "") {
				t.Errorf("started: %v", part.started)
			}
			same()
		})
	}
}

// TestStrangeNewProcess: what a new process says out of turn ends the upgrade.
func TestStrangeNewProcess(t *testing.T) {
	hello, prepared := Program{}.hello(1, nil), step(handoverv1.Packet_STEP_PREPARED)
	for _, c := range []struct {
		name string
		sent []*handoverv1.Packet
		fds  int // with the last
		want string
	}{
		{"ready at once", []*handoverv1.Packet{step(handoverv1.Packet_STEP_READY)}, 0, "STEP_READY where STEP_HELLO was expected"},
		{"ready too early", []*handoverv1.Packet{hello, prepared, step(handoverv1.Packet_STEP_READY)}, 0, "STEP_READY where STEP_COMPLETE was expected"},
		{"another stage", []*handoverv1.Packet{hello, prepared, stagePacket(handoverv1.Packet_STEP_COMPLETE, 2, nil, 1)}, 0, "speaks of stage 2, not of 1"},
		{"acknowledges what was not sent", []*handoverv1.Packet{hello, prepared, {Taken: 1}}, 0, "batch 1 is acknowledged"},
		{"sends records", []*handoverv1.Packet{hello, batchOf(1, record("a", 1, 2))}, 2, "descriptors or records"},
		{"sends descriptors", []*handoverv1.Packet{hello, prepared}, 2, "came with 2"},
		{"refuses", []*handoverv1.Packet{hello, {Step: handoverv1.Packet_STEP_FAILED, Reason: "no"}}, 0, "the new process refuses: no"},
		{"chatters", []*handoverv1.Packet{hello, prepared, prepared, prepared, prepared, prepared, prepared, prepared, prepared, prepared}, 0, ""},
		{"goes", []*handoverv1.Packet{hello, prepared}, 0, "has ended the link"},
	} {
		t.Run(c.name, func(t *testing.T) {
			same := leak.Descriptors(t)
			old, new := pair(t)
			for i, p := range c.sent {
				fds := 0
				if i == len(c.sent)-1 {
					fds = c.fds
				}
				say(t, new, fds, p)
			}
			killed := false
			kill := func() { killed = true; new.Close() }
			if c.name == "goes" {
				new.Close()
			}
			report, err := Give(context.Background(), old, Gift{Stages: []Stage{{Givers: []Giver{&quiet{}}}}, Kill: kill})
			if err == nil || !strings.Contains(err.Error(), c.want) || report.Committed || !killed {
				t.Errorf("%v, want %q; %+v; killed: %v", err, c.want, report, killed)
			}
			new.Close()
			same()
		})
	}
}
