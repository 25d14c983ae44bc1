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

// Heir is the new process's side of an upgrade.
type Heir struct {
	// From is the version of the old process, PID its number, Generation that of
	// the records that it sends.
	From       string
	PID        int
	Generation uint32

	link   *Link
	parts  []string         // what the old process hands over
	open   map[string]Taker // of these, what is not complete
	batch  uint64           // the last one taken
	stages []*taken
	commit func() error // after the commit, when all have started; may be nil
	slow   func()       // ends the haste; nil before the last stage
}

// taken is a stage that has begun.
type taken struct {
	parts    []Taker
	deadline time.Time
	complete bool
}

// Receive exchanges hellos with the old process. The link is closed when it
// fails.
func Receive(ctx context.Context, l *Link, p Program) (*Heir, error) {
	h := &Heir{link: l, open: map[string]Taker{}}
	stop := context.AfterFunc(ctx, l.shut)
	err := h.meet(ctx, p)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		h.Refuse(err)
		return nil, err
	}
	return h, nil
}

func (h *Heir) meet(ctx context.Context, p Program) error {
	if err := failpoint.Hit("handover.new.hello"); err != nil {
		return err
	}
	h.say(ctx, p.hello(os.Getpid(), nil))
	hello, fds, err := h.link.receive()
	closeAll(fds)
	if err != nil {
		return fmt.Errorf("the old process has ended the link: %w", err)
	}
	if hello.GetStep() != handoverv1.Packet_STEP_HELLO {
		return unexpected(hello)
	}
	h.From, h.PID, h.parts = hello.GetHello().GetVersion(), int(hello.GetHello().GetPid()), hello.GetHello().GetParts()
	h.Generation, err = p.agree(hello.GetHello())
	return err
}

// Refuse ends the upgrade: the new process has found something that it cannot
// work with, such as its configuration. It is not to be called after Take. The
// old process goes on, and tells the reason to whoever asked for the upgrade.
func (h *Heir) Refuse(reason error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	h.say(ctx, &handoverv1.Packet{Step: handoverv1.Packet_STEP_FAILED, Reason: clipped(reason.Error(), maxReason)})
	h.link.Close()
}

// Take takes everything, tells the old process when all is complete, waits for
// its word and starts the parts, those of the last stage first. A part that the
// old process does not know is completed and started with nothing taken.
//
// With an error the process has to exit: it has not read, written or closed
// anything that the old one has. ctx counts until all is complete; after that
// only the old process decides, and when it dies, that is its word too.
func (h *Heir) Take(ctx context.Context, takers ...Taker) error {
	defer h.calmDown()
	order, err := h.takeAll(ctx, takers)
	if err != nil {
		h.Refuse(err)
		return err
	}
	err = h.decided()
	h.link.Close()
	if err != nil {
		return err
	}
	_ = failpoint.Hit("handover.new.committed")
	for _, part := range order {
		part.Start()
	}
	_ = failpoint.Hit("handover.new.started")
	if h.commit == nil {
		return nil
	}
	return h.commit()
}

// hasteAfter is how long there is something to catch up on.
const hasteAfter = 100 * time.Millisecond

// calmDown ends the haste of the last stage.
func (h *Heir) calmDown() {
	if h.slow != nil {
		time.AfterFunc(hasteAfter, h.slow)
	}
}

