package mysql

import (
	"bytes"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	proto "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/packet"

	"github.com/sallyport/sallyport/dataplane/database"
)

// given is a connection that has bytes to read.
type given struct{ *bytes.Reader }

func (given) Write(b []byte) (int, error)      { return len(b), nil }
func (given) Close() error                     { return nil }
func (given) LocalAddr() net.Addr              { return nil }
func (given) RemoteAddr() net.Addr             { return nil }
func (given) SetDeadline(time.Time) error      { return nil }
func (given) SetReadDeadline(time.Time) error  { return nil }
func (given) SetWriteDeadline(time.Time) error { return nil }

// split feeds a stream to a splitter in pieces and returns the commands and what
// passed.
func split(stream []byte, piece int) (commands [][]byte, passed []byte, err error) {
	s := splitter{limit: 64 << 20, file: func() (byte, bool) { return 0, false },
		see: func(b []byte) error { commands = append(commands, bytes.Clone(b)); return nil }}
	for len(stream) > 0 && err == nil {
		room := s.Space()
		n := copy(room[:min(len(room), piece)], stream)
		stream = stream[n:]
		for more := true; more && err == nil; more = s.more {
			var pass []byte
			pass, err = s.take(n)
			passed = append(passed, pass...)
			n = 0
		}
	}
	return commands, passed, err
}

// FuzzCommands: go-mysql reads the same commands from the same bytes, however
// they are cut, and what passes is what was seen.
func FuzzCommands(f *testing.F) {
	f.Add([]byte("\x09\x00\x00\x00\x03select 1\x01\x00\x00\x00\x0e"), byte(1))
	f.Add([]byte("\x01\x00\x00\x01\x0e"), byte(3))
	f.Add([]byte("\xff\xff\xff\x00\x03"), byte(7))
	f.Add([]byte("\x00\x00\x00\x00"), byte(0))
	f.Fuzz(func(t *testing.T, stream []byte, cut byte) {
		commands, passed, err := split(stream, len(stream)+1)
		again, passedAgain, errAgain := split(stream, int(cut)+1)
		if !reflect.DeepEqual(commands, again) || (err == nil) != (errAgain == nil) || err == nil && !bytes.Equal(passed, passedAgain) {
			t.Fatalf("in pieces: %q %v, whole: %q %v", again, errAgain, commands, err)
		}
		theirs := packet.NewConn(given{bytes.NewReader(stream)})
		total := 0
		for i := 0; ; i++ {
			theirs.ResetSequence()
			b, failed := theirs.ReadPacket()
			if failed != nil || len(b) == 0 { // an empty command is one to them
				if i != len(commands) {
					t.Fatalf("%d commands, go-mysql reads %d: %v", len(commands), i, failed)
				}
				break
			}
			if i >= len(commands) || !bytes.Equal(b, commands[i]) {
				t.Fatalf("command %d of %d: go-mysql reads %q", i, len(commands), b)
			}
			total += headerSize + len(b)
		}
		// With a fault, what came in the same read does not pass either.
		if err == nil && len(passed) != total || len(passedAgain) > total || !bytes.Equal(passed, stream[:len(passed)]) || !bytes.Equal(passedAgain, stream[:len(passedAgain)]) {
			t.Fatalf("passed %d and %d bytes of %d", len(passed), len(passedAgain), total)
		}
	})
}

