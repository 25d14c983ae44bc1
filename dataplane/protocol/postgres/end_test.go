package postgres

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
)

// within fails when f takes so long that a session was cut off and not ended.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	if took := time.Since(began); took > unhurried/2 {
		t.Errorf("%s took %s", what, took)
	}
}

func TestLockWhileIdle(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	within(t, "the lock", func() {
		r.gate.Lock()
		e := conn.fatal()
		if e.Code != stateEnded || e.Severity != "FATAL" || e.Message != "user alice is locked: on leave" || e.Hint != "ask your administrator" {
			t.Errorf("%+v", e)
		}
	})
	conn.Close()
	if err := r.Result(); !errors.Is(err, sallyport.ErrDenied) {
		t.Error(err)
	}
	if e := r.gate.Await(t, "db.session.end", 1); e.Fields["error"] != "user alice is locked: on leave" {
		t.Errorf("%+v", e.Fields)
	}
}

// TestLockStopsTheQuery: what a locked user has started does not go on at the
// server.
func TestLockStopsTheQuery(t *testing.T) {
	r := newRig(t)
	conn, _ := sleeping(t, r, "alice", t.Name())
	within(t, "the lock", func() {
		r.gate.Lock()
		if e := conn.fatal(); e.Code != stateEnded {
			t.Errorf("%+v", e)
		}
	})
	until(t, admin(t, theServer(t)), 0, "select count(*) from pg_stat_activity where application_name = $1", t.Name())
}

// TestLockDuringRows: the error does not land inside of a message.
func TestLockDuringRows(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	conn.sendMessages(&pgproto3.Query{String: "select repeat('x', 30000) from generate_series(1, 1000000)"})
	for range 100 {
		conn.receive()
	}
	r.gate.Lock()
	if e := conn.fatal(); e.Code != stateEnded {
		t.Errorf("%+v", e)
	}
}

// hurried is for clients that do not listen: they are cut off as soon as they are
// by default.
func hurried(r *rig) { r.server.Bounds.Farewell = 0 }

// TestLockWhileTheClientDoesNotRead: it is cut off in time all the same.
func TestLockWhileTheClientDoesNotRead(t *testing.T) {
	r := newRig(t, hurried)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	conn.sendMessages(&pgproto3.Query{String: "select repeat('x', 30000) from generate_series(1, 1000000)"})
	stalled(t, r)
	within(t, "the lock", func() {
		r.gate.Lock()
		r.Result()
	})
}

// stalled waits until the one session sends nothing any more, because its
// client does not read.
func stalled(t *testing.T, r *rig) {
	t.Helper()
	db := admin(t, theServer(t))
	until(t, db, 1, "select count(*) from pg_stat_activity where wait_event = 'ClientWrite' and query like 'select repeat%' and state_change < now() - interval '100 ms'")
}

// TestLockWhileUploading: the client sends and does not listen.
func TestLockWhileUploading(t *testing.T) {
	r := newRig(t, hurried)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	conn.sendMessages(&pgproto3.Query{String: "create temp table up (t text)"})
	conn.ready()
	conn.sendMessages(&pgproto3.Query{String: "copy up from stdin"})
	data := must((&pgproto3.CopyData{Data: bytes.Repeat([]byte("0123456789\n"), 2000)}).Encode(nil))
	stopped := make(chan error)
	go func() {
		for {
			if _, err := conn.Write(data); err != nil {
				stopped <- err
				return
			}
		}
	}()
	for _, ok := conn.receive().(*pgproto3.CopyInResponse); !ok; {
		t.Fatal("no CopyInResponse")
	}
	within(t, "the lock", func() {
		r.gate.Lock()
		r.Result()
	})
	<-stopped
}

func (c *raw) ready() {
	c.t.Helper()
	for {
		if _, ok := c.receive().(*pgproto3.ReadyForQuery); ok {
			return
		}
	}
}

func TestAgentShutsDown(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	r.Stop()
	if e := conn.fatal(); e.Code != stateEnded || e.Hint != "connect again" {
		t.Errorf("%+v", e)
	}
}

// TestIdleTimeout: a session ends when it was idle for so long, and not before. On
// a machine that stands still for a while it may have been idle without wanting to.
func TestIdleTimeout(t *testing.T) {
	const tries = 10
	for range tries {
		if !stoodStill(t) {
			return
		}
	}
	t.Fatalf("the machine stood still %d times", tries)
}

// stoodStill is one try; it reports whether it says nothing.
func stoodStill(t *testing.T) bool {
	t.Helper()
	const limit = time.Second
	r := newRig(t, func(r *rig) { r.gate.Options.ClientIdleTimeout = limit })
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	var e *pgproto3.ErrorResponse
	var asked time.Time
	var longest time.Duration // from asking to asking

	for began := time.Now(); e == nil && time.Since(began) < limit+limit/2; { // longer than the limit, and not idle
		if now := time.Now(); !asked.IsZero() {
			longest = max(longest, now.Sub(asked))
		}
		asked = time.Now()
		conn.sendMessages(&pgproto3.Query{String: "select pg_sleep(0.02)"})
		e = conn.readyOrEnded()
	}
	early := e != nil
	if !early {
		e = conn.fatal()
	}
	took := time.Since(asked)
	if e.Code != stateEnded || e.Message != "the session was idle for 1s" {
		t.Errorf("%+v", e)
	}
	if !early && took < limit {
		t.Errorf("ended %s after the last question", took)
	}
	if early && max(took, longest) < limit/2 {
		t.Errorf("ended though no question was more than %s after another", max(took, longest))
	}
	return early
}

