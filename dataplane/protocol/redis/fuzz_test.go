package redis

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/tidwall/redcon"
)

// given is what a splitter makes of a client's stream.
type given struct {
	commands [][]string
	passed   string // as it passed: lines as arrays
	failed   bool
}

func split(stream []byte, piece int) given {
	var out given
	s := splitter{keep: func([]byte) (int, int, error) { return 1 << 20, 1 << 30, nil }}
	for len(stream) > 0 {
		room := s.space()
		n := copy(room[:min(len(room), piece)], stream)
		stream = stream[n:]
		s.add(n)
		for {
			c, err := s.next()
			if err != nil {
				out.failed = true
				return out
			}
			if c == nil {
				break
			}
			var args []string
			for _, a := range c.args {
				args = append(args, string(a))
			}
			out.commands = append(out.commands, args)
			if c.line {
				out.passed += string(appendCommand(nil, c.args...))
			} else {
				out.passed += string(s.buf[c.from:c.to])
			}
		}
		if s.stuck() {
			b, err := s.spill()
			if err != nil {
				out.failed = true
				return out
			}
			out.passed += string(b)
		} else {
			out.passed += string(s.part())
		}
	}
	return out
}

// FuzzCommands: redcon reads the same commands from what passes, however the
// stream is cut.
func FuzzCommands(f *testing.F) {
	f.Add([]byte("*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n"), byte(1))
	f.Add([]byte("*0\r\n*-1\r\n\r\nSET 'a b' \"\\x41\\n\"\r\n"), byte(3))
	f.Add([]byte("*1\r\n$99999\r\n"), byte(7))
	f.Add([]byte("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$40000\r\n"+strings.Repeat("x", 40000)+"\r\nPING\n"), byte(250))
	f.Fuzz(func(t *testing.T, stream []byte, cut byte) {
		whole := split(stream, bufferSize)
		pieces := split(stream, int(cut)+1)
		// A long command that is at fault has passed in part, as much as came.
		if !reflect.DeepEqual(whole.commands, pieces.commands) || whole.failed != pieces.failed || !whole.failed && len(stream) < bufferSize && whole.passed != pieces.passed {
			t.Fatalf("in pieces %+v, whole %+v", pieces, whole)
		}
		var theirs [][]string
		rest := []byte(whole.passed)
		for len(rest) > 0 {
			complete, args, kind, left, err := redcon.ReadNextCommand(rest, nil)
			if err != nil || complete && kind != redcon.Redis {
				t.Fatalf("%.100q passes, redcon reads %v %v", rest, kind, err)
			}
			if !complete {
				break
			}
			var list []string
			for _, a := range args {
				list = append(list, string(a))
			}
			theirs, rest = append(theirs, list), left
		}
		if len(theirs) > len(whole.commands) || !reflect.DeepEqual(slices.Clip(theirs), whole.commands[:len(theirs)]) || len(theirs) < len(whole.commands) {
			t.Fatalf("commands %.200q, redcon reads %.200q", whole.commands, theirs)
		}
	})
}

// FuzzWritten: what redcon writes is read back.
func FuzzWritten(f *testing.F) {
	f.Add("SET", "a", "", byte(1))
	f.Add("*1\r\n", "$-1\r\n", "\x00\xff", byte(2))
	f.Fuzz(func(t *testing.T, a, b, c string, cut byte) {
		want := [][]string{{a, b, c}, {c}}
		stream := redcon.AppendArray(nil, 3)
		for _, s := range want[0] {
			stream = redcon.AppendBulkString(stream, s)
		}
		stream = redcon.AppendBulkString(redcon.AppendArray(stream, 1), c)
		if got := split(stream, int(cut)+1); !reflect.DeepEqual(got.commands, want) || got.passed != string(stream) {
			t.Fatalf("%+v, want %.200q", got, want)
		}
	})
}

// tracked is what a tracker makes of a server's stream.
type tracked struct {
	passed string
	ends   []int // where it stands between two messages
	failed bool
}

func track(stream []byte, piece int) tracked {
	var out tracked
	var k tracker
	var held []byte
	for len(stream) > 0 && !out.failed {
		n := min(piece, len(stream))
		held = append(held, stream[:n]...)
		stream = stream[n:]
		took, err := k.advance(held, func(b []byte) error { out.passed += string(b); return nil })
		out.failed = err != nil
		held = slices.Clone(held[took:])
		if k.whole() && (len(out.ends) == 0 || out.ends[len(out.ends)-1] != len(out.passed)) {
			out.ends = append(out.ends, len(out.passed))
		}
	}
	return out
}

