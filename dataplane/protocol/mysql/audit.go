package mysql

import (
	"encoding/base64"
	"fmt"
	"maps"

	proto "github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// payloadSize is how much an event holds of a malformed packet.
const payloadSize = 256

// baseFields are the fields that all events of a session have.
func baseFields(service, uri, user, schema string) map[string]any {
	return map[string]any{
		"db_service":  service,
		"db_protocol": "mysql",
		"db_uri":      uri,
		"db_user":     user,
		"db_name":     schema,
	}
}

// auditor records a client's commands, each before it passes to the server.
type auditor struct {
	emit       func(sallyport.Event)
	base       map[string]any
	statement  int // bytes of a statement's text that are recorded
	files      bool
	talk       *talk
	prepares   int64
	terminated bool // COM_QUIT was seen: what follows is not read
}

func newAuditor(l *live, t *talk) *auditor {
	return &auditor{
		emit:      l.sess.Emit,
		base:      baseFields(l.sess.Resource.Name, l.server.Target.Address, l.first.user, l.first.schema),
		statement: l.bounds.Statement,
		files:     l.first.caps&proto.CLIENT_LOCAL_FILES != 0,
		talk:      t,
	}
}

// see records one command and puts it among those that wait for an answer. An
// error means that it does not pass.
func (a *auditor) see(command []byte) error {
	p, err := a.command(command[0], command[1:])
	if err != nil {
		return err
	}
	return a.talk.push(p)
}

// command records a command by its number (page "Command Phase").
func (a *auditor) command(kind byte, body []byte) (pending, error) {
	one := pending{answer: answerOne}
	switch kind {
	case proto.COM_QUIT:
		a.terminated = true
		return pending{}, nil
	case proto.COM_QUERY:
		return a.query(body), nil
	case proto.COM_PING, proto.COM_STATISTICS:
		return one, nil
	case proto.COM_SET_OPTION:
		return one, a.setOption(body)
	case proto.COM_RESET_CONNECTION:
		a.talk.reset()
		one.resets = true
		return one, a.plain("reset_connection", "TMY16I", nil)
	case proto.COM_INIT_DB:
		return one, a.schema("init_db", "TMY07I", body)
	case proto.COM_CREATE_DB:
		return one, a.schema("create_db", "TMY08I", body)
	case proto.COM_DROP_DB:
		return one, a.schema("drop_db", "TMY09I", body)
	case proto.COM_SHUTDOWN:
		return one, a.plain("shut_down", "TMY10I", nil)
	case proto.COM_PROCESS_KILL:
		return one, a.kill(body)
	case proto.COM_DEBUG:
		return one, a.plain("debug", "TMY12I", nil)
	case proto.COM_REFRESH:
		return one, a.refresh(body)
	case proto.COM_PROCESS_INFO:
		return pending{answer: answerResults}, nil
	case proto.COM_FIELD_LIST:
		return pending{answer: answerFields}, a.fieldList(body)
	}
	return a.prepared(kind, body)
}

// prepared records the commands of prepared statements, and refuses what is
// left: COM_CHANGE_USER, replication, and what nobody knows.
func (a *auditor) prepared(kind byte, body []byte) (pending, error) {
	switch kind {
	case proto.COM_STMT_PREPARE:
		return a.prepare(body), nil
	case proto.COM_STMT_EXECUTE:
		return a.execute(body)
	case proto.COM_STMT_SEND_LONG_DATA:
		return pending{}, a.longData(body)
	case proto.COM_STMT_CLOSE:
		return pending{}, a.close(body)
	case proto.COM_STMT_RESET:
		return pending{answer: answerOne}, a.reset(body)
	case proto.COM_STMT_FETCH:
		return pending{answer: answerRows}, a.fetch(body)
	case proto.COM_CHANGE_USER:
		return pending{}, refuse(faultDenied(), sallyport.ErrDenied, "another database user in the same session is not served", "connect again as that user")
	case proto.COM_BINLOG_DUMP, proto.COM_BINLOG_DUMP_GTID, proto.COM_TABLE_DUMP, proto.COM_REGISTER_SLAVE, proto.COM_CLONE, proto.COM_SUBSCRIBE_GROUP_REPLICATION_STREAM:
		return pending{}, refuse(faultDenied(), sallyport.ErrDenied, "replication is not served", "connect straight to the database for replication")
	}
	return pending{}, refuse(faultUnknownCommand(), sallyport.ErrInvalid, fmt.Sprintf("malformed packet: unknown command %#02x", kind), "")
}

func (a *auditor) query(text []byte) pending {
	a.text(sallyport.Event{Name: "db.session.query", Code: "TDB02I"}, "db_query", text)
	p := pending{answer: answerResults}
	if a.files {
		p.files = filesOf(text)
	}
	return p
}

func (a *auditor) prepare(text []byte) pending {
	a.prepares++
	e := sallyport.Event{Name: "db.session.mysql.statements.prepare", Code: "TMY00I", Fields: map[string]any{"statement_number": a.prepares}}
	a.text(e, "query", text)
	return pending{answer: answerPrepare, number: a.prepares}
}

func (a *auditor) execute(body []byte) (pending, error) {
	p := pending{answer: answerResults}
	c := cursor{rest: body}
	id := c.uint32()
	c.bytes(executeFixed - 4)
	if c.short {
		return p, malformedf("COM_STMT_EXECUTE that ends early")
	}
	fields := map[string]any{}
	var refused error
	if id == lastStatement {
		a.talk.last()
	}
	a.talk.statement(id, func(st *statement) {
		if st == nil {
			fields = unread(c.rest)
			return
		}
		turn := st.turn
		v, ok, err := st.values(c.rest)
		if refused = err; ok {
			fields = v.Fields("parameters")
		} else {
			fields = unread(c.rest)
		}
		if st.turn > turn {
			p.types, p.turn = st, st.turn
		}
		fields["statement_number"] = st.number
		clear(st.long)
	})
	if refused != nil {
		return p, refused
	}
	fields["statement_id"] = int64(id)
	return p, a.plain("statements.execute", "TMY01I", fields)
}

func (a *auditor) longData(body []byte) error {
	c := cursor{rest: body}
	id, param := c.uint32(), int(c.uint16())
	if c.short {
		return malformedf("COM_STMT_SEND_LONG_DATA that ends early")
	}
	// Of which of its parameters an EXECUTE has the values would not be known.
	if id == lastStatement || !a.talk.given(id) {
		return malformedf("COM_STMT_SEND_LONG_DATA for a statement that is not given yet")
	}
	fields := map[string]any{}
	a.talk.statement(id, func(st *statement) {
		if st == nil || param >= st.params {
			return
		}
		if st.long == nil {
			st.long = map[int]bool{}
		}
		st.long[param] = true
		fields["statement_number"] = st.number
	})
	v := database.NewValues()
	v.Add(c.rest, false)
	maps.Copy(fields, v.Fields("data"))
	fields["statement_id"], fields["parameter_id"], fields["data_size"] = int64(id), int64(param), int64(len(c.rest))
	return a.plain("statements.send_long_data", "TMY02I", fields)
}

func (a *auditor) close(body []byte) error {
	fields, id, err := a.ofStatement(body, 4)
	if err != nil {
		return err
	}
	a.talk.forget(id)
	return a.plain("statements.close", "TMY03I", fields)
}

func (a *auditor) reset(body []byte) error {
	fields, id, err := a.ofStatement(body, 4)
	if err != nil {
		return err
	}
	if id == lastStatement {
		a.talk.last()
	}
	a.talk.statement(id, func(st *statement) {
		if st != nil {
			clear(st.long)
			st.blind = false
		}
	})
	return a.plain("statements.reset", "TMY04I", fields)
}

func (a *auditor) fetch(body []byte) error {
	fields, _, err := a.ofStatement(body, 8)
	if err != nil {
		return err
	}
	c := cursor{rest: body[4:]}
	fields["rows_count"] = int64(c.uint32())
	return a.plain("statements.fetch", "TMY05I", fields)
}

// ofStatement reads a statement's id, which a body of a known length begins with.
func (a *auditor) ofStatement(body []byte, size int) (map[string]any, uint32, error) {
	if len(body) != size {
		return nil, 0, malformedf("a command of a statement with %d bytes", len(body))
	}
	c := cursor{rest: body}
	id := c.uint32()
	fields := map[string]any{"statement_id": int64(id)}
	a.talk.statement(id, func(st *statement) {
		if st != nil {
			fields["statement_number"] = st.number
		}
	})
	return fields, id, nil
}

func (a *auditor) schema(name, code string, body []byte) error {
	return a.plain(name, code, map[string]any{"schema_name": database.Printable(body)})
}

func (a *auditor) kill(body []byte) error {
	c := cursor{rest: body}
	id := c.uint32()
	if c.short {
		return malformedf("COM_PROCESS_KILL that ends early")
	}
	return a.plain("process_kill", "TMY11I", map[string]any{"process_id": int64(id)})
}

func (a *auditor) refresh(body []byte) error {
	c := cursor{rest: body}
	what := c.byte()
	if c.short {
		return malformedf("COM_REFRESH that ends early")
	}
	return a.plain("refresh", "TMY13I", map[string]any{"subcommand": int64(what)})
}

// fieldList is an old way to list a table's columns, which mysql uses to
// complete names.
func (a *auditor) fieldList(body []byte) error {
	c := cursor{rest: body}
	table := c.text()
	if c.short {
		return malformedf("COM_FIELD_LIST that ends early")
	}
	return a.plain("field_list", "TMY14I", map[string]any{"table": database.Printable(table), "wildcard": database.Printable(c.rest)})
}

// setOption is whether a text may be of several statements.
func (a *auditor) setOption(body []byte) error {
	c := cursor{rest: body}
	what := c.uint16()
	if c.short {
		return malformedf("COM_SET_OPTION that ends early")
	}
	return a.plain("set_option", "TMY15I", map[string]any{"option": int64(what)})
}

// refused records what ended the session.
func (a *auditor) refused(why *refusal, packet []byte) {
	a.send("db.session.malformed_packet", "TDB06I", map[string]any{
		"error":   why.Fact,
		"payload": base64.StdEncoding.EncodeToString(packet[:min(len(packet), payloadSize)]),
	})
}

// plain records an event of this protocol.
func (a *auditor) plain(name, code string, fields map[string]any) error {
	if fields == nil {
		fields = map[string]any{}
	}
	a.send("db.session.mysql."+name, code, fields)
	return nil
}

func (a *auditor) send(name, code string, fields map[string]any) {
	maps.Copy(fields, a.base)
	a.emit(sallyport.Event{Name: name, Code: code, Fields: fields})
}

// text sends e with the text of a statement in a field.
func (a *auditor) text(e sallyport.Event, field string, text []byte) {
	database.Statement{Event: e, Field: field, Text: text, Most: a.statement}.Record(a.base, a.emit)
}
