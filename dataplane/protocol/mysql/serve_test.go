package mysql

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	driver "github.com/go-mysql-org/go-mysql/client"
	proto "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

func TestMariaDBClient(t *testing.T) {
	r := newRig(t)
	out, err := r.mariadb("orders", "-e", "select current_user(), database(), 'ü'").CombinedOutput()
	if err != nil || string(out) != "alice@%\torders\tü\n" {
		t.Fatalf("mariadb: %v\n%s", err, out)
	}
	if err := r.Result(); err != nil {
		t.Error(err)
	}
	want := []string{"start TDB00I", "query TDB02I", "end TDB01I"}
	if d := cmp.Diff(want, slicesWithout(r.names(), "query TDB02I", 1)); d != "" {
		t.Error(d)
	}
	all := r.gate.All()
	wantFields := map[string]any{
		"db_service": "orders", "db_protocol": "mysql", "db_uri": r.server.Target.Address, "db_user": "alice", "db_name": "orders",
	}
	if d := cmp.Diff(wantFields, all[0].Fields); d != "" {
		t.Error(d)
	}
	end := all[len(all)-1].Fields
	if rx, tx := end["rx"].(int64), end["tx"].(int64); rx == 0 || tx == 0 || end["error"] != nil {
		t.Errorf("end: %v", end)
	}
}

// slicesWithout leaves most of a word in a list: clients ask for their version
// and the like as they please.
func slicesWithout(list []string, word string, most int) []string {
	var out []string
	for _, s := range list {
		if s == word {
			if most--; most < 0 {
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// TestGreetingIsTheServers: the version, and the thread that Ctrl-C kills.
func TestGreetingIsTheServers(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice")
	res, err := conn.Execute("select version(), connection_id()")
	if err != nil {
		t.Fatal(err)
	}
	version, _ := res.GetString(0, 0)
	id, _ := res.GetInt(0, 1)
	if !strings.Contains(conn.GetServerVersion(), version) || uint32(id) != conn.GetConnectionID() {
		t.Errorf("greeted as %s %d, is %s %d", conn.GetServerVersion(), conn.GetConnectionID(), version, id)
	}
}

// TestControlC: the stock client interrupts a statement by another connection.
func TestControlC(t *testing.T) {
	r := newRig(t)
	cmd := r.mariadb("orders", "-e", "select sleep(60), 'to be killed'")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watcher := r.mustConnect("bob")
	until(t, watcher, 1, "select count(*) from information_schema.processlist where info like '%to be killed%' and state like '%sleep%' and id <> connection_id()")
	began := time.Now()
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if time.Since(began) > 30*time.Second {
		t.Errorf("it was not killed: %s", out.String())
	}
	until(t, watcher, 0, "select count(*) from information_schema.processlist where info like '%to be killed%' and state like '%sleep%' and id <> connection_id()")
	var texts []string
	for _, e := range r.gate.All("db.session.query") {
		texts = append(texts, e.Fields["db_query"].(string))
	}
	if all := strings.Join(texts, "\n"); !strings.Contains(all, "KILL QUERY ") {
		t.Errorf("recorded %s", all)
	}
}

// until asks again and again until a count is as wanted.
func until(t testing.TB, conn *driver.Conn, want int64, query string) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		res, err := conn.Execute(query)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := res.GetInt(0, 0)
		if n == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: still %d, want %d", query, n, want)
		}
	}
}

// TestPlugins: whatever a client would prove itself by is good, since it has
// done so.
func TestPlugins(t *testing.T) {
	r := newRig(t)
	for _, plugin := range []string{"mysql_native_password", "caching_sha2_password", "mysql_clear_password", "client_ed25519", "sha256_password"} {
		for _, password := range []string{"", "secret"} {
			cmd := r.mariadb("--default-auth="+plugin, "--password="+password, "-e", "select 1")
			if out, err := cmd.CombinedOutput(); err != nil || string(out) != "1\n" {
				if strings.Contains(string(out), "cannot be loaded") {
					continue // not in this client's package
				}
				t.Errorf("%s, password %q: %v\n%s", plugin, password, err, out)
			}
		}
	}
}

// TestA110_PluginsByPacket: the exchange as MySQL's own clients have it.
func TestA110_PluginsByPacket(t *testing.T) {
	r := newRig(t)
	for name, row := range map[string]struct {
		plugin, answer string
		change         string // the plugin that is asked for
		more           bool
	}{
		"native":              {"mysql_native_password", "", "", false},
		"caching, no answer":  {"caching_sha2_password", "", "caching_sha2_password", false},
		"caching, empty":      {"caching_sha2_password", "\x00", "caching_sha2_password", false},
		"caching, a password": {"caching_sha2_password", strings.Repeat("x", 32), "caching_sha2_password", true},
		"clear":               {"mysql_clear_password", "", "mysql_native_password", false},
		"unknown":             {"parsec", "", "mysql_native_password", false},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dialRaw()
			c.send(appendPacket(nil, 1, c.answer(rawCaps, "alice\x00\x00orders\x00"+row.plugin+"\x00")))
			next := byte(2)
			if row.change != "" {
				payload, seq := c.receive()
				if payload[0] != 0xfe || seq != next || !strings.HasPrefix(string(payload[1:]), row.change+"\x00") || len(payload) != len(row.change)+23 {
					t.Fatalf("%q %d", payload, seq)
				}
				c.send(appendPacket(nil, next+1, []byte(row.answer)))
				next += 2
			}
			if row.more {
				if payload, seq := c.receive(); string(payload) != "\x01\x03" || seq != next {
					t.Fatalf("%q %d", payload, seq)
				}
				next++
			}
			if payload, seq := c.receive(); payload[0] != 0 || seq != next {
				t.Fatalf("%q %d", payload, seq)
			}
			c.command(proto.COM_QUIT, "")
		})
	}
}

