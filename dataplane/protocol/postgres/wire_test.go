package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport/dataplane/database"
)

// seen is a message as the splitter shows it.
type seen struct {
	Kind byte
	Body string
}

// splitAll lets a stream through a splitter, in chunks of random sizes.
func splitAll(stream []byte, limit uint32, seed uint64) (got []seen, passed []byte, err error) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := splitter{limit: limit}
	for len(stream) > 0 {
		n := copy(s.Space()[:min(len(s.Space()), 1+rnd.IntN(40))], stream)
		stream = stream[n:]
		pass, err := s.take(n, func(kind byte, body []byte) error {
			got = append(got, seen{kind, string(body)})
			return nil
		})
		if err != nil {
			return got, passed, err
		}
		passed = append(passed, pass...)
	}
	return got, passed, nil
}

// splitPlainly is the same as splitAll with the whole stream at hand, as plain
// as can be. CopyData is left out of the messages.
func splitPlainly(stream []byte, limit uint32) (got []seen, passed int, bad bool) {
	for at := 0; len(stream)-at >= 5; {
		kind, length := stream[at], uint64(binary.BigEndian.Uint32(stream[at+1:]))
		most := uint64(messageLimit(kind))
		if kind != 'd' {
			most = min(most, uint64(limit))
		}
		if length < 4 || length > most {
			return got, passed, true
		}
		end := at + 1 + int(length)
		if end > len(stream) {
			if kind == 'd' {
				passed = len(stream)
			}
			return got, passed, false
		}
		if kind != 'd' {
			got = append(got, seen{kind, string(stream[at+5 : end])})
		}
		at, passed = end, end
	}
	return got, passed, false
}

// checkSplit compares the splitter with the plain one, and the types with what
// pgproto3 finds.
func checkSplit(t *testing.T, stream []byte, limit uint32, seed uint64) {
	t.Helper()
	got, passed, err := splitAll(stream, limit, seed)
	want, n, bad := splitPlainly(stream, limit)
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	if bad != (err != nil) {
		t.Fatalf("bad %v, error %v", bad, err)
	}
	if !bad && len(passed) != n || !bytes.HasPrefix(stream, passed) {
		t.Fatalf("%d bytes passed, want %d", len(passed), n)
	}
	back := pgproto3.NewBackend(bytes.NewReader(stream), nil)
	back.SetMaxBodyLen(int(limit) - 4)
	for i := 0; ; {
		m, perr := back.Receive()
		if perr != nil {
			return
		}
		if _, ok := m.(*pgproto3.CopyData); ok {
			continue
		}
		if i == len(got) {
			if err == nil {
				t.Fatalf("pgproto3 finds a further %T", m)
			}
			return // we refused what it takes
		}
		// A message that it reads to the end is the same bytes again.
		if b, err := m.Encode(nil); err != nil || b[0] != got[i].Kind {
			t.Fatalf("message %d: type %q, pgproto3 says %T %v", i, got[i].Kind, m, err)
		}
		i++
	}
}

func someStream() []byte {
	var b []byte
	for _, m := range []pgproto3.FrontendMessage{
		&pgproto3.Query{String: "select 1"},
		&pgproto3.Parse{Name: "s", Query: strings.Repeat("x", 100), ParameterOIDs: []uint32{23}},
		&pgproto3.Bind{DestinationPortal: "p", PreparedStatement: "s", Parameters: [][]byte{[]byte("1"), nil}, ParameterFormatCodes: []int16{0, 1}},
		&pgproto3.Describe{ObjectType: 'P', Name: "p"}, &pgproto3.Execute{Portal: "p", MaxRows: 7},
		&pgproto3.Close{ObjectType: 'S', Name: "s"}, &pgproto3.Flush{}, &pgproto3.Sync{},
		&pgproto3.CopyData{Data: bytes.Repeat([]byte("row\n"), 50)}, &pgproto3.CopyData{}, &pgproto3.CopyDone{}, &pgproto3.CopyFail{Message: "no"},
		&pgproto3.FunctionCall{Function: 1, ArgFormatCodes: []uint16{1}, Arguments: [][]byte{{1, 2}}, ResultFormatCode: 1},
		&pgproto3.Terminate{},
	} {
		b = must(m.Encode(b))
	}
	return b
}

