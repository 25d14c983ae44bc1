package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// lines is a source of random lines of text, with the digest of what was read.
type lines struct {
	left int
	rnd  *rand.ChaCha8
	sum  hash.Hash
}

func (l *lines) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), l.left)
	l.rnd.Read(p[:n])
	for i, c := range p[:n] {
		p[i] = "abcdefghijklmnopqrstuvwxyzäöABCD"[c&15]
		if at := l.left - i; at%113 == 1 || at == 1 {
			p[i] = '\n'
		}
	}
	l.left -= n
	l.sum.Write(p[:n])
	return n, nil
}

func TestCopy(t *testing.T) {
	size := 100 << 20
	if testing.Short() {
		size = 10 << 20
	}
	r := newRig(t)
	conn := r.mustConnect("alice")
	ctx := context.Background()
	if _, err := conn.Exec(ctx, "create unlogged table if not exists bulk (line text); truncate bulk"); err != nil {
		t.Fatal(err)
	}
	in := &lines{left: size, rnd: rand.NewChaCha8([32]byte{1}), sum: sha256.New()}
	if _, err := conn.PgConn().CopyFrom(ctx, in, "copy bulk from stdin"); err != nil {
		t.Fatal(err)
	}
	out := sha256.New()
	if _, err := conn.PgConn().CopyTo(ctx, out, "copy bulk to stdout"); err != nil {
		t.Fatal(err)
	}
	if want, got := hex.EncodeToString(in.sum.Sum(nil)), hex.EncodeToString(out.Sum(nil)); want != got {
		t.Errorf("%d bytes in %s, out %s", size, want, got)
	}
	if _, err := conn.Exec(ctx, "drop table bulk"); err != nil {
		t.Fatal(err)
	}
	conn.Close(ctx)
	r.Result()
	end := r.gate.Await(t, "db.session.end", 1)
	if rx, tx := end.Fields["rx"].(int64), end.Fields["tx"].(int64); rx < int64(size) || tx < int64(size) {
		t.Errorf("rx %d, tx %d", rx, tx)
	}
}

func TestA110_CopyAbort(t *testing.T) {
	r := newRig(t)
	setUp := func() *raw {
		conn := r.dialRaw("alice")
		conn.login("user=alice", "database=orders", "application_name="+t.Name())
		conn.sendMessages(&pgproto3.Query{String: "create temp table c (i int)"})
		conn.ready()
		conn.sendMessages(&pgproto3.Query{String: "copy c from stdin"})
		if _, ok := conn.receive().(*pgproto3.CopyInResponse); !ok {
			t.Fatal("no CopyInResponse")
		}
		return conn
	}
	// wantError reads an error and then that the session goes on.
	wantError := func(conn *raw, text string) {
		t.Helper()
		e, ok := conn.receive().(*pgproto3.ErrorResponse)
		if !ok || !strings.Contains(e.Message, text) {
			t.Fatalf("got %+v, want %q", e, text)
		}
		conn.ready()
		conn.sendMessages(&pgproto3.Query{String: "select count(*) from c"})
		for {
			if row, ok := conn.receive().(*pgproto3.DataRow); ok {
				if string(row.Values[0]) != "0" {
					t.Errorf("%s rows", row.Values[0])
				}
				break
			}
		}
		conn.ready()
	}

	t.Run("by the client", func(t *testing.T) {
		conn := setUp()
		conn.sendMessages(&pgproto3.CopyData{Data: []byte("1\n")}, &pgproto3.CopyFail{Message: "changed my mind"})
		wantError(conn, "changed my mind")
	})
	t.Run("by the server", func(t *testing.T) {
		conn := setUp()
		conn.sendMessages(&pgproto3.CopyData{Data: []byte("no number\n")}, &pgproto3.CopyData{Data: []byte("2\n")}, &pgproto3.CopyDone{})
		wantError(conn, "invalid input syntax")
	})
	t.Run("by a query in between", func(t *testing.T) {
		// Copy mode is the server's affair: a Query is recorded whatever it
		// makes of it.
		conn := setUp()
		conn.sendMessages(&pgproto3.CopyData{Data: []byte("1\n")}, &pgproto3.Query{String: "select 'in copy'"})
		if e, ok := conn.receive().(*pgproto3.ErrorResponse); !ok || !strings.Contains(e.Message, "unexpected message type 0x51 during COPY") {
			t.Errorf("%+v", e)
		}
		found := false
		for _, e := range r.gate.All("db.session.query") {
			found = found || e.Fields["db_query"] == "select 'in copy'"
		}
		if !found {
			t.Error("not recorded")
		}
	})
	t.Run("by leaving", func(t *testing.T) {
		conn := setUp()
		conn.send([]byte("d\x00\x00\x10\x00half of it"))
		conn.NetConn().Close()
		until(t, admin(t, theServer(t)), 0, "select count(*) from pg_stat_activity where application_name = $1 and query like 'copy%'", "TestA110_CopyAbort")
	})
}