func TestStatements(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice")
	run := func(text string) {
		t.Helper()
		if _, err := conn.Execute(text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	run("create or replace table seen (a int, b blob, c datetime, d double, e bigint unsigned)")
	st, err := conn.Prepare("insert into seen values (?, ?, ?, ?, ?)")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]any{{int64(-7), "text", "2024-02-29 12:00:00", 1.5, uint64(1<<64 - 1)}, {nil, []byte{0xff, 0}, nil, nil, nil}} {
		if _, err := st.Execute(args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if err := conn.UseDB("other"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.FieldList("nowhere", ""); err == nil {
		t.Error("columns of a table that is not there")
	}
	if err := conn.Ping(); err != nil {
		t.Fatal(err)
	}
	prepared := r.gate.All("db.session.mysql.statements.prepare")
	if len(prepared) != 1 || prepared[0].Code != "TMY00I" || prepared[0].Fields["query"] != "insert into seen values (?, ?, ?, ?, ?)" || prepared[0].Fields["statement_number"] != int64(1) {
		t.Errorf("%+v", prepared)
	}
	executed := r.gate.All("db.session.mysql.statements.execute")
	if len(executed) != 2 || executed[0].Code != "TMY01I" {
		t.Fatalf("%+v", executed)
	}
	for i, want := range []map[string]any{
		{"parameters": []string{"-7", "text", "2024-02-29 12:00:00", "1.5", "18446744073709551615"}},
		{"parameters": []string{"", "/wA=", "", "", ""}, "null_parameters": []int64{1, 3, 4, 5}, "base64_parameters": []int64{2}},
	} {
		f := executed[i].Fields
		for k, v := range want {
			if d := cmp.Diff(v, f[k]); d != "" {
				t.Errorf("%d, %s: %s", i, k, d)
			}
		}
		if f["statement_number"] != int64(1) || f["db_user"] != "alice" || f["parameters_raw"] != nil {
			t.Errorf("%v", f)
		}
	}
	for name, code := range map[string]string{"statements.close": "TMY03I", "init_db": "TMY07I", "field_list": "TMY14I"} {
		if got := r.gate.Await(t, "db.session.mysql."+name, 1); got.Code != code {
			t.Errorf("%+v", got)
		}
	}
	if got := r.gate.All("db.session.mysql.init_db"); got[0].Fields["schema_name"] != "other" {
		t.Errorf("%+v", got)
	}
}

// TestManyStatements: results of several statements, of procedures and of
// errors, and what was sent ahead, are told apart.
func TestManyStatements(t *testing.T) {
	r := newRig(t)
	script := `drop procedure if exists two;
delimiter //
create procedure two(out x int) begin select 1; select 2, 3; set x = 4; end//
delimiter ;
call two(@x); select @x; select 5 where false; select nothing from nowhere; select repeat('y', 20000000) is null; do 1; show warnings; select 'end';
`
	cmd := r.mariadb("--force", "--max-allowed-packet=64M", "orders")
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.Output()
	if want := "1\n2\t3\n4\n0\nError\t1146\tTable 'orders.nowhere' doesn't exist\nend\n"; string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
	conn := r.mustConnect("alice", func(c *driver.Conn) error { c.SetCapability(proto.CLIENT_MULTI_STATEMENTS); return nil })
	if res, err := conn.ExecuteMultiple("select 1; select 2; do 3; select 4 from dual where 1=0; select 5", func(*proto.Result, error) {}); err != nil || res == nil {
		t.Error(err)
	}
	if res, err := conn.Execute("select 'after'"); err != nil || string(res.Values[0][0].AsString()) != "after" {
		t.Errorf("%v", err)
	}
	if got := r.gate.All("db.session.query"); got[len(got)-2].Fields["db_query"] != "select 1; select 2; do 3; select 4 from dual where 1=0; select 5" {
		t.Errorf("%v", got[len(got)-2].Fields["db_query"])
	}
}

// TestPipelined: more commands than may wait for answers, sent at once.
func TestPipelined(t *testing.T) {
	r := newRig(t)
	c := r.dialRaw()
	c.login("alice", 0)
	const many = 5 * pendingMost
	ping := appendPacket(nil, 0, []byte{proto.COM_PING})
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(bytes.Repeat(ping, many))
		sent <- err
	}()
	for i := range many {
		if payload, seq := c.receive(); payload[0] != 0 || seq != 1 {
			t.Fatalf("answer %d: %q", i, payload)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// TestLargePackets: a command and a row beyond 16 MiB are of several packets.
func TestLargePackets(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice")
	for _, size := range []int{1<<24 - 1 - len("select length('')") - 1, 1<<24 + 5} {
		text := "select length('" + strings.Repeat("x", size) + "')"
		res, err := conn.Execute(text)
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := res.GetInt(0, 0); n != int64(size) {
			t.Errorf("%d of %d", n, size)
		}
	}
	res, err := conn.Execute("select repeat('y', 17000000), 1 union all select 'z', 2")
	if err != nil || len(res.Values) != 2 || len(res.Values[0][0].AsString()) != 17000000 {
		t.Errorf("rows: %v", err)
	}
}

// TestA111_LocalInfile: a file goes to the server when a statement names it.
func TestA111_LocalInfile(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "it's a \"file\".csv")
	var rows strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&rows, "%d\tline %d\n", i, i)
	}
	if err := os.WriteFile(file, []byte(rows.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	load := "load data /* a comment */ local infile '" + strings.ReplaceAll(file, "'", `\'`) + "' into table files"
	out, err := r.mariadb("--local-infile=1", "orders", "-e", "create or replace table files (a int, b text); "+load+"; select count(*), max(a) from files").CombinedOutput()
	if err != nil || string(out) != "20000\t19999\n" {
		t.Fatalf("%v %s", err, out)
	}
	// A client that does not want to gives an empty file.
	out, err = r.mariadb("--local-infile=0", "orders", "-e", load).CombinedOutput()
	if err == nil {
		t.Errorf("%s", out)
	}
}

func TestDenied(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.gate.Deny = func(use session.Use) *sallyport.Problem {
			if use.DBUser == "alice" {
				return nil
			}
			return sallyport.Denied(fmt.Sprintf("no role lets you use database user %q", use.DBUser), "ask for role dba")
		}
	})
	out, err := r.mariadb("--user=bob", "-e", "select 1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), `ERROR 1045 (28000): no role lets you use database user "bob" (ask for role dba)`) {
		t.Errorf("%v\n%s", err, out)
	}
	if err := r.Result(); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("Serve: %v", err)
	}
	if got := r.gate.All(); len(got) != 1 || got[0].Code != "TDB00W" || *got[0].Success {
		t.Errorf("events %+v", got)
	}
	r.mustConnect("alice")
}

func TestRefusal(t *testing.T) {
	r := newRig(t, func(r *rig) { r.Refusal = sallyport.Denied("your certificate expired at 12:00", "run: sally login") })
	out, err := r.mariadb("-e", "select 1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "your certificate expired at 12:00 (run: sally login)") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestServerRefuses: what the server says to a login, without what is between
// it and the agent.
func TestServerRefuses(t *testing.T) {
	r := newRig(t)
	for user, want := range map[string]string{
		"password": `does not accept user "password"`,
		"modern":   "asks for a password",
	} {
		_, err := r.connect(user, "orders")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "127.0.0.1") || !strings.Contains(err.Error(), "1045") {
			t.Errorf("%s: %v", user, err)
		}
	}
	if _, err := r.connect("alice", "nowhere"); err == nil || !strings.Contains(err.Error(), "1044") && !strings.Contains(err.Error(), "1049") {
		t.Error(err)
	}
	wrong := newRig(t, func(r *rig) {
		r.server.Roots = nil
	})
	if _, err := wrong.connect("alice", "orders"); err == nil || !strings.Contains(err.Error(), "is not trusted") {
		t.Error(err)
	}
	away := newRig(t, func(r *rig) { r.server.Target.Address = "127.0.0.1:1" })
	if _, err := away.connect("alice", "orders"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}

// TestA19_NamesAsTheServerTakesThem: what is authorized is what the server logs
// in, and what it would read otherwise is refused.
func TestA19_NamesAsTheServerTakesThem(t *testing.T) {
	r := newRig(t)
	for _, user := range []string{"ali ce", "jürgen"} {
		conn, err := r.connect(user, "orders")
		if err != nil {
			t.Error(err)
			continue
		}
		if res, err := conn.Execute("select current_user()"); err != nil || string(res.Values[0][0].AsString()) != user+"@%" {
			t.Errorf("%s: %v", user, err)
		}
		conn.Close()
		if err := r.Result(); err != nil {
			t.Error(err)
		}
	}
	before := len(r.gate.All())
	for name, row := range map[string]struct {
		charset byte
		rest    string
	}{
		"quotes":         {45, "'alice'\x00\x00orders\x00mysql_native_password\x00"},
		"a quote":        {45, "alice'\x00\x00orders\x00mysql_native_password\x00"},
		"nobody":         {45, "\x00\x00orders\x00mysql_native_password\x00"},
		"long":           {45, strings.Repeat("a", 65) + "\x00\x00orders\x00mysql_native_password\x00"},
		"not UTF-8":      {45, "al\xffice\x00\x00orders\x00mysql_native_password\x00"},
		"control":        {45, "al\nice\x00\x00orders\x00mysql_native_password\x00"},
		"another set":    {8, "jürgen\x00\x00orders\x00mysql_native_password\x00"},
		"seven bits":     {10, "a[b\x00\x00orders\x00mysql_native_password\x00"},
		"name in it":     {8, "alice\x00\x00örders\x00mysql_native_password\x00"},
		"long name":      {45, "alice\x00\x00" + strings.Repeat("o", 257) + "\x00mysql_native_password\x00"},
		"an old client":  {45, ""},
		"ends early":     {45, "alice\x00\x20"},
		"answer too big": {45, "alice\x00\xfe\xff\xff\xff\xff\xff\xff\xff\xff"},
	} {
		c := r.dialRaw()
		payload := c.answer(rawCaps, row.rest)
		payload[8] = row.charset
		c.send(appendPacket(nil, 1, payload))
		if code, text := c.fatal(); code != 1045 && code != 1043 && code != 1835 {
			t.Errorf("%s: %d %s", name, code, text)
		}
		c.Close()
	}
	if got := r.gate.All(); len(got) != before {
		t.Errorf("asked the gate: %+v", got[before:])
	}
}

// TestAhead: who has no right to the database does not make the server block
// the agent, nor fill it up.
func TestAhead(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.gate.Deny = func(use session.Use) *sallyport.Problem {
			if use.DBUser == "alice" {
				return nil
			}
			return sallyport.Denied("no", "")
		}
	})
	r.mustConnect("alice").Close()
	r.Result()
	for i := range 2 * aheadWasted {
		c := r.dialRaw()
		if alone := c.g.thread == 0; alone != (i >= aheadWasted) {
			t.Errorf("%d: thread %d", i, c.g.thread)
		}
		if !c.g.isMariaDB() {
			t.Errorf("%d: %s", i, c.g.version)
		}
		c.send(appendPacket(nil, 1, c.answer(rawCaps, "bob\x00\x00orders\x00mysql_native_password\x00")))
		c.fatal()
		c.Close()
		r.Result()
	}
	// A login begins a new row.
	r.mustConnect("alice")
	if c := r.dialRaw(); c.g.thread == 0 {
		t.Error("no connection after a login")
	}
	// Not more than a few at a time.
	for range aheadMost {
		r.dialRaw()
	}
	if c := r.dialRaw(); c.g.thread != 0 {
		t.Error("one connection too many")
	}
}

// TestLock: a session that must end is told so, and what it runs is killed.
func TestLock(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice")
	other := newRig(t)
	watcher := other.mustConnect("bob")
	const running = "select count(*) from information_schema.processlist where info like '%lock me%' and state like '%sleep%' and id <> connection_id()"
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Execute("select sleep(60) /* lock me */")
		failed <- err
	}()
	until(t, watcher, 1, running)
	r.gate.Lock()
	select {
	case err := <-failed:
		if err == nil || !strings.Contains(err.Error(), "user alice is locked: on leave") {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("still there")
	}
	until(t, watcher, 0, running)
	conn.Close()
	if err := r.Result(); !errors.Is(err, sallyport.ErrDenied) {
		t.Error(err)
	}
	if e := r.gate.Await(t, "db.session.end", 1); e.Fields["error"] != "user alice is locked: on leave" {
		t.Errorf("%v", e.Fields)
	}
}

// TestLockWithinABatch: what stands behind a result that has begun, in a text of
// several statements or in a procedure, went on after a lock.
func TestLockWithinABatch(t *testing.T) {
	for name, text := range map[string]string{
		"batch":     "select 1; do sleep(600) /* batch me */; insert into batch values (1)",
		"procedure": "call batched()",
	} {
		t.Run(name, func(t *testing.T) {
			r, other := newRig(t), newRig(t)
			conn := other.mustConnect("alice")
			for _, s := range []string{"create or replace table batch(i int)", "drop procedure if exists batched",
				"create procedure batched() begin select 1; do sleep(600) /* batch me */; insert into batch values (1); end"} {
				if _, err := conn.Execute(s); err != nil {
					t.Fatal(err)
				}
			}
			watcher := other.mustConnect("bob")
			const running = "select count(*) from information_schema.processlist where info like '%sleep(600)%' and state like '%sleep%' and id <> connection_id()"
			c := r.dialRaw()
			c.login("alice", proto.CLIENT_MULTI_STATEMENTS|proto.CLIENT_MULTI_RESULTS)
			c.command(proto.COM_QUERY, text)
			c.receive()
			until(t, watcher, 1, running)
			r.gate.Lock()
			if _, text := c.fatal(); !strings.Contains(text, "is locked") {
				t.Error(text)
			}
			until(t, watcher, 0, running)
			c.Close()
			r.Result()
			res, err := conn.Execute("select count(*) from batch")
			if err != nil {
				t.Fatal(err)
			}
			if n, _ := res.GetInt(0, 0); n != 0 {
				t.Error("the rest has run")
			}
		})
	}
}

// TestServerKills: what the server says when it ends a session reaches the client.
func TestServerKills(t *testing.T) {
	r := newRig(t)
	conn := r.mustConnect("alice")
	killer := r.mustConnect("alice")
	if _, err := killer.Execute(fmt.Sprintf("kill %d", conn.GetConnectionID())); err != nil {
		t.Fatal(err)
	}
	if err := r.Result(); err == nil {
		t.Error("no error")
	}
}

func TestIdle(t *testing.T) {
	r := newRig(t, func(r *rig) { r.gate.Options.ClientIdleTimeout = 50 * time.Millisecond })
	c := r.dialRaw()
	c.login("alice", 0)
	if code, text := c.fatal(); code != 1927 || !strings.Contains(text, "was idle for 50ms") {
		t.Errorf("%d %s", code, text)
	}
}

func TestStartupThatNeverEnds(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Bounds.Startup = 50 * time.Millisecond })
	for _, b := range []string{"", "\x20", "\x20\x00\x00\x01\x00"} {
		conn, err := r.Dial(t.Context()) // which need not wait for a greeting: on a busy machine none comes in time
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write([]byte(b)) // an error shows in the result
		if err := r.Result(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: %v", b, err)
		}
	}
}
