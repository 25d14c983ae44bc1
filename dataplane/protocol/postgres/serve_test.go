package postgres

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/tools/peers"
)

func psql(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("psql")
	if err != nil {
		peers.Missing(t, "psql")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, append([]string{"-X", "-A", "-t"}, args...)...)
	cmd.Env = append(cmd.Environ(), "PGAPPNAME=psql-test", "LC_ALL=C.UTF-8")
	return cmd
}

func TestPsql(t *testing.T) {
	r := newRig(t)
	out, err := psql(t, r.psqlString("alice"), "-c", "select current_user, current_database(), current_setting('application_name')").CombinedOutput()
	if err != nil || string(out) != "alice|orders|psql-test\n" {
		t.Fatalf("psql: %v\n%s", err, out)
	}
	if err := r.Result(); err != nil {
		t.Error(err)
	}
	var got []string
	for _, e := range r.gate.All() {
		got = append(got, e.Name+" "+e.Code)
	}
	want := []string{"db.session.start TDB00I", "db.session.query TDB02I", "db.session.end TDB01I"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	start, end := r.gate.All()[0], r.gate.All()[2]
	wantFields := map[string]any{
		"db_service": "orders", "db_protocol": "postgres", "db_uri": r.server.Target.Address, "db_user": "alice", "db_name": "orders",
		"startup_parameters": []string{"application_name=psql-test"},
	}
	if d := cmp.Diff(wantFields, start.Fields); d != "" {
		t.Error(d)
	}
	if rx, tx := end.Fields["rx"].(int64), end.Fields["tx"].(int64); rx == 0 || tx == 0 || end.Fields["error"] != nil {
		t.Errorf("end: %v", end.Fields)
	}
}

func TestSimpleQuery(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice")
	texts := []string{"select 1", "", ";", "select 'é\t\x1b[31m'", "select 'no such' from nowhere"}
	for _, text := range texts {
		_, err := conn.PgConn().Exec(context.Background(), text).ReadAll()
		if err != nil && !strings.Contains(text, "nowhere") {
			t.Errorf("%q: %v", text, err)
		}
	}
	var got []string
	for _, e := range r.gate.All("db.session.query") {
		if e.Code != "TDB02I" || e.Fields["db_user"] != "alice" {
			t.Errorf("event %+v", e)
		}
		got = append(got, e.Fields["db_query"].(string))
	}
	if d := cmp.Diff(texts, got); d != "" {
		t.Error(d)
	}
	conn.Close(context.Background())
	r.Result()
	if n := r.gate.Await(t, "db.session.end", 1).Fields["server_errors"]; n != int64(1) {
		t.Errorf("%v errors of the server, want 1", n)
	}
}

func TestExtendedQuery(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	conn.sendMessages(
		&pgproto3.Parse{Name: "s", Query: "select $1::int4, $2::text, $3::bytea", ParameterOIDs: []uint32{23, 25, 17}},
		&pgproto3.Bind{
			DestinationPortal: "p", PreparedStatement: "s", ParameterFormatCodes: []int16{1, 0, 1},
			Parameters: [][]byte{{0, 0, 0, 7}, []byte("it's"), nil},
		},
		&pgproto3.Describe{ObjectType: 'P', Name: "p"},
		&pgproto3.Execute{Portal: "p"},
		&pgproto3.Close{ObjectType: 'P', Name: "p"},
		&pgproto3.Close{ObjectType: 'S', Name: "s"},
		&pgproto3.Sync{},
	)
	var row []string
	for done := false; !done; {
		switch m := conn.receive().(type) {
		case *pgproto3.DataRow:
			for _, v := range m.Values {
				row = append(row, string(v))
			}
		case *pgproto3.ErrorResponse:
			t.Fatal(m.Message)
		case *pgproto3.ReadyForQuery:
			done = true
		}
	}
	if d := cmp.Diff([]string{"7", "it's", ""}, row); d != "" {
		t.Error(d)
	}
	base := baseFields("orders", r.server.Target.Address, "alice", "orders")
	want := []sallyport.Event{
		{Name: "db.session.postgres.statements.parse", Code: "TPG00I", Fields: map[string]any{"statement_name": "s", "query": "select $1::int4, $2::text, $3::bytea"}},
		{Name: "db.session.postgres.statements.bind", Code: "TPG01I", Fields: map[string]any{
			"statement_name": "s", "portal_name": "p",
			"parameters":        []string{base64.StdEncoding.EncodeToString([]byte{0, 0, 0, 7}), "it's", ""},
			"base64_parameters": []int64{1}, "null_parameters": []int64{3},
		}},
		{Name: "db.session.postgres.statements.execute", Code: "TPG02I", Fields: map[string]any{"portal_name": "p"}},
		{Name: "db.session.postgres.statements.close", Code: "TPG03I", Fields: map[string]any{"portal_name": "p"}},
		{Name: "db.session.postgres.statements.close", Code: "TPG03I", Fields: map[string]any{"statement_name": "s"}},
	}
	for i := range want {
		for k, v := range base {
			want[i].Fields[k] = v
		}
	}
	if d := cmp.Diff(want, r.gate.All()[1:]); d != "" {
		t.Error(d)
	}
}

func TestFunctionCall(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	// 1397 is int4abs.
	conn.sendMessages(&pgproto3.FunctionCall{Function: 1397, ArgFormatCodes: []uint16{0}, Arguments: [][]byte{[]byte("-5")}})
	for {
		m := conn.receive()
		if e, ok := m.(*pgproto3.ErrorResponse); ok {
			t.Fatal(e.Message)
		}
		if f, ok := m.(*pgproto3.FunctionCallResponse); ok && string(f.Result) != "5" {
			t.Errorf("result %q", f.Result)
		}
		if _, ok := m.(*pgproto3.ReadyForQuery); ok {
			break
		}
	}
	e := r.gate.Await(t, "db.session.postgres.function", 1)
	if e.Code != "TPG04I" || e.Fields["function_oid"] != int64(1397) || !cmp.Equal(e.Fields["function_args"], []string{"-5"}) {
		t.Errorf("event %+v", e)
	}
}

func TestPgxPipeline(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice")
	ctx := context.Background()
	if _, err := conn.Exec(ctx, "create temp table n (i int)"); err != nil {
		t.Fatal(err)
	}
	batch := &pgx.Batch{}
	for i := range 200 {
		batch.Queue("insert into n values ($1)", i)
	}
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	p := conn.PgConn().StartPipeline(ctx)
	for range 50 {
		p.SendQueryParams("select count(*) from n", nil, nil, nil, nil)
	}
	p.SendQueryParams("select 1/0", nil, nil, nil, nil)
	p.SendQueryParams("select 'skipped'", nil, nil, nil, nil)
	if err := p.Sync(); err != nil {
		t.Fatal(err)
	}
	rows, fails := 0, 0
	for {
		res, err := p.GetResults()
		if err != nil {
			fails++
			continue
		}
		if rr, ok := res.(*pgconn.ResultReader); ok {
			if got := rr.Read(); got.Err != nil {
				fails++
			} else if string(got.Rows[0][0]) == "200" {
				rows++
			}
			continue
		}
		break
	}
	if err := p.Close(); err != nil {
		t.Log(err)
	}
	if rows != 50 || fails == 0 {
		t.Errorf("%d rows, %d failures", rows, fails)
	}
	// A statement that the server skips was sent, and so is recorded.
	if got := r.gate.All("db.session.postgres.statements.execute"); len(got) < 252 {
		t.Errorf("%d executions recorded", len(got))
	}
	found := false
	for _, e := range r.gate.All("db.session.postgres.statements.parse") {
		found = found || e.Fields["query"] == "select 'skipped'"
	}
	if !found {
		t.Error("a statement behind a failed one is not recorded")
	}
}

func TestA113_NothingHides(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Bounds.Statement = 300 << 10 })
	conn := r.mustConnect("alice")
	ctx := context.Background()
	run := func(text string) {
		t.Helper()
		if _, err := conn.PgConn().Exec(ctx, text).ReadAll(); err != nil {
			t.Fatalf("%.40q: %v", text, err)
		}
	}
	texts := func() []sallyport.Event { return r.gate.All("db.session.query") }

	multi := "select 1; /* create table x(); */ create temp table seen(); -- drop table y\n; select 2"
	run(multi)
	if got := texts()[0].Fields["db_query"]; got != multi {
		t.Errorf("recorded %q", got)
	}

	// Behind a comment longer than one event.
	long := "/*" + strings.Repeat("é ", 60<<10) + "*/ drop table seen"
	run(long)
	var got strings.Builder
	for i, e := range texts()[1:] {
		if e.Fields["db_query_part"] != int64(i+1) || e.Fields["db_query_size"] != int64(len(long)) || e.Fields["db_query_truncated"] != nil {
			t.Errorf("part %v of %v, truncated %v", e.Fields["db_query_part"], e.Fields["db_query_size"], e.Fields["db_query_truncated"])
		}
		got.WriteString(e.Fields["db_query"].(string))
	}
	if got.String() != long {
		t.Errorf("%d bytes recorded, %d sent", got.Len(), len(long))
	}

	// Longer than what is kept.
	before := len(texts())
	run("select '" + strings.Repeat("x", 301<<10) + "'")
	after := texts()[before:]
	last := after[len(after)-1].Fields
	if len(after) != 7 || last["db_query_truncated"] != true || len(last["db_query_sha256"].(string)) != 64 {
		t.Errorf("%d events, last truncated %v", len(after), last["db_query_truncated"])
	}

	// A terminator inside of a Query would end the text for a careless reader.
	rawConn := r.dialRaw("alice")
	rawConn.login("user=alice", "database=orders")
	before = len(texts())
	rawConn.send([]byte("Q\x00\x00\x00\x1dselect 1\x00drop table x\x00\x00\x00\x00"))
	if e := rawConn.fatal(); e.Code != stateProtocol {
		t.Errorf("%s %s", e.Code, e.Message)
	}
	if len(texts()) != before {
		t.Error("half a statement is recorded")
	}
	if e := r.gate.Await(t, "db.session.malformed_packet", 1); e.Code != "TDB06I" {
		t.Errorf("event %+v", e)
	}
}