// FuzzAnswers: a server's stream means the same however it is cut; a second
// reader, by the table of the specification, and redcon find the same messages.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{
		"+OK\r\n-ERR x\r\n:1\r\n$-1\r\n$2\r\nhi\r\n*-1\r\n*2\r\n:1\r\n*1\r\n$0\r\n\r\n", "%1\r\n+a\r\n~2\r\n#t\r\n_\r\n,1.5\r\n(99\r\n", "|1\r\n+k\r\n+v\r\n*1\r\n|1\r\n+k\r\n+v\r\n:1\r\n",
		">2\r\n+message\r\n=5\r\ntxt:x\r\n!3\r\nERR\r\n", "+a\nb\r\n", "$5\r\nab", "*3\r\n:1\r\n", "?", "$?\r\n",
	} {
		f.Add([]byte(s), byte(0))
		f.Add([]byte(s), byte(4))
	}
	f.Fuzz(func(t *testing.T, stream []byte, cut byte) {
		whole := track(stream, len(stream)+1)
		pieces := track(stream, int(cut)+1)
		if whole.passed != pieces.passed || whole.failed != pieces.failed {
			t.Fatalf("in pieces %+v, whole %+v", pieces, whole)
		}
		if !strings.HasPrefix(string(stream), whole.passed) || !whole.failed && len(stream)-len(whole.passed) >= headerMax {
			t.Fatalf("%q passed of %q", whole.passed, stream)
		}
		bytewise := track(stream, 1)
		// The second reader ends where the tracker does.
		r := bytes.NewReader(stream)
		buffered := bufio.NewReaderSize(r, 16)
		for range 1000 {
			if tooMuch(stream) {
				break
			}
			_, err := readValue(buffered)
			if err != nil {
				break
			}
			end := len(stream) - r.Len() - buffered.Buffered()
			if end <= len(whole.passed) && !slices.Contains(bytewise.ends, end) {
				t.Fatalf("a message ends at %d of %q, the tracker stands between two at %v", end, stream, bytewise.ends)
			}
		}
		for at := 0; at < len(stream); {
			n, v := redcon.ReadNextRESP(stream[at:])
			if n == 0 || !resp2(v) {
				break
			}
			at += n
			if at <= len(whole.passed) && !slices.Contains(bytewise.ends, at) {
				t.Fatalf("redcon: a message ends at %d of %q, the tracker stands between two at %v", at, stream, bytewise.ends)
			}
		}
	})
}

// tooMuch keeps the second reader from allocating what a length promises.
func tooMuch(stream []byte) bool {
	digits := 0
	for _, c := range stream {
		if c < '0' || c > '9' {
			digits = 0
		} else if digits++; digits > 6 {
			return true
		}
	}
	return false
}

// resp2 says that redcon and the specification agree on what a value is: its
// lines may end with a line feed alone, and it takes signs and zeros.
func resp2(v redcon.RESP) bool {
	if !bytes.Contains(v.Raw, []byte("\r\n")) || bytes.Contains(bytes.ReplaceAll(v.Raw, []byte("\r\n"), nil), []byte("\n")) || bytes.Contains(v.Raw, []byte("+")) {
		return false
	}
	return v.Type == redcon.Bulk || v.Type == redcon.Error || v.Type == redcon.Integer
}

// FuzzText: what is recorded of a command reads back as its arguments, as
// redis-cli takes them.
func FuzzText(f *testing.F) {
	f.Add("SET", "a b", "\"\\\xff\x00ü")
	f.Add("SET", "", "'")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		cmd := &command{args: [][]byte{[]byte(a), []byte(b), []byte(c)}, count: 3}
		if secrets(cmd.args) != nil || len(a)+len(b)+len(c) > oneArgument {
			return
		}
		text, cut := appendText(nil, cmd, oneArgument, allArguments)
		got, err := words(text)
		if err != nil || cut || !reflect.DeepEqual(got, cmd.args) {
			t.Fatalf("%q reads as %q, %v", text, got, err)
		}
	})
}

