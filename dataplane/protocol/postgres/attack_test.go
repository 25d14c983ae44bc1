package postgres

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/session"
)

func message(kind byte, length uint32, body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, length), body...)
}

// TestA110_Startup: first messages that are none.
func TestA110_Startup(t *testing.T) {
	r := newRig(t)
	big := startupBytes(protocol30, "user=alice", "application_name="+strings.Repeat("x", 10_000))
	unended := startupBytes(protocol30, "user=alice")
	unended = unended[:len(unended)-1]
	binary.BigEndian.PutUint32(unended, uint32(len(unended)))
	behind := append(startupBytes(protocol30, "user=alice"), "user\x00bob\x00\x00"...)
	binary.BigEndian.PutUint32(behind, uint32(len(behind)))
	for name, c := range map[string]struct {
		bytes []byte
		state string
	}{
		"longer than 10 KB":  {big, stateProtocol},
		"length 0":           {[]byte{0, 0, 0, 0, 0, 3, 0, 0}, stateProtocol},
		"length 1":           {[]byte{0, 0, 0, 1, 0, 3, 0, 0}, stateProtocol},
		"length 7":           {[]byte{0, 0, 0, 7, 0, 3, 0, 0}, stateProtocol},
		"length 2^31":        {[]byte{0x80, 0, 0, 0, 0, 3, 0, 0}, stateProtocol},
		"length 2^32-1":      {[]byte{0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0}, stateProtocol},
		"no parameters":      {[]byte{0, 0, 0, 8, 0, 3, 0, 0}, stateProtocol},
		"without an end":     {unended, stateProtocol},
		"with a second list": {behind, stateProtocol},
		"two users":          {startupBytes(protocol30, "user=alice", "user=bob"), stateProtocol},
		"two databases":      {startupBytes(protocol30, "user=alice", "database=a", "database=b"), stateProtocol},
		"SSLRequest in TLS":  {[]byte{0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f}, stateProtocol},
		"GSSENC in TLS":      {[]byte{0, 0, 0, 8, 4, 0xd2, 0x16, 0x30}, stateProtocol},
		"HTTP":               {[]byte("GET / HTTP/1.1\r\n\r\n"), stateProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			conn := r.dialRaw("alice")
			conn.send(c.bytes)
			if e := conn.fatal(); e.Code != c.state || e.Severity != "FATAL" {
				t.Errorf("%+v", e)
			}
			conn.Close()
			if r.Result() == nil {
				t.Error("no error")
			}
		})
	}
	if got := r.gate.All(); len(got) != 0 {
		t.Errorf("asked the gate: %+v", got)
	}
}

