package postgres

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
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
				if cut := c.kept < len(c.text); cut != (last["db_query_truncated"] == true) || (cut || len(got) > 1) != (last["db_query_sha256"] != nil) {
					t.Errorf("cut %v: %v %v", cut, last["db_query_truncated"], last["db_query_sha256"])
				}
				for i, e := range got {
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

func TestNamesAreBounded(t *testing.T) {
	got := recorded(t, 1, msgExecute, append(bytes.Repeat([]byte{0xff}, 10_000-9), 0, 0, 0, 0, 0))
	name := got[0].Fields["portal_name"].(string)
	if len(name) > 4*oneParameter+4 || !strings.HasPrefix(name, `\xff`) {
		t.Errorf("%d bytes", len(name))
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
