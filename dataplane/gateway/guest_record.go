//go:build unix

package gateway

import (
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// GuestPart is the part that the records between a gateway and its guest are of.
const GuestPart = "canary"

// connectionRecord is the connection for another process, with its descriptors,
// which stay this one's until it forsakes them.
func (c *conn) connectionRecord(counted bool) handover.Record {
	m := &handoverv1.CanaryConnection{Connection: c.image(), Counted: counted}
	fds := []int{c.fd}
	if m.Connection.Far {
		fds = append(fds, c.other)
	}
	return guestRecord(handoverv1.CanaryKind_CANARY_KIND_CONNECTION, m, fds)
}

// relayRecord is the relay for another process; nil when it holds more than a
// record takes, which is so for a moment only.
func (l *link) relayRecord() *handover.Record {
	image := l.relay.Image()
	if len(image.A.Pending)+len(image.B.Pending)+l.imageSize() > recordBytes {
		return nil
	}
	a, b := l.relay.Descriptors()
	of := &handoverv1.GatewayRelay{}
	l.image(of)
	m := &handoverv1.CanaryRelay{Relay: of, Words: busyImage(image), ToA: image.A.Pending, ToB: image.B.Pending}
	r := guestRecord(handoverv1.CanaryKind_CANARY_KIND_RELAY, m, appendPipe(appendPipe([]int{a, b}, image.A.Pipe), image.B.Pipe))
	return &r
}

func guestRecord(kind handoverv1.CanaryKind, m proto.Message, fds []int) handover.Record {
	r := record(0, m, fds)
	r.Part, r.Kind = GuestPart, uint32(kind)
	return r
}

// relayImage is what the record says of a relay, with its pipes.
func relayImage(m *handoverv1.CanaryRelay, in *incoming) (relay.Image, error) {
	words := m.GetWords()
	if words == nil || m.GetRelay() == nil || words.PipedToA > pipedMost || words.PipedToB > pipedMost ||
		int(words.PendingToA) != len(m.ToA) || int(words.PendingToB) != len(m.ToB) || len(in.fds) != 2*(pipes(words.PipedToA)+pipes(words.PipedToB)) {
		return relay.Image{}, errRecord
	}
	image := imageOf(words.Id, words.Flags)
	image.A.Written, image.B.Written = words.ToA, words.ToB
	image.A.Pending, image.B.Pending = m.ToA, m.ToB
	image.A.Pipe, image.B.Pipe = in.pipe(words.PipedToA), in.pipe(words.PipedToB)
	return image, nil
}
