package handover

import (
	"bytes"
	"math"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

func encoded(t testing.TB, p *handoverv1.Packet) []byte {
	t.Helper()
	b, err := appendPacket(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func record(part string, body, fds int) *handoverv1.Packet_Record {
	return &handoverv1.Packet_Record{Part: part, Kind: 1, Body: make([]byte, body), Descriptors: uint32(fds)}
}

func TestDecodePacket(t *testing.T) {
	many := &handoverv1.Packet{Batch: 1}
	for range maxRecords + 1 {
		many.Records = append(many.Records, record("a", 0, 0))
	}
	names := make([]string, maxParts+1)
	for _, c := range []struct {
		name string
		p    *handoverv1.Packet
		fds  int
		want string
	}{
		{"batch", &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", 5, 2), record("b", 0, 0)}}, 2, ""},
		{"hello", Program{Version: "1"}.hello(7, []string{"a"}), 0, ""},
		{"largest", &handoverv1.Packet{Batch: 1 << 63, Records: []*handoverv1.Packet_Record{record(strings.Repeat("a", maxPart), MaxBody, MaxFDs)}}, MaxFDs, ""},
		{"too few", &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", 0, 2)}}, 1, "speaks of 2 descriptors"},
		{"too many", &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", 0, 2)}}, 3, "speaks of 2 descriptors"},
		{"wrapped", &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", 0, -1), record("a", 0, 2)}}, 1, "descriptors"},
		{"no record has them", &handoverv1.Packet{Taken: 1}, 1, "speaks of 0 descriptors"},
		{"beyond the bound", &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", 0, 241)}}, 241, "more than 240"},
		{"many records", many, 0, "more than 1024"},
		{"empty batch", &handoverv1.Packet{Batch: 1}, 0, "0 records"},
		{"records without a batch", &handoverv1.Packet{Records: []*handoverv1.Packet_Record{record("a", 0, 0)}}, 0, "batch 0"},
		{"no part", &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("", 0, 0)}}, 0, "name of 0 bytes"},
		{"big part", &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record(strings.Repeat("a", 65), 0, 0)}}, 0, "name of 65 bytes"},
		{"big body", &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", MaxBody+1, 0)}}, 0, "more than 98304"},
		{"batch and step", &handoverv1.Packet{Batch: 1, Step: handoverv1.Packet_STEP_COMMIT, Records: []*handoverv1.Packet_Record{record("a", 0, 0)}}, 0, "a batch that is a step"},
		{"empty hello", &handoverv1.Packet{Step: handoverv1.Packet_STEP_HELLO}, 0, "generations"},
		{"generations", Program{Oldest: 3, Newest: 2}.hello(7, nil), 0, "generations 3 to 2"},
		{"process", Program{}.hello(0, nil), 0, "process 0"},
		{"parts", Program{}.hello(1, names), 0, "65 parts"},
		{"stage", &handoverv1.Packet{Step: handoverv1.Packet_STEP_BEGIN}, 0, "without a number"},
		{"stage's parts", stagePacket(handoverv1.Packet_STEP_BEGIN, 1, names, 0), 0, "65 parts"},
		{"reason", &handoverv1.Packet{Step: handoverv1.Packet_STEP_FAILED, Reason: strings.Repeat("a", maxReason+1)}, 0, "reason of 2049"},
	} {
		_, err := decodePacket(encoded(t, c.p), c.fds)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := decodePacket(make([]byte, maxPacket+1), 0); err == nil {
		t.Error("a packet beyond the bound was read")
	}
}

// TestUnknownFields: a later version may say more.
func TestUnknownFields(t *testing.T) {
	b := append(encoded(t, &handoverv1.Packet{Taken: 3}), 0xf8, 0x3f, 1) // field 1023: 1
	p, err := decodePacket(b, 0)
	if err != nil || p.GetTaken() != 3 {
		t.Errorf("%v, %v", p, err)
	}
}

// TestBodiesInPlace: a batch takes no more memory than it came in.
func TestBodiesInPlace(t *testing.T) {
	b := encoded(t, &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", MaxBody/2, 0), record("b", MaxBody/4, 0)}})
	var p *handoverv1.Packet
	var err error
	got := uint64(math.MaxUint64)
	for range 10 { // what others allocate meanwhile counts, too
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		p, err = decodePacket(b, 0)
		runtime.ReadMemStats(&after)
		got = min(got, after.TotalAlloc-before.TotalAlloc)
	}
	if err != nil || len(p.Records) != 2 || len(p.Records[1].Body) != MaxBody/4 {
		t.Fatalf("%d records, %v", len(p.GetRecords()), err)
	}
	if got > MaxBody/4 {
		t.Errorf("%d bytes to read a packet of %d", got, len(b))
	}
	if r := p.Records[0]; cap(r.Body) != len(r.Body) {
		t.Error("who appends to a body writes into the next record")
	}
}

func TestClipped(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"aé", 2, "a"}, {"a\xffb", 9, "a?b"}, {"é", 1, ""}, {"", 0, ""}} {
		if got := clipped(c.in, c.n); got != c.want {
			t.Errorf("clipped(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
}

// FuzzEnvelope: what is read keeps all bounds, is what the library reads, and says the
// same when it is written and read again.
func FuzzEnvelope(f *testing.F) {
	for _, p := range []*handoverv1.Packet{
		Program{Version: "v1"}.hello(9, []string{"gateway", "auth"}),
		{Batch: 4, Records: []*handoverv1.Packet_Record{record("gateway", 40, 2), record("tunnels", 3, 1)}},
		{Taken: 4},
		stagePacket(handoverv1.Packet_STEP_BEGIN, 2, []string{"gateway"}, 1e9),
		{Step: handoverv1.Packet_STEP_FAILED, Reason: "no"},
	} {
		fds := 0
		for _, r := range p.Records {
			fds += int(r.Descriptors)
		}
		f.Add(encoded(f, p), fds)
	}
	f.Fuzz(func(t *testing.T, b []byte, fds int) {
		p, err := decodePacket(b, fds)
		library := &handoverv1.Packet{}
		good := unmarshal.Unmarshal(b, library) == nil
		if err != nil {
			if good && len(b) <= maxPacket && len(library.Records) <= maxRecords && checkBatch(library, fds) == nil && checkStep(library) == nil {
				t.Fatalf("%v is not read: %v", library, err)
			}
			return
		}
		if !good || !proto.Equal(p, library) {
			t.Fatalf("%v was read where the library reads %v, %v", p, library, good)
		}
		sum := 0
		for _, r := range p.Records {
			sum += int(r.Descriptors)
			if len(r.Body) > MaxBody || len(r.Part) == 0 || len(r.Part) > maxPart {
				t.Fatalf("record %v is beyond the bounds", r)
			}
		}
		if sum != fds || sum > MaxFDs || len(p.Records) > maxRecords {
			t.Fatalf("%d descriptors came, %d are spoken of, in %d records", fds, sum, len(p.Records))
		}
		again, err := decodePacket(encoded(t, p), fds)
		if err != nil || !proto.Equal(p, again) {
			t.Fatalf("%v was read as %v, %v", p, again, err)
		}
		for _, r := range p.Records {
			r.Body = bytes.Clone(r.Body)
		}
		for i := range b {
			b[i] = ^b[i] // what was read holds nothing else of it
		}
		if !proto.Equal(p, again) {
			t.Fatal("the packet changes with the buffer")
		}
	})
}

// TestBatchesMerge: records that were encoded one behind the other are one batch.
func TestBatchesMerge(t *testing.T) {
	var b batch
	for _, body := range []string{"x", "", "yz"} {
		if err := b.add(Record{Part: "a", Kind: 2, Body: []byte(body)}, true); err != nil {
			t.Fatal(err)
		}
	}
	all, err := appendPacket(b.encoded, &handoverv1.Packet{Batch: 3})
	if err != nil {
		t.Fatal(err)
	}
	p, err := decodePacket(all, 0)
	if err != nil || p.GetBatch() != 3 || len(p.GetRecords()) != 3 || !bytes.Equal(p.Records[2].Body, []byte("yz")) {
		t.Errorf("%v, %v", p, err)
	}
}
