package mysql

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	proto "github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

// hostile is a server of packets: TLS and a login by the book, then what a test
// says.
type hostile struct {
	t      *testing.T
	script func(conn net.Conn)

	first  byte // sequence id of the greeting
	noTLS  bool
	before string // sent in clear behind the greeting
	login  []byte // in place of OK
}

func (h *hostile) start() string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	h.t.Cleanup(func() { l.Close() })
	cert := dbtest.DBCA.Pair("server", "127.0.0.1")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go h.serve(conn, cert)
		}
	}()
	return l.Addr().String()
}

func (h *hostile) serve(conn net.Conn, cert tls.Certificate) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	g := greeting{version: "10.11.0-MariaDB", thread: 7, caps: mirrored, charset: 45, status: 2}
	b := g.forClient(newSalt())
	if !h.noTLS {
		b[len(g.version)+16] |= byte(proto.CLIENT_SSL >> 8) // the second byte of the capabilities
	}
	conn.Write(append(appendPacket(nil, h.first, b), h.before...))
	if _, _, err := readPacket(conn, 64); err != nil {
		return
	}
	inner := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
	if _, _, err := readPacket(inner, 4096); err != nil {
		return
	}
	ok := h.login
	if ok == nil {
		ok = appendPacket(nil, 3, []byte{0, 0, 0, 2, 0, 0, 0})
	}
	inner.Write(ok)
	if h.script != nil {
		h.script(inner)
	}
}

