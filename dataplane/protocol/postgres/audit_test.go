package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

// Bounds of package database.
const partSize, oneParameter = 48 << 10, 4 << 10

func discard(sallyport.Event) {}

// recorded returns what see emits.
func recorded(t *testing.T, statement int, kind byte, body []byte) []sallyport.Event {
	t.Helper()
	var got []sallyport.Event
	a := auditor{emit: func(e sallyport.Event) { got = append(got, e) }, base: map[string]any{"db_user": "alice"}, statement: statement}
	if err := a.see(kind, body); err != nil {
		t.Fatal(err)
	}
	return got
}

// text puts the parts of a recorded statement together again.
func text(events []sallyport.Event, field string) string {
	var b strings.Builder
	for _, e := range events {
		b.WriteString(e.Fields[field].(string))
	}
	return b.String()
}

// TestTextInParts: nothing is lost at the seams, and no character is torn.
func TestTextInParts(t *testing.T) {
	for name, c := range map[string]struct {
		text      string
		statement int
		events    int
		kept      int // bytes of text recorded
		escaped   bool
	}{
		"short":                {"select 1", 1 << 20, 1, 8, false},
		"just one":             {strings.Repeat("x", partSize), 1 << 20, 1, partSize, false},
		"one more":             {strings.Repeat("x", partSize+1), 1 << 20, 2, partSize + 1, false},
		"torn at the seam":     {"x" + strings.Repeat("é", partSize), 1 << 20, 3, 2*partSize + 1, false},
		"long characters":      {"xx" + strings.Repeat("😀", partSize/4), 1 << 20, 2, partSize + 2, false},
		"foreign":              {strings.Repeat("\xe9", partSize+1), 1 << 20, 6, partSize + 1, true}, // \\xe9 in an event's line
		"cut":                  {strings.Repeat("x", 3*partSize), 2 * partSize, 2, 2 * partSize, false},
		"cut in a character":   {strings.Repeat("é", 3*partSize), partSize + 1, 1, partSize, false},
		"short and cut":        {"select é", 8, 1, 7, false},
		"cut before its first": {"😀😀", 2, 1, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, m := range []struct {
				kind       byte
				body, name string
			}{{msgQuery, c.text + "\x00", "db_query"}, {msgParse, "s\x00" + c.text + "\x00\x00\x00", "query"}} {
				got := recorded(t, c.statement, m.kind, []byte(m.body))
				if len(got) != c.events {
					t.Errorf("%d events, want %d", len(got), c.events)
				}
				all := text(got, m.name)
				if c.escaped {
					all = strings.ReplaceAll(all, `\xe9`, "\xe9")
				}
				if all != c.text[:c.kept] {
					t.Errorf("%d bytes recorded, want %d", len(all), c.kept)
				}
				last := got[len(got)-1].Fields
				if cut := c.kept < len(c.text); cut != (last["db_query_truncated"] == true) || (cut || len(got) > 1) != (last["db_query_sha256"] == fmt.Sprintf("%x", sha256.Sum256([]byte(c.text)))) {
					t.Errorf("cut %v: %v %v", cut, last["db_query_truncated"], last["db_query_sha256"])
				}
				for i, e := range got {
					if part := e.Fields[m.name].(string); !utf8.ValidString(part) {
						t.Errorf("part %d is not UTF-8", i+1)
					}
					if e.Fields["db_user"] != "alice" || (e.Fields["db_query_escaped"] == true) != c.escaped {
						t.Errorf("part %d: %v", i+1, e.Fields["db_query_escaped"])
					}
					if len(c.text) > partSize && (e.Fields["db_query_part"] != int64(i+1) || e.Fields["db_query_size"] != int64(len(c.text))) {
						t.Errorf("part %v of %v", e.Fields["db_query_part"], e.Fields["db_query_size"])
					}
				}
			}
		})
	}
}

// TestNamesThatServersCut: two names of which the server keeps the same part must
// not pass: what the log says of one could be the other.
func TestNamesThatServersCut(t *testing.T) {
	for name, ok := range map[string]bool{
		"": true, strings.Repeat("n", 63): true, strings.Repeat("n", 64): false,
		strings.Repeat("n", 11) + "\xc3\xa4\xc3\xb6": true, strings.Repeat("n", 15) + "\xe4": false, // 15 bytes, and 16
	} {
		for _, m := range []pgproto3.FrontendMessage{
			&pgproto3.Parse{Name: name, Query: "select 1"}, &pgproto3.Bind{PreparedStatement: name}, &pgproto3.Bind{DestinationPortal: name},
			&pgproto3.Execute{Portal: name}, &pgproto3.Close{ObjectType: 'S', Name: name}, &pgproto3.Close{ObjectType: 'P', Name: name},
		} {
			var recorded []sallyport.Event
			a := auditor{emit: func(e sallyport.Event) { recorded = append(recorded, e) }, base: map[string]any{}, statement: 1 << 20}
			b := must(m.Encode(nil))
			err := a.see(b[0], b[headerSize:])
			if ok != (err == nil) || ok != (len(recorded) == 1) {
				t.Errorf("%T with a name of %d bytes: %v, %d events", m, len(name), err, len(recorded))
			}
		}
	}
}

// TestStartupParameters: what a client sets with the start is in its event.
func TestStartupParameters(t *testing.T) {
	server := &Server{}
	s := &startup{user: "alice", database: "orders", params: []param{{"options", "-c role=postgres"}, {"application_name", "psql"}}}
	use := server.use(&session.Candidate{}, s)
	for _, e := range []sallyport.Event{use.Start, use.Denied} {
		if got := e.Fields["startup_parameters"]; !reflect.DeepEqual(got, []string{"options=-c role=postgres", "application_name=psql"}) {
			t.Errorf("%s: %v", e.Code, got)
		}
	}
}

// TestRecordedBeforeItPasses: while the event is being written, the server has
// nothing of the statement.
func TestRecordedBeforeItPasses(t *testing.T) {
	client, front := dbtest.Ends(t)
	back, server := dbtest.Ends(t)
	r := benchRelay(front, back)
	recorded := make(chan struct{})
	r.live.sess.Emit = func(sallyport.Event) {
		defer close(recorded)
		server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := server.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the server has read %d bytes, %v", n, err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error)
	go func() { ended <- r.Run(ctx, r) }()
	query := must((&pgproto3.Query{String: "drop table orders"}).Encode(nil))
	client.Write(query)
	<-recorded
	server.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(query))
	if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, query) {
		t.Errorf("%q %v", got, err)
	}
	client.NetConn().Close()
	server.NetConn().Close()
	<-ended
}
