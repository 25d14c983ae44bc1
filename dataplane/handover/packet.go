package handover

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	// maxPacket bounds what one sendmsg carries: one record of the greatest size
	// with its envelope, or as many small ones as fit.
	maxPacket = MaxBody + maxEnvelope

	// maxEnvelope is more than a record's part, kind, lengths and tags take.
	maxEnvelope = 1 << 10

	// maxRecords bounds the records of a batch: what a packet of empty ones
	// would make the receiver allocate.
	maxRecords = 1 << 10

	maxPart   = 64      // bytes of a part's name
	maxParts  = 64      // parts of a hand-over
	maxReason = 2 << 10 // bytes of why a process refuses
)

// unmarshal skips fields of later versions.
var unmarshal = proto.UnmarshalOptions{DiscardUnknown: true}

// decodePacket reads a packet that came with this many descriptors. What it
// returns holds no memory of b, and keeps all bounds.
func decodePacket(b []byte, descriptors int) (*handoverv1.Packet, error) {
	if len(b) > maxPacket {
		return nil, fmt.Errorf("a packet of %d bytes, more than %d", len(b), maxPacket)
	}
	p := &handoverv1.Packet{}
	if err := unmarshal.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("a packet that cannot be read: %w", err)
	}
	if err := checkBatch(p, descriptors); err != nil {
		return nil, err
	}
	return p, checkStep(p)
}

// checkBatch holds what was said of descriptors against what came.
func checkBatch(p *handoverv1.Packet, descriptors int) error {
	if len(p.GetRecords()) > maxRecords {
		return fmt.Errorf("a batch of %d records, more than %d", len(p.GetRecords()), maxRecords)
	}
	if (p.GetBatch() == 0) != (len(p.GetRecords()) == 0) {
		return fmt.Errorf("batch %d has %d records", p.GetBatch(), len(p.GetRecords()))
	}
	sum := uint64(0)
	for _, r := range p.GetRecords() {
		sum += uint64(r.GetDescriptors())
		if n := len(r.GetPart()); n == 0 || n > maxPart {
			return fmt.Errorf("a part's name of %d bytes", n)
		}
		if n := len(r.GetBody()); n > MaxBody {
			return fmt.Errorf("a record of %d bytes, more than %d", n, MaxBody)
		}
	}
	if sum != uint64(descriptors) {
		return fmt.Errorf("a packet that speaks of %d descriptors came with %d", sum, descriptors)
	}
	if sum > MaxFDs {
		return fmt.Errorf("a packet with %d descriptors, more than %d", sum, MaxFDs)
	}
	return nil
}

func checkStep(p *handoverv1.Packet) error {
	if p.GetBatch() != 0 && p.GetStep() != 0 {
		return fmt.Errorf("a batch that is a step")
	}
	switch p.GetStep() {
	case handoverv1.Packet_STEP_HELLO:
		return checkHello(p.GetHello())
	case handoverv1.Packet_STEP_BEGIN, handoverv1.Packet_STEP_END, handoverv1.Packet_STEP_COMPLETE:
		if s := p.GetStage(); s.GetNumber() == 0 {
			return fmt.Errorf("a stage without a number")
		}
	}
	if len(p.GetStage().GetParts()) > maxParts {
		return fmt.Errorf("a stage of %d parts", len(p.GetStage().GetParts()))
	}
	if len(p.GetReason()) > maxReason {
		return fmt.Errorf("a reason of %d bytes", len(p.GetReason()))
	}
	return nil
}

func checkHello(h *handoverv1.Packet_Hello) error {
	switch {
	case h.GetOldest() == 0 || h.GetOldest() > h.GetNewest():
		return fmt.Errorf("generations %d to %d", h.GetOldest(), h.GetNewest())
	case h.GetPid() <= 0 || h.GetPid() > math.MaxInt32:
		return fmt.Errorf("process %d", h.GetPid())
	case len(h.GetParts()) > maxParts:
		return fmt.Errorf("%d parts", len(h.GetParts()))
	case len(h.GetVersion()) > maxPart:
		return fmt.Errorf("a version of %d bytes", len(h.GetVersion()))
	}
	return nil
}

// appendPacket encodes p behind b. A message that stands behind another of the
// same kind is one message with it: that is how a batch grows record by record.
// https://protobuf.dev/programming-guides/encoding/#last-one-wins
func appendPacket(b []byte, p *handoverv1.Packet) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, p)
}

// clipped is text as it may stand in a packet: valid and at most n bytes.
func clipped(text string, n int) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// checkRecord is for what this process sends: a fault is a bug of the part.
func checkRecord(r Record) error {
	switch {
	case r.Part == "" || len(r.Part) > maxPart || !utf8.ValidString(r.Part):
		return fmt.Errorf("part %q: not a name", r.Part)
	case len(r.Body) > MaxBody:
		return fmt.Errorf("part %s: a record of %d bytes, more than %d", r.Part, len(r.Body), MaxBody)
	case len(r.FDs) > MaxFDs:
		return fmt.Errorf("part %s: a record of %d descriptors, more than %d", r.Part, len(r.FDs), MaxFDs)
	}
	return nil
}

func stagePacket(step handoverv1.Packet_Step, number int, parts []string, within time.Duration) *handoverv1.Packet {
	return &handoverv1.Packet{Step: step, Stage: &handoverv1.Packet_Stage{
		Number: uint32(number), Parts: parts, WithinMs: max(within.Milliseconds(), 1)}}
}
