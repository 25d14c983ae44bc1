//go:build unix

package gateway

import (
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// FuzzTakeRecords: records of another version may say anything. What cannot be is
// refused, and no descriptor is lost. Each record is two bytes, for the kind and
// for how many descriptors come along, two for its length, and its body.
func FuzzTakeRecords(f *testing.F) {
	id := make([]byte, 16)
	peer := []byte{192, 0, 2, 7, 1, 2}
	for _, records := range [][]seed{
		{
			{handoverv1.GatewayKind_GATEWAY_KIND_RELAYS, 2, &handoverv1.GatewayRelays{Relay: []*handoverv1.GatewayRelay{
				{Id: 1, Account: "cluster:db", Peer: peer, Idle: 5, Tunnel: id, Connection: id},
			}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_BUSY, 2, &handoverv1.GatewayBusy{Relay: []*handoverv1.GatewayBusyRelay{
				{Id: 1, Flags: 0x10805, PipedToA: 3, PendingToB: 2},
			}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_PENDING, 0, &handoverv1.GatewayPending{Id: 1, ToB: true, Data: []byte("xy")}},
			{handoverv1.GatewayKind_GATEWAY_KIND_TOTALS, 0, &handoverv1.GatewayTotals{Relays: 1, LastRelay: 1}},
		},
		{
			{handoverv1.GatewayKind_GATEWAY_KIND_RELAYS, 4, &handoverv1.GatewayRelays{Lane: 9, Relay: []*handoverv1.GatewayRelay{{Id: 1}, {Id: 2}}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_DROPPED, 0, &handoverv1.GatewayDropped{Id: []uint64{2}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_WORDS, 0, &handoverv1.GatewayWords{Id: []uint64{1}, Flags: []uint32{7}, ToA: []uint64{1}, ToB: []uint64{2}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_TOTALS, 0, &handoverv1.GatewayTotals{Relays: 1}},
		},
		{
			{handoverv1.GatewayKind_GATEWAY_KIND_CONNECTIONS, 6, &handoverv1.GatewayConnections{Connection: []*handoverv1.GatewayConnection{
				{Stage: handoverv1.GatewayStage_GATEWAY_STAGE_READING, Peer: peer, Watched: true, Lowat: 1, Buffered: true, Buffer: []byte{22, 3, 1}, Placed: true, Paid: true},
				{Stage: handoverv1.GatewayStage_GATEWAY_STAGE_LEASING, Peer: peer, Watched: true, Lowat: 1, Account: "cluster:db", Kind: "db", Name: "orders", Connection: id, Flight: 1},
				{Stage: handoverv1.GatewayStage_GATEWAY_STAGE_OFFERING, Peer: peer, Lowat: 1, Account: "cluster:db", Connection: id, Tunnel: id, Far: true, Head: []byte("head"), Flight: 3, Sent: 2},
				{Stage: handoverv1.GatewayStage_GATEWAY_STAGE_LINGERING, Peer: peer, Lowat: 1, Answer: []byte("no"), Eaten: 7},
			}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_CONNECTIONS, 2, &handoverv1.GatewayConnections{Connection: []*handoverv1.GatewayConnection{
				{Stage: handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING, Peer: peer, Watched: true, Lowat: 1, Account: "shop.example.com", Server: "127.0.0.1:1", Connection: id, Far: true, Flight: 1},
			}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_CONNECTIONS, 3, &handoverv1.GatewayConnections{Connection: []*handoverv1.GatewayConnection{
				{Stage: handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING, Peer: peer, Said: 2, Watched: true, Lowat: 1, Account: "db.example.com", Server: "127.0.0.1:1", Connection: id, Flight: 1, Tried: 1},
				{Stage: handoverv1.GatewayStage_GATEWAY_STAGE_CONNECTING, Peer: peer, Said: 2, Watched: true, Lowat: 1, Account: "db.example.com", Server: "127.0.0.1:1", Connection: id, Far: true, Head: []byte("head"), Flight: 1},
			}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_TOTALS, 0, &handoverv1.GatewayTotals{Connections: 7}},
		},
		{
			{handoverv1.GatewayKind_GATEWAY_KIND_NAMES, 0, &handoverv1.GatewayNames{Name: []*handoverv1.GatewayName{{Address: "a:1", Resolved: [][]byte{peer}}}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_SOURCES, 0, &handoverv1.GatewaySources{Source: [][]byte{{192, 0, 2, 7, 32}}}},
			{handoverv1.GatewayKind_GATEWAY_KIND_LISTENERS, 1, &handoverv1.GatewayListeners{Listener: []*handoverv1.GatewayListener{{Address: "127.0.0.1:0"}}}},
		},
	} {
		var all []byte
		for _, r := range records {
			all = r.append(f, all)
		}
		f.Add(all)
	}
	loops := newLoops(f, relay.NewDefault, 2)
	f.Fuzz(func(t *testing.T, data []byte) {
		before := descriptors()
		h, err := Inherit(Config{Cluster: cluster, Listen: []string{"127.0.0.1:0"}, Loops: loops, Static: []StaticRoute{to(dbName, "127.0.0.1:1")}})
		check(t, err)
		for len(data) >= 4 {
			n := min(int(data[2])<<8|int(data[3]), len(data)-4)
			err := h.Take(handover.Record{Part: partName, Kind: uint32(data[0]), Body: data[4 : 4+n], FDs: sockets(t, int(data[1]%8))})
			data = data[4+n:]
			if err != nil {
				break // the upgrade has failed
			}
		}
		if err := h.Complete(t.Context()); err == nil {
			h.Start()
		}
		h.Close()
		h.Gateway().Close()
		for _, l := range loops { // what was posted has run
			relay.Hold(l).Release()
		}
		if after := descriptors(); after > before {
			t.Fatalf("%d descriptors before, %d after", before, after)
		}
	})
}

// FuzzSplitRelays: a record of relays that is taken apart, and whose relays are read
// where they are, says what the whole one says.
func FuzzSplitRelays(f *testing.F) {
	for _, m := range []*handoverv1.GatewayRelays{
		{},
		{Lane: 3, Relay: []*handoverv1.GatewayRelay{{Id: 1, Account: "cluster:db", Peer: []byte{1}, Worded: true}, {}, {Idle: -1}}},
		{Relay: []*handoverv1.GatewayRelay{{
			Id: 1 << 60, Account: "ä", Peer: []byte{1, 2}, Started: 1 << 61, Idle: 5, Tunnel: []byte{3}, Connection: []byte{4},
			Worded: true, Flags: 1 << 31, ToA: 1 << 40, ToB: 7,
		}}},
	} {
		b, err := proto.Marshal(m)
		check(f, err)
		f.Add(b)
		f.Add(append(b, 0x08, 5, 0x1a, 1, 'x', 0x12, 0)) // the lane anew, a field of later, an empty relay
		f.Add(append(b, 0x0a, 0, 0x10, 1))               // of other types than they have
		f.Add(append(b, 0x12, 9))
	}
	f.Add([]byte{0x12, 8, 0x12, 1, 0xff, 0x08, 1, 0x08, 2, 0x12})              // a name that is no text
	f.Add([]byte{0x12, 10, 0x08, 1, 0x08, 2, 0x12, 1, 'a', 0x12, 1, 'b'})      // the last one counts
	f.Add([]byte{0x12, 8, 0x40, 2, 0x0a, 1, 'x', 0x10, 3, 0x48})               // of other types, and cut
	f.Add([]byte{0x12, 11, 0x48, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0x63, 0x64}) // flags of more bits, and a group
	f.Fuzz(func(t *testing.T, data []byte) {
		var want, got handoverv1.GatewayRelays
		wantErr := proto.Unmarshal(data, &want)
		lane, all, err := splitRelays(data, nil)
		got.Lane = lane
		for _, encoded := range all {
			r, rerr := readRelay(encoded)
			if err == nil {
				err = rerr
			}
			got.Relay = append(got.Relay, &handoverv1.GatewayRelay{
				Id: r.id, Account: string(r.account), Peer: r.peer, Started: r.started, Idle: r.idle, Tunnel: r.tunnel, Connection: r.connection,
				Worded: r.worded, Flags: r.flags, ToA: r.toA, ToB: r.toB,
			})
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, and of the whole %v", err, wantErr)
		}
		want.ProtoReflect().SetUnknown(nil)
		for _, r := range want.Relay {
			r.ProtoReflect().SetUnknown(nil)
		}
		if err == nil && !proto.Equal(&got, &want) {
			t.Errorf("%v, not %v", &got, &want)
		}
	})
}

// seed is a record with descriptors.
type seed struct {
	kind        handoverv1.GatewayKind
	descriptors byte
	body        proto.Message
}

func (s seed) append(t testing.TB, to []byte) []byte {
	body, err := proto.Marshal(s.body)
	check(t, err)
	to = append(to, byte(s.kind), s.descriptors, byte(len(body)>>8), byte(len(body)))
	return append(to, body...)
}

// sockets are descriptors whose other ends are closed.
func sockets(t *testing.T, n int) (fds []int) {
	t.Helper()
	for range n {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		check(t, err)
		relay.Close(pair[1])
		unix.CloseOnExec(pair[0])
		check(t, unix.SetNonblock(pair[0], true))
		fds = append(fds, pair[0])
	}
	return fds
}
