package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// Talk is a link on which both processes send single records at any time. A
// record's descriptors belong to whoever has received it: what is under way when
// a process dies is closed by the kernel, or is the other's.
type Talk struct{ link *Link }

// NewTalk takes the link over.
func NewTalk(l *Link) *Talk { return &Talk{l} }

// TrySend sends a record, or reports false when the other process has to take
// something first. io.EOF says that it has ended. It does not close the
// descriptors.
func (t *Talk) TrySend(r Record) (bool, error) {
	if err := checkRecord(r); err != nil {
		return false, err
	}
	b, err := appendPacket(nil, &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{
		{Part: r.Part, Kind: r.Kind, Body: r.Body, Descriptors: uint32(len(r.FDs))}}})
	if err != nil {
		return false, err
	}
	err = t.link.send(b, r.FDs)
	if errors.Is(err, errLater) {
		return false, nil
	}
	return err == nil, err
}

// Send sends a record, and waits until the other process has room for it.
func (t *Talk) Send(ctx context.Context, r Record) error {
	for {
		sent, err := t.TrySend(r)
		if sent || err != nil {
			return err
		}
		if err := wait(ctx, nil); err != nil {
			return err
		}
	}
}

// Receive waits for a record, whose descriptors are the caller's. io.EOF says
// that the other process has ended, and all that it has sent was received.
func (t *Talk) Receive() (Record, error) {
	p, fds, err := t.link.receive()
	if err != nil {
		return Record{}, err
	}
	if len(p.GetRecords()) != 1 || p.GetStep() != 0 {
		closeAll(fds)
		return Record{}, fmt.Errorf("%d records in a packet, want 1", len(p.GetRecords()))
	}
	r := p.GetRecords()[0]
	return Record{Part: r.GetPart(), Kind: r.GetKind(), Body: bytes.Clone(r.GetBody()), FDs: slices.Clone(fds)}, nil
}

// Close ends the talk: the other process gets io.EOF, and so does a Receive that
// waits here.
func (t *Talk) Close() { t.link.Close() }

// Finish says that nothing more will be sent: the other process gets io.EOF.
// What it still sends can be received.
func (t *Talk) Finish() { t.link.finish() }
