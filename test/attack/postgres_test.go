package attack

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sallyport/sallyport/tools/peers"
)

// database connects to the demo's database with a holder's certificate, by TLS
// from the first byte.
func (d *demo) database(t testing.TB, h *holder, user string) *pgconn.PgConn {
	t.Helper()
	cfg, err := pgconn.ParseConfig("host=" + d.serverName("db") + " port=1 user=" + user + " dbname=demo sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	cfg.DialFunc = func(context.Context, string, string) (net.Conn, error) { return d.throughDoor(h) }
	ctx, cancel := context.WithTimeout(context.Background(), callWait)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (d *demo) throughDoor(h *holder) (net.Conn, error) {
	return (&tls.Dialer{Config: &tls.Config{ServerName: d.serverName("db"), NextProtos: []string{"postgresql"}, Certificates: []tls.Certificate{h.tls}, InsecureSkipVerify: true}}).Dial("tcp", d.Proxy)
}

func cancelRequest(pid uint32, key []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 16, 4, 210, 22, 46}, pid)
	return append(b, key...)
}

// TestA110_CancelOfAnother: inside TLS the certificate decides whose query may
// be cancelled; in clear the key does, and guessing it is slow.
func TestA110_CancelOfAnother(t *testing.T) {
	d := target(t)
	if d.name("db") == "" {
		peers.Missing(t, "postgres")
	}
	admin := d.admin(t)
	mallory := d.user(t, "mallory", []string{"access"}, map[string][]string{"db_users": {"reader"}, "db_names": {"demo"}})
	d.leavesNothing(t)
	victim, watcher := d.database(t, admin, "reader"), d.database(t, admin, "reader")
	pid, key := victim.PID(), victim.SecretKey()
	ctx, stop := context.WithTimeout(context.Background(), 4*callWait)
	defer stop()
	ask := func(query string) string {
		t.Helper()
		rows, err := watcher.Exec(ctx, query).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		return string(rows[0].Rows[0][0])
	}
	running := func() bool {
		return ask("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like 'select pg_advisory_xact_lock%'") == "1"
	}
	// waits runs a query that waits for the watcher's lock, and says whether it was
	// cancelled. One that is not to be is let go after a time in which a cancellation
	// that has got through would have come.
	waits := func(toBe bool, meanwhile func()) (cancelled bool) {
		t.Helper()
		ask("select pg_advisory_lock(110)")
		done := make(chan error, 1)
		go func() {
			_, err := victim.Exec(ctx, "select pg_advisory_xact_lock(110)").ReadAll()
			done <- err
		}()
		await(t, "the query runs", callWait, running)
		meanwhile()
		var letGo <-chan time.Time
		if !toBe {
			letGo = time.After(3 * time.Second)
		}
		var err error
		select {
		case err = <-done:
			ask("select pg_advisory_unlock(110)")
		case <-letGo:
			ask("select pg_advisory_unlock(110)")
			err = <-done
		}
		if err != nil && !strings.Contains(err.Error(), "57014") {
			t.Errorf("the query: %v", err)
		}
		return err != nil
	}
	send := func(h *holder, b []byte) {
		conn, err := d.throughDoor(h)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.Write(b)
		conn.SetDeadline(time.Now().Add(callWait))
		io.ReadAll(conn)
	}
	wrong := append([]byte(nil), key...)
	wrong[3] ^= 1
	if waits(false, func() { send(mallory, cancelRequest(pid, key)) }) {
		t.Error("another user cancelled the query, inside TLS")
	}
	if waits(false, func() { send(admin, cancelRequest(pid, wrong)) }) {
		t.Error("a wrong key cancelled the query")
	}
	if waits(false, func() {
		for i := range 100 {
			conn := d.dialFrom(t, "127.10.0.1")
			wrong[2] = byte(i) ^ key[2] | 1
			conn.Write(cancelRequest(pid, wrong))
			conn.Close()
		}
	}) {
		t.Error("guessing cancelled the query")
	}
	if !waits(true, func() { send(admin, cancelRequest(pid, key)) }) {
		t.Error("the query's own user could not cancel it")
	}
}

// TestA110_Startup: first messages that are made to confuse, through the
// gateway, by somebody who may log in.
func TestA110_Startup(t *testing.T) {
	d := target(t)
	if d.name("db") == "" {
		peers.Missing(t, "postgres")
	}
	admin := d.admin(t)
	d.leavesNothing(t)
	start := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)
	}
	const v3 = "\x00\x03\x00\x00"
	rows := map[string][]byte{
		"length 0": {0, 0, 0, 0, 0, 3, 0, 0}, "length 1": {0, 0, 0, 1, 0, 3, 0, 0}, "length 2^31": {0x80, 0, 0, 0, 0, 3, 0, 0}, "length 2^32-1": {255, 255, 255, 255, 0, 3, 0, 0},
		"20 KB":          start(v3 + "user\x00reader\x00x\x00" + strings.Repeat("y", 20<<10) + "\x00\x00"),
		"replication":    start(v3 + "user\x00reader\x00database\x00demo\x00replication\x00database\x00\x00"),
		"version 2":      start("\x00\x02\x00\x00user\x00reader\x00\x00"),
		"no end":         start(v3 + "user\x00reader"),
		"two users":      start(v3 + "user\x00reader\x00user\x00postgres\x00database\x00demo\x00\x00"),
		"another user":   start(v3 + "user\x00postgres\x00database\x00demo\x00\x00"),
		"a DSN":          start(v3 + "user\x00reader\x00database\x00demo user=postgres\x00\x00"),
		"options -c":     start(v3 + "user\x00reader\x00database\x00demo\x00options\x00-c session_authorization=postgres\x00\x00"),
		"an empty user":  start(v3 + "user\x00\x00database\x00demo\x00\x00"),
		"a TLS hello":    helloFor(t, d.serverName("db")),
		"SSLRequest":     sslRequest,
		"HTTP":           []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"a long user":    start(v3 + "user\x00" + strings.Repeat("reader", 20) + "\x00database\x00demo\x00\x00"),
		"case":           start(v3 + "user\x00READER\x00database\x00demo\x00\x00"),
		"role by option": start(v3 + "user\x00reader\x00database\x00demo\x00role\x00postgres\x00\x00"),
	}
	for name, b := range rows {
		conn, err := d.throughDoor(admin)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(stage + slack))
		conn.Write(b)
		head := make([]byte, 1)
		_, err = io.ReadFull(conn, head)
		if err == nil && head[0] != 'E' {
			t.Errorf("%s: answered %q, want an error", name, head)
		}
		if err == nil {
			if rest, err := io.ReadAll(io.LimitReader(conn, 1<<20)); err != nil {
				t.Errorf("%s: %v after %d bytes", name, err, len(rest))
			}
		}
		conn.Close()
	}
	// A message that claims 2 GiB must not make room for them.
	before := d.memory(t)
	for range 8 {
		c := d.database(t, admin, "reader")
		c.Conn().Write([]byte{'Q', 0x7f, 0xff, 0xff, 0xff, 'x'})
		c.Conn().SetDeadline(time.Now().Add(stage))
		io.ReadAll(io.LimitReader(c.Conn(), 1<<16))
		c.Conn().Close()
	}
	if grown := d.memory(t) - before; grown > 64<<20 {
		t.Errorf("eight claims of 2 GiB cost %d bytes", grown)
	}
}
