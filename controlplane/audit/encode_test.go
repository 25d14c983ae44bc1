package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/sallyport/sallyport"
)

func yes() *bool { b := true; return &b }

func TestEncode(t *testing.T) {
	e := sallyport.Event{
		Name: "session.start", Code: "T2000I", UID: "5f2c", Time: time.Date(2024, 1, 2, 3, 4, 5, 678_900_000, time.FixedZone("x", 3600)),
		Cluster: "gw.example.com", User: "alice", UserKind: "human", SessionID: "s1", Login: "root", ServerID: "n1",
		Addr: "192.0.2.1:5", Success: yes(),
		Fields: map[string]any{"proto": "ssh", "tx": int64(5), "ratio": 2.0, "server_labels": map[string]string{"b": "2", "a": "1"},
			"event": "clash", "fields.x": true, "participants": []string{"alice"}},
	}
	const want = `{"event":"session.start","code":"T2000I","time":"2024-01-02T02:04:05.678Z","uid":"5f2c","ei":0,` +
		`"cluster_name":"gw.example.com","user":"alice","user_kind":"human","login":"root","sid":"s1","server_id":"n1",` +
		`"addr.remote":"192.0.2.1:5","success":true,"fields.event":"clash","fields.fields.x":true,"participants":["alice"],` +
		`"proto":"ssh","ratio":2.0,"server_labels":{"a":"1","b":"2"},"tx":5}`
	got := Encode(e)
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	back, err := Decode(got)
	if err != nil {
		t.Fatal(err)
	}
	e.Time = time.Date(2024, 1, 2, 2, 4, 5, 678_000_000, time.UTC)
	e.Fields["server_labels"] = map[string]any{"a": "1", "b": "2"}
	e.Fields["participants"] = []any{"alice"}
	if diff := cmp.Diff(e, back); diff != "" {
		t.Error(diff)
	}
}

// hostile are texts that a stranger may put into a name, a query or a header.
var hostile = []string{
	"\x1b]52;c;ZXZpbA==\x07", "\x1b[2J\x1b[31m", "a\r\nb: c", "\u202eevil", "\u2066x\u2069", "nul\x00", "del\x7f", "\u0085\u009b31m",
	"\u2028\u2029\ufeff\u200b\u00ad", "\xff\xfe bytes", "half \xe2\x82", "\xed\xa0\x80", "\U0010f780 private", "\U0010f7ff\xf4\x8f",
	"quote\" back\\slash </script>", "日本語 é 🎉", strings.Repeat("long ", 200),
}

// TestA69_StrangersBytes and A98: nothing in a line acts on a terminal, no
// line has two, and every byte comes back.
func TestA69_StrangersBytes(t *testing.T) {
	for _, h := range hostile {
		e := sallyport.Event{Name: "x", Time: time.Unix(1, 0), User: h, Login: h, Addr: h,
			Fields: map[string]any{"db_query": h, h: []any{h, map[string]any{h: h}}}}
		line := Encode(e)
		for _, r := range string(line) {
			if !unicode.IsPrint(r) {
				t.Errorf("%q: the line holds %U", h, r)
			}
		}
		if !json.Valid(line) {
			t.Errorf("%q: not JSON: %s", h, line)
		}
		back, err := Decode(line)
		if err != nil {
			t.Fatalf("%q: %v", h, err)
		}
		if back.User != h || back.Login != h || back.Fields["db_query"] != h {
			t.Errorf("%q came back as %q", h, back.User)
		}
		if diff := cmp.Diff(any([]any{h, map[string]any{h: h}}), back.Fields[h]); diff != "" {
			t.Errorf("%q: %s", h, diff)
		}
	}
}