// readyOrEnded reads up to ReadyForQuery, or to an error, which it returns.
func (c *raw) readyOrEnded() *pgproto3.ErrorResponse {
	c.t.Helper()
	for {
		switch m := c.receive().(type) {
		case *pgproto3.ReadyForQuery:
			return nil
		case *pgproto3.ErrorResponse:
			e := *m
			return &e
		}
	}
}

// TestClientGone: however a client goes, the server's side is let go.
func TestClientGone(t *testing.T) {
	for name, leave := range map[string]func(*raw){
		"terminate": func(c *raw) { c.sendMessages(&pgproto3.Terminate{}); c.Close() },
		"close":     func(c *raw) { c.Close() },
		"cut":       func(c *raw) { c.NetConn().Close() }, // no close_notify; crypto/tls takes it for one
		"reset": func(c *raw) {
			c.NetConn().(*net.TCPConn).SetLinger(0)
			c.NetConn().Close()
		},
		"terminate without close": func(c *raw) {
			c.sendMessages(&pgproto3.Terminate{})
			if _, err := c.front.Receive(); !errors.Is(err, io.ErrUnexpectedEOF) {
				c.t.Errorf("after Terminate: %v", err)
			}
			c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			conn := r.dialRaw("alice")
			conn.login("user=alice", "database=orders", "application_name="+t.Name())
			leave(conn)
			err := r.Result()
			if orderly := name != "reset"; orderly != (err == nil) {
				t.Errorf("Serve: %v", err)
			}
			until(t, admin(t, theServer(t)), 0, "select count(*) from pg_stat_activity where application_name = $1", t.Name())
		})
	}
}

// TestClientGoneDuringQuery: Serve does not wait for the query.
func TestClientGoneDuringQuery(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Bounds.Linger = 100 * time.Millisecond })
	conn, _ := sleeping(t, r, "alice", t.Name())
	conn.NetConn().(*net.TCPConn).SetLinger(0)
	conn.NetConn().Close()
	if err := r.Result(); err == nil {
		t.Error("a reset is no error")
	}
	conn, _ = sleeping(t, r, "alice", t.Name()+"2")
	conn.Close() // in order, but in the middle of a query
	if err := r.Result(); err != nil {
		t.Error(err)
	}
	db := admin(t, theServer(t))
	db.Exec(context.Background(), "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'")
}

// TestHalfClose: a client that has ended its half still gets its answer.
func TestHalfClose(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	conn.sendMessages(&pgproto3.Query{String: "select pg_sleep(0.2), 'answer'"})
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for {
		if row, ok := conn.receive().(*pgproto3.DataRow); ok {
			if string(row.Values[1]) != "answer" {
				t.Errorf("%q", row.Values)
			}
			break
		}
	}
	conn.ready()
	if m, err := conn.front.Receive(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%T %v, want the end", m, err)
	}
}

func TestBackendTerminated(t *testing.T) {
	r := newRig(t)
	conn, _ := sleeping(t, r, "alice", t.Name())
	db := admin(t, theServer(t))
	if _, err := db.Exec(context.Background(), "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", t.Name()); err != nil {
		t.Fatal(err)
	}
	// The server's own words, once.
	if e := conn.fatal(); e.Code != "57P01" || e.Message != "terminating connection due to administrator command" {
		t.Errorf("%+v", e)
	}
}

// TestServerKilled: the whole server dies in the middle of a query.
func TestServerKilled(t *testing.T) {
	s := ownServer(t)
	r := newRig(t, func(r *rig) { r.server.Target.Address = s.Addr })
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders", "application_name=x")
	var pid int
	db := admin(t, s)
	if err := db.QueryRow(context.Background(), "select pid from pg_stat_activity where application_name = 'x'").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	conn.sendMessages(&pgproto3.Query{String: "select pg_sleep(60)"})
	until(t, db, 1, sleepers, "x")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e := conn.fatal()
	if e.Code != stateConnectionLost || e.Message != "database orders closed the connection" {
		t.Errorf("%+v", e)
	}
	conn.Close()
	if err := r.Result(); err == nil {
		t.Error("no error")
	}
	if e := r.gate.Await(t, "db.session.end", 1); e.Fields["error"] != "database orders closed the connection" {
		t.Errorf("%+v", e.Fields)
	}
	s.Stop()
	_, err := r.connect("alice")
	if err == nil || !strings.Contains(err.Error(), "database orders is not reachable: connection refused (SQLSTATE 08001)") {
		t.Error(err)
	}
}

// TestDeadlinesAreLifted: the bounds of the set-up do not bind the session.
// A busy machine may need more time for the set-up than the first that is tried.
func TestDeadlinesAreLifted(t *testing.T) {
	var conn *pgx.Conn
	var err error
	bound := time.Second
	for ; ; bound *= 2 {
		r := newRig(t, func(r *rig) { r.server.Bounds.Startup, r.server.Bounds.Connect = bound, bound })
		if conn, err = r.connect("alice"); err == nil {
			break
		}
		if bound > patience/4 {
			t.Fatal(err)
		}
	}
	defer conn.Close(context.Background())
	var n int
	if err := conn.QueryRow(context.Background(), "select 1 from pg_sleep($1)", (bound + 200*time.Millisecond).Seconds()).Scan(&n); err != nil {
		t.Error(err)
	}
	if err := conn.QueryRow(context.Background(), "select 1").Scan(&n); err != nil {
		t.Error(err)
	}
}
