package handover

import (
	"fmt"
	"log/slog"
	"time"

	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// Step is where an upgrade stands in the old process. Each is named after what
// comes next.
type Step string

// The steps in their order. Those of a stage come once for each stage.
const (
	StepCheck    Step = "check"    // nothing has happened yet
	StepStart    Step = "start"    // the new process is started
	StepHello    Step = "hello"    // it says which generations it reads
	StepPrepare  Step = "prepare"  // it reads its configuration, and opens what is its own
	StepCopy     Step = "copy"     // the parts send what is there
	StepFreeze   Step = "freeze"   // the parts of a stage stop and send the rest
	StepComplete Step = "complete" // the new process has all of the stage
	StepReady    Step = "ready"    // it has all stages
	StepCommit   Step = "commit"   // nothing but the word is missing
	StepLeave    Step = "leave"    // there is no way back
)

// Steps are all of them in their order.
func Steps() []Step {
	return []Step{StepCheck, StepStart, StepHello, StepPrepare, StepCopy, StepFreeze, StepComplete, StepReady, StepCommit, StepLeave}
}

// The generations of records that this program reads. A generation is new when
// a record would be misread by the one before; a new field is not.
//
//	2  a relay that has not changed since it was copied is not spoken of again
const (
	OldestGeneration = 1
	NewestGeneration = 2
)

// Program is what a process says about itself.
type Program struct {
	Version        string
	Oldest, Newest uint32 // of records; 0: OldestGeneration, NewestGeneration
}

func (p Program) hello(pid int, parts []string) *handoverv1.Packet {
	p = p.full()
	return &handoverv1.Packet{Step: handoverv1.Packet_STEP_HELLO, Hello: &handoverv1.Packet_Hello{
		Oldest: p.Oldest, Newest: p.Newest, Version: clipped(p.Version, maxPart), Pid: int64(pid), Parts: parts}}
}

func (p Program) full() Program {
	if p.Oldest == 0 {
		p.Oldest = OldestGeneration
	}
	if p.Newest == 0 {
		p.Newest = NewestGeneration
	}
	return p
}

// agree finds the newest generation that both read.
func (p Program) agree(other *handoverv1.Packet_Hello) (uint32, error) {
	p = p.full()
	g := min(p.Newest, other.GetNewest())
	if g < p.Oldest || g < other.GetOldest() {
		return 0, fmt.Errorf("version %s reads records of generation %d to %d, version %s those of %d to %d",
			p.Version, p.Oldest, p.Newest, other.GetVersion(), other.GetOldest(), other.GetNewest())
	}
	return g, nil
}

// Report is what became of an upgrade.
type Report struct {
	Began      time.Time
	From, To   string // versions; To is empty when the new process has not said it
	PID        int    // of the new process, if it has said it
	Generation uint32 // of the records

	Committed   bool
	CommittedAt time.Time // when that was
	Failed      Step      // where it failed
	Reason      string    // and why

	Check   time.Duration // before anything was started
	Start   time.Duration // until the new process said hello
	Prepare time.Duration // until it wanted records
	Copy    time.Duration // while everything went on
	Stages  []time.Duration
	Stall   time.Duration // from the first Freeze of the last stage to the commit
	Total   time.Duration // until everything was let go, or went on as before

	Records, Descriptors, Bytes uint64
}

// LogValue implements slog.LogValuer.
func (r Report) LogValue() slog.Value {
	all := []slog.Attr{
		slog.Bool("committed", r.Committed), slog.String("from", r.From), slog.String("to", r.To), slog.Int("pid", r.PID),
		slog.Duration("copy", r.Copy), slog.Duration("stall", r.Stall), slog.Duration("total", r.Total),
		slog.Uint64("records", r.Records), slog.Uint64("descriptors", r.Descriptors), slog.Uint64("bytes", r.Bytes),
	}
	if !r.Committed {
		all = append(all, slog.String("failed", string(r.Failed)), slog.String("reason", r.Reason))
	}
	return slog.GroupValue(all...)
}
