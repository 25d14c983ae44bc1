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

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
)

// within fails when f takes longer than a session may to end.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	if took := time.Since(began); took > time.Second {
		t.Errorf("%s took %s", what, took)
	}
}

func TestLockWhileIdle(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	within(t, "the lock", func() {
		r.gate.lock()
		e := conn.fatal()
		if e.Code != stateEnded || e.Severity != "FATAL" || e.Message != "user alice is locked: on leave" || e.Hint != "ask your administrator" {
			t.Errorf("%+v", e)
		}
	})
	conn.Close()
	if err := r.result(); !errors.Is(err, sallyport.ErrDenied) {
		t.Error(err)
	}
	if e := r.gate.await(t, "db.session.end", 1); e.Fields["error"] != "user alice is locked: on leave" {
		t.Errorf("%+v", e.Fields)
	}
}

// TestLockStopsTheQuery: what a locked user has started does not go on at the
// server.
func TestLockStopsTheQuery(t *testing.T) {
	r := newRig(t)
	conn, _ := sleeping(t, r, "alice", t.Name())
	within(t, "the lock", func() {
		r.gate.lock()
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
	r.gate.lock()
	if e := conn.fatal(); e.Code != stateEnded {
		t.Errorf("%+v", e)
	}
}

// TestLockWhileTheClientDoesNotRead: it is cut off in time all the same.
func TestLockWhileTheClientDoesNotRead(t *testing.T) {
	r := newRig(t)
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	conn.sendMessages(&pgproto3.Query{String: "select repeat('x', 30000) from generate_series(1, 1000000)"})
	stalled(t, r)
	within(t, "the lock", func() {
		r.gate.lock()
		r.result()
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
	r := newRig(t)
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
		r.gate.lock()
		r.result()
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
	r.stop()
	if e := conn.fatal(); e.Code != stateEnded || e.Hint != "connect again" {
		t.Errorf("%+v", e)
	}
}

func TestIdleTimeout(t *testing.T) {
	r := newRig(t, func(r *rig) { r.gate.options.ClientIdleTimeout = 300 * time.Millisecond })
	conn := r.dialRaw("alice")
	conn.login("user=alice", "database=orders")
	began := time.Now()
	for time.Since(began) < 450*time.Millisecond { // longer than the limit, and not idle
		conn.sendMessages(&pgproto3.Query{String: "select pg_sleep(0.02)"})
		conn.ready()
	}
	quiet := time.Now()
	e := conn.fatal()
	if took := time.Since(quiet); took < 250*time.Millisecond {
		t.Errorf("ended after %s", took)
	}
	if e.Code != stateEnded || e.Message != "the session was idle for 300ms" {
		t.Errorf("%+v", e)
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
			err := r.result()
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
	if err := r.result(); err == nil {
		t.Error("a reset is no error")
	}
	conn, _ = sleeping(t, r, "alice", t.Name()+"2")
	conn.Close() // in order, but in the middle of a query
	if err := r.result(); err != nil {
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
	if err := r.result(); err == nil {
		t.Error("no error")
	}
	if e := r.gate.await(t, "db.session.end", 1); e.Fields["error"] != "database orders closed the connection" {
		t.Errorf("%+v", e.Fields)
	}
	s.Stop()
	_, err := r.connect("alice")
	if err == nil || !strings.Contains(err.Error(), "database orders is not reachable: connection refused (SQLSTATE 08001)") {
		t.Error(err)
	}
}

// TestDeadlinesAreLifted: the bounds of the set-up do not bind the session.
func TestDeadlinesAreLifted(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Bounds.Startup, r.server.Bounds.Connect = time.Second, time.Second })
	conn := r.mustConnect("alice")
	var n int
	if err := conn.QueryRow(context.Background(), "select 1 from pg_sleep(1.2)").Scan(&n); err != nil {
		t.Error(err)
	}
	if err := conn.QueryRow(context.Background(), "select 1").Scan(&n); err != nil {
		t.Error(err)
	}
}