// TestLentBuffers: two sessions whose long commands lie in the same buffers, one
// after the other, see their own.
func TestLentBuffers(t *testing.T) {
	rooms, rnd := &database.Rooms{}, rand.New(rand.NewPCG(1, 0))
	var streams, passed [2][]byte
	var want, got [2][]string
	var sessions [2]splitter
	for i := range sessions {
		sessions[i] = splitter{limit: 8 << 20, Buffer: database.Buffer{Rooms: rooms}, file: func() (byte, bool) { return 0, false },
			see: func(b []byte) error { got[i] = append(got[i], string(b)); return nil }}
		for n, size := range []int{10, 500_000, 40_000, 6_000_000, 20, 70_000, 2_000_000, 300, 600_000} {
			text := strings.Repeat(string(rune('a'+2*n+i)), size)
			streams[i] = appendPacket(streams[i], 0, []byte(text))
			want[i] = append(want[i], text)
		}
	}
	left := streams
	for len(left[0])+len(left[1]) > 0 {
		i := rnd.IntN(2)
		room := sessions[i].Space()
		n := copy(room[:min(len(room), 1+rnd.IntN(32<<10))], left[i])
		left[i] = left[i][n:]
		pass, err := sessions[i].take(n)
		if err != nil {
			t.Fatal(err)
		}
		passed[i] = append(passed[i], pass...)
	}
	for i := range sessions {
		if !bytes.Equal(passed[i], streams[i]) || !slices.Equal(got[i], want[i]) {
			t.Errorf("session %d: %d bytes of %d, %d commands of %d", i, len(passed[i]), len(streams[i]), len(got[i]), len(want[i]))
		}
	}
}

// tracked is what a tracker makes of a server's stream.
type tracked struct {
	passed   int
	failed   bool
	prepared int
	files    []string
	whole    bool
	place    place
}

func track(stream []byte, answers []byte, deprecate bool, piece int) tracked {
	var out tracked
	at := 0
	k := tracker{deprecateEOF: deprecate,
		next: func() (pending, bool) {
			if at == len(answers) {
				return pending{}, false
			}
			at++
			return pending{answer: answerOne + answer(answers[at-1]%byte(answerRows))}, true
		},
		prepared: func(pending, uint32, int) { out.prepared++ },
		file:     func(_ pending, name []byte, _ byte) error { out.files = append(out.files, string(name)); return nil },
		asking:   func() bool { return false },
	}
	var held []byte
	for len(stream) > 0 && !out.failed {
		n := min(piece, len(stream))
		held = append(held, stream[:n]...)
		stream = stream[n:]
		pass, err := k.advance(held)
		out.failed = err != nil
		out.passed += pass
		held = slices.Clone(held[pass:])
	}
	out.whole, out.place = k.whole(), k.place
	return out
}

// FuzzAnswers: a server's stream means the same however it is cut, nothing of a
// packet at fault passes, and what is held back is bounded.
func FuzzAnswers(f *testing.F) {
	ok := "\x07\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00"
	f.Add([]byte(ok), []byte{0}, true, byte(0))
	f.Add([]byte("\x01\x00\x00\x01\x01\x04\x00\x00\x02\x03def\x02\x00\x00\x03\x011\x07\x00\x00\x04\xfe\x00\x00\x02\x00\x00\x00"), []byte{1}, true, byte(2))
	f.Add([]byte("\x01\x00\x00\x01\x01\x04\x00\x00\x02\x03def\x05\x00\x00\x03\xfe\x00\x00\x02\x00\x02\x00\x00\x04\x011\x05\x00\x00\x05\xfe\x00\x00\x02\x00"), []byte{1}, false, byte(4))
	f.Add([]byte("\x0c\x00\x00\x01\x00\x01\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00\x04\x00\x00\x02\x03def\x04\x00\x00\x03\x03def"), []byte{2}, true, byte(1))
	f.Add([]byte("\x05\x00\x00\x01\xfb/tmp"), []byte{1}, false, byte(3))
	f.Add([]byte("\x03\x00\x00\x00\xff\x15\x04"), []byte{}, false, byte(9))
	f.Fuzz(func(t *testing.T, stream, answers []byte, deprecate bool, cut byte) {
		whole := track(stream, answers, deprecate, len(stream)+1)
		if pieces := track(stream, answers, deprecate, int(cut)+1); !reflect.DeepEqual(whole, pieces) {
			t.Fatalf("in pieces %+v, whole %+v", pieces, whole)
		}
		if held := len(stream) - whole.passed; !whole.failed && held > headerSize+fileMax {
			t.Fatalf("%d bytes are held", held)
		}
		if whole.failed && !whole.whole {
			t.Fatal("an error in the middle of a packet")
		}
	})
}

