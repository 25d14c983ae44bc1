package postgres

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"strings"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// Bounds of what one event holds.
const (
	partSize     = 64 << 10 // text of a statement
	oneParameter = 4 << 10  // bytes of a parameter
	allParams    = 64 << 10 // bytes of all parameters; one counts at least 16
	paramCost    = 16
	payloadSize  = 256 // bytes of a malformed packet
)

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
		base:      baseFields(l.sess.Resource.Name, l.server.Target.Address, l.first.user, l.first.database),
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
	e.Fields = map[string]any{"statement_name": printable(m.statement)}
	a.text(e, "query", m.query)
	return nil
}

func (a *auditor) bind(body []byte) error {
	m, err := decodeBind(body)
	if err != nil {
		return err
	}
	fields := m.params.fields("parameters")
	fields["statement_name"] = printable(m.statement)
	fields["portal_name"] = printable(m.portal)
	a.send("db.session.postgres.statements.bind", "TPG01I", fields)
	return nil
}

func (a *auditor) execute(body []byte) error {
	portal, err := decodeExecute(body)
	if err != nil {
		return err
	}
	a.send("db.session.postgres.statements.execute", "TPG02I", map[string]any{"portal_name": printable(portal)})
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
	a.send("db.session.postgres.statements.close", "TPG03I", map[string]any{field: printable(name)})
	return nil
}

func (a *auditor) function(body []byte) error {
	m, err := decodeFunctionCall(body)
	if err != nil {
		return err
	}
	fields := m.args.fields("function_args")
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

// text sends e with the text of a statement in a field, in as many events as
// it needs. The package comment says how they are read.
func (a *auditor) text(e sallyport.Event, field string, text []byte) {
	escape := !utf8.Valid(text)
	kept := text
	if len(text) > a.statement {
		kept = cutAt(text, a.statement, escape)
	}
	fields := maps.Clone(a.base)
	maps.Copy(fields, e.Fields)
	if escape {
		fields["db_query_escaped"] = true
	}
	if len(kept) < len(text) {
		sum := sha256.Sum256(text)
		fields["db_query_sha256"] = hex.EncodeToString(sum[:])
	}
	many := len(text) > partSize
	if many {
		fields["db_query_size"] = int64(len(text))
	}
	for n := int64(1); ; n++ {
		part := cutAt(kept, partSize, escape)
		last := len(part) == len(kept)
		kept = kept[len(part):]
		e.Fields = fields
		if !last {
			e.Fields = maps.Clone(fields)
		} else if _, cut := fields["db_query_sha256"]; cut {
			e.Fields["db_query_truncated"] = true
		}
		if many {
			e.Fields["db_query_part"] = n
		}
		e.Fields[field] = textOf(part, escape)
		a.emit(e)
		if last {
			return
		}
	}
}

// cutAt returns at most size bytes of a text, cut between two characters.
func cutAt(text []byte, size int, escape bool) []byte {
	if len(text) <= size {
		return text
	}
	n := size
	for !escape && n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

func textOf(b []byte, escape bool) string {
	if escape {
		return escaped(b)
	}
	return string(b)
}

// escaped writes bytes that are not UTF-8 so that they can be had back: \xNN for
// each byte that belongs to no character, \\ for a backslash.
func escaped(b []byte) string {
	const digits = "0123456789abcdef"
	var out strings.Builder
	out.Grow(len(b) + 16)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == utf8.RuneError && n == 1:
			out.Write([]byte{'\\', 'x', digits[b[0]>>4], digits[b[0]&15]})
		case r == '\\':
			out.WriteString(`\\`)
		default:
			out.Write(b[:n])
		}
		b = b[n:]
	}
	return out.String()
}

// printable is the name of a statement or a portal; hardly any has more than
// 63 bytes, and only a hostile one more than oneParameter.
func printable(name []byte) string {
	if len(name) > oneParameter {
		return escaped(name[:oneParameter]) + "…"
	}
	return escaped(name)
}

// values are the parameters of one message, bounded.
type values struct {
	list    []string
	base64  []int64 // positions, from 1
	nulls   []int64
	total   int64 // how many there were
	room    int
	dropped bool // something was cut or left out
}

func newValues() values { return values{room: allParams} }

// add takes the next value; nil is NULL.
func (v *values) add(b []byte, binary bool) {
	v.total++
	if v.room < paramCost {
		v.dropped = true
		return
	}
	v.room -= paramCost
	keep := min(len(b), oneParameter, v.room)
	v.dropped = v.dropped || keep < len(b)
	v.room -= keep
	cut := b[:keep]
	switch {
	case b == nil:
		v.nulls = append(v.nulls, v.total)
		v.list = append(v.list, "")
	case binary || !utf8.Valid(cut):
		v.base64 = append(v.base64, v.total)
		v.list = append(v.list, base64.StdEncoding.EncodeToString(cut))
	default:
		v.list = append(v.list, string(cut))
	}
}

// fields are those of the event, with the list under the name given.
func (v *values) fields(name string) map[string]any {
	f := map[string]any{}
	if v.total > 0 {
		f[name] = v.list
	}
	if len(v.base64) > 0 {
		f["base64_"+name] = v.base64
	}
	if len(v.nulls) > 0 {
		f["null_"+name] = v.nulls
	}
	if v.dropped {
		f[name+"_truncated"] = true
		f[name+"_count"] = v.total
	}
	return f
}
