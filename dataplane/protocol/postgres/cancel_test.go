package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// TestCancelByPsql is Ctrl-C in psql 15, which sends the request in clear.
func TestCancelByPsql(t *testing.T) {
	r := newRig(t)
	cmd := psql(t, r.psqlString("alice"), "-c", "set application_name = 'ctrl-c'", "-c", "select pg_sleep(60)")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, admin(t, theServer(t)), 1, sleepers, "ctrl-c")
	cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err == nil || !bytes.Contains(out.Bytes(), []byte("canceling statement due to user request")) {
		t.Errorf("psql: %v\n%s", err, &out)
	}
}

// sleeping starts a query that takes a minute and returns the client and its
// key.
func sleeping(t *testing.T, r *rig, who, name string) (*raw, *pgproto3.BackendKeyData) {
	t.Helper()
	conn := r.dialRaw(who)
	key := conn.login("user="+who, "database=orders", "application_name="+name)
	conn.sendMessages(&pgproto3.Query{String: "select pg_sleep(60)"})
	until(t, admin(t, theServer(t)), 1, sleepers, name)
	return conn, key
}

// cancelInTLS sends a CancelRequest as libpq 17 does, and waits for the end of
// the connection, which says that it was passed on, and is one in order: libpq's
// PQcancelPoll fails by any other.
func (r *rig) cancelInTLS(who string, request []byte) {
	r.t.Helper()
	plain, err := net.Dial("tcp", r.Addr)
	if err != nil {
		r.t.Fatal(err)
	}
	defer plain.Close()
	plain.SetDeadline(time.Now().Add(patience))
	plain.Write([]byte{0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f})
	var s [1]byte
	if _, err := io.ReadFull(plain, s[:]); err != nil || s[0] != 'S' {
		r.t.Fatalf("SSLRequest: %q %v", s, err)
	}
	below := &ending{Conn: plain}
	conn := tls.Client(below, r.TLS(who))
	if _, err := conn.Write(request); err != nil {
		r.t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); len(b) > 0 || err != nil || below.seen {
		r.t.Errorf("a cancel request was answered: %q, %v; without close_notify: %v", b, err, below.seen)
	}
}

// ending tells whether TCP has ended before the TLS on it, which crypto/tls does not tell.
type ending struct {
	net.Conn
	seen bool
}

func (e *ending) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	e.seen = e.seen || err == io.EOF
	return n, err
}

func cancelBytes(key *pgproto3.BackendKeyData) []byte {
	return must((&pgproto3.CancelRequest{ProcessID: key.ProcessID, SecretKey: key.SecretKey}).Encode(nil))
}

func (c *raw) wantCancelled() {
	c.t.Helper()
	for {
		if e, ok := c.receive().(*pgproto3.ErrorResponse); ok {
			if e.Code != "57014" {
				c.t.Errorf("%s %s, want query_canceled", e.Code, e.Message)
			}
			return
		}
	}
}

func TestCancelInTLS(t *testing.T) {
	r := newRig(t)
	conn, key := sleeping(t, r, "alice", t.Name())
	if key.ProcessID>>16 != 0x1234 || len(key.SecretKey) != 4 {
		t.Errorf("process id %#x, key of %d bytes", key.ProcessID, len(key.SecretKey))
	}
	r.cancelInTLS("alice", cancelBytes(key))
	conn.wantCancelled()
}