// TestA113_ExactBytes sends text that is not UTF-8, as a client does whose
// encoding is another.
func TestA113_ExactBytes(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice", "client_encoding=LATIN1")
	if _, err := conn.PgConn().Exec(context.Background(), "select 'caf\xe9\\x41'").ReadAll(); err != nil {
		t.Fatal(err)
	}
	e := r.gate.Await(t, "db.session.query", 1)
	if e.Fields["db_query"] != `select 'caf\xe9\\x41'` || e.Fields["db_query_escaped"] != true {
		t.Errorf("recorded %v", e.Fields)
	}
}

func TestDenied(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.gate.Deny = func(use session.Use) *sallyport.Problem {
			if use.DBUser == "alice" && use.DBName == "orders" {
				return nil
			}
			return sallyport.Denied(fmt.Sprintf("no role lets you use database user %q", use.DBUser), "ask for role dba")
		}
	})
	_, err := r.connect("bob")
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		t.Fatal(err)
	}
	if pgErr.Code != "28000" || pgErr.Severity != "FATAL" || pgErr.Message != `no role lets you use database user "bob"` || pgErr.Hint != "ask for role dba" {
		t.Errorf("%+v", pgErr)
	}
	if err := r.Result(); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("Serve: %v", err)
	}
	if got := r.gate.All(); len(got) != 1 || got[0].Code != "TDB00W" || *got[0].Success {
		t.Errorf("events %+v", got)
	}
	out, err := psql(t, r.psqlString("bob"), "-c", "select 1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), `FATAL:  no role lets you use database user "bob"`) || !strings.Contains(string(out), "HINT:  ask for role dba") {
		t.Errorf("psql: %v\n%s", err, out)
	}
	r.mustConnect("alice")
}