// TestA111_FileThatNobodyNamed: a server that was taken over asks for the
// client's files.
func TestA111_FileThatNobodyNamed(t *testing.T) {
	const named = "load data local infile '/tmp/named' into table t"
	for name, row := range map[string]struct {
		command byte
		text    string
		caps    uint32
		file    string
		ahead   string // a command sent behind the first
		passes  bool
	}{
		"named":                {proto.COM_QUERY, named, proto.CLIENT_LOCAL_FILES, "/tmp/named", "", true},
		"in double quotes":     {proto.COM_QUERY, `load data concurrent local infile "/tmp/named" into table t`, proto.CLIENT_LOCAL_FILES, "/tmp/named", "", true},
		"second statement":     {proto.COM_QUERY, "do 1; /*!50000 LOAD XML LOCAL INFILE */ '/tmp/named' into table t", proto.CLIENT_LOCAL_FILES, "/tmp/named", "", true},
		"escapes":              {proto.COM_QUERY, `load data local infile 'C:\\it\'s ''here''' into table t`, proto.CLIENT_LOCAL_FILES, `C:\it's 'here'`, "", true},
		"escapes are off":      {proto.COM_QUERY, `load data local infile 'C:\new' into table t`, proto.CLIENT_LOCAL_FILES, `C:\new`, "", true},
		"another":              {proto.COM_QUERY, named, proto.CLIENT_LOCAL_FILES, "/etc/passwd", "", false},
		"a part of it":         {proto.COM_QUERY, named, proto.CLIENT_LOCAL_FILES, "/tmp", "", false},
		"no name":              {proto.COM_QUERY, named, proto.CLIENT_LOCAL_FILES, "", "", false},
		"a long name":          {proto.COM_QUERY, named, proto.CLIENT_LOCAL_FILES, strings.Repeat("x", 5000), "", false},
		"of a query":           {proto.COM_QUERY, "select '/tmp/named'", proto.CLIENT_LOCAL_FILES, "/tmp/named", "", false},
		"in a string":          {proto.COM_QUERY, `select "load data local infile '/tmp/named'"`, proto.CLIENT_LOCAL_FILES, "/tmp/named", "", false},
		"in a comment":         {proto.COM_QUERY, "select 1 -- load data local infile '/tmp/named'", proto.CLIENT_LOCAL_FILES, "/tmp/named", "", false},
		"of the server":        {proto.COM_QUERY, "load data infile '/tmp/named' into table t", proto.CLIENT_LOCAL_FILES, "/tmp/named", "", false},
		"in what may be one":   {proto.COM_QUERY, `insert into t values ('C:\', ', load data local infile "/tmp/named" ,')`, proto.CLIENT_LOCAL_FILES, "/tmp/named", "", false},
		"behind an escape":     {proto.COM_QUERY, `insert into t values ('it\', load data local infile "/tmp/named" ,')`, proto.CLIENT_LOCAL_FILES, "/tmp/named", "", false},
		"in what may be named": {proto.COM_QUERY, `select "C:\", 'x" , load data local infile ''/tmp/named'' , "y'`, proto.CLIENT_LOCAL_FILES, "/tmp/named", "", false},
		"behind escapes":       {proto.COM_QUERY, `set @a = 'C:\\', @b = "it's"; load data local infile '/tmp/named' into table t`, proto.CLIENT_LOCAL_FILES, "/tmp/named", "", true},
		"not agreed on":        {proto.COM_QUERY, named, 0, "/tmp/named", "", false},
		"of a PREPARE":         {proto.COM_STMT_PREPARE, named, proto.CLIENT_LOCAL_FILES, "/tmp/named", "", false},
		"a command behind it":  {proto.COM_QUERY, named, proto.CLIENT_LOCAL_FILES, "/tmp/named", "select 1", false},
		"an answer to nothing": {proto.COM_PING, "", proto.CLIENT_LOCAL_FILES, "/tmp/named", "", true}, // one packet of any kind, which no client takes for a request
	} {
		t.Run(name, func(t *testing.T) {
			h := &hostile{t: t, script: func(conn net.Conn) {
				readPacket(conn, 4096)
				if row.ahead != "" {
					readPacket(conn, 4096)
				}
				conn.Write(appendPacket(nil, 1, append([]byte{0xfb}, row.file...)))
				io.Copy(io.Discard, conn)
			}}
			r := newRig(t, func(r *rig) { r.server.Target = database.Target{Address: h.start()} })
			c := r.dialRaw()
			c.login("alice", row.caps)
			b := appendPacket(nil, 0, append([]byte{row.command}, row.text...))
			if row.ahead != "" {
				b = append(b, appendPacket(nil, 0, append([]byte{proto.COM_QUERY}, row.ahead...))...)
			}
			c.send(b)
			payload, seq := c.receive()
			if passed := payload[0] == 0xfb; passed != row.passes || seq != 1 {
				t.Fatalf("passed %v: %q", passed, payload)
			}
			if row.passes {
				return
			}
			if code, _, text, err := parseErr(payload); err != nil || code == 0 {
				t.Errorf("%d %s %v", code, text, err)
			}
			c.Close()
			if err := r.Result(); !errors.Is(err, sallyport.ErrDenied) && !errors.Is(err, sallyport.ErrInvalid) {
				t.Error(err)
			}
			r.gate.Await(t, "db.session.malformed_packet", 1)
		})
	}
}

// TestA111_FileIsNoCommand: what a client sends as a file is not read as
// commands, what comes behind it is, and its packets count on.
func TestA111_FileIsNoCommand(t *testing.T) {
	got := make(chan string, 32) // also of the connections that end a session's thread
	h := &hostile{t: t, script: func(conn net.Conn) {
		readPacket(conn, 4096)
		conn.Write(appendPacket(nil, 1, []byte("\xfbf")))
		for range 2 {
			var head [headerSize]byte
			io.ReadFull(conn, head[:])
			b := make([]byte, length(head[:]))
			io.ReadFull(conn, b)
			got <- string(b)
		}
		conn.Write(appendPacket(nil, 4, []byte{0, 0, 0, 2, 0, 0, 0}))
		b, _, _ := readPacket(conn, 4096)
		got <- string(b)
		io.Copy(io.Discard, conn)
	}}
	r := newRig(t, func(r *rig) { r.server.Target = database.Target{Address: h.start()} })
	c := r.dialRaw()
	c.login("alice", proto.CLIENT_LOCAL_FILES)
	c.command(proto.COM_QUERY, "load data local infile 'f' into table t")
	c.receive()
	c.send(append(appendPacket(nil, 2, []byte("\x03drop table a")), 0, 0, 0, 3))
	if payload, _ := c.receive(); payload[0] != 0 {
		t.Fatalf("%q", payload)
	}
	c.command(proto.COM_QUERY, "select 2")
	for _, want := range []string{"\x03drop table a", "", "\x03select 2"} {
		if text := <-got; text != want {
			t.Errorf("the server got %q, want %q", text, want)
		}
	}
	if e := r.gate.All("db.session.query"); len(e) != 2 || e[1].Fields["db_query"] != "select 2" {
		t.Errorf("%+v", e)
	}
	// Again, with a packet that does not count on.
	c = r.dialRaw()
	c.login("alice", proto.CLIENT_LOCAL_FILES)
	c.command(proto.COM_QUERY, "load data local infile 'f' into table t")
	c.receive()
	c.send(appendPacket(nil, 0, []byte("\x03drop table b")))
	if code, _ := c.fatal(); code != 1156 {
		t.Errorf("error %d", code)
	}
}