// takeAll returns when all is complete, with the parts in the order in which
// they start. The link has not been shut by ctx then.
func (h *Heir) takeAll(ctx context.Context, takers []Taker) ([]Taker, error) {
	stop := context.AfterFunc(ctx, h.link.shut)
	err := h.takeStages(ctx, takers)
	var order []Taker
	if err == nil {
		order, err = h.complete(ctx, takers)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	return order, err
}

func (h *Heir) takeStages(ctx context.Context, takers []Taker) error {
	if err := h.know(takers); err != nil {
		return err
	}
	if err := failpoint.Hit("handover.new.prepared"); err != nil {
		return err
	}
	h.say(ctx, &handoverv1.Packet{Step: handoverv1.Packet_STEP_PREPARED})
	for len(h.open) > 0 {
		if err := h.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// know finds a taker for each part that will come.
func (h *Heir) know(takers []Taker) error {
	all := map[string]Taker{}
	for _, t := range takers {
		if all[t.Name()] != nil {
			return fmt.Errorf("two parts are called %s", t.Name())
		}
		all[t.Name()] = t
	}
	for _, name := range h.parts {
		if all[name] == nil {
			return fmt.Errorf("version %s hands over %q, which this version does not know", h.From, name)
		}
		h.open[name] = all[name]
	}
	return nil
}

// next takes one packet.
func (h *Heir) next(ctx context.Context) error {
	p, fds, err := h.link.receive()
	if err != nil {
		return fmt.Errorf("the old process has ended the link: %w", err)
	}
	if p.GetBatch() > 0 {
		return h.takeBatch(ctx, p, fds)
	}
	switch p.GetStep() {
	case handoverv1.Packet_STEP_BEGIN:
		return h.begin(p.GetStage())
	case handoverv1.Packet_STEP_END:
		return h.end(ctx, p.GetStage())
	}
	return unexpected(p)
}

// takeBatch gives each record with its descriptors to its part. Those of
// records that nobody has been given are closed.
func (h *Heir) takeBatch(ctx context.Context, p *handoverv1.Packet, fds []int) error {
	defer func() { closeAll(fds) }()
	if p.GetBatch() != h.batch+1 {
		return fmt.Errorf("batch %d comes after %d", p.GetBatch(), h.batch)
	}
	for _, r := range p.GetRecords() {
		t := h.open[r.GetPart()]
		if t == nil {
			return fmt.Errorf("a record for %q, which was not announced or is complete", r.GetPart())
		}
		if err := failpoint.Hit("handover.new.record"); err != nil {
			return err
		}
		n := int(r.GetDescriptors())
		record := Record{Part: r.GetPart(), Kind: r.GetKind(), Body: r.GetBody(), FDs: fds[:n:n]}
		fds = fds[n:]
		if err := t.Take(record); err != nil {
			return fmt.Errorf("part %s: a record of kind %d: %w", record.Part, record.Kind, err)
		}
	}
	h.batch++
	h.say(ctx, &handoverv1.Packet{Taken: h.batch})
	return nil
}

func (h *Heir) begin(s *handoverv1.Packet_Stage) error {
	if err := failpoint.Hit("handover.new.begin"); err != nil {
		return err
	}
	if n := len(h.stages); int(s.GetNumber()) != n+1 || n > 0 && !h.stages[n-1].complete || len(s.GetParts()) == 0 {
		return fmt.Errorf("stage %d begins after %d", s.GetNumber(), n)
	}
	within := time.Duration(min(max(s.GetWithinMs(), 0), time.Hour.Milliseconds())) * time.Millisecond
	stage := &taken{deadline: time.Now().Add(within)}
	for _, name := range s.GetParts() {
		t := h.open[name]
		if t == nil || slices.Contains(stage.parts, t) {
			return fmt.Errorf("stage %d has %q, which was not announced or is complete", s.GetNumber(), name)
		}
		stage.parts = append(stage.parts, t)
	}
	h.stages = append(h.stages, stage)
	if len(stage.parts) == len(h.open) {
		h.slow = hasten()
	}
	return nil
}

func (h *Heir) end(ctx context.Context, s *handoverv1.Packet_Stage) error {
	if n := len(h.stages); n == 0 || int(s.GetNumber()) != n || h.stages[n-1].complete {
		return fmt.Errorf("stage %d ends; %d have begun", s.GetNumber(), n)
	}
	stage := h.stages[len(h.stages)-1]
	if err := failpoint.Hit("handover.new.complete"); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, stage.deadline)
	defer cancel()
	if err := completeAll(ctx, stage.parts); err != nil {
		return err
	}
	stage.complete = true
	for _, t := range stage.parts {
		delete(h.open, t.Name())
	}
	h.say(ctx, stagePacket(handoverv1.Packet_STEP_COMPLETE, len(h.stages), nil, 0))
	return nil
}

func completeAll(ctx context.Context, parts []Taker) error {
	for _, t := range parts {
		if err := t.Complete(ctx); err != nil {
			return fmt.Errorf("part %s: %w", t.Name(), err)
		}
	}
	return nil
}

// complete completes what the old process does not know, and puts all parts in
// the order in which they start.
func (h *Heir) complete(ctx context.Context, takers []Taker) ([]Taker, error) {
	var order, unknown []Taker
	for _, s := range slices.Backward(h.stages) {
		order = append(order, s.parts...)
	}
	for _, t := range takers {
		if !slices.Contains(h.parts, t.Name()) {
			unknown = append(unknown, t)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	return append(order, unknown...), completeAll(ctx, unknown)
}

// decided says that this process is ready, and waits for the old one's word.
func (h *Heir) decided() error {
	if err := failpoint.Hit("handover.new.ready"); err != nil {
		return err
	}
	h.say(context.Background(), &handoverv1.Packet{Step: handoverv1.Packet_STEP_READY})
	if err := failpoint.Hit("handover.new.decided"); err != nil {
		return err
	}
	p, fds, err := h.link.receive()
	closeAll(fds)
	switch {
	case errors.Is(err, io.EOF):
		return nil // it died, and would have said commit
	case err != nil:
		return err
	case p.GetStep() == handoverv1.Packet_STEP_COMMIT:
		return nil
	}
	return unexpected(p)
}

// say tells the old process something. It may have died meanwhile, and what it
// sent may yet be everything: that is found out by who receives.
func (h *Heir) say(ctx context.Context, p *handoverv1.Packet) {
	_ = sendPacket(ctx, h.link, p)
}

func unexpected(p *handoverv1.Packet) error {
	if p.GetStep() == handoverv1.Packet_STEP_ABORT {
		return fmt.Errorf("the old process has ended the upgrade: %s", p.GetReason())
	}
	return fmt.Errorf("the old process says %v, which does not belong here", p.GetStep())
}