// FuzzLogin: who is read from a login is who the server is told, and nobody else
// is named in what passes.
func FuzzLogin(f *testing.F) {
	f.Add([]byte("*3\r\n$4\r\nAUTH\r\n$5\r\nalice\r\n$1\r\nx\r\n"))
	f.Add([]byte("HELLO 3 AUTH bob x SETNAME auth\r\n"))
	f.Add([]byte("hello 3 setname a auth alice x\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		a := &auditor{user: "alice", proved: true, swaps: newSwaps()}
		s := splitter{keep: func(name []byte) (int, int, error) { return keep(name, 1<<20) }}
		s.add(copy(s.space(), stream))
		for {
			c, err := s.next()
			if c == nil || err != nil {
				return
			}
			hello := is(c.args[0], "hello")
			auth := is(c.args[0], "auth")
			instead, answer, err := a.judge(c)
			if auth && err == nil && answer == "" {
				t.Fatalf("%q passes", c.args)
			}
			if hello && err == nil {
				_, args, _, _, bad := redcon.ReadNextCommand(instead, nil)
				if bad != nil || len(args) > 4 || len(args) == 3 || len(args) == 4 && !is(args[2], "setname") {
					t.Fatalf("%q passes for %q", instead, c.args)
				}
			}
			if err != nil && !errors.As(err, new(*refusal)) {
				t.Fatal(err)
			}
		}
	})
}

// told is a server that keeps what it is sent.
type told struct {
	net.Conn
	bytes.Buffer
}

func (c *told) Read(b []byte) (int, error)  { return c.Buffer.Read(b) }
func (c *told) Write(b []byte) (int, error) { return c.Buffer.Write(b) }

// FuzzPassed: the commands that redcon reads from what the server is sent are
// those that were recorded, each at its place, with stand-ins for those that
// were refused; and none of them is one that must not pass.
func FuzzPassed(f *testing.F) {
	// A tilde stands for 4,000 bytes, so that long commands are short inputs.
	filler := bytes.Repeat([]byte("x"), 4000)
	const long = "$40000\r\n~~~~~~~~~~\r\n"
	f.Add([]byte("*2\r\n$3\r\nGET\r\n$1\r\na\r\nAUTH bob x\r\nRESET\r\nGET b\r\n"), byte(200))
	f.Add([]byte("*2\r\n$2\r\nx\x00\r\n"+long+"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n"+long), byte(0))
	f.Add([]byte("*2\r\n$5\r\nauth\x00\r\n"+long), byte(90))
	f.Add([]byte("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n"+long+"sync\r\nPING\r\n"), byte(7))
	f.Fuzz(func(t *testing.T, stream []byte, cut byte) {
		stream = bytes.ReplaceAll(stream[:min(len(stream), 256)], []byte("~"), filler)
		server := &told{}
		r := &relay{Relay: database.Relay{Server: server}, split: &splitter{}, swaps: newSwaps()}
		r.split.keep = func(name []byte) (int, int, error) { return keep(name, allArguments) }
		var events []sallyport.Event
		audit := &auditor{user: "alice", script: allArguments, base: map[string]any{}, swaps: r.swaps, emit: func(e sallyport.Event) {
			if part, _ := e.Fields["db_query_part"].(int64); part <= 1 {
				events = append(events, e)
			}
		}}
		for len(stream) > 0 {
			room := r.split.space()
			n := copy(room[:min(len(room), 256*(int(cut)+1))], stream)
			stream = stream[n:]
			r.split.add(n)
			if r.passUp(audit) != nil {
				break
			}
		}
		sent, rest := 0, server.Bytes()
		for len(rest) > 0 {
			complete, args, kind, left, err := redcon.ReadNextCommand(rest, nil)
			if err != nil || complete && kind != redcon.Redis {
				t.Fatalf("%.100q passes, redcon reads %v %v", rest, kind, err)
			}
			if !complete {
				break
			}
			if sent == len(events) {
				t.Fatalf("%.200q passes, and was not recorded", args)
			}
			e := events[sent]
			standIn := strings.HasPrefix(string(args[0]), r.swaps.name)
			if text, _ := e.Fields["db_query"].(string); !standIn && len(args[0]) < oneArgument/4 && !strings.HasPrefix(text, string(appendArgument(nil, args[0]))) || standIn != (e.Code == "TDB02W") {
				t.Fatalf("%.200q passes, recorded is %s %.200q", args, e.Code, text)
			}
			for _, name := range []string{"auth", "reset", "sync", "psync", "replconf"} {
				if mine := name == "auth" && len(args) == 3 && string(args[1]) == audit.user; is(args[0], name) && !mine {
					t.Fatalf("%.200q passes", args)
				}
			}
			sent, rest = sent+1, left
		}
	})
}