// TestFileThatTheServerEnds: a server that answers before the end of the file that
// it asked for could take what the client said next, as its file, for a command
// that nobody has seen.
func TestFileThatTheServerEnds(t *testing.T) {
	got := make(chan string, 8)
	h := &hostile{t: t, script: func(conn net.Conn) {
		defer close(got)
		readPacket(conn, 4096)
		conn.Write(appendPacket(nil, 1, []byte("\xfb/tmp/named")))
		conn.Write(appendPacket(nil, 2, errPacket(1205, "HY000", "gave up")))
		for {
			p, _, err := readPacket(conn, 4096)
			if err != nil {
				return
			}
			got <- string(p)
		}
	}}
	r := newRig(t, func(r *rig) { r.server.Target = database.Target{Address: h.start()} })
	c := r.dialRaw()
	c.login("alice", proto.CLIENT_LOCAL_FILES)
	c.command(proto.COM_QUERY, "load data local infile '/tmp/named' into table t")
	if p, _ := c.receive(); p[0] != 0xfb {
		t.Fatalf("%q", p)
	}
	if code, text := c.fatal(); code != 1835 || !strings.Contains(text, "before the end of the file") {
		t.Errorf("%d %s", code, text)
	}
	c.Write(appendPacket(nil, 2, []byte("\x03drop table unrecorded")))
	for p := range got {
		t.Errorf("the server got %q", p)
	}
	c.Close()
	if err := r.Result(); !errors.Is(err, sallyport.ErrInvalid) {
		t.Error(err)
	}
}

// TestFullPacketOfAFile: the empty packet behind a full one continues it, and is
// not the file's end.
func TestFullPacketOfAFile(t *testing.T) {
	ended, answers := 0, true
	var seen []string
	s := splitter{limit: 1 << 20, see: func(b []byte) error { seen = append(seen, string(b)); return nil }}
	s.file = func() (byte, bool) { return 2, answers }
	s.ended = func() { ended++; answers = false }
	give := func(b []byte) {
		t.Helper()
		for len(b) > 0 {
			n := copy(s.Space(), b)
			b = b[n:]
			if pass, err := s.take(n); err != nil || len(pass) != n {
				t.Fatalf("%d of %d bytes pass: %v", len(pass), n, err)
			}
		}
	}
	give(append([]byte{0xff, 0xff, 0xff, 2}, make([]byte, maxPayload)...))
	give([]byte{0, 0, 0, 3})
	give(appendPacket(nil, 4, []byte("more")))
	if ended != 0 {
		t.Fatal("a full packet has ended the file")
	}
	give([]byte{0, 0, 0, 5})
	give(appendPacket(nil, 0, []byte("\x03select 1")))
	if ended != 1 || len(seen) != 1 {
		t.Errorf("ended %d times; commands %q", ended, seen)
	}
}