func TestEncodeBound(t *testing.T) {
	many := make([]any, 100_000)
	deep := any("bottom")
	for i := range many {
		many[i] = strings.Repeat("y", 100)
	}
	for range 50 {
		deep = []any{deep}
	}
	wide := map[string]any{}
	for i := range 10_000 {
		wide[strings.Repeat("k", i%300)+string(rune('a'+i%26))] = int64(i)
	}
	for name, fields := range map[string]map[string]any{
		"one long":    {"db_query": strings.Repeat("SELECT '\x00'", 1<<20), "db_name": "orders"},
		"many":        {"list": many},
		"wide":        wide,
		"deep":        {"deep": deep},
		"bytes":       {"b": bytes.Repeat([]byte{0xff}, 1<<20)},
		"just escape": {"b": strings.Repeat("\x00", MaxEvent/3)},
	} {
		e := sallyport.Event{Name: "db.session.query", Code: "TDB02I", Time: time.Unix(1, 0), User: strings.Repeat("u", 1<<20), Fields: fields}
		line := Encode(e)
		back, err := Decode(line)
		if len(line) > MaxEvent || err != nil || back.Fields["truncated"] != true || back.Name != e.Name || !strings.HasPrefix(e.User, back.User) {
			t.Errorf("%s: %d bytes, %v, truncated %v", name, len(line), err, back.Fields["truncated"])
		}
		if name == "one long" && back.Fields["db_name"] != "orders" {
			t.Errorf("%s: a short value was lost", name)
		}
		if again := Encode(back); !bytes.Equal(again, line) {
			t.Errorf("%s: another line when encoded again", name)
		}
	}
	if line := Encode(sallyport.Event{Name: "x", Time: time.Unix(1, 0), Fields: map[string]any{"q": strings.Repeat("x", 50_000)}}); bytes.Contains(line, []byte("truncated")) {
		t.Error("an event that fits is truncated")
	}
}

