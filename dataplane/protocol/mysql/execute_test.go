package mysql

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	proto "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/google/go-cmp/cmp"
)

// prepare prepares a text without columns or with one, and returns its id.
func (c *raw) prepare(text string) (id string) {
	c.t.Helper()
	c.command(proto.COM_STMT_PREPARE, text)
	p, _ := c.receive()
	if p[0] != 0 {
		c.t.Fatalf("PREPARE: %q", p)
	}
	for range int(p[5]) + int(p[7]) { // columns, parameters
		c.receive()
	}
	return string(p[1:5])
}

// execute executes a statement with a column of text, and returns it; ok is false
// when the server has refused. rest begins with the NULLs.
func (c *raw) execute(id, rest string) (value string, ok bool) {
	c.t.Helper()
	c.command(proto.COM_STMT_EXECUTE, id+"\x00\x01\x00\x00\x00"+rest)
	p, _ := c.receive()
	if p[0] == 0xff {
		return "", false
	}
	c.receive()
	p, _ = c.receive()
	c.receive()
	v := cursor{rest: p[2:]}
	return string(v.counted()), true
}

// TestParametersLie: types that the server takes for no bytes were read as numbers,
// so that what stood behind was recorded as another text than was executed.
func TestParametersLie(t *testing.T) {
	evil, said := "create table evil(i int)", "select 'a harmless thing'"
	for _, kind := range []byte{proto.MYSQL_TYPE_INT24, proto.MYSQL_TYPE_YEAR, proto.MYSQL_TYPE_BIT, proto.MYSQL_TYPE_GEOMETRY} {
		r := newRig(t)
		c := r.dialRaw()
		c.login("alice", proto.CLIENT_DEPRECATE_EOF)
		id := c.prepare("set @q = concat(" + strings.Repeat("coalesce(?,''),", 7) + "?)")
		types := strings.Repeat(string([]byte{kind, 0}), 7) + string([]byte{proto.MYSQL_TYPE_VAR_STRING, 0})
		values := string([]byte{byte(len(evil))}) + evil + "   " + string([]byte{byte(len(said))}) + said
		c.command(proto.COM_STMT_EXECUTE, id+"\x00\x01\x00\x00\x00"+"\x00\x01"+types+values)
		if code, text := c.fatal(); code != 1835 || !strings.Contains(text, fmt.Sprintf("a parameter of type %d", kind)) {
			t.Errorf("type %d: %d %s", kind, code, text)
		}
		if e := r.gate.All("db.session.mysql.statements.execute"); len(e) > 0 {
			t.Errorf("type %d: %v", kind, e[0].Fields)
		}
		r.gate.Await(t, "db.session.malformed_packet", 1)
	}
}

// TestParametersAsTheServerReadsThem: of all types and flags, what stands behind a
// value is recorded as the server reads it, or not at all.
func TestParametersAsTheServerReadsThem(t *testing.T) {
	r := newRig(t)
	const text = "select concat(coalesce(?,'NULL'), '|', coalesce(?,'NULL'), '')"
	payloads := []string{"ab\x03def", "\x03abc\x03def\x00\x00\x00\x03ghi", "\x00\x03def", "\x04\xe8\x07\x01\x02\x03def", "\x08\x00\x00\x00\x00\x00\x01\x02\x03\x03def", "abcd\x03def", "abcdefgh\x03def", "\x03abc\x03def"}
	read := map[byte]bool{}
	for kind := range 256 {
		if kind > int(proto.MYSQL_TYPE_TIME2)+1 && kind < 242 { // no type of any server
			continue
		}
		for _, flags := range []byte{0, proto.PARAM_UNSIGNED, 0x7f} {
			for _, payload := range payloads {
				before := len(r.gate.All("db.session.mysql.statements.execute"))
				c := r.dialRaw()
				c.login("alice", proto.CLIENT_DEPRECATE_EOF)
				id := c.prepare(text)
				c.command(proto.COM_STMT_EXECUTE, id+"\x00\x01\x00\x00\x00"+"\x00\x01"+string([]byte{byte(kind), flags, proto.MYSQL_TYPE_VAR_STRING, 0})+payload)
				p, _ := c.receive()
				var row []byte
				if p[0] != 0xff {
					c.receive()
					p, _ = c.receive()
					v := cursor{rest: p[2:]}
					row = v.counted()
				}
				c.Close()
				r.Result()
				events := r.gate.All("db.session.mysql.statements.execute")[before:]
				if len(events) == 0 { // refused
					if row != nil {
						t.Fatalf("type %d: executed without a record", kind)
					}
					break
				}
				said, _ := events[0].Fields["parameters"].([]string)
				if row == nil || said == nil {
					continue
				}
				read[byte(kind)] = true
				if !bytes.HasSuffix(row, []byte("|"+said[1])) {
					t.Errorf("type %d, flags %#x, %q: recorded %q, executed %q", kind, flags, payload, said, row)
				}
			}
		}
	}
	for _, kind := range []byte{0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 15, 246, 249, 250, 251, 252, 253, 254} {
		if !read[kind] {
			t.Errorf("type %d is never read", kind)
		}
	}
	for _, kind := range []byte{6, 9, 13, 14, 16, 255} {
		if read[kind] {
			t.Errorf("type %d is read", kind)
		}
	}
}

