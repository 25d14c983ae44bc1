package postgres

import (
	"encoding/base64"
	"maps"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// payloadSize is how much an event holds of a malformed packet.
const payloadSize = 256

// baseFields are the fields that all events of a session have.
func baseFields(service, uri, user, database string) map[string]any {
	return map[string]any{
		"db_service":  service,
		"db_protocol": "postgres",
		"db_uri":      uri,
		"db_user":     user,
		"db_name":     database,
	}
}

// fields adds the parameters that go to the server with the start: some change what
// statements mean, such as options=-c role=… and -c search_path=….
func (s *startup) fields(f map[string]any) map[string]any {
	v := database.NewValues()
	for _, p := range s.params {
		v.Add([]byte(p.name+"="+p.value), false)
	}
	maps.Copy(f, v.Fields("startup_parameters"))
	return f
}

// auditor records a client's messages, each before it passes to the server.
type auditor struct {
	emit       func(sallyport.Event)
	base       map[string]any
	statement  int  // bytes of a statement's text that are recorded
	terminated bool // Terminate was seen: what follows is not read
}

func newAuditor(l *live) *auditor {
	return &auditor{
		emit:      l.sess.Emit,
		base:      baseFields(l.name, l.server.Target.Address, l.first.user, l.first.database),
		statement: l.bounds.Statement,
	}
}

// see records one message. An error means that the body is not what its type
// promises; the server would not accept it either.
func (a *auditor) see(kind byte, body []byte) error {
	switch kind {
	case msgQuery:
		return a.query(body)
	case msgParse:
		return a.parse(body)
	case msgBind:
		return a.bind(body)
	case msgExecute:
		return a.execute(body)
	case msgClose:
		return a.close(body)
	case msgFunctionCall:
		return a.function(body)
	case msgTerminate:
		a.terminated = true
	}
	return nil
}

func (a *auditor) query(body []byte) error {
	text, err := decodeQuery(body)
	if err != nil {
		return err
	}
	a.text(sallyport.Event{Name: "db.session.query", Code: "TDB02I"}, "db_query", text)
	return nil
}

func (a *auditor) parse(body []byte) error {
	m, err := decodeParse(body)
	if err != nil {
		return err
	}
	e := sallyport.Event{Name: "db.session.postgres.statements.parse", Code: "TPG00I"}
	e.Fields = map[string]any{"statement_name": database.Printable(m.statement)}
	a.text(e, "query", m.query)
	return nil
}

func (a *auditor) bind(body []byte) error {
	m, err := decodeBind(body)
	if err != nil {
		return err
	}
	fields := m.params.Fields("parameters")
	fields["statement_name"] = database.Printable(m.statement)
	fields["portal_name"] = database.Printable(m.portal)
	a.send("db.session.postgres.statements.bind", "TPG01I", fields)
	return nil
}

func (a *auditor) execute(body []byte) error {
	portal, err := decodeExecute(body)
	if err != nil {
		return err
	}
	a.send("db.session.postgres.statements.execute", "TPG02I", map[string]any{"portal_name": database.Printable(portal)})
	return nil
}

func (a *auditor) close(body []byte) error {
	what, name, err := decodeClose(body)
	if err != nil {
		return err
	}
	field := "statement_name"
	if what == 'P' {
		field = "portal_name"
	}
	a.send("db.session.postgres.statements.close", "TPG03I", map[string]any{field: database.Printable(name)})
	return nil
}

func (a *auditor) function(body []byte) error {
	m, err := decodeFunctionCall(body)
	if err != nil {
		return err
	}
	fields := m.args.Fields("function_args")
	fields["function_oid"] = int64(m.oid)
	a.send("db.session.postgres.function", "TPG04I", fields)
	return nil
}

// malformed records what ended the session.
func (a *auditor) malformed(why *refusal, packet []byte) {
	a.send("db.session.malformed_packet", "TDB06I", map[string]any{
		"error":   why.Fact,
		"payload": base64.StdEncoding.EncodeToString(packet[:min(len(packet), payloadSize)]),
	})
}

func (a *auditor) send(name, code string, fields map[string]any) {
	maps.Copy(fields, a.base)
	a.emit(sallyport.Event{Name: name, Code: code, Fields: fields})
}

// text sends e with the text of a statement in a field.
func (a *auditor) text(e sallyport.Event, field string, text []byte) {
	database.Statement{Event: e, Field: field, Text: text, Most: a.statement}.Record(a.base, a.emit)
}