func TestRefusal(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.Refusal = sallyport.Denied("your certificate expired at 12:00", "run: sally login")
	})
	out, err := psql(t, r.psqlString("alice"), "-c", "select 1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "FATAL:  your certificate expired at 12:00") || !strings.Contains(string(out), "HINT:  run: sally login") {
		t.Errorf("psql: %v\n%s", err, out)
	}
}

// TestA19_NamesAsTheServerTakesThem: what is authorized is what the server logs
// in, letter by letter.
func TestA19_NamesAsTheServerTakesThem(t *testing.T) {
	r := newRig(t)
	asked := make(chan session.Use, 1)
	r.gate.Deny = func(use session.Use) *sallyport.Problem { asked <- use; return nil }
	conn := r.mustConnect("alice", "user=Ali ce", "database=Or ders")
	if use := <-asked; use.DBUser != "Ali ce" || use.DBName != "Or ders" {
		t.Errorf("asked for %+v", use)
	}
	var user, db string
	if err := conn.QueryRow(context.Background(), "select session_user, current_database()").Scan(&user, &db); err != nil || user != "Ali ce" || db != "Or ders" {
		t.Errorf("%s %s %v", user, db, err)
	}
	// The server does not fold: another case is another name, for it and for us.
	_, err := r.connect("alice", "user=ALICE")
	if use := <-asked; use.DBUser != "ALICE" {
		t.Errorf("asked for %+v", use)
	}
	if err == nil || !strings.Contains(err.Error(), `role "ALICE" does not exist`) {
		t.Error(err)
	}
	_, err = r.connect("alice", "database=nowhere")
	<-asked
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "3D000" {
		t.Error(err)
	}
}