// TestA111_LongCommands: the packets of a command are one, bounded together, and no
// more commands pass at once than may wait for an answer.
func TestA111_LongCommands(t *testing.T) {
	const behind = 5
	var seen []int
	fresh := func() *splitter {
		seen = nil
		return &splitter{
			limit: maxPayload + behind,
			see:   func(b []byte) error { seen = append(seen, len(b)); return nil },
			file:  func() (byte, bool) { return 0, false },
		}
	}
	give := func(s *splitter, b []byte) (err error) {
		for len(b) > 0 && err == nil {
			n := copy(s.Space(), b)
			b = b[n:]
			_, err = s.take(n)
		}
		return err
	}
	full := append([]byte{0xff, 0xff, 0xff, 0, 3}, make([]byte, maxPayload-1)...)

	s := fresh()
	if err := give(s, slices.Concat(full, appendPacket(nil, 1, make([]byte, behind)))); err != nil || !slices.Equal(seen, []int{maxPayload + behind}) {
		t.Errorf("two packets: commands of %d bytes, %v", seen, err)
	}
	s = fresh()
	if err := give(s, slices.Concat(full, appendPacket(nil, 1, make([]byte, behind+1)))); err == nil || len(seen) > 0 {
		t.Errorf("a byte too many: commands of %d bytes, %v", seen, err)
	}

	s = fresh()
	ping := appendPacket(nil, 0, []byte{0x0e})
	n := copy(s.Space(), bytes.Repeat(ping, takeMost+1))
	if n < (takeMost+1)*len(ping) {
		t.Fatalf("room for %d bytes", n)
	}
	pass, err := s.take(n)
	if err != nil || len(pass) != takeMost*len(ping) || !s.more || len(seen) != takeMost {
		t.Errorf("%d bytes of %d commands pass at once, more: %v, %v", len(pass), len(seen), s.more, err)
	}
	if pass, err := s.take(0); err != nil || len(pass) != len(ping) || s.more {
		t.Errorf("then %d bytes, more: %v, %v", len(pass), s.more, err)
	}
}

// TestA111_OnlyLoadLocal: a file is named by LOAD … LOCAL INFILE, and by nothing that
// looks a little like it.
func TestA111_OnlyLoadLocal(t *testing.T) {
	for text, want := range map[string]int{
		"load data local infile 'f' into table t":                         2,
		"load xml concurrent local infile 'f' into table t":               2,
		"load data infile 'local' into table t":                           0,
		"load data x infile 'local' into table t":                         0,
		"select data local infile 'f'":                                    0,
		"select local infile 'f'":                                         0,
		strings.Repeat("load data local infile 'f' into table t; ", 1000): 2 * filesMost,
	} {
		if got := filesOf([]byte(text)); len(got) != want {
			t.Errorf("%.60s: %d spellings, want %d", text, len(got), want)
		}
	}
}

// TestA146_LoginToken: what a plugin sends in a login is bounded before it is read,
// and counted on.
func TestA146_LoginToken(t *testing.T) {
	for name, row := range map[string]struct {
		size int
		seq  byte
		ok   bool
	}{
		"nothing":       {0, 3, true},
		"the most":      {tokenMax, 3, true},
		"a byte beyond": {tokenMax + 1, 3, false},
		"out of order":  {1, 2, false},
	} {
		in := bytes.NewReader(appendPacket(nil, row.seq, make([]byte, row.size)))
		r := &response{seq: 2}
		b, err := r.token(in)
		if (err == nil) != row.ok || row.ok && len(b) != row.size || !row.ok && in.Len() != row.size {
			t.Errorf("%s: %d bytes, %d left, %v", name, len(b), in.Len(), err)
		}
	}
}