// FuzzLogin: what is read of a client's login is what the server is told, and
// go-mysql's constants say where.
func FuzzLogin(f *testing.F) {
	r := response{maxPacket: 1 << 24, charset: 45}
	f.Add(append(r.head(always), "alice\x00\x01xorders\x00mysql_native_password\x00\x03\x01a\x00"...))
	f.Add(append(r.head(proto.CLIENT_PROTOCOL_41), "alice\x00\x00"...))
	f.Add(append(r.head(proto.CLIENT_PROTOCOL_41|proto.CLIENT_SECURE_CONNECTION|proto.CLIENT_CONNECT_WITH_DB), "a\x00\x00b\x00"...))
	f.Fuzz(func(t *testing.T, payload []byte) {
		g := greeting{version: "8.0.0", caps: mirrored | proto.CLIENT_SSL | proto.CLIENT_CONNECT_ATTRS, plugin: proto.AUTH_NATIVE_PASSWORD}
		first, err := parseResponse(payload, g.offered())
		if err != nil {
			return
		}
		if first.caps&^g.offered() != 0 {
			t.Fatalf("agreed on %#x", first.caps)
		}
		again, err := parseResponse(first.login(&g), first.towards(g.caps))
		if err != nil {
			t.Fatal(err)
		}
		if again.user != first.user || again.schema != first.schema || again.charset != first.charset || !bytes.Equal(again.attributes, first.attributes) {
			t.Fatalf("read %+v, the server is told %+v", first, again)
		}
	})
}

// FuzzGreeting: a greeting that is passed on reads the same, but for what is not
// offered.
func FuzzGreeting(f *testing.F) {
	g := unknownServer()
	f.Add(g.forClient(newSalt()))
	f.Add([]byte("\xff\x10\x04Too many connections"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		g, err := parseGreeting(payload)
		if err != nil {
			return
		}
		again, err := parseGreeting(g.forClient(newSalt()))
		if err != nil {
			t.Fatal(err)
		}
		if again.version != g.version || again.thread != g.thread || again.status != g.status || again.caps != g.offered() || len(again.salt) != 20 {
			t.Fatalf("%+v became %+v", g, again)
		}
	})
}

// FuzzParameters: reading them takes no more than is there, and what is read is
// to the last byte.
func FuzzParameters(f *testing.F) {
	f.Add([]byte("\x00\x01\x03\x00\x0f\x00\x07\x00\x00\x00\x01x"), uint16(2))
	f.Add([]byte("\x01\x01\x0c\x00\x07\xe8\x07\x02\x1d\x0c\x00\x00"), uint16(1))
	f.Fuzz(func(t *testing.T, body []byte, params uint16) {
		st := statement{params: int(params)}
		v, ok, _ := st.values(body)
		if ok && params > 0 && v.Len() != int(params) {
			t.Fatalf("%d of %d", v.Len(), params)
		}
		if ok && params > 0 {
			if _, more, _ := (&statement{params: int(params)}).values(append(bytes.Clone(body), 0)); more {
				t.Fatal("a byte behind the end is not missed")
			}
		}
	})
}

// FuzzFiles: a file is found only where its words are.
func FuzzFiles(f *testing.F) {
	f.Add([]byte("load data local infile 'a' into table t"))
	f.Add([]byte(`/*! LOAD XML LOCAL INFILE */ "it\"s" `))
	f.Add([]byte("select 'load data local infile \"x\"'"))
	f.Fuzz(func(t *testing.T, text []byte) {
		files := filesOf(text)
		if len(files) > 0 && !(containsFold(text, "load") && containsFold(text, "local") && containsFold(text, "infile")) {
			t.Fatalf("%q in %q", files, text)
		}
		plain := bytes.ReplaceAll(text, []byte("\\"), nil)
		for i := 1; i < len(files); i += 2 { // read without escapes
			if s := bytes.ReplaceAll(files[i], []byte("\\"), nil); !bytes.ContainsAny(s, `'"`) && !bytes.Contains(plain, s) {
				t.Fatalf("%q is not in %q", s, text)
			}
		}
	})
}