func TestA19_NamesThatAreRefused(t *testing.T) {
	r := newRig(t)
	long := strings.Repeat("a", 64)
	for _, params := range [][]string{
		{"user=" + long}, {"user=alice", "database=" + long},
		{"user=al\nice"}, {"user=al\x7fice"}, {"user=al\u0085ice"}, {"user=al\xffice"}, {"user=alice", "database=a\x1b[2Jb"},
		{}, {"user="}, {"database=orders"},
		{"user=alice", "user=bob"}, {"user=alice", "database=orders", "database=x"},
		{"user=alice", "replication=true"}, {"user=alice", "replication=database"}, {"user=alice", "replication=t"}, {"user=alice", "replication=1"},
	} {
		conn := r.dialRaw("alice")
		conn.send(startupBytes(protocol30, params...))
		if e := conn.fatal(); e.Severity != "FATAL" || (e.Code != stateNotAuthorized && e.Code != stateProtocol) {
			t.Errorf("%q: %+v", params, e)
		}
		conn.Close()
		r.Result()
	}
	if got := r.gate.All(); len(got) != 0 {
		t.Errorf("asked the gate: %+v", got)
	}
}

// TestA29_NamesNeverChangeTheConnection: what separates words elsewhere is part
// of a name here.
func TestA29_NamesNeverChangeTheConnection(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"orders;user=postgres", "orders user=postgres", "a&b", "a?x=y", "a'b", "a#b", `a"b`, "$user", "postgres://x"} {
		conn := r.dialRaw("alice")
		conn.send(startupBytes(protocol30, "user=alice", "database="+name))
		if e := conn.fatal(); e.Code != "3D000" || e.Message != fmt.Sprintf("database \"%s\" does not exist", name) {
			t.Errorf("%q: %+v", name, e)
		}
	}
}

func TestNegotiateProtocolVersion(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.send(startupBytes(3<<16|9, "user=alice", "_pq_.fast=1", "database=orders", "_pq_.new=x"))
	m, ok := conn.receive().(*pgproto3.NegotiateProtocolVersion)
	if !ok {
		t.Fatalf("%T first", m)
	}
	want := &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: protocol30, UnrecognizedOptions: []string{"_pq_.fast", "_pq_.new"}}
	if d := cmp.Diff(want, m); d != "" {
		t.Error(d)
	}
	for {
		if _, ok := conn.receive().(*pgproto3.ReadyForQuery); ok {
			break
		}
	}
	for _, code := range []uint32{2 << 16, 4 << 16, 0, 1<<32 - 1} {
		conn := r.dialRaw("alice")
		conn.send(startupBytes(code, "user=alice"))
		if e := conn.fatal(); e.Code != stateUnsupported {
			t.Errorf("%d: %+v", code, e)
		}
	}
}

func TestParametersArePreserved(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice", "application_name=näme", "search_path=a,b", "options=-c statement_timeout=7s", "replication=false")
	for name, want := range map[string]string{"application_name": "näme", "search_path": "a,b", "statement_timeout": "7s"} {
		var got string
		if err := conn.QueryRow(context.Background(), "select current_setting($1)", name).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != want && !(name == "application_name" && strings.HasPrefix(got, "n")) {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestSeveralMessagesAtOnce(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	query := must((&pgproto3.Query{String: "select 1"}).Encode(nil))
	all := bytes.Repeat(query, 20)
	for i := range all { // byte by byte: each in a TLS record of its own
		conn.send(all[i : i+1])
	}
	for n := 0; n < 20; {
		if _, ok := conn.receive().(*pgproto3.ReadyForQuery); ok {
			n++
		}
	}
	if got := r.gate.All("db.session.query"); len(got) != 20 {
		t.Errorf("%d recorded", len(got))
	}
}