func TestA110_StartupThatNeverEnds(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Bounds.Startup = 50 * time.Millisecond })
	for _, b := range []string{"", "\x00", "\x00\x00\x00\x20\x00\x03\x00\x00user\x00"} {
		conn := r.dialRaw("alice")
		conn.Handshake()
		conn.send([]byte(b))
		if err := r.Result(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

// TestA110_Lengths: lengths that a sum could wrap, and what hides behind them.
func TestA110_Lengths(t *testing.T) {
	hidden := string(must((&pgproto3.Query{String: "select 'smuggled'"}).Encode(nil)))
	r := newRig(t, func(r *rig) { r.server.Bounds.Message = 1 << 20 })
	for name, c := range map[string]struct {
		bytes []byte
		state string
	}{
		"0":                       {message('Q', 0, hidden), stateProtocol},
		"1":                       {message('Q', 1, hidden), stateProtocol},
		"3":                       {message('S', 3, hidden), stateProtocol},
		"2^31":                    {message('Q', 1<<31, hidden), stateProtocol},
		"2^31 of COPY":            {message('d', 1<<31, hidden), stateProtocol},
		"2^32-1":                  {message('Q', 1<<32-1, hidden), stateProtocol},
		"2^32-1 of COPY":          {message('d', 1<<32-1, hidden), stateProtocol},
		"2^32-4 of Bind":          {message('B', 1<<32-4, hidden), stateProtocol},
		"long Sync":               {message('S', 10_001, hidden), stateProtocol},
		"more than is held":       {message('Q', 1<<20+1, hidden), stateTooLong},
		"unknown type":            {message('!', 4, hidden), stateProtocol},
		"type 0":                  {message(0, 4, hidden), stateProtocol},
		"a password":              {message('p', 9, "pass\x00"+hidden), stateProtocol},
		"Query without an end":    {message('Q', 8, "sele"+hidden), stateProtocol},
		"empty Query body":        {message('Q', 4, hidden), stateProtocol},
		"Parse without types":     {message('P', 8, "\x00x\x00\x00"+hidden), stateProtocol},
		"Parse with types short":  {message('P', 9, "\x00x\x00\x00\x01"+hidden), stateProtocol},
		"Bind parameter too long": {message('B', 16, "\x00\x00\x00\x00\x00\x01\x7f\xff\xff\xff\x00\x00"+hidden), stateProtocol},
		"Bind parameter -2":       {message('B', 16, "\x00\x00\x00\x00\x00\x01\xff\xff\xff\xfe\x00\x00"+hidden), stateProtocol},
		"Execute with more":       {message('E', 10, "\x00\x00\x00\x00\x00x"+hidden), stateProtocol},
		"Close of what":           {message('C', 6, "X\x00"+hidden), stateProtocol},
		"Function short":          {message('F', 6, "\x00\x00"+hidden), stateProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(r.gate.All("db.session.malformed_packet"))
			conn := r.dialRaw("alice")
			conn.login("user=alice", "database=orders")
			conn.send(c.bytes)
			e := conn.fatal()
			if e.Code != c.state || e.Severity != "FATAL" {
				t.Errorf("%+v", e)
			}
			conn.Close()
			if err := r.Result(); !errors.Is(err, sallyport.ErrInvalid) && !errors.Is(err, sallyport.ErrExhausted) {
				t.Error(err)
			}
			ev := r.gate.Await(t, "db.session.malformed_packet", before+1)
			payload := must(base64.StdEncoding.DecodeString(ev.Fields["payload"].(string)))
			if ev.Code != "TDB06I" || !bytes.HasPrefix(c.bytes, payload) || ev.Fields["error"] != e.Message {
				t.Errorf("%+v", ev)
			}
		})
	}
	for _, e := range r.gate.All("db.session.query") {
		t.Errorf("taken for a query: %v", e.Fields["db_query"])
	}
	if log := theServer(t).Log(); strings.Contains(log, "smuggled") {
		t.Error("the server has seen what was smuggled")
	}
}

// TestA110_LengthIsNotBelieved: memory is used for bytes that have come.
func TestA110_LengthIsNotBelieved(t *testing.T) {
	s := splitter{limit: 1 << 30}
	n := copy(s.Space(), message('Q', 1<<29, "select"))
	if _, err := s.take(n, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Space()); n > database.BufferSize {
		t.Errorf("room for %d bytes", n)
	}
}

// TestA63_BytesBeforeTLS: a server, or who is between, that sends more than its
// answer to SSLRequest.
func TestA63_BytesBeforeTLS(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var b [8]byte
			conn.Read(b[:])
			conn.Write([]byte("SR\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05I"))
			conn.Read(b[:])
			conn.Close()
		}
	}()
	r := newRig(t, func(r *rig) { r.server.Target = database.Target{Address: l.Addr().String(), TLS: database.Insecure} })
	conn := r.dialRaw("alice")
	conn.send(startupBytes(protocol30, "user=alice"))
	if e := conn.fatal(); e.Code != stateUnableToConnect {
		t.Errorf("%+v", e)
	}
}

// TestRoomIsTheUsers: what is held of long statements counts for who sends them.
func TestRoomIsTheUsers(t *testing.T) {
	l := &live{server: &Server{}, first: &startup{}, sess: &session.Session{Identity: sallyport.Identity{Name: "alice"}}}
	if got := newRelay(l, &backend{}).split.User; got != "alice" {
		t.Errorf("it counts for %q", got)
	}
}

// TestLongMessagesHaveABound: messages that are held until they are whole took memory
// without a bound, 64 MiB for each session of a user who sends no end.
func TestLongMessagesHaveABound(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.rooms.OfUser = 512 << 10 })
	for n := range 3 {
		conn := r.dialRaw("alice")
		conn.login("user=alice", "database=orders")
		conn.send(message('Q', 700<<10, strings.Repeat("x", 600<<10)))
		if e := conn.fatal(); e.Code != stateOutOfMemory || e.Severity != "FATAL" {
			t.Errorf("%+v", e)
		}
		conn.Close()
		if err := r.Result(); !errors.Is(err, sallyport.ErrExhausted) {
			t.Error(err)
		}
		r.gate.Await(t, "db.session.malformed_packet", n+1)
	}
	// What they had is given back.
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	conn.send(must((&pgproto3.Query{String: "select length('" + strings.Repeat("x", 200<<10) + "')"}).Encode(nil)))
	r.gate.Await(t, "db.session.query", 1)
}
