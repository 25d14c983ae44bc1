package handover

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
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
// returns keeps all bounds. The bodies of its records lie in b, the rest holds no
// memory of it.
func decodePacket(b []byte, descriptors int) (*handoverv1.Packet, error) {
	if len(b) > maxPacket {
		return nil, fmt.Errorf("a packet of %d bytes, more than %d", len(b), maxPacket)
	}
	p := &handoverv1.Packet{}
	if err := readPacket(b, p); err != nil {
		return nil, fmt.Errorf("a packet that cannot be read: %w", err)
	}
	if err := checkBatch(p, descriptors); err != nil {
		return nil, err
	}
	return p, checkStep(p)
}

// Fields of Packet and of its Record.
const (
	packetRecords     protowire.Number = 2
	recordPart        protowire.Number = 1
	recordKind        protowire.Number = 2
	recordBody        protowire.Number = 3
	recordDescriptors protowire.Number = 4
)

// readPacket is unmarshal.Unmarshal, but that bodies are not copied: most of a
// hand-over is bodies, which are read where they are, while there is little memory
// to spare. What is no record is put together and is unmarshalled.
func readPacket(b []byte, p *handoverv1.Packet) error {
	var rest []byte
	var records []*handoverv1.Packet_Record
	err := eachField(b, func(f field) error {
		if f.number != packetRecords || f.kind != protowire.BytesType {
			rest = append(rest, f.whole...)
			return nil
		}
		if len(records) == maxRecords {
			return fmt.Errorf("a batch of more than %d records", maxRecords)
		}
		r := &handoverv1.Packet_Record{}
		records = append(records, r)
		return readRecord(f.bytes, r)
	})
	if err != nil {
		return err
	}
	if err := unmarshal.Unmarshal(rest, p); err != nil {
		return err
	}
	p.Records = records
	return nil
}

func readRecord(b []byte, r *handoverv1.Packet_Record) error {
	return eachField(b, func(f field) error {
		switch {
		case f.number == recordPart && f.kind == protowire.BytesType:
			if !utf8.Valid(f.bytes) {
				return errors.New("a part's name that is no text")
			}
			r.Part = string(f.bytes)
		case f.number == recordKind && f.kind == protowire.VarintType:
			r.Kind = uint32(f.value)
		case f.number == recordBody && f.kind == protowire.BytesType:
			r.Body = f.bytes[:len(f.bytes):len(f.bytes)]
		case f.number == recordDescriptors && f.kind == protowire.VarintType:
			r.Descriptors = uint32(f.value)
		}
		return nil // one that is not known is of a later version
	})
}

// field is one of a message. All lies in the message.
type field struct {
	number protowire.Number
	kind   protowire.Type
	whole  []byte // with its tag
	value  uint64 // of a VarintType
	bytes  []byte // of a BytesType
}

// eachField calls f for each field of the message b, in order.
func eachField(b []byte, f func(field) error) error {
	for len(b) > 0 {
		var at field
		var tag, n int
		if at.number, at.kind, tag = protowire.ConsumeTag(b); tag < 0 {
			return protowire.ParseError(tag)
		}
		if at.number > protowire.MaxValidNumber { // which ConsumeTag lets pass
			return fmt.Errorf("a field cannot have the number %d", at.number)
		}
		switch at.kind {
		case protowire.VarintType:
			at.value, n = protowire.ConsumeVarint(b[tag:])
		case protowire.BytesType:
			at.bytes, n = protowire.ConsumeBytes(b[tag:])
		default:
			n = protowire.ConsumeFieldValue(at.number, at.kind, b[tag:])
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		at.whole, b = b[:tag+n], b[tag+n:]
		if err := f(at); err != nil {
			return err
		}
	}
	return nil
}

// checkBatch holds what was said of descriptors against what came.
func checkBatch(p *handoverv1.Packet, descriptors int) error {
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