func TestEncodeOddValues(t *testing.T) {
	e := sallyport.Event{Name: "x", Time: time.Unix(1, 0), Fields: map[string]any{
		"inf": math.Inf(1), "nan": math.NaN(), "u": uint64(math.MaxUint64), "nil": nil, "d": time.Second, "big": int64(math.MinInt64),
		"tiny": 5e-324, "s": struct{ A int }{1}, "ei": int64(3), "truncated": false, "none": []string(nil),
		"numbers": []int64{1, -2}, "floats": []float64{1, math.Inf(-1)}, "bools": []bool{true, false}}}
	back, err := Decode(Encode(e))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"inf": "+Inf", "nan": "NaN", "u": "18446744073709551615", "d": "1s", "big": int64(math.MinInt64),
		"tiny": 5e-324, "s": "{1}", "ei": int64(3), "none": []any{},
		"numbers": []any{int64(1), int64(-2)}, "floats": []any{1.0, "-Inf"}, "bools": []any{true, false}}
	if diff := cmp.Diff(want, back.Fields); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeRefuses(t *testing.T) {
	const ok = `"event":"x","time":"2024-01-02T03:04:05Z"`
	for name, line := range map[string]string{
		"empty": "", "list": "[]", "no event": `{"time":"2024-01-02T03:04:05Z"}`, "no time": `{"event":"x"}`, "time": `{"event":"x","time":"now"}`,
		"twice": "{" + ok + `,"user":"a","user":"b"}`, "twice by prefix": "{" + ok + `,"a":1,"fields.a":2}`, "tail": "{" + ok + "}{}",
		"open": "{" + ok, "user": "{" + ok + `,"user":1}`, "success": "{" + ok + `,"success":"yes"}`, "ei": "{" + ok + `,"ei":1.5}`,
		"old": `{"event":"x","time":"0001-01-01T00:00:00.0001Z"}`, "before": `{"event":"x","time":"1970-01-01T00:00:00+23:59"}`,
		"utf8": "{" + ok + ",\"a\":\"\xff\"}", "deep": "{" + ok + `,"a":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + "}",
		"number": "{" + ok + `,"a":1e999}`, "large": "{" + ok + `,"a":"` + strings.Repeat("x", 2*MaxEvent) + `"}`,
	} {
		if e, err := Decode([]byte(line)); err == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestKinds(t *testing.T) {
	seen := map[Kind]bool{}
	for _, k := range Kinds() {
		if k.Name == "" || k.Code == "" || seen[k] {
			t.Errorf("kind %+v is empty or twice", k)
		}
		seen[k] = true
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"event":"x","code":"C","time":"2024-01-02T03:04:05.000Z","uid":"u","ei":0,"a":[1,2.5,{"b":null}],"fields.event":"y"}`))
	for _, h := range hostile {
		f.Add(Encode(sallyport.Event{Name: "x", Time: time.Unix(1, 0), User: h, Fields: map[string]any{h: h}}))
	}
	f.Add([]byte(`{"event":"x","time":"2024-01-02T03:04:05Z","a":["\"\\\n\tü","b"],"b":[],"c":true,"d":false,"e":123456789012345678}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if m, ok := plainMap(line); ok && utf8.Valid(line) {
			if all, err := readObject(line); err != nil || !cmp.Equal(m, all) {
				t.Fatalf("%q: %v, but a reader of all of JSON has %v, %v", line, m, all, err)
			}
			plain, err := Decode(line)
			var e sallyport.Event
			if failed := fill(&e, m); (failed == nil) != (err == nil) || err == nil && !cmp.Equal(plain, e) {
				t.Fatalf("%q: %+v, %v, but by way of a map %+v, %v", line, plain, err, e, failed)
			}
		}
		e, err := Decode(line)
		if err != nil {
			return
		}
		once := Encode(e)
		if len(once) > MaxEvent || !json.Valid(once) || !printable(once) {
			t.Fatalf("%q encodes to %q", line, once)
		}
		back, err := Decode(once)
		if err != nil {
			t.Fatalf("%q encodes to %q: %v", line, once, err)
		}
		if twice := Encode(back); !bytes.Equal(once, twice) {
			t.Fatalf("%q\n%q\n%q", line, once, twice)
		}
	})
}

// TestPlainObject: what hosts send most is read the short way, and anything that
// is not plain the long one.
func TestPlainObject(t *testing.T) {
	query := Encode(sallyport.Event{Name: "db.session.query", Code: "TDB02I", Time: time.Unix(1e9, 0), User: "jürgen", Success: yes(),
		Fields: map[string]any{"db_query": "select \"a\\b\"\n\tfrom ü", "user_roles": []string{"access", "dba"}, "with_mfa": true, "n": int64(12)}})
	m, ok := plainMap(query)
	all, err := readObject(query)
	if !ok || err != nil || !cmp.Equal(m, all) {
		t.Errorf("%s: %v, %v; %v, %v", query, m, ok, all, err)
	}
	for _, line := range []string{
		"", "{", "{}", "[]", `{"a"}`, `{"a":}`, `{"a":1`, `{"a":1}}`, `{"a":1} `, ` {"a":1}`, `{"a": 1}`, `{"a":1,}`, `{"a":1,"a":2}`, `{"a":1,"b":2,"a":3}`,
		`{"a":01}`, `{"a":-1}`, `{"a":1.5}`, `{"a":1e3}`, `{"a":1234567890123456789}`, `{"a":null}`, `{"a":tru}`, `{"a":truee}`, `{"a":nul}`,
		`{"a":{"b":1}}`, `{"a":[1]}`, `{"a":["b",]}`, `{"a":["b"}`, `{"a":["b" ]}`, `{"a":[["b"]]}`, `{"a":"\u0041"}`, `{"a":"\/"}`, `{"a":"\r"}`, `{"a":"\"}`, `{"a":"b`,
		"{\"a\":\"\n\"}", `{a:1}`, `{1:1}`, `{"a":"b\`,
	} {
		if m, ok := plainMap([]byte(line)); ok {
			t.Errorf("%s is plain: %v", line, m)
		}
	}
}

func plainMap(line []byte) (map[string]any, bool) {
	list, ok := plainObject(string(line), nil)
	m := map[string]any{}
	for i := range list {
		m[list[i].name] = list[i].value()
	}
	return m, ok
}

func BenchmarkDecode(b *testing.B) {
	line := Encode(sallyport.Event{Name: "db.session.query", Code: "TDB02I", UID: "5f2c7a", Time: time.Unix(1e9, 0), Cluster: "gw.example.com",
		User: "alice", UserKind: "human", SessionID: "s1", ServerID: "n1", Addr: "192.0.2.1:5", Success: yes(),
		Fields: map[string]any{"db_service": "orders", "db_user": "reader", "db_name": "orders", "db_query": "SELECT * FROM orders WHERE id = $1"}})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(line); err != nil {
			b.Fatal(err)
		}
	}
}

func printable(line []byte) bool {
	for _, r := range string(line) {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return utf8.Valid(line)
}

// FuzzSegment: whatever is in the files, readers and the verifier end with a
// report, and a chain that was changed is never taken for whole.
func FuzzSegment(f *testing.F) {
	log := smallLog(f)
	var raw []byte
	for name, b := range log {
		if _, ok := firstOf(name); ok {
			raw = b
		}
		if _, ok := parsePacked(name); ok {
			f.Add(must(decompress(b)))
		}
	}
	f.Add(raw)
	f.Add(raw[:headerSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		var last uint64
		sc, err := scanSegment(b, logMagic, func(fr *frame) { last = fr.seq })
		if err == nil && last > 0 && last != sc.chain.seq {
			t.Fatalf("scan ends at %d, the last frame is %d", sc.chain.seq, last)
		}
		m := memory{segmentName(1): b}
		rep, err := verifyDisk(m, check, Head{})
		if err == nil && rep.Events > 0 {
			t.Fatalf("a log without a head file is taken for whole: %+v", rep)
		}
		l := &Log{disk: m, j: &journal{}}
		s := &segment{name: segmentName(1), first: 1}
		if _, err := l.searchSegment(s, &Query{Limit: 10}); err != nil {
			t.Fatal(err)
		}
		if len(b) < 1<<16 {
			if p, err := compress(b); err != nil {
				t.Fatal(err)
			} else if back, err := decompress(p); err != nil || !bytes.Equal(back, b) {
				t.Fatalf("packing: %v", err)
			}
		}
		_, _ = decompress(b)
	})
}

// TestA147_PackedSize: a compressed segment that says it is larger than any is refused
// by its head, and costs no memory.
func TestA147_PackedSize(t *testing.T) {
	packed := func(size uint64) []byte {
		b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0} // RFC 8878, section 3.1.1: one segment, a size of 8 bytes
		b = binary.LittleEndian.AppendUint64(b, size)
		b = append(b, 1, 0, 0) // the last block, which is empty
		sum := sha256.Sum256(b)
		b = binary.LittleEndian.AppendUint32(b, skippable)
		b = binary.LittleEndian.AppendUint32(b, sha256.Size)
		return append(b, sum[:]...)
	}
	if b, err := decompress(packed(0)); err != nil || len(b) != 0 {
		t.Errorf("an empty one: %d bytes, %v", len(b), err)
	}
	for _, size := range []uint64{maxSegment + 1, 1 << 30, 1 << 62} {
		if _, err := decompress(packed(size)); !errors.Is(err, errPacked) || !errors.Is(err, zstd.ErrDecoderSizeExceeded) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	e := sallyport.Event{Name: "db.session.query", Code: "TDB02I", UID: "5f2c7a", Time: time.Unix(1e9, 0), Cluster: "gw.example.com",
		User: "alice", UserKind: "human", SessionID: "s1", ServerID: "n1", Addr: "192.0.2.1:5", Success: yes(),
		Fields: map[string]any{"db_service": "orders", "db_user": "reader", "db_name": "orders", "db_query": "SELECT * FROM orders WHERE id = $1"}}
	b.ReportAllocs()
	for b.Loop() {
		Encode(e)
	}
}
