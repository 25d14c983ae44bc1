package main

import (
	"log/slog"
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// canaryWord is a record without descriptors in a fuzzer's input: a byte for its kind,
// two for its length, and its body.
func canaryWord(t testing.TB, kind handoverv1.CanaryKind, m proto.Message) []byte {
	r, err := canaryRecord(kind, m)
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{byte(r.Kind), byte(len(r.Body) >> 8), byte(len(r.Body))}, r.Body...)
}

// FuzzCanaryWords: a canary, which may be of any version, says how it does. What
// it has counted is added to the gateway's figures, as often as it was said; what
// it has running leaves them with it; and a judgement comes of any of it.
func FuzzCanaryWords(f *testing.F) {
	join := func(all ...[]byte) (out []byte) {
		for _, b := range all {
			out = append(out, b...)
		}
		return out
	}
	report := &handoverv1.CanaryReport{Outcomes: map[string]uint64{"closed": 3, "unknown": 9}, BytesIn: 7, BytesOut: 9, Relays: 5, Waiting: 2,
		Routes:  []*handoverv1.CanaryRoute{{Name: "shop.example.com", BytesIn: 1, Results: map[string]uint64{"relayed": 4}, Relays: 5}},
		Results: map[string]uint64{"relayed": 400, "refused": 3, gateway.ResultBroken: 1}, FirstByte: []uint64{1, 300, 80}}
	fewer := &handoverv1.CanaryReport{Relays: 1, Routes: []*handoverv1.CanaryRoute{{Name: "shop.example.com", Relays: -4}}}
	f.Add(join(canaryWord(f, handoverv1.CanaryKind_CANARY_KIND_READY, nil), canaryWord(f, handoverv1.CanaryKind_CANARY_KIND_REPORT, report), canaryWord(f, handoverv1.CanaryKind_CANARY_KIND_REPORT, fewer)))
	f.Add(join(canaryWord(f, handoverv1.CanaryKind_CANARY_KIND_FAILED, &handoverv1.CanaryFailed{Reason: "no", Hint: "none"}),
		canaryWord(f, handoverv1.CanaryKind_CANARY_KIND_RETURNED, &handoverv1.CanaryReturned{Given: 1, Left: 1}), canaryWord(f, handoverv1.CanaryKind_CANARY_KIND_LEASE, nil)))
	f.Add(canaryWord(f, handoverv1.CanaryKind_CANARY_KIND_REPORT, &handoverv1.CanaryReport{Relays: 1<<64 - 1, Waiting: 1<<64 - 1,
		Results: map[string]uint64{"relayed": 1<<64 - 1, "refused": 1<<64 - 1}, FirstByte: make([]uint64, 500)}))
	loops, err := relay.New(min(2, runtime.GOMAXPROCS(0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		for _, l := range loops {
			l.Close()
		}
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := gateway.StartGuest(gateway.Config{Cluster: "gw.test", Loops: loops})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		c := &canary{node: &node{log: slog.New(slog.DiscardHandler)}, gateway: g, relays: map[string]int{},
			returned: make(chan *handoverv1.CanaryReturned, 1), ready: make(chan *handoverv1.CanaryFailed, 1)}
		told := tellCanary(c, data)
		now := g.Snapshot()
		for name, n := range now.Outcomes {
			if n != told.outcomes[name] {
				t.Fatalf("%s: %d are counted, and %d were said", name, n, told.outcomes[name])
			}
		}
		if now.Relays != told.relays || now.BytesIn != told.in || now.BytesOut != told.out {
			t.Fatalf("%d relays, %d and %d bytes are counted; said were %+v", now.Relays, now.BytesIn, now.BytesOut, told)
		}
		if v := c.compared().Judge(); v.Outcome == "" || v.Reason == "" {
			t.Fatalf("%+v", v)
		}
		c.forget()
		now = g.Snapshot()
		for _, r := range now.Routes {
			if r.Relays != 0 {
				t.Fatalf("%s: %d relays of a canary that is gone", r.Name, r.Relays)
			}
		}
		if now.Relays != 0 {
			t.Fatalf("%d relays of a canary that is gone", now.Relays)
		}
	})
}

// canaryTold is what a canary has said, added up.
type canaryTold struct {
	outcomes map[string]uint64
	in, out  uint64
	relays   int
}

// tellCanary lets the old process hear all records of an input. Connections are
// for FuzzGuestRecords of package gateway.
func tellCanary(c *canary, data []byte) canaryTold {
	told := canaryTold{outcomes: map[string]uint64{}}
	for len(data) >= 3 {
		kind, n := handoverv1.CanaryKind(data[0]), min(int(data[1])<<8|int(data[2]), len(data)-3)
		body := data[3 : 3+n]
		data = data[3+n:]
		if kind == handoverv1.CanaryKind_CANARY_KIND_CONNECTION || kind == handoverv1.CanaryKind_CANARY_KIND_RELAY {
			continue
		}
		c.hear(handover.Record{Part: gateway.GuestPart, Kind: uint32(kind), Body: body})
		m := &handoverv1.CanaryReport{}
		if kind != handoverv1.CanaryKind_CANARY_KIND_REPORT || proto.Unmarshal(body, m) != nil {
			continue
		}
		for name, n := range m.GetOutcomes() {
			told.outcomes[name] += n
		}
		told.in, told.out, told.relays = told.in+m.GetBytesIn(), told.out+m.GetBytesOut(), int(min(m.GetRelays(), 1<<30))
	}
	return told
}