// TestA111_Server: a server, or who is between, that wants another way than TLS
// with a certificate.
func TestA111_Server(t *testing.T) {
	for name, row := range map[string]struct {
		h    hostile
		want string
	}{
		"no TLS":               {hostile{noTLS: true}, "does not offer TLS"},
		"greets out of order":  {hostile{first: 1}, "not reachable"},
		"bytes before TLS":     {hostile{before: "\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00"}, "not reachable"},
		"password in clear":    {hostile{login: appendPacket(nil, 3, []byte("\xfemysql_clear_password\x00"))}, "asks for a password"},
		"an old password":      {hostile{login: appendPacket(nil, 3, []byte("\xfe"))}, "asks for a password"},
		"dialog":               {hostile{login: appendPacket(nil, 3, []byte("\xfedialog\x00\x04Password: "))}, "asks for a password"},
		"full authentication":  {hostile{login: appendPacket(nil, 3, []byte("\x01\x04"))}, "asks for a password"},
		"out of order":         {hostile{login: appendPacket(nil, 9, []byte{0, 0, 0, 2, 0, 0, 0})}, "not reachable"},
		"a packet of nothing":  {hostile{login: []byte{0, 0, 0, 3}}, "not reachable"},
		"a packet of 16 MiB":   {hostile{login: []byte{0xff, 0xff, 0xff, 3, 0}}, "not reachable"},
		"an error":             {hostile{login: appendPacket(nil, 3, errPacket(1045, "28000", "Access denied for 'alice'@'10.0.0.1'"))}, "does not accept user"},
		"an error of its own":  {hostile{login: appendPacket(nil, 3, errPacket(1049, "42000", "Unknown database 'orders'"))}, "Unknown database 'orders'"},
		"the agent is blocked": {hostile{login: appendPacket(nil, 3, errPacket(1129, "HY000", "Host '10.0.0.1' is blocked"))}, "lets nobody in"},
	} {
		t.Run(name, func(t *testing.T) {
			row.h.t = t
			r := newRig(t, func(r *rig) { r.server.Target = database.Target{Address: row.h.start()} })
			c := r.dialRaw()
			c.send(appendPacket(nil, 1, c.answer(rawCaps, "alice\x00\x00orders\x00mysql_native_password\x00")))
			if _, text := c.fatal(); !strings.Contains(text, row.want) || strings.Contains(text, "10.0.0.1") {
				t.Error(text)
			}
		})
	}
}

// TestA111_LongVersion: a server's version is told to every client, and no longer one
// than there is.
func TestA111_LongVersion(t *testing.T) {
	for _, n := range []int{0, versionMax, versionMax + 1, 3 << 10} {
		g := greeting{version: strings.Repeat("8", n), thread: 7, caps: mirrored, charset: 45, status: 2}
		got, err := parseGreeting(g.forClient(newSalt()))
		if ok := n <= versionMax; ok != (err == nil) || ok && got.version != g.version || !ok && got.version != "" {
			t.Errorf("a version of %d bytes: %d bytes, %v", n, len(got.version), err)
		}
	}
}

// TestA113_NothingHides: the audit log has the text that the server is sent, all of it,
// whatever is in it and however it comes.
func TestA113_NothingHides(t *testing.T) {
	const command = 18 << 20
	r := newRig(t, func(r *rig) {
		r.server.Target.Address = (&hostile{t: t, script: func(conn net.Conn) { io.Copy(io.Discard, conn) }}).start()
		r.server.Bounds.Command, r.server.Bounds.Statement = command, command
	})
	long := "/* " + strings.Repeat("\u00e9 ", 17<<20/3) + "*/ drop table seen" // of two packets
	for i, text := range []string{
		"select 1; /* create table x(); */ drop table y; -- drop table z\n# and\n; select 2",
		"select 1\x00; drop table x", "\x00", " \t\n\vselect 1 ;\x00\x00", "", "select '\r\x1b[2J\u202e'", "/*!50000 drop table x */",
		"select 'caf\xe9\\x41'", "insert into x values ('" + strings.Repeat("\xff\\", 50<<10) + "')", long,
	} {
		for kind, event := range map[byte]struct{ name, field string }{
			proto.COM_QUERY:        {"db.session.query", "db_query"},
			proto.COM_STMT_PREPARE: {"db.session.mysql.statements.prepare", "query"},
		} {
			if kind != proto.COM_QUERY && len(text) > maxPayload {
				continue // packets are put together before anybody looks at the command
			}
			before := len(r.gate.All(event.name))
			c := r.dialRaw()
			c.login("alice", 0)
			payload := append([]byte{kind}, text...)
			seq := byte(0)
			for ; len(payload) >= maxPayload; seq++ {
				c.send(append([]byte{0xff, 0xff, 0xff, seq}, payload[:maxPayload]...))
				payload = payload[maxPayload:]
			}
			c.send(appendPacket(nil, seq, payload))
			c.command(proto.COM_QUIT, "")
			c.Close()
			r.Result()
			var got strings.Builder
			for n, e := range r.gate.All(event.name)[before:] {
				part := e.Fields[event.field].(string)
				if e.Fields["db_query_escaped"] == true {
					part = unescape(t, part)
				}
				if p := e.Fields["db_query_part"]; p != nil && p != int64(n+1) || e.Fields["db_query_truncated"] != nil {
					t.Errorf("%d: part %v, truncated %v", i, p, e.Fields["db_query_truncated"])
				}
				got.WriteString(part)
			}
			if got.String() != text {
				t.Errorf("%d, command %d: %d bytes recorded, %d sent: %.80q", i, kind, got.Len(), len(text), got.String())
			}
		}
	}
}