// TestTypesThatTheServerRefused: types of an EXECUTE that the server refused before
// it read them were believed of the next one, which had none.
func TestTypesThatTheServerRefused(t *testing.T) {
	r := newRig(t)
	c := r.dialRaw()
	c.login("alice", proto.CLIENT_DEPRECATE_EOF)
	id := c.prepare("select concat_ws('|',?,?,?,?)")
	text, number := "\xfd\x00", "\x08\x00"
	four := strings.Repeat(text, 4)
	if row, ok := c.execute(id, "\x00\x01"+four+"\x01a\x01b\x01c\x01d"); !ok || row != "a|b|c|d" {
		t.Fatalf("%q", row)
	}
	c.command(proto.COM_STMT_SEND_LONG_DATA, id+"\x63\x00x") // of a parameter that is not there
	if _, ok := c.execute(id, "\x00\x01"+number+number+number+text+"111111112222222233333333\x01d"); ok {
		t.Fatal("executed after long data of no parameter")
	}
	c.command(proto.COM_STMT_RESET, id)
	c.receive()
	// By the types of before: three numbers, and a text of ')', 41 bytes.
	evil := "create table evil(i int)"
	values := "\x18" + evil + "\x00\x26" + fmt.Sprintf("%-38s", "select 'a harmless thing'") + "\x00"
	row, ok := c.execute(id, "\x00\x00"+values)
	if !ok || !strings.HasPrefix(row, evil) {
		t.Fatalf("%q", row)
	}
	// New types count once the server has read them.
	if row, ok := c.execute(id, "\x00\x01"+four+"\x01e\x01f\x01g\x01h"); !ok || row != "e|f|g|h" {
		t.Fatalf("%q", row)
	}
	if row, ok := c.execute(id, "\x00\x00"+"\x01i\x01j\x01k\x01l"); !ok || row != "i|j|k|l" {
		t.Fatalf("%q", row)
	}
	// An answer that has not come is none.
	one := appendPacket(nil, 0, []byte("\x17"+id+"\x00\x01\x00\x00\x00"+"\x00\x01"+four+"\x01m\x01n\x01o\x01p"))
	two := appendPacket(nil, 0, []byte("\x17"+id+"\x00\x01\x00\x00\x00"+"\x00\x00"+"\x01q\x01r\x01s\x01t"))
	c.send(append(one, two...))
	for range 8 {
		c.receive()
	}
	if _, ok := c.execute(id, "\x00\x02"+four+"\x01u\x01v\x01w\x01x"); ok {
		t.Error("executed with a flag that is none")
	}
	var got []string
	for _, e := range r.gate.All("db.session.mysql.statements.execute") {
		if b, _ := base64.StdEncoding.DecodeString(fmt.Sprint(e.Fields["parameters_raw"])); e.Fields["parameters"] == nil {
			got = append(got, "raw "+string(b))
			continue
		}
		got = append(got, strings.Join(e.Fields["parameters"].([]string), "|"))
	}
	want := []string{"a|b|c|d", "3544668469065756977|3617008641903833650|3689348814741910323|d", "raw \x00\x00" + values,
		"e|f|g|h", "i|j|k|l", "m|n|o|p", "raw \x00\x00\x01q\x01r\x01s\x01t"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestReset: what changes how later texts are read is recorded, and a statement of
// before is none, also one whose PREPARE was answered after the reset was sent.
func TestReset(t *testing.T) {
	r := newRig(t)
	c := r.dialRaw()
	c.login("alice", proto.CLIENT_DEPRECATE_EOF)
	c.command(proto.COM_SET_OPTION, "\x00\x00")
	c.receive()
	if e := r.gate.Await(t, "db.session.mysql.set_option", 1); e.Code != "TMY15I" || e.Fields["option"] != int64(0) || e.Fields["db_user"] != "alice" {
		t.Errorf("%+v", e)
	}
	prepare := appendPacket(nil, 0, []byte("\x16select ?"))
	c.send(append(prepare, appendPacket(nil, 0, []byte{proto.COM_RESET_CONNECTION})...))
	p, _ := c.receive()
	for range 3 { // a parameter, a column, OK
		c.receive()
	}
	if _, ok := c.execute(string(p[1:5]), "\x00\x01\xfd\x00\x01x"); ok {
		t.Error("a statement of before is executed")
	}
	if e := r.gate.Await(t, "db.session.mysql.reset_connection", 1); e.Code != "TMY16I" {
		t.Errorf("%+v", e)
	}
	if e := r.gate.Await(t, "db.session.mysql.statements.execute", 1); e.Fields["statement_number"] != nil || e.Fields["parameters_raw"] == nil {
		t.Errorf("taken for a statement that is alive: %v", e.Fields)
	}
}

// TestUnreadParametersAreCut: of those that are not recorded whole there is a hash.
func TestUnreadParametersAreCut(t *testing.T) {
	b := bytes.Repeat([]byte("x"), rawMax)
	if f := unread(b); len(f) != 1 {
		t.Errorf("%v", f)
	}
	b = append(b, 'y')
	sum := sha256.Sum256(b)
	if f := unread(b); f["parameters_sha256"] != hex.EncodeToString(sum[:]) || f["parameters_size"] != int64(rawMax+1) || f["parameters_truncated"] != true {
		t.Errorf("%v", f)
	}
}

// said are the parameters of each EXECUTE as they were recorded, "raw" for those that
// were not read.
func (r *rig) said() []string {
	var out []string
	for _, e := range r.gate.All("db.session.mysql.statements.execute") {
		if v, ok := e.Fields["parameters"].([]string); ok {
			out = append(out, strings.Join(v, "|"))
		} else {
			out = append(out, "raw")
		}
	}
	return out
}

// TestLastStatement: MariaDB takes an id for the statement that was prepared last. What
// was done by it was not known of the statement, so that what an EXECUTE by its own id
// was recorded with were other values than the server's.
func TestLastStatement(t *testing.T) {
	const last = "\xff\xff\xff\xff"
	text, number := "\xfd\x00", "\x03\x00"
	r := newRig(t)
	c := r.dialRaw()
	c.login("alice", proto.CLIENT_DEPRECATE_EOF)
	execute := func(id, rest, want string) {
		t.Helper()
		if row, ok := c.execute(id, rest); !ok || row != want {
			t.Fatalf("%q: %q, %v", rest, row, ok)
		}
	}
	id := c.prepare("select concat_ws('|',?,?)")
	execute(id, "\x00\x01"+number+text+"\x01\x00\x00\x00\x01b", "1|b")
	execute(last, "\x00\x01"+text+text+"\x01a\x01b", "a|b")
	execute(id, "\x00\x00"+"\x03abc\x01d", "abc|d")
	// Long data of a statement, which the last one's reset ends, and its EXECUTE too.
	for range 2 {
		c.command(proto.COM_STMT_SEND_LONG_DATA, id+"\x00\x00evil")
		c.command(proto.COM_STMT_RESET, last)
		c.receive()
		execute(id, "\x00\x01"+text+text+"\x015\x03abc", "5|abc")
		c.command(proto.COM_STMT_RESET, id)
		c.receive()
	}
	c.command(proto.COM_STMT_SEND_LONG_DATA, id+"\x00\x00evil")
	execute(last, "\x00\x01"+text+text+"\x01b", "evil|b")
	execute(id, "\x00\x01"+text+text+"\x015\x03abc", "5|abc")
	c.command(proto.COM_STMT_RESET, id)
	c.receive()
	execute(id, "\x00\x01"+text+text+"\x016\x03abc", "6|abc")
	want := []string{"1|b", "raw", "raw", "raw", "raw", "raw", "raw", "6|abc"}
	if d := cmp.Diff(want, r.said()); d != "" {
		t.Error(d)
	}
	c.command(proto.COM_STMT_SEND_LONG_DATA, last+"\x00\x00evil")
	if code, text := c.fatal(); code != 1835 || !strings.Contains(text, "not given yet") {
		t.Errorf("%d %s", code, text)
	}
}

// TestLongDataAhead: values that were sent for a statement whose PREPARE was not
// answered yet were not known, so that others were recorded in their place.
func TestLongDataAhead(t *testing.T) {
	r := newRig(t)
	c := r.dialRaw()
	c.login("alice", proto.CLIENT_DEPRECATE_EOF)
	id := c.prepare("select 1 from dual where ? = 2")
	next := string([]byte{id[0] + 1}) + id[1:] // ids are counted
	ahead := appendPacket(nil, 0, []byte("\x16select concat_ws('|',?,?)"))
	c.send(append(ahead, appendPacket(nil, 0, []byte("\x18"+next+"\x00\x00evil"))...))
	if code, text := c.fatal(); code != 1835 || !strings.Contains(text, "not given yet") {
		t.Errorf("%d %s", code, text)
	}
	if e := r.gate.All("db.session.mysql.statements.send_long_data"); len(e) > 0 {
		t.Errorf("%v", e[0].Fields)
	}
}

// TestStatementsHaveABound: types of parameters were remembered for as many statements
// as there may be, 131 KB of each that a server says has 65,535.
func TestStatementsHaveABound(t *testing.T) {
	if paramsMost > 1<<17 {
		t.Errorf("parameters of %d are remembered", paramsMost)
	}
	k := newTalk()
	known := func() (n int) {
		for id := range uint32(statementsMost) {
			k.statement(id, func(st *statement) {
				if st != nil {
					n++
				}
			})
		}
		return n
	}
	for range 2 {
		for id := range uint32(statementsMost) {
			k.prepared(pending{}, id, 65535)
		}
		if n := known(); n != paramsMost/65535 {
			t.Errorf("%d statements are remembered", n)
		}
	}
	for id := range uint32(statementsMost) {
		k.forget(id)
	}
	k.prepared(pending{}, 1, paramsMost)
	k.reset()
	k.prepared(pending{}, 2, paramsMost)
	if n := known(); n != 1 {
		t.Errorf("%d statements are remembered in the room of others", n)
	}
}