func TestCancelFromGateway(t *testing.T) {
	r := newRig(t)
	conn, key := sleeping(t, r, "alice", t.Name())
	plain, err := net.Dial("tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	plain.Write(cancelBytes(key))
	conn.wantCancelled()
}

// TestA110_CancelOfAnother: a request with the right key does nothing for
// another identity, or a refused one, nor does one with a wrong key; and the
// numbers of the real server are not told.
func TestA110_CancelOfAnother(t *testing.T) {
	r := newRig(t)
	name := t.Name()
	conn, key := sleeping(t, r, "alice", name)
	db := admin(t, theServer(t))

	r.cancelInTLS("bob", cancelBytes(key))
	wrong := *key
	wrong.SecretKey = bytes.Clone(key.SecretKey)
	wrong.SecretKey[3] ^= 1
	r.cancelInTLS("alice", cancelBytes(&wrong))
	r.server.Cancel(wrong.ProcessID, 0)
	other := *key
	other.ProcessID ^= 1 << 16
	r.cancelInTLS("alice", cancelBytes(&other))
	r.server.sessions.mu.Lock()
	l := r.server.sessions.byID[key.ProcessID]
	r.server.sessions.mu.Unlock()
	r.cancelInTLS("alice", cancelBytes(&l.real))
	if l.real.ProcessID == key.ProcessID || bytes.Equal(l.real.SecretKey, key.SecretKey) {
		t.Error("the server's own numbers were told")
	}
	bob := l.sess.Identity
	bob.Name = "bob"
	r.server.CancelFor(bob, key.ProcessID, binary.BigEndian.Uint32(key.SecretKey))
	l.cancels.Wait()
	request := &cancelRequest{pid: key.ProcessID, key: key.SecretKey}
	r.server.cancelAs(t.Context(), &session.Candidate{Identity: l.sess.Identity, Refusal: sallyport.Denied("locked", "")}, request)
	until(t, db, 1, sleepers, name)

	r.cancelInTLS("alice", cancelBytes(key))
	conn.wantCancelled()
}

// TestA110_SameHolder: a name is one holder's within a cluster and a kind.
func TestA110_SameHolder(t *testing.T) {
	alice := sallyport.Identity{Kind: sallyport.KindUser, Cluster: "gw.test", Name: "alice"}
	for what, change := range map[string]func(*sallyport.Identity){
		"":                func(id *sallyport.Identity) { id.Roles, id.Fingerprint = []string{"access"}, "another certificate" },
		"another name":    func(id *sallyport.Identity) { id.Name = "Alice" },
		"another cluster": func(id *sallyport.Identity) { id.Cluster = "other.test" },
		"another kind":    func(id *sallyport.Identity) { id.Kind = sallyport.KindLocalAdmin },
	} {
		id := alice
		change(&id)
		if sameHolder(alice, id) != (what == "") {
			t.Errorf("%s: %v", what, sameHolder(alice, id))
		}
	}
}

func TestA110_CancelMalformed(t *testing.T) {
	r := newRig(t)
	for _, b := range [][]byte{
		{0, 0, 0, 12, 4, 0xd2, 0x16, 0x2e, 0, 0, 0, 1},
		{0, 0, 0, 17, 4, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 1, 0},
	} {
		conn := r.dialRaw("alice")
		conn.send(b)
		if e := conn.fatal(); e.Code != stateProtocol {
			t.Errorf("%+v", e)
		}
	}
}

// TestRegistry fills all process ids of a tag.
func TestRegistry(t *testing.T) {
	var r registry
	seen := map[uint32]bool{}
	var last *live
	for range 1<<16 - 1 {
		last = &live{}
		if !r.add(0xffff, last) {
			t.Fatal("full too early")
		}
		if last.id.pid>>16 != 0xffff || last.id.pid&0xffff == 0 || seen[last.id.pid] {
			t.Fatalf("process id %#x", last.id.pid)
		}
		seen[last.id.pid] = true
	}
	if r.add(0xffff, &live{}) {
		t.Error("not full")
	}
	if !r.add(1, &live{}) {
		t.Error("another tag is full")
	}
	r.remove(last)
	if !r.add(0xffff, &live{}) {
		t.Error("an id was not given back")
	}
}

// TestCancelAtTheEnd lets cancel requests meet sessions that end.
func TestCancelAtTheEnd(t *testing.T) {
	r := newRig(t)
	for range 10 {
		conn := r.mustConnect("alice")
		pid := conn.PgConn().PID()
		key := conn.PgConn().SecretKey()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 5 {
				r.cancelInTLS("alice", cancelBytes(&pgproto3.BackendKeyData{ProcessID: pid, SecretKey: key}))
			}
		}()
		conn.Close(context.Background())
		<-done
	}
}

// TestCancelElsewhere is an upgrade between the session and the request: the new
// process has no such session and passes the request on, with who asks.
func TestCancelElsewhere(t *testing.T) {
	old := newRig(t)
	conn, key := sleeping(t, old, "alice", t.Name())
	asked := make(chan string, 2)
	next := newRig(t, func(r *rig) {
		r.server.CancelElsewhere = func(holder sallyport.Identity, pid, key uint32) {
			old.server.CancelFor(holder, pid, key)
			asked <- holder.Name
		}
	})
	next.cancelInTLS("bob", cancelBytes(key))
	if who := <-asked; who != "bob" {
		t.Errorf("asked for %s", who)
	}
	until(t, admin(t, theServer(t)), 1, sleepers, t.Name())
	next.cancelInTLS("alice", cancelBytes(key))
	conn.wantCancelled()
}