// unescape reads what database.Escaped has written.
func unescape(t *testing.T, s string) string {
	t.Helper()
	var b strings.Builder
	for len(s) > 0 {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:i])
		switch s = s[i+1:]; {
		case strings.HasPrefix(s, "\\"):
			b.WriteByte('\\')
			s = s[1:]
		case strings.HasPrefix(s, "x"):
			v, err := strconv.ParseUint(s[1:3], 16, 8)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteByte(byte(v))
			s = s[3:]
		default:
			t.Fatalf("a backslash before %.10q", s)
		}
	}
	return b.String()
}

// TestA111_Packets: what is no command, or not to be served, ends the session
// before the server has it.
func TestA111_Packets(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Bounds.Command = 1 << 20 })
	for name, row := range map[string]struct {
		bytes []byte
		code  uint16
	}{
		"another user":         {appendPacket(nil, 0, []byte("\x11bob\x00\x00orders\x00\x2d\x00")), 1045},
		"replication":          {appendPacket(nil, 0, []byte("\x12\x04\x00\x00\x00\x00\x00\x01\x00\x00\x00")), 1045},
		"replication by GTID":  {appendPacket(nil, 0, []byte("\x1e\x00\x00")), 1045},
		"a replica":            {appendPacket(nil, 0, []byte("\x15\x01\x00\x00\x00")), 1045},
		"a table":              {appendPacket(nil, 0, []byte("\x13\x01a\x01b")), 1045},
		"a clone":              {appendPacket(nil, 0, []byte("\x20")), 1045},
		"a command of nothing": {[]byte{0, 0, 0, 0}, 1835},
		"unknown":              {appendPacket(nil, 0, []byte("\x7f")), 1047},
		"several commands":     {appendPacket(nil, 0, []byte("\xfe\x02\x00\x03x")), 1047},
		"a delayed insert":     {appendPacket(nil, 0, []byte("\x10")), 1047},
		"does not begin at 0":  {appendPacket(nil, 1, []byte("\x03select 'smuggled'")), 1156},
		"does not count on":    {append(appendPacket(nil, 0, nil)[:0], 0xff, 0xff, 0xff, 1), 1156},
		"too long":             {[]byte{0xff, 0xff, 0xff, 0, 3}, 1153},
		"EXECUTE short":        {appendPacket(nil, 0, []byte("\x17\x01\x00\x00")), 1835},
		"CLOSE long":           {appendPacket(nil, 0, []byte("\x19\x01\x00\x00\x00\x00")), 1835},
		"SET OPTION short":     {appendPacket(nil, 0, []byte("\x1b\x00")), 1835},
		"LONG DATA short":      {appendPacket(nil, 0, []byte("\x18\x01\x00\x00\x00\x00")), 1835},
		"compressed":           {[]byte{20, 0, 0, 0, 0, 0, 0, 0x78, 0x9c, 0x4b}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(r.gate.All("db.session.malformed_packet"))
			c := r.dialRaw()
			c.login("alice", 0)
			c.send(row.bytes)
			if row.code == 0 { // not whole yet: nothing of it passes
				c.Close()
				r.Result()
				return
			}
			if code, text := c.fatal(); code != row.code {
				t.Errorf("%d %s", code, text)
			}
			c.Close()
			if err := r.Result(); err == nil {
				t.Error("no error")
			}
			e := r.gate.Await(t, "db.session.malformed_packet", before+1)
			if payload := must(base64.StdEncoding.DecodeString(e.Fields["payload"].(string))); e.Code != "TDB06I" || !bytes.HasPrefix(row.bytes, payload) {
				t.Errorf("%+v", e)
			}
		})
	}
	if e := r.gate.All("db.session.query"); len(e) > 0 {
		t.Errorf("taken for a query: %+v", e)
	}
}