func TestSplit(t *testing.T) {
	for seed := range uint64(50) {
		checkSplit(t, someStream(), 1<<20, seed)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(someStream(), uint64(1))
	f.Add([]byte("Q\x00\x00\x00\x00"), uint64(1))
	f.Add([]byte("d\xff\xff\xff\xffQ\x00\x00\x00\x04"), uint64(2))
	f.Add(append(message('d', 1<<30-2, ""), someStream()...), uint64(3))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) { checkSplit(t, stream, 4<<10, seed) })
}

// TestSplitterGivesBack: a session that once sent a big message does not keep
// the room for it.
func TestSplitterGivesBack(t *testing.T) {
	s, heard := splitter{limit: 1 << 20}, 0
	big := must((&pgproto3.Query{String: strings.Repeat("x", 500_000)}).Encode(nil))
	for len(big) > 0 {
		n := copy(s.Space(), big)
		big = big[n:]
		if _, err := s.take(n, func(_ byte, body []byte) error { heard += len(body); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if heard < 500_000 {
		t.Error("the message was not held")
	}
	if n := len(s.Space()); n != database.BufferSize {
		t.Errorf("%d bytes kept", n)
	}
}

// TestLentBuffers: two sessions whose long messages lie in the same buffers, one
// after the other, see their own.
func TestLentBuffers(t *testing.T) {
	rooms, rnd := &database.Rooms{}, rand.New(rand.NewPCG(1, 0))
	var streams, passed [2][]byte
	var want, got [2][]seen
	var sessions [2]splitter
	for i := range sessions {
		sessions[i] = splitter{limit: 8 << 20, Buffer: database.Buffer{Rooms: rooms}}
		for n, size := range []int{10, 500_000, 40_000, 6_000_000, 20, 70_000, 2_000_000, 300, 600_000} {
			text := strings.Repeat(string(rune('a'+2*n+i)), size)
			streams[i] = append(streams[i], message('Q', uint32(4+size), text)...)
			want[i] = append(want[i], seen{'Q', text})
		}
	}
	left := streams
	for len(left[0])+len(left[1]) > 0 {
		i := rnd.IntN(2)
		s := &sessions[i]
		room := s.Space()
		n := copy(room[:min(len(room), 1+rnd.IntN(32<<10))], left[i])
		left[i] = left[i][n:]
		pass, err := s.take(n, func(kind byte, body []byte) error {
			got[i] = append(got[i], seen{kind, string(body)})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		passed[i] = append(passed[i], pass...)
	}
	for i := range sessions {
		if !bytes.Equal(passed[i], streams[i]) || !slices.Equal(got[i], want[i]) {
			t.Errorf("session %d: %d bytes of %d, %d messages of %d", i, len(passed[i]), len(streams[i]), len(got[i]), len(want[i]))
		}
	}
}

// TestBufferFollowsTraffic: small talk stays with a small buffer, bulk gets a
// large one at its second read, and a message that comes in pieces stays whole.
func TestBufferFollowsTraffic(t *testing.T) {
	s := splitter{limit: 1 << 20}
	var heard int
	hear := func(_ byte, body []byte) error { heard += len(body); return nil }
	feed := func(b []byte) {
		t.Helper()
		for len(b) > 0 {
			n := copy(s.Space(), b)
			b = b[n:]
			if _, err := s.take(n, hear); err != nil {
				t.Fatal(err)
			}
		}
	}
	small := must((&pgproto3.Query{String: "select 1"}).Encode(nil))
	for range 1000 {
		feed(small)
	}
	if n := len(s.Space()); n != database.FirstSize {
		t.Errorf("%d bytes for small talk", n)
	}
	heard = 0
	feed(bytes.Repeat(small, 2*database.FirstSize/len(small)))
	if n := len(s.Space()); n != database.BufferSize {
		t.Errorf("%d bytes for bulk", n)
	}
	if want := 2 * database.FirstSize / len(small) * (len(small) - headerSize); heard != want {
		t.Errorf("%d bytes of bodies, want %d", heard, want)
	}
	query := must((&pgproto3.Query{String: strings.Repeat("x", 3*database.FirstSize)}).Encode(nil))
	s, heard = splitter{limit: 1 << 20}, 0
	for i := 0; i < len(query); i += 1000 {
		feed(query[i:min(i+1000, len(query))])
	}
	if heard != len(query)-headerSize {
		t.Errorf("%d bytes of a message of %d", heard, len(query)-headerSize)
	}
}

// TestNoAllocation: bulk costs none, whatever the size of its messages.
func TestNoAllocation(t *testing.T) {
	rows := bytes.Repeat(must((&pgproto3.CopyData{Data: []byte("a row of some length\n")}).Encode(nil)), 2000)
	s, tr := splitter{limit: 1 << 20}, tracker{}
	none := func(byte, []byte) error { return errors.New("held") }
	at := 0
	if n := testing.AllocsPerRun(100, func() {
		n := copy(s.Space(), rows[at:])
		at += n
		if at == len(rows) {
			at = 0
		}
		pass, err := s.take(n, none)
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.advance(pass); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// trackAll follows a stream in chunks.
func trackAll(stream []byte, seed uint64) (tracker, error) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	var tr tracker
	for len(stream) > 0 {
		n := min(len(stream), 1+rnd.IntN(40))
		if err := tr.advance(stream[:n]); err != nil {
			return tr, err
		}
		stream = stream[n:]
	}
	return tr, nil
}

func FuzzTrack(f *testing.F) {
	f.Add(someStream(), uint64(1))
	f.Add([]byte("E\x00\x00\x00\x04Z\x00\x00\x00\x05IE\x00"), uint64(1))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		got, err := trackAll(stream, seed)
		var last byte
		var count int64
		at, bad := 0, false
		for len(stream)-at >= 5 {
			length := binary.BigEndian.Uint32(stream[at+1:])
			if bad = length < 4 || length > 1<<31-1; bad {
				break
			}
			last = stream[at]
			if last == 'E' {
				count++
			}
			at += 1 + int(length)
		}
		if bad {
			if err == nil || got.whole() {
				t.Fatalf("error %v, whole %v", err, got.whole())
			}
			return
		}
		if err != nil || got.last != last || got.errors != count || got.whole() != (at == len(stream)) {
			t.Fatalf("%+v %v; want last %q, errors %d, at %d of %d", got, err, last, count, at, len(stream))
		}
		if rest := at - len(stream); rest > 0 && got.missing() != rest || rest < 0 && got.missing() != 5+rest {
			t.Fatalf("missing %d, at %d of %d", got.missing(), at, len(stream))
		}
	})
}

func FuzzStartup(f *testing.F) {
	for _, params := range [][]string{
		{"user=alice"}, {"user=a", "database=b", "application_name=c", "_pq_.x=1"}, {"database=x"}, {"user=a", "user=b"}, {"user=a", "=b"},
	} {
		f.Add(startupBytes(protocol30, params...)[8:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		ours, err := parseStartup(protocol30, body)
		var theirs pgproto3.StartupMessage
		terr := theirs.Decode(append([]byte{0, 3, 0, 0}, body...))
		if err != nil {
			if terr == nil && theirs.Parameters["user"] != "" && strings.HasSuffix(err.Error(), "without an end") {
				t.Fatalf("%v, but pgproto3 finds one: %q", err, theirs.Parameters)
			}
			return
		}
		if terr != nil {
			t.Fatalf("pgproto3: %v", terr)
		}
		if ours.user != theirs.Parameters["user"] {
			t.Fatalf("user %q, pgproto3 %q", ours.user, theirs.Parameters["user"])
		}
		if want := theirs.Parameters["database"]; ours.database != want && (want != "" || ours.database != ours.user) {
			t.Fatalf("database %q, pgproto3 %q", ours.database, want)
		}
		for _, p := range ours.params {
			if _, ok := theirs.Parameters[p.name]; !ok {
				t.Fatalf("parameter %q", p.name)
			}
		}
		// What the server gets is the same again.
		sent := ours.append(nil)
		again, err := parseStartup(protocol30, sent[8:])
		if err != nil || again.user != ours.user || again.database != ours.database || len(again.params) != len(ours.params) || len(again.unknown) != 0 {
			t.Fatalf("sent %q: %+v %v", sent, again, err)
		}
		if int(binary.BigEndian.Uint32(sent)) != len(sent) {
			t.Fatal("length")
		}
	})
}

func FuzzStatements(f *testing.F) {
	for at := someStream(); len(at) > 0; {
		n := 1 + binary.BigEndian.Uint32(at[1:])
		f.Add(at[0], at[5:n])
		at = at[n:]
	}
	f.Add(byte(msgParse), []byte(strings.Repeat("n", 64)+"\x00select 1\x00\x00\x00"))
	f.Add(byte(msgFunctionCall), []byte("\x00\x00\x00\x01\x00\x01\x00\x01\x00\x00\xff\xea"))
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		switch kind {
		case msgQuery:
			ours, err := decodeQuery(body)
			var m pgproto3.Query
			same(t, &m, body, err, func() bool { return m.String == string(ours) })
		case msgParse:
			ours, err := decodeParse(body)
			var m pgproto3.Parse
			same(t, &m, body, err, func() bool { return m.Name == string(ours.statement) && m.Query == string(ours.query) }, &m.Name)
		case msgBind:
			ours, err := decodeBind(body)
			var m pgproto3.Bind
			same(t, &m, body, err, func() bool {
				return m.DestinationPortal == string(ours.portal) && m.PreparedStatement == string(ours.statement) &&
					len(m.Parameters) == ours.params.Len() && nulls(m.Parameters, ours.params)
			}, &m.DestinationPortal, &m.PreparedStatement)
		case msgExecute:
			ours, err := decodeExecute(body)
			var m pgproto3.Execute
			same(t, &m, body, err, func() bool { return m.Portal == string(ours) }, &m.Portal)
		case msgClose:
			what, ours, err := decodeClose(body)
			if len(body) > 0 && body[0] != 'S' && body[0] != 'P' {
				if err == nil {
					t.Fatal("unknown kind")
				}
				return
			}
			var m pgproto3.Close
			same(t, &m, body, err, func() bool { return m.ObjectType == what && m.Name == string(ours) }, &m.Name)
		case msgFunctionCall:
			ours, err := decodeFunctionCall(body)
			if err == nil && foreignFormat(body) {
				return // pgproto3 knows two formats; the server has its own words for others
			}
			var m pgproto3.FunctionCall
			same(t, &m, body, err, func() bool { return m.Function == ours.oid && len(m.Arguments) == ours.args.Len() })
		}
		a := auditor{emit: discard, base: map[string]any{}, statement: 1 << 10}
		a.see(kind, body)
	})
}

// same says that pgproto3 reads the same, whenever it or we read all of it, and that
// what it reads as names passes when a server keeps all of them.
func same(t *testing.T, m pgproto3.FrontendMessage, body []byte, err error, equal func() bool, names ...*string) {
	t.Helper()
	theirs := m.Decode(body)
	cut := theirs == nil && slices.ContainsFunc(names, func(name *string) bool {
		plain := strings.IndexFunc(*name, func(r rune) bool { return r > unicode.MaxASCII }) < 0
		return len(*name) > 63 || !plain && len(*name) > 15
	})
	if cut && err == nil {
		t.Fatalf("a name passes that a server cuts: %+v", m)
	}
	if err == nil {
		if theirs != nil {
			t.Fatalf("pgproto3: %v", theirs)
		}
		if !equal() {
			t.Fatalf("pgproto3 reads %+v", m)
		}
		return
	}
	if theirs != nil || cut {
		return
	}
	if b, e := m.Encode(nil); e == nil && bytes.Equal(b[5:], body) {
		t.Fatalf("%v, but pgproto3 reads it to the end: %+v", err, m)
	}
}

// foreignFormat says that a whole FunctionCall names a format beside text and
// binary.
func foreignFormat(body []byte) bool {
	foreign := binary.BigEndian.Uint16(body[len(body)-2:]) > 1
	for i := range int(binary.BigEndian.Uint16(body[4:])) {
		foreign = foreign || binary.BigEndian.Uint16(body[6+2*i:]) > 1
	}
	return foreign
}

func nulls(theirs [][]byte, ours database.Values) bool {
	fields := ours.Fields("p")
	list, _ := fields["p"].([]string)
	got, _ := fields["null_p"].([]int64)
	var want []int64
	for i, p := range theirs[:min(len(theirs), len(list))] {
		if p == nil {
			want = append(want, int64(i+1))
		}
	}
	return cmp.Equal(want, got)
}