// TestA111_NotOffered: what would change how packets are read.
func TestA111_NotOffered(t *testing.T) {
	r := newRig(t)
	c := r.dialRaw()
	if bad := c.g.caps & (proto.CLIENT_COMPRESS | proto.CLIENT_SSL | proto.CLIENT_ZSTD_COMPRESSION_ALGORITHM | proto.CLIENT_QUERY_ATTRIBUTES | proto.CLIENT_OPTIONAL_RESULTSET_METADATA); bad != 0 {
		t.Errorf("offered %#x", bad)
	}
	if c.g.caps&proto.CLIENT_LONG_PASSWORD == 0 {
		t.Error("MariaDB's extended capabilities are offered")
	}
	// A client that wants it all the same gets none of it.
	c.login("alice", proto.CLIENT_COMPRESS|proto.CLIENT_QUERY_ATTRIBUTES)
	c.command(proto.COM_QUERY, "select 1")
	if payload, _ := c.receive(); payload[0] != 1 {
		t.Errorf("%q", payload)
	}
	// TLS inside of TLS.
	c = r.dialRaw()
	c.send(appendPacket(nil, 1, c.answer(rawCaps|proto.CLIENT_SSL, "")))
	if code, text := c.fatal(); code != 1043 || !strings.Contains(text, "TLS inside of TLS") {
		t.Errorf("%d %s", code, text)
	}
}

// TestLengthIsNotBelieved: memory is used for bytes that have come.
func TestLengthIsNotBelieved(t *testing.T) {
	s := splitter{limit: 1 << 30, file: func() (byte, bool) { return 0, false }}
	n := copy(s.Space(), "\xff\xff\xff\x00\x03select")
	if _, err := s.take(n); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Space()); n > database.BufferSize {
		t.Errorf("room for %d bytes", n)
	}
}

// TestRoomIsTheUsers: what is held of long statements counts for who sends them.
func TestRoomIsTheUsers(t *testing.T) {
	l := &live{server: &Server{}, first: &response{}, sess: &session.Session{Identity: sallyport.Identity{Name: "alice"}}}
	if got := newRelay(l, &backend{}).split.User; got != "alice" {
		t.Errorf("it counts for %q", got)
	}
}

// TestLongCommandsHaveABound: commands that are held until they are whole took memory
// without a bound, 64 MiB for each session of a user who sends no end.
func TestLongCommandsHaveABound(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.rooms.OfUser = 512 << 10 })
	for n := range 3 {
		c := r.dialRaw()
		c.login("alice", 0)
		c.send(append([]byte{0, 0, 10, 0, proto.COM_QUERY}, make([]byte, 600<<10)...))
		if code, text := c.fatal(); code != 1041 || !strings.Contains(text, "too many long statements") {
			t.Errorf("%d %s", code, text)
		}
		c.Close()
		if err := r.Result(); !errors.Is(err, sallyport.ErrExhausted) {
			t.Error(err)
		}
		r.gate.Await(t, "db.session.malformed_packet", n+1)
	}
	// What they had is given back.
	c := r.dialRaw()
	c.login("alice", 0)
	c.command(proto.COM_QUERY, "select length('"+strings.Repeat("x", 200<<10)+"')")
	r.gate.Await(t, "db.session.query", 1)
}
